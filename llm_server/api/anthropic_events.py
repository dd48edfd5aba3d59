"""From a worker's events to those of Anthropic's Messages API, and to the message they add up to.

Shapes and what fills them; checked in the tests against the types of Anthropic's own client.
"""

from __future__ import annotations

import secrets
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from llm_server.api.errors import anthropic_envelope
from llm_server.api.items import ItemEvents, Open, first_of_call
from llm_server.api.usage import Origin, TimingsJson, timings_json
from llm_server.errors import ErrorInfo
from llm_server.worker.messages import (
    Content,
    Delta,
    Finished,
    JsonObject,
    Reasoning,
    ToolCall,
    Usage,
)

SIGNATURE = "llm-server"
"""Clients give thoughts back only with one; nobody checks it."""

StopReason: TypeAlias = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class TextOut(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """What the assistant says."""

    text: str = ""


class ThinkingOut(msgspec.Struct, frozen=True, tag_field="type", tag="thinking"):
    """What the assistant thinks, in its own words."""

    thinking: str = ""
    signature: str = ""


class ToolUseOut(msgspec.Struct, frozen=True, tag_field="type", tag="tool_use"):
    """A tool that is to be called."""

    id: str
    name: str
    input: JsonObject = {}


BlockOut: TypeAlias = TextOut | ThinkingOut | ToolUseOut


class MessageUsage(msgspec.Struct, frozen=True):
    """Tokens: those of the prompt that were computed, those that were not, and the answer's."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0


class AnthropicMessage(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    """A message. `timings` are this server's own: where its time went."""

    id: str
    model: str
    content: list[BlockOut] = []
    role: Literal["assistant"] = "assistant"
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: MessageUsage = MessageUsage()
    timings: TimingsJson | UnsetType = UNSET


class TextPiece(msgspec.Struct, frozen=True, tag_field="type", tag="text_delta"):
    """More of a text."""

    text: str


class ThinkingPiece(msgspec.Struct, frozen=True, tag_field="type", tag="thinking_delta"):
    """More of a thought."""

    thinking: str


class SignaturePiece(msgspec.Struct, frozen=True, tag_field="type", tag="signature_delta"):
    """The end of a thought."""

    signature: str = SIGNATURE


class InputPiece(msgspec.Struct, frozen=True, tag_field="type", tag="input_json_delta"):
    """More of the JSON of a call's input."""

    partial_json: str


class MessageDelta(msgspec.Struct, frozen=True):
    """Why the message ends."""

    stop_reason: StopReason | None
    stop_sequence: str | None


class MessageStart(msgspec.Struct, frozen=True, tag_field="type", tag="message_start"):
    """The message, before anything is known of it: its tokens are told with its end."""

    message: AnthropicMessage


class BlockStart(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_start"):
    """A block begins."""

    index: int
    content_block: BlockOut


class BlockDelta(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_delta"):
    """A block grows."""

    index: int
    delta: TextPiece | ThinkingPiece | SignaturePiece | InputPiece


class BlockStop(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_stop"):
    """A block is whole."""

    index: int


class MessageEnd(msgspec.Struct, frozen=True, tag_field="type", tag="message_delta"):
    """What the message is besides its content."""

    delta: MessageDelta
    usage: MessageUsage
    timings: TimingsJson


class MessageStop(msgspec.Struct, frozen=True, tag_field="type", tag="message_stop"):
    """The last event of a message."""


class ErrorOut(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    """The last event of a message that has failed."""

    error: Any


_PIECES: dict[type[Delta], type[TextPiece | ThinkingPiece | InputPiece]] = {
    Content: TextPiece,
    Reasoning: ThinkingPiece,
    ToolCall: InputPiece,
}

StreamEvent: TypeAlias = (
    MessageStart | BlockStart | BlockDelta | BlockStop | MessageEnd | MessageStop | ErrorOut
)


class MessageEvents(ItemEvents[StreamEvent, BlockOut]):
    """The events of one message, whose items are blocks."""

    def __init__(self, origin: Origin) -> None:
        super().__init__()
        self._message = AnthropicMessage("msg_" + secrets.token_hex(12), origin.model)

    def opening(self) -> list[StreamEvent]:
        """The message, before anything is known of it."""
        return [MessageStart(self._message)]

    def whole(self) -> AnthropicMessage:
        """The message, after the last event."""
        return self._message

    def failed(self, info: ErrorInfo) -> StreamEvent:
        """The last event of a message that has failed. Its open block stays open."""
        return failure(info)

    def _new(self, event: Delta) -> BlockOut:
        if isinstance(event, ToolCall):
            return ToolUseOut(*first_of_call(event))
        return ThinkingOut() if isinstance(event, Reasoning) else TextOut()

    def _begin(self, opened: Open[BlockOut]) -> list[StreamEvent]:
        return [BlockStart(opened.index, opened.item)]

    def _more(self, opened: Open[BlockOut], text: str) -> StreamEvent:
        return BlockDelta(opened.index, _PIECES[opened.kind](text))

    def _end(self, opened: Open[BlockOut]) -> list[StreamEvent]:
        events: list[StreamEvent] = [BlockStop(opened.index)]
        if isinstance(opened.item, ThinkingOut):
            events.insert(0, BlockDelta(opened.index, SignaturePiece()))
        if (block := _ended(opened)) is not None:
            self._message = replace(self._message, content=[*self._message.content, block])
        return events

    def _finish(self, event: Finished) -> list[StreamEvent]:
        events = self._close()
        delta = MessageDelta(_stop_reason(event), event.stop_text)
        usage, timings = _usage(event.usage), timings_json(event.usage, event.timings)
        self._message = replace(
            self._message,
            stop_reason=delta.stop_reason,
            stop_sequence=delta.stop_sequence,
            usage=usage,
            timings=timings,
        )
        return [*events, MessageEnd(delta, usage, timings), MessageStop()]


def failure(info: ErrorInfo) -> ErrorOut:
    """The event of an error."""
    return ErrorOut(anthropic_envelope(info)["error"])


def _ended(opened: Open[BlockOut]) -> BlockOut | None:
    """The open block with all of its text; None of a call that was cut off: it is no object."""
    text, block = opened.text, opened.item
    if isinstance(block, TextOut):
        return TextOut(text)
    if isinstance(block, ThinkingOut):
        return ThinkingOut(text, SIGNATURE)
    try:
        input: Any = msgspec.json.decode(text or "{}")
    except msgspec.DecodeError:
        return None
    return replace(block, input=input) if isinstance(input, dict) else None


def _stop_reason(event: Finished) -> StopReason:
    if event.reason == "stop":
        return "end_turn" if event.stop_text is None else "stop_sequence"
    return "tool_use" if event.reason == "tool_calls" else "max_tokens"


def _usage(usage: Usage) -> MessageUsage:
    """The worker's counts as Anthropic has them: the three of the input add up to the prompt."""
    return MessageUsage(
        input_tokens=usage.prompt_tokens - usage.cached_tokens,
        output_tokens=usage.completion_tokens,
        cache_read_input_tokens=usage.cached_tokens,
    )
