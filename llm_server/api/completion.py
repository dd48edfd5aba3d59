"""Chat answers in OpenAI's JSON: as chunks of a stream, and folded into one object.

Both are made from the same events of a worker. Structs and msgspec, because this runs once for
every token of every stream. It knows nothing of HTTP, queues or where events come from.
"""

from __future__ import annotations

import secrets
import time
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from llm_server.errors import RemoteError
from llm_server.worker.messages import (
    Content,
    Failed,
    Finished,
    FinishReason,
    Reasoning,
    RequestEvent,
    Timings,
    ToolCall,
    Usage,
)


class CachedJson(msgspec.Struct):
    """How much of the prompt was not computed."""

    cached_tokens: int


class UsageJson(msgspec.Struct):
    """OpenAI's `usage`."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedJson


class TimingsJson(msgspec.Struct):
    """Tokens and milliseconds by stage, in llama-server's spelling; `prompt_n` were computed.

    `cache_n` were reused, `cache_disk_n` of them read from the disk and attached in `cache_ms`.
    Of `draft_n` tokens that were guessed and computed, `draft_n_accepted` were right.
    """

    queue_ms: float
    cache_ms: float
    cache_n: int
    cache_disk_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float
    draft_n: int
    draft_n_accepted: int


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
    """The one choice of a chunk."""

    delta: DeltaJson
    index: int = 0
    finish_reason: FinishReason | None = None


class Chunk(msgspec.Struct):
    """One `chat.completion.chunk`."""

    id: str
    created: int
    model: str
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
    """The one choice of a whole answer."""

    message: MessageJson
    finish_reason: FinishReason
    index: int = 0
    logprobs: None = None


class Completion(msgspec.Struct):
    """One `chat.completion`."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageJson
    timings: TimingsJson
    object: Literal["chat.completion"] = "chat.completion"


class Chunks:
    """Makes the chunks of one stream: each method returns those that belong to one moment."""

    def __init__(self, model: str, include_usage: bool) -> None:
        self._id = new_id()
        self._created = int(time.time())
        self._model = model
        # With usage asked for, OpenAI has a null on every chunk before the last.
        self._usage: None | UnsetType = None if include_usage else UNSET

    def opening(self) -> Chunk:
        """The chunk that says whose message this is."""
        return self._chunk(DeltaJson(role="assistant", content=""))

    def of(self, event: RequestEvent) -> list[Chunk]:
        """The chunks an event becomes; none for Progress and Failed."""
        if isinstance(event, Content):
            return [self._chunk(DeltaJson(content=event.text))]
        if isinstance(event, Reasoning):
            return [self._chunk(DeltaJson(reasoning_content=event.text))]
        if isinstance(event, ToolCall):
            return [self._chunk(DeltaJson(tool_calls=[_tool_call_delta(event)]))]
        if isinstance(event, Finished):
            return self._closing(event)
        return []

    def _closing(self, event: Finished) -> list[Chunk]:
        last = self._chunk(DeltaJson())
        last.choices[0].finish_reason = event.reason
        last.timings = timings_json(event.usage, event.timings)
        if self._usage is UNSET:
            return [last]
        usage = Chunk(self._id, self._created, self._model, [], usage=usage_json(event.usage))
        return [last, usage]

    def _chunk(self, delta: DeltaJson) -> Chunk:
        choices = [ChunkChoice(delta)]
        return Chunk(self._id, self._created, self._model, choices, usage=self._usage)


class Fold:
    """Collects the events of one request into a whole answer."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, ToolCallJson] = {}
        self._finished: Finished | None = None

    def add(self, event: RequestEvent) -> None:
        """Take the next event. Raises RemoteError when the request failed."""
        if isinstance(event, Content):
            self._content.append(event.text)
        elif isinstance(event, Reasoning):
            self._reasoning.append(event.text)
        elif isinstance(event, ToolCall):
            self._add_call(event)
        elif isinstance(event, Finished):
            self._finished = event
        elif isinstance(event, Failed):
            raise RemoteError(event.error)

    @property
    def finished(self) -> Finished:
        """The end of the request, which must have come."""
        assert self._finished is not None, "a stream of events ends in Finished or Failed"
        return self._finished

    def completion(self, model: str) -> Completion:
        """The whole answer, after the last event."""
        content = "".join(self._content)
        message = MessageJson(content=None if self._calls and not content else content)
        if self._reasoning:
            message.reasoning_content = "".join(self._reasoning)
        if self._calls:
            message.tool_calls = [self._calls[index] for index in sorted(self._calls)]
        end = self.finished
        return Completion(
            id=new_id(),
            created=int(time.time()),
            model=model,
            choices=[CompletionChoice(message, end.reason)],
            usage=usage_json(end.usage),
            timings=timings_json(end.usage, end.timings),
        )

    def _add_call(self, event: ToolCall) -> None:
        call = self._calls.get(event.index)
        if call is None:
            call = _tool_call_delta(event)
            call.index = UNSET
            call.type = "function"
            self._calls[event.index] = call
        else:
            call.function.arguments += event.arguments


def new_id() -> str:
    """An id for an answer, as unguessable as OpenAI's."""
    return "chatcmpl-" + secrets.token_hex(12)


def usage_json(usage: Usage) -> UsageJson:
    """The worker's counts in OpenAI's shape."""
    return UsageJson(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=CachedJson(usage.cached_tokens),
    )


def timings_json(usage: Usage, timings: Timings) -> TimingsJson:
    """The worker's times, with the rates people compare."""
    computed = usage.prompt_tokens - usage.cached_tokens
    return TimingsJson(
        queue_ms=round(timings.queue_ms, 3),
        cache_ms=round(timings.cache_ms, 3),
        cache_n=usage.cached_tokens,
        cache_disk_n=usage.disk_tokens,
        prompt_n=computed,
        prompt_ms=round(timings.prompt_ms, 3),
        prompt_per_second=_per_second(computed, timings.prompt_ms),
        predicted_n=usage.completion_tokens,
        predicted_ms=round(timings.predicted_ms, 3),
        predicted_per_second=_per_second(usage.completion_tokens, timings.predicted_ms),
        draft_n=timings.draft_n,
        draft_n_accepted=timings.draft_n_accepted,
    )


def _per_second(count: int, milliseconds: float) -> float:
    return round(count * 1000 / milliseconds, 2) if milliseconds > 0 else 0.0


def _tool_call_delta(event: ToolCall) -> ToolCallJson:
    call = ToolCallJson(FunctionJson(event.arguments), index=event.index)
    if event.name is not None:
        call.function.name = event.name
    if event.call_id is not None:
        call.id = event.call_id
        call.type = "function"
    return call
