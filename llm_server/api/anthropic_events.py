"""From a worker's events to those of Anthropic's Messages API, and to the message they add up to.

A message is a list of blocks, one open at a time: a thought, a text, a call. Shapes and what fills
them; checked in the tests against the types of Anthropic's own client.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from llm_server.api import sse
from llm_server.api.errors import anthropic_envelope
from llm_server.api.usage import Origin, TimingsJson, timings_json
from llm_server.errors import ErrorInfo
from llm_server.worker.messages import (
    Content,
    Delta,
    Finished,
    JsonObject,
    Reasoning,
    RequestEvent,
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


StreamEvent: TypeAlias = (
    MessageStart | BlockStart | BlockDelta | BlockStop | MessageEnd | MessageStop | ErrorOut
)


@dataclass(slots=True)
class _Open:
    """The block that grows: which of the worker's deltas belong to it, and its text so far."""

    kind: type[Delta]
    call_index: int | None
    block: BlockOut
    index: int
    pieces: list[str] = field(default_factory=list)


class MessageEvents:
    """The events of one message: each method returns those that belong to one moment.

    A message that is not streamed is what they add up to (`chat.Folder`).
    """

    framing = sse.NAMED

    def __init__(self, origin: Origin) -> None:
        self._message = AnthropicMessage("msg_" + secrets.token_hex(12), origin.model)
        self._n_blocks = 0
        self._open: _Open | None = None

    def opening(self) -> list[StreamEvent]:
        """The message, before anything is known of it."""
        return [MessageStart(self._message)]

    def of(self, event: RequestEvent) -> Sequence[StreamEvent]:
        """The events that an event of the worker becomes."""
        if isinstance(event, Content | Reasoning):
            return self._grow(event, None, event.text)
        if isinstance(event, ToolCall):
            return self._grow(event, event.index, event.arguments)
        if isinstance(event, Finished):
            return self._finish(event)
        return []

    add = of

    def whole(self) -> AnthropicMessage:
        """The message, after the last event."""
        return self._message

    def failed(self, info: ErrorInfo) -> StreamEvent:
        """The last event of a message that has failed. Its open block stays open."""
        return failure(info)

    def _grow(self, event: Delta, call_index: int | None, text: str) -> list[StreamEvent]:
        """More of the open block, or of a new one behind it."""
        events: list[StreamEvent] = []
        opened = self._open
        if opened is None or (opened.kind, opened.call_index) != (type(event), call_index):
            events += self._close()
            opened = _Open(type(event), call_index, _new_block(event), self._n_blocks)
            self._open = opened
            self._n_blocks += 1
            events.append(BlockStart(opened.index, opened.block))
        if text:
            opened.pieces.append(text)
            events.append(BlockDelta(opened.index, _delta(event, text)))
        return events

    def _close(self) -> list[StreamEvent]:
        """The end of the open block, if there is one: it joins the message."""
        opened, self._open = self._open, None
        if opened is None:
            return []
        events: list[StreamEvent] = [BlockStop(opened.index)]
        if isinstance(opened.block, ThinkingOut):
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


def _new_block(event: Delta) -> BlockOut:
    """The empty block that an event is the first of."""
    if isinstance(event, ToolCall):
        assert event.call_id is not None and event.name is not None, "a call's first delta names it"
        return ToolUseOut(event.call_id, event.name)
    return ThinkingOut() if isinstance(event, Reasoning) else TextOut()


def _delta(event: Delta, text: str) -> TextPiece | ThinkingPiece | InputPiece:
    if isinstance(event, ToolCall):
        return InputPiece(text)
    return ThinkingPiece(text) if isinstance(event, Reasoning) else TextPiece(text)


def _ended(opened: _Open) -> BlockOut | None:
    """The open block with all of its text; None of a call that was cut off: it is no object."""
    text, block = "".join(opened.pieces), opened.block
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
