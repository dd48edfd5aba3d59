"""From the JSON of a conversation to `ChatRequest`s: what its fields mean.

It knows nothing of models, queues or answers; the fields that all endpoints share are
`fields.py`'s business.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import msgspec

from llm_server.api.body import Json
from llm_server.api.fields import (
    check_generation,
    check_names,
    chosen_sampling,
    keep_alive_of,
    missing,
    validated,
)
from llm_server.api.parameters import overrides_of
from llm_server.api.wire import (
    MAX_SCHEMA_BYTES,
    CacheOptions,
    ChatBody,
    GenerationFields,
    NamedToolChoice,
    Parts,
    RefusalPart,
    ResponseFormatType,
    SetModelBody,
    WireFunction,
    WireMessage,
    WireResponseFormat,
)
from llm_server.chat.schemas import ignored_words
from llm_server.errors import InvalidRequest, InvalidSchema
from llm_server.models.lease import Overrides
from llm_server.worker.messages import (
    Asked,
    ChatRequest,
    CompletionRequest,
    FunctionCall,
    JsonObject,
    Message,
    ResponseFormat,
    Sampling,
)

R = TypeVar("R", ChatRequest, CompletionRequest)


@dataclass(frozen=True, slots=True)
class Call:
    """A checked request: what to ask which model, and how the answer is wanted.

    `requests` make one answer, prompt by prompt, `n` choices to each. `place` says where a part of
    them stands in the body, for what a worker has against it.
    """

    requests: Sequence[Asked]
    n: int = 1
    model: str | None = None
    overrides: Overrides = field(default_factory=dict)
    stream: bool = False
    include_usage: bool = False
    ignored: list[str] = field(default_factory=list)
    place: Callable[[str], str] = str
    keep_alive_s: float | None = None
    """How long the model stays loaded afterwards; None leaves that as it is."""
    chosen: Collection[str] = ()
    """The fields of `Sampling` that the request sets; the others may be the model's own."""


def chat_call(body: dict[str, Json]) -> Call:
    """The body of a chat request, understood. Raises InvalidRequest."""
    ignored = check_generation(body, ChatBody, {"prompt_cache_options": CacheOptions})
    chat = validated(ChatBody, body)
    ignored += ignored_in_tools([tool.function for tool in chat.tools or []])
    chosen = chosen_sampling(chat)
    request = _chat_request(chat, Sampling(**chosen))
    n = chat.n or 1
    call = call_of(chat, choices(request, n), ignored=ignored, chosen=chosen.keys(), n=n)
    prewarm = chat.prompt_cache_options is not None and chat.prompt_cache_options.prewarm
    return warming(call) if prewarm or request.sampling.max_tokens == 0 else call


def call_of(body: GenerationFields, requests: Sequence[Asked], **more: Any) -> Call:
    """A call of what all bodies of requests that generate say; `more` are fields of it."""
    return Call(
        requests,
        model=body.model,
        overrides=overrides_of(body.load_model_configs),
        keep_alive_s=keep_alive_of(body.keep_alive),
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        **more,
    )


def warming(call: Call) -> Call:
    """The same request, of which the prompt is computed and stored, and nothing generated."""
    request = call.requests[0]
    assert isinstance(request, ChatRequest)
    sampling = msgspec.structs.replace(request.sampling, max_tokens=0)
    request = msgspec.structs.replace(request, sampling=sampling, persist=True)
    return replace(call, requests=[request], n=1, chosen={*call.chosen, "max_tokens"})


def choices(request: R, n: int) -> list[R]:
    """`n` requests for as many choices: the same but for their seeds, one up each if one is set."""
    sampling, seed = request.sampling, request.sampling.seed
    if seed is None:
        return [request] * n
    seeds = [(seed + i) & 0xFFFFFFFF for i in range(n)]
    samplings = [msgspec.structs.replace(sampling, seed=seed) for seed in seeds]
    return [msgspec.structs.replace(request, sampling=sampling) for sampling in samplings]


def restore_call(body: dict[str, Json]) -> Call:
    """The body of `POST /restore_cache`: a chat request of which only the prompt is computed."""
    return warming(
        chat_call({k: v for k, v in body.items() if k not in ("stream", "stream_options")})
    )


def set_model_call(body: dict[str, Json]) -> Call:
    """The body of `POST /setModel`, which asks nothing. Raises InvalidRequest."""
    ignored = check_names(body, SetModelBody)
    wanted = validated(SetModelBody, body)
    return Call(
        (),
        model=wanted.model_name,
        overrides=overrides_of(wanted.load_model_configs),
        ignored=ignored,
        keep_alive_s=keep_alive_of(wanted.keep_alive),
    )


def _chat_request(chat: ChatBody, sampling: Sampling) -> ChatRequest:
    if chat.logprobs:
        sampling = msgspec.structs.replace(sampling, top_logprobs=chat.top_logprobs or 0)
    elif chat.top_logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true.", param="top_logprobs")
    return ChatRequest(
        messages=_messages(chat.messages),
        tools=tool_objects([tool.function for tool in chat.tools or []], "tools[{}].function"),
        sampling=sampling,
        template_kwargs=_template_kwargs(chat),
        parallel_tool_calls=chat.parallel_tool_calls is not False,
        response_format=_response_format(chat.response_format),
        reasoning_budget=_reasoning_budget(chat),
        **_tool_choice(chat),
    )


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
    thought = wire.reasoning if wire.reasoning_content is None else wire.reasoning_content
    calls = wire.tool_calls or []
    if calls and wire.role != "assistant":
        raise InvalidRequest("Only the assistant calls tools.", param=f"{path}.tool_calls")
    if content is None and not calls and thought is None:
        raise InvalidRequest("The message has no content.", param=f"{path}.content")
    if wire.role == "tool":
        if wire.tool_call_id is None:
            raise missing(f"{path}.tool_call_id")
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
            FunctionCall(call.id, call.function.name, arguments_text(call.function.arguments))
            for call in calls
        ],
        tool_call_id=wire.tool_call_id,
        reasoning_content=thought,
    )


def _text(wire: WireMessage) -> str | None:
    content = joined(wire.content) if isinstance(wire.content, list) else wire.content
    return content or wire.refusal or content


def joined(parts: Parts) -> str:
    """The text of a message's parts, which are of their own: files, results."""
    return "\n".join(p.refusal if isinstance(p, RefusalPart) else p.text for p in parts)


def arguments_text(arguments: str | dict[str, Any]) -> str:
    """The arguments of a call as JSON text."""
    if isinstance(arguments, str):
        return arguments
    return json.dumps(arguments, ensure_ascii=False)


def tool_objects(
    functions: Sequence[WireFunction], path: str, schema: str = "parameters"
) -> list[JsonObject]:
    """OpenAI's tool objects; `path` with the index in it is where a function stood, its parameters
    by the name of `schema`."""
    seen: set[str] = set()
    for i, function in enumerate(functions):
        if function.name in seen:
            message = "Two tools have the same name."
            raise InvalidRequest(message, param=f"{path.format(i)}.name")
        seen.add(function.name)
        _check_parameters(function.parameters, f"{path.format(i)}.{schema}")
    # Members in one order whoever wrote them, so that equal tools make equal prompts.
    return [
        {"type": "function", "function": function.model_dump(exclude_none=True, exclude={"type"})}
        for function in functions
    ]


def ignored_in_tools(functions: Sequence[WireFunction]) -> list[str]:
    """The words of tools' schemas that nothing enforces; a strict tool is refused for them."""
    return [
        f"tools.{i}.{word}"
        for i, function in enumerate(functions)
        if not function.strict
        for word in ignored_words(function.parameters)
    ]


def _tool_choice(chat: ChatBody) -> dict[str, Any]:
    """The fields of `ChatRequest` that say whether, and which, tool is called."""
    choice = chat.tool_choice
    if isinstance(choice, NamedToolChoice):
        return {"tool_choice": "required", "tool_name": choice.function.name}
    return {"tool_choice": choice or "auto"}


def _response_format(wire: WireResponseFormat | None) -> ResponseFormat:
    if wire is None:
        return ResponseFormat()
    if wire.type == "json_object" and wire.schema_ is not None:
        return response_format("json_schema", wire.schema_, "response_format.schema")
    if wire.json_schema is None:
        return response_format(wire.type, None, "response_format.json_schema")
    param = "response_format.json_schema.schema"
    return response_format(wire.type, wire.json_schema.schema_, param)


def response_format(
    type: ResponseFormatType, schema: JsonObject | None, param: str
) -> ResponseFormat:
    """What the text must be; `param` is where the schema stands. Raises InvalidRequest."""
    if type != "json_schema":
        return ResponseFormat(type)
    if schema is None:
        raise missing(param)
    _check_schema(schema, param)
    return ResponseFormat("json_schema", schema, param)


def _check_parameters(schema: JsonObject | None, param: str) -> None:
    """Refuse what is no object's schema: arguments have names. Raises InvalidSchema."""
    kinds = (schema or {}).get("type", "object")
    if kinds != "object" and not (isinstance(kinds, list) and "object" in kinds):
        message = 'A tool\'s parameters are a schema of "type": "object".'
        raise InvalidSchema(message, param)
    _check_schema(schema, param)


def _check_schema(schema: JsonObject | None, param: str) -> None:
    """Bound the work of whoever compiles it. Raises InvalidSchema."""
    if len(msgspec.json.encode(schema)) > MAX_SCHEMA_BYTES:
        message = f"The schema is longer than {MAX_SCHEMA_BYTES} bytes."
        raise InvalidSchema(message, param)


def _reasoning_budget(chat: ChatBody) -> int | None:
    """Effort "none" is no thought at all, in whatever way the model could be talked out of one."""
    if chat.reasoning_budget is None:
        return 0 if chat.reasoning_effort == "none" else None
    return None if chat.reasoning_budget == -1 else chat.reasoning_budget


def _template_kwargs(chat: ChatBody) -> dict[str, str | int | float | bool]:
    kwargs: dict[str, str | int | float | bool] = {}
    if chat.reasoning_effort is not None:
        kwargs["reasoning_effort"] = chat.reasoning_effort
    if chat.chat_template_kwargs is not None:
        kwargs |= chat.chat_template_kwargs.model_dump(exclude_none=True)
    return kwargs
