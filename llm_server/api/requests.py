"""From a client's JSON to one `ChatRequest`: which fields count, and what they mean.

This is where OpenAI's and llama.cpp's names for the same thing meet. It knows nothing of models,
queues or answers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import msgspec
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from llm_server.api.body import Json, printable
from llm_server.api.wire import (
    HARMLESS,
    MAX_SCHEMA_BYTES,
    MAX_STOP_BYTES,
    NO_EFFECT,
    REFUSED,
    CacheOptions,
    ChatBody,
    LoadFields,
    NamedToolChoice,
    SamplingFields,
    SetModelBody,
    Wire,
    WireMessage,
    WireResponseFormat,
    WireTool,
)
from llm_server.errors import InvalidRequest, UnsupportedParameter
from llm_server.models.lease import Overrides
from llm_server.worker.messages import (
    ChatRequest,
    FunctionCall,
    JsonObject,
    Message,
    ResponseFormat,
    Sampling,
)

W = TypeVar("W", bound=Wire)


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A checked chat request: what to ask which model, and how the answer is wanted."""

    request: ChatRequest
    model: str | None = None
    overrides: Overrides = field(default_factory=dict)
    stream: bool = False
    include_usage: bool = False
    ignored: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SetModelCall:
    """A checked `POST /setModel`."""

    model: str
    overrides: Overrides
    ignored: list[str]


def chat_call(body: dict[str, Json]) -> ChatCall:
    """The body of a chat request, understood. Raises InvalidRequest."""
    ignored = _check_names(body, ChatBody)
    configs = body.get("inference_configs")
    if isinstance(configs, dict):
        ignored += _check_names(configs, SamplingFields, "inference_configs.")
    options = body.get("prompt_cache_options")
    if isinstance(options, dict):
        ignored += _check_names(options, CacheOptions, "prompt_cache_options.")
    chat = _validated(ChatBody, body)
    if chat.stream_options is not None and not chat.stream:
        raise InvalidRequest("stream_options needs stream: true.", param="stream_options")
    call = ChatCall(
        request=ChatRequest(
            messages=_messages(chat.messages),
            tools=_tools(chat.tools or []),
            sampling=_sampling(chat),
            template_kwargs=_template_kwargs(chat),
            parallel_tool_calls=chat.parallel_tool_calls is not False,
            response_format=_response_format(chat.response_format),
            reasoning_budget=None if chat.reasoning_budget == -1 else chat.reasoning_budget,
            **_tool_choice(chat),
        ),
        model=chat.model,
        overrides=_overrides(chat.load_model_configs),
        stream=bool(chat.stream),
        include_usage=bool(chat.stream_options and chat.stream_options.include_usage),
        ignored=ignored,
    )
    prewarm = chat.prompt_cache_options is not None and chat.prompt_cache_options.prewarm
    return _warming(call) if prewarm or call.request.sampling.max_tokens == 0 else call


def _warming(call: ChatCall) -> ChatCall:
    """The same request, of which the prompt is computed and stored, and nothing generated."""
    sampling = msgspec.structs.replace(call.request.sampling, max_tokens=0)
    request = msgspec.structs.replace(call.request, sampling=sampling, persist=True)
    return replace(call, request=request)


def restore_call(body: dict[str, Json]) -> ChatCall:
    """The body of `POST /restore_cache`: a chat request of which only the prompt is computed."""
    return _warming(
        chat_call({k: v for k, v in body.items() if k not in ("stream", "stream_options")})
    )


def set_model_call(body: dict[str, Json]) -> SetModelCall:
    """The body of `POST /setModel`, understood. Raises InvalidRequest."""
    ignored = _check_names(body, SetModelBody)
    wanted = _validated(SetModelBody, body)
    return SetModelCall(wanted.model_name, _overrides(wanted.load_model_configs), ignored)


# ---- names and types ---------------------------------------------------------------------------


def _check_names(body: dict[str, Json], model: type[Wire], prefix: str = "") -> list[str]:
    """The unknown fields of `body`. Raises UnsupportedParameter for those we must not ignore."""
    ignored = []
    for name, value in body.items():
        if name in model.model_fields or name in HARMLESS or value is None:
            continue
        if name in REFUSED or (name in NO_EFFECT and value not in NO_EFFECT[name]):
            raise UnsupportedParameter(
                f"The parameter '{name}' is not supported with this value."
                if name in NO_EFFECT
                else f"The parameter '{name}' is not supported.",
                param=prefix + name,
            )
        if name not in NO_EFFECT:
            ignored.append(prefix + name)
    return ignored


def _validated(model: type[W], body: dict[str, Json]) -> W:
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise _invalid(error.errors(include_url=False, include_context=False)[0]) from None


def _invalid(error: ErrorDetails) -> InvalidRequest:
    """A pydantic error in our words. The client's own input is never repeated."""
    param = _param(error["loc"])
    kind = error["type"]
    if kind == "missing":
        message = f"Missing required parameter: '{param}'."
        return InvalidRequest(message, param=param, code="missing_required_parameter")
    if kind == "extra_forbidden":
        return UnsupportedParameter("This parameter is not supported.", param=param)
    wrong_type = kind.endswith("_type") or (
        kind == "literal_error" and not isinstance(error["input"], str)
    )
    code = "invalid_type" if wrong_type else "invalid_value"
    message = error["msg"]
    if message.startswith("Input "):
        return InvalidRequest(f"'{param}' {message[6:]}.", param=param, code=code)
    return InvalidRequest(f"'{param}': {message[0].lower()}{message[1:]}.", param=param, code=code)


def _param(location: tuple[int | str, ...]) -> str:
    """A location as clients write it: messages[0].content."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not step.startswith(("(", "[")):  # A tag of one of our unions, or "[key]".
            path += f".{step}" if path else step
    return printable(path)


# ---- meanings ----------------------------------------------------------------------------------


def _messages(wire: list[WireMessage]) -> list[Message]:
    called: set[str] = set()
    messages = []
    for i, message in enumerate(wire):
        messages.append(_message(message, f"messages[{i}]", called))
        called.update(call.id for call in messages[-1].tool_calls)
    return messages


def _message(wire: WireMessage, path: str, called: set[str]) -> Message:
    """One message; `called` are the ids of all tool calls before it."""
    content = _text(wire)
    calls = wire.tool_calls or []
    if calls and wire.role != "assistant":
        raise InvalidRequest("Only the assistant calls tools.", param=f"{path}.tool_calls")
    if content is None and not calls and wire.reasoning_content is None:
        raise InvalidRequest("The message has no content.", param=f"{path}.content")
    if wire.role == "tool":
        if wire.tool_call_id is None:
            raise InvalidRequest(
                f"Missing required parameter: '{path}.tool_call_id'.",
                param=f"{path}.tool_call_id",
                code="missing_required_parameter",
            )
        if wire.tool_call_id not in called:
            raise InvalidRequest(
                "No earlier assistant message holds a tool call with this id.",
                param=f"{path}.tool_call_id",
            )
    return Message(
        role="system" if wire.role == "developer" else wire.role,
        content=content,
        name=wire.name,
        tool_calls=[
            FunctionCall(call.id, call.function.name, _arguments(call.function.arguments))
            for call in calls
        ],
        tool_call_id=wire.tool_call_id,
        reasoning_content=wire.reasoning_content,
    )


def _text(wire: WireMessage) -> str | None:
    if isinstance(wire.content, list):
        return "".join(part.text for part in wire.content)
    return wire.content


def _arguments(arguments: str | dict[str, Any]) -> str:
    if isinstance(arguments, str):
        return arguments
    return json.dumps(arguments, ensure_ascii=False)


def _tools(wire: list[WireTool]) -> list[JsonObject]:
    seen: set[str] = set()
    for i, tool in enumerate(wire):
        if tool.function.name in seen:
            raise InvalidRequest("Two tools have the same name.", param=f"tools[{i}].function.name")
        seen.add(tool.function.name)
        _check_schema(tool.function.parameters, f"tools[{i}].function.parameters")
    # Members in one order whoever wrote them, so that equal tools make equal prompts.
    return [tool.model_dump(exclude_none=True) for tool in wire]


def _tool_choice(chat: ChatBody) -> dict[str, Any]:
    """The fields of `ChatRequest` that say whether, and which, tool is called."""
    choice = chat.tool_choice
    if isinstance(choice, NamedToolChoice):
        return {"tool_choice": "required", "tool_name": choice.function.name}
    return {"tool_choice": choice or "auto"}


def _response_format(wire: WireResponseFormat | None) -> ResponseFormat:
    if wire is None:
        return ResponseFormat()
    if wire.type != "json_schema":
        return ResponseFormat(wire.type)
    param = "response_format.json_schema"
    if wire.json_schema is None:
        message = f"Missing required parameter: '{param}'."
        raise InvalidRequest(message, param=param, code="missing_required_parameter")
    schema = wire.json_schema.schema_
    _check_schema(schema, param)
    return ResponseFormat("json_schema", schema, f"{param}.schema")


def _check_schema(schema: JsonObject | None, param: str) -> None:
    """Bound the work of whoever compiles it. Raises InvalidRequest."""
    if len(msgspec.json.encode(schema)) > MAX_SCHEMA_BYTES:
        message = f"The schema is longer than {MAX_SCHEMA_BYTES} bytes."
        raise InvalidRequest(message, param=param, code="invalid_json_schema")


def _sampling(chat: ChatBody) -> Sampling:
    """Top level over `inference_configs` over the defaults; an unset field is None in both."""
    chosen = _set_fields(chat.inference_configs) if chat.inference_configs else {}
    chosen |= _set_fields(chat)
    if isinstance(stop := chosen.get("stop"), str):
        chosen["stop"] = [stop]
    for text in chosen.get("stop", []):
        if len(text.encode()) > MAX_STOP_BYTES:
            message = f"A stop string is longer than {MAX_STOP_BYTES} bytes."
            raise InvalidRequest(message, param="stop")
    if (seed := chosen.get("seed")) is not None:
        # -1 is llama.cpp's "draw one"; it takes 32 bits, and OpenAI's clients may send 64.
        chosen["seed"] = None if seed == -1 else seed & 0xFFFFFFFF
    if "logit_bias" in chosen:
        chosen["logit_bias"] = {int(token): bias for token, bias in chosen["logit_bias"].items()}
    return Sampling(**chosen)


def _set_fields(fields: SamplingFields) -> dict[str, Any]:
    """The fields that are set, under one name each."""
    given = {
        name: value
        for name in SamplingFields.model_fields
        if (value := getattr(fields, name)) is not None
    }
    for other, name in (
        ("max_completion_tokens", "max_tokens"),
        ("repetition_penalty", "repeat_penalty"),
    ):
        if other in given:
            given[name] = given.pop(other)
    return given


def _template_kwargs(chat: ChatBody) -> dict[str, str | int | float | bool]:
    kwargs: dict[str, str | int | float | bool] = {}
    if chat.reasoning_effort is not None:
        kwargs["reasoning_effort"] = chat.reasoning_effort
    if chat.chat_template_kwargs is not None:
        kwargs |= chat.chat_template_kwargs.model_dump(exclude_none=True)
    return kwargs


def _overrides(fields: LoadFields | None) -> Overrides:
    return fields.model_dump(exclude_none=True) if fields is not None else {}
