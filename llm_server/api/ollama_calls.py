"""From the bodies of Ollama's API to calls: its messages become chat's.

Its older clients know no ids of calls, and its `options` name what `Sampling` has.
"""

from __future__ import annotations

from typing import Any

from llm_server.api.body import Json
from llm_server.api.fields import check_names, keep_alive_of, validated
from llm_server.api.ollama_wire import (
    Format,
    GenerateBody,
    GenerationBody,
    OllamaChatBody,
    OllamaEmbedBody,
    OllamaEmbeddingsBody,
    OllamaMessage,
    Options,
    Think,
)
from llm_server.api.parameters import sampling_fields
from llm_server.api.requests import (
    Call,
    arguments_text,
    ignored_in_tools,
    response_format,
    tool_objects,
    warming,
)
from llm_server.api.wire import KeepAlive
from llm_server.errors import InvalidRequest, UnsupportedParameter
from llm_server.worker.messages import (
    ChatRequest,
    CompletionRequest,
    Embed,
    FunctionCall,
    Message,
    ResponseFormat,
    Sampling,
)


def chat_call(body: dict[str, Json]) -> Call:
    """The body of `/api/chat`, understood; without messages a call that asks nothing.

    Raises InvalidRequest.
    """
    ignored = _check(body, OllamaChatBody)
    asked = validated(OllamaChatBody, body)
    functions = [tool.function for tool in asked.tools or []]
    if not asked.messages:
        return _call(asked, None, {}, ignored)
    chosen = _sampling(asked)
    request = ChatRequest(
        messages=_messages(asked.messages),
        tools=tool_objects(functions, "tools[{}].function"),
        sampling=Sampling(**chosen),
        **_manner(asked),
    )
    return _call(asked, request, chosen, ignored + ignored_in_tools(functions))


def generate_call(body: dict[str, Json]) -> Call:
    """The body of `/api/generate`, understood; without a prompt a call that asks nothing.

    Raises InvalidRequest.
    """
    ignored = _check(body, GenerateBody)
    asked = validated(GenerateBody, body)
    for name in ("images", "template", "context"):
        if getattr(asked, name):
            message = f"The parameter '{name}' is not supported."
            raise UnsupportedParameter(message, param=name)
    if not asked.prompt:
        return _call(asked, None, {}, ignored)
    chosen = _sampling(asked)
    if asked.raw or asked.suffix:
        if asked.format:
            message = "A text that goes on (raw, suffix) cannot be held to a format."
            raise UnsupportedParameter(message, param="format")
        ignored += [name for name in ("system", "think") if getattr(asked, name)]
        continued = CompletionRequest(
            asked.prompt, asked.suffix or None, sampling=Sampling(**chosen)
        )
        return _call(asked, continued, chosen, ignored)
    messages = [Message("system", asked.system)] if asked.system else []
    messages.append(Message("user", asked.prompt))
    request = ChatRequest(messages, sampling=Sampling(**chosen), **_manner(asked))
    return _call(asked, request, chosen, ignored)


def embed_call(body: dict[str, Json]) -> Call:
    """The body of `/api/embed`, understood. Raises InvalidRequest."""
    ignored = check_names(body, OllamaEmbedBody)
    asked = validated(OllamaEmbedBody, body)
    inputs = [asked.input] if isinstance(asked.input, str) else [*asked.input]
    return _embedding(asked.model, Embed([*inputs], asked.dimensions), asked.keep_alive, ignored)


def embeddings_call(body: dict[str, Json]) -> Call:
    """The body of `/api/embeddings`, understood. Raises InvalidRequest."""
    ignored = check_names(
        {name: value for name, value in body.items() if name != "prompt"}, OllamaEmbeddingsBody
    )
    asked = validated(OllamaEmbeddingsBody, body)
    return _embedding(asked.model, Embed([asked.prompt]), asked.keep_alive, ignored)


def _embedding(
    model: str | None, request: Embed, keep_alive: KeepAlive | None, ignored: list[str]
) -> Call:
    return Call([request], model=model, ignored=ignored, keep_alive_s=_keep_alive(keep_alive))


def _call(
    asked: GenerationBody,
    request: ChatRequest | CompletionRequest | None,
    chosen: dict[str, Any],
    ignored: list[str],
) -> Call:
    call = Call(
        [] if request is None else [request],
        model=asked.model,
        stream=asked.stream is not False,
        ignored=ignored,
        keep_alive_s=_keep_alive(asked.keep_alive),
        chosen=chosen.keys(),
    )
    warms = isinstance(request, ChatRequest) and request.sampling.max_tokens == 0
    return warming(call) if warms else call


def _keep_alive(told: KeepAlive | None) -> float | None:
    """Ollama's times may be less than nothing in any unit, which is for ever."""
    return keep_alive_of(-1 if isinstance(told, str) and told.startswith("-") else told)


def _check(body: dict[str, Json], model: type[GenerationBody]) -> list[str]:
    options = body.get("options")
    inner = check_names(options, Options, "options.") if isinstance(options, dict) else []
    return check_names(body, model) + inner


def _sampling(asked: GenerationBody) -> dict[str, Any]:
    """The fields of `Sampling` that a request sets."""
    options = asked.options or Options()
    chosen = sampling_fields(options)
    if options.num_predict is not None:
        chosen["max_tokens"] = None if options.num_predict < 0 else options.num_predict
    if asked.logprobs:
        chosen["top_logprobs"] = asked.top_logprobs or 0
    return chosen


def _manner(asked: GenerationBody) -> dict[str, Any]:
    """The fields of `ChatRequest` for what an answer is to be like."""
    return {
        "response_format": _format(asked.format),
        "reasoning_budget": 0 if asked.think is False else None,
        "template_kwargs": _template_kwargs(asked.think),
    }


def _format(told: Format | None) -> ResponseFormat:
    if isinstance(told, dict):
        return response_format("json_schema", told, "format")
    return ResponseFormat("json_object") if told else ResponseFormat()


def _template_kwargs(think: Think | None) -> dict[str, str | int | float | bool]:
    """What templates call it when a model is to think: it may not by itself."""
    if isinstance(think, str):
        return {"reasoning_effort": think}
    return {"enable_thinking": True, "thinking": True} if think else {}


def _messages(wire: list[OllamaMessage]) -> list[Message]:
    messages: list[Message] = []
    unanswered: list[FunctionCall] = []
    n_calls = 0
    for i, message in enumerate(wire):
        place = f"messages[{i}]"
        if message.images:
            told = "Images are not supported."
            raise UnsupportedParameter(told, param=f"{place}.images")
        if message.tool_calls and message.role != "assistant":
            raise InvalidRequest("Only the assistant calls tools.", param=f"{place}.tool_calls")
        calls = _calls(message, n_calls)
        n_calls += len(calls)
        of_tool = message.role == "tool"
        messages.append(
            Message(
                message.role,
                message.content or (None if calls else ""),
                tool_calls=calls,
                tool_call_id=_answered(message, unanswered, place) if of_tool else None,
                reasoning_content=message.thinking or None,
            )
        )
        unanswered += calls
    return messages


def _calls(message: OllamaMessage, n_before: int) -> list[FunctionCall]:
    """The calls of a message, numbered through the conversation where they have no ids."""
    return [
        FunctionCall(
            call.id or f"call_{i}",
            call.function.name,
            arguments_text(call.function.arguments or {}),
        )
        for i, call in enumerate(message.tool_calls or [], n_before)
    ]


def _answered(message: OllamaMessage, unanswered: list[FunctionCall], place: str) -> str:
    """The id of the call that a result belongs to, which is answered by it."""
    of_id = [call for call in unanswered if call.id == message.tool_call_id]
    of_name = [call for call in unanswered if call.name == message.tool_name]
    found = next(iter([*of_id, *of_name, *unanswered]), None)
    if found is None:
        told = "No earlier assistant message holds a tool call that this could be the result of."
        raise InvalidRequest(told, param=f"{place}.role")
    unanswered.remove(found)
    return found.id
