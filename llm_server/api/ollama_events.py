"""From a worker's events to the lines of Ollama's API, and to the one line they add up to.

Shapes and what fills them; checked in the tests against the types of Ollama's own client.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from llm_server.api.errors import ollama_envelope
from llm_server.api.items import first_of_call
from llm_server.api.logprobs import TokenLogprobJson, chat_logprobs
from llm_server.api.usage import Origin, TimingsJson, timings_json
from llm_server.errors import ErrorInfo
from llm_server.worker.messages import (
    Content,
    Finished,
    JsonObject,
    Logprobs,
    Reasoning,
    RequestEvent,
    ToolCall,
)


class CalledJson(msgspec.Struct):
    """The function that is to be called; arguments are an object and come whole."""

    index: int
    name: str
    arguments: JsonObject


class CallJson(msgspec.Struct):
    """A call of a tool."""

    id: str
    function: CalledJson


class TurnJson(msgspec.Struct):
    """What the assistant says, thinks and calls, or more of it."""

    role: str = "assistant"
    content: str = ""
    thinking: str | UnsetType = UNSET
    tool_calls: list[CallJson] | UnsetType = UNSET


class End(msgspec.Struct):
    """What the last line has besides: why it is the last, tokens, and times in nanoseconds.

    Those of the prompt that came from the cache count, too. `timings` are this server's own.
    """

    done_reason: str
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0
    timings: TimingsJson | UnsetType = UNSET


class Line(msgspec.Struct, kw_only=True):
    """What every line has."""

    model: str
    created_at: str
    done: bool
    done_reason: str | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET
    logprobs: list[TokenLogprobJson] | UnsetType = UNSET
    timings: TimingsJson | UnsetType = UNSET


class ChatLine(Line, kw_only=True):
    """A line of `/api/chat`."""

    message: TurnJson


class GenerateLine(Line, kw_only=True):
    """A line of `/api/generate`."""

    response: str
    thinking: str | UnsetType = UNSET


class Piece(msgspec.Struct):
    """What one line adds to an answer, whatever its endpoint."""

    content: str = ""
    thinking: str = ""
    calls: list[CallJson] = []
    logprobs: list[TokenLogprobJson] = []
    end: End | None = None


LineOf: TypeAlias = Callable[[str, Piece], Line]


def chat_line(model: str, piece: Piece) -> Line:
    """As `/api/chat` has it."""
    message = TurnJson(
        content=piece.content, thinking=piece.thinking or UNSET, tool_calls=piece.calls or UNSET
    )
    return ChatLine(message=message, **_common(model, piece))


def generate_line(model: str, piece: Piece) -> Line:
    """As `/api/generate` has it, which knows no tools."""
    return GenerateLine(
        response=piece.content, thinking=piece.thinking or UNSET, **_common(model, piece)
    )


def _common(model: str, piece: Piece) -> dict[str, Any]:
    end = msgspec.structs.asdict(piece.end) if piece.end else {}
    return {
        "model": model,
        "created_at": moment(datetime.now(UTC)),
        "done": piece.end is not None,
        "logprobs": piece.logprobs or UNSET,
    } | end


def moment(time: datetime) -> str:
    """A time as JSON has it in Go."""
    return time.isoformat().replace("+00:00", "Z")


class OllamaLines:
    """Makes the lines of one answer (`chat.Chunker`), or all of it in one (`chat.Folder`)."""

    def __init__(self, line_of: LineOf, origin: Origin) -> None:
        self._line_of = line_of
        self._model = origin.model
        self._call: tuple[int, str, str, list[str]] | None = None
        self._n_calls = 0
        self._seen: list[Piece] = []

    def opening(self) -> Sequence[Line]:
        """Nothing comes before the answer."""
        return []

    def of(self, event: RequestEvent) -> Sequence[Line]:
        """The lines that an event of the worker becomes."""
        return [self._line_of(self._model, piece) for piece in self._pieces(event)]

    def add(self, event: RequestEvent) -> None:
        """The same for an answer of one line."""
        self._seen += self._pieces(event)

    def whole(self) -> Line:
        """That line, after the last event."""
        whole = Piece(
            content="".join(piece.content for piece in self._seen),
            thinking="".join(piece.thinking for piece in self._seen),
            calls=[call for piece in self._seen for call in piece.calls],
            logprobs=[token for piece in self._seen for token in piece.logprobs],
            end=self._seen[-1].end,
        )
        return self._line_of(self._model, whole)

    def failed(self, info: ErrorInfo) -> object:
        """The last line of an answer that has failed."""
        return ollama_envelope(info)

    def _pieces(self, event: RequestEvent) -> list[Piece]:
        if isinstance(event, ToolCall):
            return self._grow(event)
        if isinstance(event, Content):
            return [*self._close(), Piece(event.text)]
        if isinstance(event, Reasoning):
            return [*self._close(), Piece(thinking=event.text)]
        if isinstance(event, Logprobs):
            return [Piece(logprobs=chat_logprobs(event.tokens))]
        if isinstance(event, Finished):
            return [*self._close(), Piece(end=_end(event))]
        return []

    def _grow(self, event: ToolCall) -> list[Piece]:
        """More of the open call, or of a new one behind it."""
        closed: list[Piece] = []
        if self._call is None or self._call[0] != event.index:
            closed = self._close()
            self._call = (event.index, *first_of_call(event), [])
        self._call[3].append(event.arguments)
        return closed

    def _close(self) -> list[Piece]:
        """The open call as a whole; nothing of one that was cut off: it is no object."""
        if self._call is None:
            return []
        (_, id, name, pieces), self._call = self._call, None
        try:
            arguments = msgspec.json.decode("".join(pieces) or "{}", type=JsonObject)
        except msgspec.DecodeError:
            return []
        self._n_calls += 1
        return [Piece(calls=[CallJson(id, CalledJson(self._n_calls - 1, name, arguments))])]


def _end(event: Finished) -> End:
    usage, timings = event.usage, event.timings
    return End(
        "length" if event.reason == "length" else "stop",
        total_duration=_ns(timings.queue_ms + timings.prompt_ms + timings.predicted_ms),
        load_duration=_ns(timings.queue_ms),
        prompt_eval_count=usage.prompt_tokens,
        prompt_eval_duration=_ns(timings.prompt_ms),
        eval_count=usage.completion_tokens,
        eval_duration=_ns(timings.predicted_ms),
        timings=timings_json(usage, timings),
    )


def _ns(milliseconds: float) -> int:
    return round(milliseconds * 1e6)
