"""The objects of OpenAI's Responses API: a response, its output items, the events of its stream.

Shapes alone, checked in the tests against the types of OpenAI's own client.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from llm_server.api.usage import TimingsJson
from llm_server.errors import ErrorInfo
from llm_server.worker.messages import JsonObject, Usage

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    """The text of a message."""

    text: str
    annotations: list[JsonObject] = []
    logprobs: list[JsonObject] = []


class ReasoningText(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning_text"):
    """The text of a thought."""

    text: str


class MessageOut(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    """What the assistant says."""

    id: str
    status: Status
    content: list[OutputText] = []
    role: Literal["assistant"] = "assistant"


class ReasoningOut(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning"):
    """What the assistant thinks, in its own words."""

    id: str
    status: Status
    content: list[ReasoningText] = []
    summary: list[JsonObject] = []


class CallOut(msgspec.Struct, frozen=True, tag_field="type", tag="function_call"):
    """A function that is to be called."""

    id: str
    status: Status
    call_id: str
    name: str
    arguments: str = ""


ItemOut = MessageOut | ReasoningOut | CallOut


class InputDetails(msgspec.Struct, frozen=True):
    """What was known of the input, and what is kept of it from now on."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(msgspec.Struct, frozen=True):
    """What of the output were thoughts."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, frozen=True):
    """`usage`."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseError(msgspec.Struct, frozen=True):
    """Why a response failed; `code` is one of OpenAI's few."""

    code: Literal["server_error", "invalid_prompt"]
    message: str
    param: str | None
    type: str


class IncompleteDetails(msgspec.Struct, frozen=True):
    """Why a response ends early."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseOut(msgspec.Struct, frozen=True, kw_only=True):
    """One response, with what was asked for. `timings` is ours."""

    id: str
    created_at: int
    model: str
    status: Status = "in_progress"
    output: list[ItemOut] = []
    instructions: str | None
    tools: list[JsonObject]
    tool_choice: str | JsonObject
    parallel_tool_calls: bool
    text: JsonObject
    reasoning: JsonObject
    temperature: float
    top_p: float
    max_output_tokens: int | None
    metadata: dict[str, str]
    usage: ResponseUsage | None = None
    timings: TimingsJson | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    completed_at: int | None = None
    object: Literal["response"] = "response"
    background: bool = False
    previous_response_id: None = None
    store: bool = False
    truncation: Literal["disabled"] = "disabled"


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of all events of a stream."""

    sequence_number: int


class Created(Event, frozen=True, tag="response.created"):
    """The response has an id."""

    response: ResponseOut


class InProgress(Event, frozen=True, tag="response.in_progress"):
    """It is being made."""

    response: ResponseOut


class Completed(Event, frozen=True, tag="response.completed"):
    """It is whole."""

    response: ResponseOut


class Incomplete(Event, frozen=True, tag="response.incomplete"):
    """It ends before its time."""

    response: ResponseOut


class Broken(Event, frozen=True, tag="response.failed"):
    """It has failed."""

    response: ResponseOut


class ItemAdded(Event, frozen=True, tag="response.output_item.added"):
    """An item begins."""

    output_index: int
    item: ItemOut


class ItemDone(Event, frozen=True, tag="response.output_item.done"):
    """An item is whole."""

    output_index: int
    item: ItemOut


class InItem(Event, frozen=True, kw_only=True):
    """Base of events within an item."""

    item_id: str
    output_index: int


class InPart(InItem, frozen=True, kw_only=True):
    """Base of events within an item's content, which has one part here."""

    content_index: int = 0


class PartAdded(InPart, frozen=True, tag="response.content_part.added"):
    """Content begins."""

    part: OutputText | ReasoningText


class PartDone(InPart, frozen=True, tag="response.content_part.done"):
    """Content is whole."""

    part: OutputText | ReasoningText


class TextDelta(InPart, frozen=True, tag="response.output_text.delta"):
    """More text."""

    delta: str
    logprobs: list[JsonObject] = []


class TextDone(InPart, frozen=True, tag="response.output_text.done"):
    """All the text."""

    text: str
    logprobs: list[JsonObject] = []


class ThoughtDelta(InPart, frozen=True, tag="response.reasoning_text.delta"):
    """More of a thought."""

    delta: str


class ThoughtDone(InPart, frozen=True, tag="response.reasoning_text.done"):
    """The whole thought."""

    text: str


class ArgumentsDelta(InItem, frozen=True, tag="response.function_call_arguments.delta"):
    """More of a call's arguments."""

    delta: str


class ArgumentsDone(InItem, frozen=True, tag="response.function_call_arguments.done"):
    """All of a call's arguments."""

    name: str
    arguments: str


StreamEvent: TypeAlias = (
    Created
    | InProgress
    | ItemAdded
    | PartAdded
    | TextDelta
    | TextDone
    | ThoughtDelta
    | ThoughtDone
    | PartDone
    | ArgumentsDelta
    | ArgumentsDone
    | ItemDone
    | Completed
    | Incomplete
    | Broken
)


def response_usage(usage: Usage) -> ResponseUsage:
    """The worker's counts in this API's shape."""
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputDetails(
            cached_tokens=usage.cached_tokens,
            cache_write_tokens=usage.prompt_tokens - usage.cached_tokens,
        ),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputDetails(usage.reasoning_tokens),
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )


def response_error(info: ErrorInfo) -> ResponseError:
    """An error as a failed response shows it."""
    # Also of what somebody cancelled: Codex repeats what fails with a code that it does not know.
    code: Any = "server_error" if info.status >= 500 else "invalid_prompt"
    return ResponseError(code, info.message, info.param, info.type)
