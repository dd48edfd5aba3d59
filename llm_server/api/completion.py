"""Chat answers in OpenAI's JSON: as chunks of a stream, and folded into one object.

Both are made from the same events of a worker. Structs and msgspec, because this runs once for
every token of every stream. It knows nothing of HTTP, queues or where events come from.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from llm_server.api.chat import PlainChunker
from llm_server.api.logprobs import ChatLogprobs, TokenLogprobJson, chat_logprobs
from llm_server.api.usage import Ends, Origin, TimingsJson, UsageJson, timings_json, usage_json
from llm_server.worker.messages import (
    Content,
    Finished,
    FinishReason,
    Logprobs,
    Reasoning,
    RequestEvent,
    ToolCall,
)


class FunctionJson(msgspec.Struct):
    """A called function; in a stream a fragment of one."""

    arguments: str = ""
    name: str | UnsetType = UNSET


class ToolCallJson(msgspec.Struct):
    """A tool call, or in a stream a fragment, which alone has an index."""

    function: FunctionJson
    index: int | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class DeltaJson(msgspec.Struct):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | None | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallJson] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct):
    """The one choice that a chunk adds to."""

    delta: DeltaJson
    index: int = 0
    finish_reason: FinishReason | None = None
    logprobs: ChatLogprobs | UnsetType = UNSET


class Chunk(msgspec.Struct):
    """One `chat.completion.chunk`."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: UsageJson | None | UnsetType = UNSET
    timings: TimingsJson | UnsetType = UNSET


class MessageJson(msgspec.Struct):
    """The whole message of an answer."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallJson] | UnsetType = UNSET


class CompletionChoice(msgspec.Struct):
    """One choice of a whole answer."""

    message: MessageJson
    finish_reason: FinishReason
    index: int
    logprobs: ChatLogprobs | None


class Completion(msgspec.Struct):
    """One `chat.completion`."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: UsageJson
    timings: TimingsJson
    object: Literal["chat.completion"] = "chat.completion"


class LastChunks(PlainChunker):
    """What chats and completions share: how the choices of a stream end."""

    def __init__(self, origin: Origin, prefix: str, include_usage: bool) -> None:
        self._head = origin.head(prefix)
        self._ids = origin.ids
        self._ends = Ends(origin)
        # With usage asked for, OpenAI has a null on every chunk before the last.
        self._usage: None | UnsetType = None if include_usage else UNSET

    def _empty(self, id: int) -> Any:
        """A chunk that adds nothing to a choice."""
        raise NotImplementedError

    def _closing(self, event: Finished) -> list[Any]:
        self._ends.add(event)
        last = self._empty(event.id)
        last.choices[0].finish_reason = event.reason
        if not self._ends.all_in:
            return [last]
        usage = self._ends.usage
        last.timings = timings_json(usage, self._ends.timings)
        if self._usage is UNSET:
            return [last]
        total = self._empty(event.id)
        total.choices, total.usage = [], usage_json(usage)
        return [last, total]


class Chunks(LastChunks):
    """Makes the chunks of one stream: each method returns those that belong to one moment."""

    def __init__(self, origin: Origin, include_usage: bool) -> None:
        super().__init__(origin, "chatcmpl-", include_usage)
        self._scored: dict[int, list[TokenLogprobJson]] = {}

    def opening(self) -> list[Chunk]:
        """The chunks that say whose messages these are."""
        return [self._chunk(id, DeltaJson(role="assistant", content="")) for id in self._ids]

    def of(self, event: RequestEvent) -> list[Chunk]:
        """The chunks an event becomes; none for Progress and Failed."""
        if isinstance(event, Content):
            return [self._chunk(event.id, DeltaJson(content=event.text))]
        if isinstance(event, Reasoning):
            return [self._chunk(event.id, DeltaJson(reasoning_content=event.text))]
        if isinstance(event, ToolCall):
            return [self._chunk(event.id, DeltaJson(tool_calls=[_tool_call_delta(event)]))]
        if isinstance(event, Logprobs):
            # They go with what they made visible, which is next.
            self._scored.setdefault(event.id, []).extend(chat_logprobs(event.tokens))
        if isinstance(event, Finished):
            return self._closing(event)
        return []

    def _empty(self, id: int) -> Chunk:
        return self._chunk(id, DeltaJson())

    def _chunk(self, id: int, delta: DeltaJson) -> Chunk:
        choice = ChunkChoice(delta, index=id - self._ids[0])
        if self._scored and (scored := self._scored.pop(id, None)):
            choice.logprobs = ChatLogprobs(scored)
        return Chunk(*self._head, [choice], usage=self._usage)


class Fold:
    """Collects the events of one answer into one object."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._choices = {id: _Choice() for id in origin.ids}
        self._ends = Ends(origin)

    def add(self, event: RequestEvent) -> None:
        """Take the next event."""
        if isinstance(event, Finished):
            self._ends.add(event)
        else:
            self._choices[event.id].add(event)

    def whole(self) -> Completion:
        """The whole answer, after the last event."""
        usage = self._ends.usage
        return Completion(
            *self._origin.head("chatcmpl-"),
            choices=[
                CompletionChoice(choice.message(), self._ends[i].reason, i, choice.logprobs())
                for i, choice in enumerate(self._choices.values())
            ],
            usage=usage_json(usage),
            timings=timings_json(usage, self._ends.timings),
        )


class _Choice:
    """One choice while it grows."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, ToolCallJson] = {}
        self._scored: list[TokenLogprobJson] = []

    def add(self, event: RequestEvent) -> None:
        if isinstance(event, Content):
            self._content.append(event.text)
        elif isinstance(event, Reasoning):
            self._reasoning.append(event.text)
        elif isinstance(event, ToolCall):
            self._add_call(event)
        elif isinstance(event, Logprobs):
            self._scored += chat_logprobs(event.tokens)

    def message(self) -> MessageJson:
        content = "".join(self._content)
        message = MessageJson(content=None if self._calls and not content else content)
        if self._reasoning:
            message.reasoning_content = "".join(self._reasoning)
        if self._calls:
            message.tool_calls = [self._calls[index] for index in sorted(self._calls)]
        return message

    def logprobs(self) -> ChatLogprobs | None:
        return ChatLogprobs(self._scored) if self._scored else None

    def _add_call(self, event: ToolCall) -> None:
        call = self._calls.get(event.index)
        if call is None:
            call = _tool_call_delta(event)
            call.index = UNSET
            call.type = "function"
            self._calls[event.index] = call
        else:
            call.function.arguments += event.arguments


def _tool_call_delta(event: ToolCall) -> ToolCallJson:
    call = ToolCallJson(FunctionJson(event.arguments), index=event.index)
    if event.name is not None:
        call.function.name = event.name
    if event.call_id is not None:
        call.id = event.call_id
        call.type = "function"
    return call
