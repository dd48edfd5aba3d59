"""OpenAI's Responses API, without state: `POST /responses`, from its JSON to a `ChatRequest`.

Its items become messages, and chat's code does the rest. What comes out is the business of
`response_events.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llm_server.api import sse
from llm_server.api.body import Json
from llm_server.api.context import answer, read_call
from llm_server.api.fields import (
    check_generation,
    chosen_sampling,
    validated,
)
from llm_server.api.parameters import Wire
from llm_server.api.requests import (
    Call,
    call_of,
    ignored_in_tools,
    joined,
    response_format,
    tool_objects,
    warming,
)
from llm_server.api.response_events import ResponseEvents, new_id
from llm_server.api.response_json import ResponseOut, StreamEvent
from llm_server.api.response_wire import (
    CallItem,
    FlatToolChoice,
    MessageItem,
    OutputItem,
    ReasoningItem,
    ReasoningOptions,
    ResponsesBody,
    TextOptions,
)
from llm_server.api.schema import operation
from llm_server.api.usage import Origin
from llm_server.api.wire import CacheOptions, Parts
from llm_server.errors import InvalidRequest, UnsupportedParameter
from llm_server.worker.messages import (
    ChatRequest,
    FunctionCall,
    JsonObject,
    Message,
    ResponseFormat,
    Sampling,
)

router = APIRouter()

EXAMPLE = {"input": "Where do I put my models?", "temperature": 0}

_PARTS: dict[str, type[Wire]] = {
    "text": TextOptions,
    "reasoning": ReasoningOptions,
    "prompt_cache_options": CacheOptions,
}


@router.post(
    "/responses",
    openapi_extra=operation(ResponseOut, body=ResponsesBody, example=EXAMPLE, chunk=StreamEvent),
)
async def responses(request: Request) -> Response:
    """Answer a list of items with a list of items. Nothing is stored: all of it is in `input`."""
    asked = await read_call(request, responses_call)
    make_events = partial(ResponseEvents, start=asked.start, warming=asked.warming)
    return answer(request, asked.call, make_events, make_events, sse.NAMED)


@dataclass(frozen=True, slots=True)
class ResponsesCall:
    """A checked request, what its response repeats of it, and whether only its prompt counts."""

    call: Call
    echo: dict[str, Any]
    warming: bool

    def start(self, origin: Origin) -> ResponseOut:
        """The response before its first event."""
        return ResponseOut(
            id=new_id("resp"),
            created_at=origin.created,
            model=origin.model,
            temperature=origin.sampling.temperature,
            top_p=origin.sampling.top_p,
            max_output_tokens=None if self.warming else origin.sampling.max_tokens,
            **self.echo,
        )


def responses_call(body: dict[str, Json]) -> ResponsesCall:
    """The body of a request, understood. Raises InvalidRequest."""
    ignored = check_generation(body, ResponsesBody, _PARTS)
    _refuse_built_in(body)
    asked = validated(ResponsesBody, body)
    if asked.n not in (None, 1):
        raise UnsupportedParameter("A response has one answer.", param="n")
    if asked.include and "message.output_text.logprobs" in asked.include:
        raise UnsupportedParameter("Log probabilities are not supported here.", param="include")
    ignored += ignored_in_tools(asked.tools or [])
    chosen = chosen_sampling(asked)
    if asked.max_output_tokens is not None:
        limit = asked.max_output_tokens
        chosen["max_tokens"] = None if limit == -1 else limit
    request = _chat_request(asked, Sampling(**chosen))
    call = call_of(asked, [request], ignored=ignored, chosen=chosen.keys(), place=_place)
    options = asked.prompt_cache_options or CacheOptions()
    prompt_alone = bool(options.prewarm) or request.sampling.max_tokens == 0
    if prompt_alone:
        call = warming(call)
    return ResponsesCall(call, _echo(asked, request), prompt_alone)


def _place(param: str) -> str:
    """Where this API has what chat has at `param`."""
    if param == "messages" or param.startswith("messages["):
        return "input"
    return param.replace(".function.", ".")


def _refuse_built_in(body: dict[str, Json]) -> None:
    """There are functions alone: no tools that this server would have to run."""
    tools = body.get("tools")
    for i, tool in enumerate(tools if isinstance(tools, list) else []):
        if isinstance(tool, dict) and _is_other(tool.get("type")):
            raise UnsupportedParameter(
                "Tools of this type are not supported; functions are.", param=f"tools[{i}].type"
            )
    choice = body.get("tool_choice")
    if isinstance(choice, dict) and _is_other(choice.get("type")):
        message = "A tool_choice of this type is not supported; a function is."
        raise UnsupportedParameter(message, param="tool_choice.type")


def _is_other(kind: Json) -> bool:
    return isinstance(kind, str) and kind != "function"


def _chat_request(asked: ResponsesBody, sampling: Sampling) -> ChatRequest:
    choice, reasoning = asked.tool_choice, asked.reasoning or ReasoningOptions()
    named = choice.name if isinstance(choice, FlatToolChoice) else None
    return ChatRequest(
        messages=_messages(asked),
        tools=tool_objects(asked.tools or [], "tools[{}]"),
        sampling=sampling,
        template_kwargs={"reasoning_effort": reasoning.effort} if reasoning.effort else {},
        tool_choice="required" if isinstance(choice, FlatToolChoice) else choice or "auto",
        tool_name=named,
        parallel_tool_calls=asked.parallel_tool_calls is not False,
        response_format=_text_format(asked.text),
        reasoning_budget=0 if reasoning.effort == "none" else None,
    )


def _text_format(text: TextOptions | None) -> ResponseFormat:
    if text is None or text.format is None:
        return ResponseFormat()
    return response_format(text.format.type, text.format.schema_, "text.format.schema")


# ---- items -> messages -------------------------------------------------------------------------


def _messages(asked: ResponsesBody) -> list[Message]:
    """The conversation. What the assistant said in one go becomes one message."""
    messages = [Message("system", asked.instructions)] if asked.instructions else []
    if isinstance(asked.input, str):
        return [*messages, Message("user", asked.input)]
    called: set[str] = set()
    going_on = False
    for i, item in enumerate(asked.input):
        if isinstance(item, OutputItem) and item.call_id not in called:
            raise InvalidRequest(
                "No earlier function_call has this call_id.", param=f"input[{i}].call_id"
            )
        said = _message(item)
        if isinstance(item, CallItem):
            called.add(item.call_id)
        if said.role == "assistant" and _is_empty(said):
            continue  # An encrypted thought, for example.
        if going_on and said.role == "assistant" and _continues(messages[-1], said):
            messages[-1] = _joined(messages[-1], said)
        else:
            messages.append(said)
        going_on = said.role == "assistant"
    if not messages:
        raise InvalidRequest("The input holds no text and no call.", param="input")
    return messages


def _message(item: Any) -> Message:
    """One item alone."""
    if isinstance(item, CallItem):
        call = FunctionCall(item.call_id, item.name, item.arguments)
        return Message("assistant", tool_calls=[call])
    if isinstance(item, OutputItem):
        return Message("tool", _text(item.output), tool_call_id=item.call_id)
    if isinstance(item, ReasoningItem):
        thoughts = item.content or item.summary
        thought = "\n\n".join(part.text for part in thoughts)
        return Message("assistant", reasoning_content=thought or None)
    assert isinstance(item, MessageItem)
    role = "system" if item.role == "developer" else item.role
    return Message(role, _text(item.content))


def _continues(message: Message, said: Message) -> bool:
    """Whether what the assistant said next is of the same go: thought, text, calls, and whatever
    follows a call that has no result yet."""
    return bool(message.tool_calls or said.tool_calls) or message.content is None


def _is_empty(message: Message) -> bool:
    return not (message.content or message.reasoning_content or message.tool_calls)


def _joined(message: Message, said: Message) -> Message:
    return msgspec.structs.replace(
        message,
        content=_both(message.content, said.content, ""),
        reasoning_content=_both(message.reasoning_content, said.reasoning_content, "\n\n"),
        tool_calls=[*message.tool_calls, *said.tool_calls],
    )


def _both(one: str | None, other: str | None, between: str) -> str | None:
    return between.join(filter(None, (one, other))) or None


def _text(content: str | Parts) -> str:
    return joined(content) if isinstance(content, list) else content


# ---- what a response repeats -------------------------------------------------------------------


def _echo(asked: ResponsesBody, request: ChatRequest) -> dict[str, Any]:
    reasoning = asked.reasoning or ReasoningOptions()
    tools = [
        {"type": "function", "description": None, "parameters": None, "strict": None}
        | tool.model_dump(exclude_none=True)
        for tool in asked.tools or []
    ]
    choice = asked.tool_choice
    return {
        "instructions": asked.instructions,
        "tools": tools,
        "tool_choice": choice.model_dump()
        if isinstance(choice, FlatToolChoice)
        else request.tool_choice,
        "parallel_tool_calls": request.parallel_tool_calls,
        "text": {"format": _format_echo(asked.text)},
        "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary},
        "metadata": asked.metadata or {},
    }


def _format_echo(text: TextOptions | None) -> JsonObject:
    if text is None or text.format is None:
        return {"type": "text"}
    return text.format.model_dump(exclude_none=True, by_alias=True)
