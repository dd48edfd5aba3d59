"""One call from the queue to the last byte: waiting, streaming, folding, giving up.

A client that goes away cancels its request at once, wherever it is. What answers look like is
the business of `completion.py` and its like, what an event stream is `sse.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llm_server.api import sse
from llm_server.api.errors import INTERNAL, envelope, json_response
from llm_server.api.journal import entry_of
from llm_server.api.requests import Call
from llm_server.api.sse import Patience
from llm_server.api.traffic import passage_of
from llm_server.api.usage import Origin
from llm_server.errors import ErrorInfo, RemoteError, RequestCancelled, ServerError
from llm_server.models.backend import Backend, WorkerLease
from llm_server.worker.messages import (
    Asked,
    ChatRequest,
    CompletionRequest,
    Delta,
    Failed,
    Finished,
    Logprobs,
    Progress,
    Question,
    RequestEvent,
    Sampling,
)
from llm_server.worker.stream import EventStream

logger = logging.getLogger(__name__)

_CANCELLED = "The request was cancelled on the server."


class Chunker(Protocol):
    """Writes one stream in some dialect: what goes out first, and what each event becomes.

    `failed` is what a stream that has begun ends with when its request fails.
    """

    def opening(self) -> Sequence[object]: ...

    def of(self, event: RequestEvent) -> Sequence[object]: ...

    def failed(self, info: ErrorInfo) -> object: ...


class PlainChunker:
    """What dialects share whose streams end with the envelope of an error."""

    def failed(self, info: ErrorInfo) -> object:
        """The envelope."""
        return envelope(info)


class Folder(Protocol):
    """Folds all events but Failed, which ends it, into one object of some dialect.

    What `add` returns is of no account.
    """

    def add(self, event: RequestEvent) -> object: ...

    def whole(self) -> object: ...


class Answer:
    """The events of one call: waits for a lease, submits, and says how far things are."""

    def __init__(self, pool: Backend, call: Call, scope: Scope) -> None:
        self._pool = pool
        self._call = call
        self._passage = passage_of(scope)
        self._entry = entry_of(scope, self)
        self._lease: WorkerLease | None = None
        self._stream: EventStream | None = None
        self._progress: Progress | None = None
        self._sampling = Sampling()
        self._beginning: asyncio.Task[object] | None = None
        self._cancelled = False

    @property
    def origin(self) -> Origin:
        """Who answers, once the call has begun."""
        assert self._lease is not None and self._stream is not None
        fingerprint = self._lease.worker.loaded.fingerprint
        name, ids = self._lease.model.name, self._stream.ids
        return Origin(name, fingerprint, ids, self._call.n, sampling=self._sampling)

    async def begin(self) -> list[RequestEvent]:
        """The first batch with more in it than progress. Raises ServerError, also for Failed."""
        self._lease = await self._lease_of_pool()
        self._passage.model = self._lease.model.name
        requests = map(self._completed, self._call.requests)
        self._stream = self._lease.worker.submit(*requests, owner=self._passage.owner)
        async for batch in self._stream:
            events = self._without_progress(batch)
            if events and isinstance(events[0], Failed):
                raise RemoteError(self._placed(events[0].error))
            if events:
                return events
        raise AssertionError("a stream of events ends in Finished or Failed")

    async def _lease_of_pool(self) -> WorkerLease:
        self._beginning = asyncio.current_task()
        try:
            return await self._pool.acquire(
                self._call.model,
                self._call.overrides,
                keep_alive_s=self._call.keep_alive_s,
                make_default=False if isinstance(self._call.requests[0], Question) else None,
                owner=self._passage.owner,
            )
        except asyncio.CancelledError:
            if not self._cancelled:
                raise
            raise RequestCancelled(_CANCELLED) from None

    def cancel(self) -> None:
        """Stop, wherever it is: `begin` or `rest` end with RequestCancelled."""
        if self._lease is not None and self._stream is not None:
            self._lease.worker.fail(self._stream, RequestCancelled(_CANCELLED).info)
        elif self._beginning is not None and not self._cancelled:
            self._cancelled = True
            self._beginning.cancel()

    def _completed(self, request: Asked) -> Asked:
        """The request with what the server knows: its cache namespace, its model's defaults."""
        assert self._lease is not None
        if not isinstance(request, ChatRequest | CompletionRequest):
            return request
        chosen, usual = self._call.chosen, self._pool.planner.sampling(self._lease.plan)
        own = {name: value for name, value in usual.items() if name not in chosen}
        self._sampling = msgspec.structs.replace(request.sampling, **own)
        return msgspec.structs.replace(
            request, sampling=self._sampling, cache_salt=self._passage.cache_salt
        )

    def _placed(self, error: ErrorInfo) -> ErrorInfo:
        if error.param is None:
            return error
        return msgspec.structs.replace(error, param=self._call.place(error.param))

    async def rest(self) -> list[RequestEvent] | None:
        """The next batch, empty after `poke`; None after the end."""
        assert self._stream is not None
        try:
            return self._without_progress(await anext(self._stream))
        except StopAsyncIteration:
            return None

    def poke(self) -> None:
        """Make `rest` return now."""
        if self._stream is not None:
            self._stream.poke()

    def describe(self) -> str:
        """What the client is waiting for, in a few words."""
        if self._lease is None:
            status = self._pool.status()
            if status.loading is not None:
                return f"loading {status.loading}, {status.fraction:.0%}"
            return f"queued, {status.waiting} waiting, {status.running} running"
        progress = self._progress
        if progress is None:
            return "queued"
        if progress.n_done < progress.n_prompt:
            return f"reading the prompt, {progress.n_done} of {progress.n_prompt} tokens"
        return "working"

    def listed(self) -> contextlib.AbstractContextManager[None]:
        """Be seen and cancelled by others while the block lasts."""
        return self._entry.journal.entered(self._entry)

    def close(self) -> None:
        """Cancel what has not ended and give the lease back. Safe to repeat."""
        if self._stream is not None:
            self._stream.close()
        if self._lease is not None:
            self._lease.release()

    def _without_progress(self, batch: list[RequestEvent]) -> list[RequestEvent]:
        events: list[RequestEvent] = []
        self._entry.note(batch)
        for event in batch:
            if isinstance(event, Progress):
                self._progress = event
                continue
            events.append(event)
            if isinstance(event, Finished):
                self._passage.prompt_tokens = event.usage.prompt_tokens
                self._passage.completion_tokens += event.usage.completion_tokens
        if events and isinstance(events[0], Delta | Logprobs):
            self._passage.saw_tokens()
        return events


@contextlib.contextmanager
def answering(pool: Backend, call: Call, scope: Scope) -> Iterator[Answer]:
    """An answer that is listed while the block lasts, and closed at its end."""
    answer = Answer(pool, call, scope)
    with answer.listed(), contextlib.closing(answer):
        yield answer


def ignored_header(call: Call) -> dict[str, str]:
    """The header that names fields of the body which had no effect; none when all had."""
    if not call.ignored:
        return {}
    shown = [
        "".join(c if c.isalnum() and c.isascii() or c in "_.-" else "?" for c in name[:64])
        for name in call.ignored[:20]
    ]
    return {"x-ignored-parameters": ", ".join(shown)}


class FoldedResponse(Response):
    """Answers with one JSON object, made from all events of the call."""

    def __init__(self, pool: Backend, call: Call, make_fold: Callable[[Origin], Folder]) -> None:
        super().__init__()
        self._pool = pool
        self._call = call
        self._make_fold = make_fold

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the call. ServerErrors leave as exceptions, before anything is sent."""
        await until_disconnected(receive, self._answer(scope, receive, send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        with answering(self._pool, self._call, scope) as answer:
            batch: list[RequestEvent] | None = await answer.begin()
            fold = self._make_fold(answer.origin)
            while batch is not None:
                for event in batch:
                    if isinstance(event, Failed):
                        raise RemoteError(event.error)
                    fold.add(event)
                batch = await answer.rest()
        await json_response(fold.whole(), headers=ignored_header(self._call))(scope, receive, send)


def plain_error(info: ErrorInfo) -> bytes:
    """An error as an event without a name."""
    return sse.data(envelope(info))


class StreamedResponse(sse.EventStreamResponse):
    """Answers with a stream in some `framing`. Errors before its start leave as exceptions; of
    `early` are those that come when it has started and nothing is known of the answer."""

    def __init__(
        self,
        pool: Backend,
        call: Call,
        make_chunks: Callable[[Origin], Chunker],
        patience: Patience,
        framing: sse.Framing = sse.PLAIN,
        early: Callable[[ErrorInfo], bytes] = plain_error,
    ) -> None:
        super().__init__(patience, ignored_header(call), framing.media_type)
        self._pool = pool
        self._call = call
        self._make_chunks = make_chunks
        self._framing = framing
        self._early = early
        self._chunks: Chunker | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the call. ServerErrors leave as exceptions, unless the stream has started."""
        await until_disconnected(receive, self._answer(scope, send))

    async def _answer(self, scope: Scope, send: Send) -> None:
        with answering(self._pool, self._call, scope) as answer:
            with self.writer(send, on_quiet=answer.poke) as writer:
                try:
                    await self._stream(answer, writer)
                except ServerError as error:
                    await self._end(writer, error, error.info)
                except Exception as error:
                    logger.exception("a stream ended in an unexpected way")
                    await self._end(writer, error, INTERNAL)

    async def _stream(self, answer: Answer, writer: sse.EventWriter) -> None:
        batch: list[RequestEvent] | None = await self._begin(answer, writer)
        self._chunks = chunks = self._make_chunks(answer.origin)
        frame = self._framing.event
        out = [frame(chunk) for chunk in chunks.opening()]
        while batch is not None:
            for event in batch:
                if isinstance(event, Failed):
                    raise _Late(event.error, b"".join(out))
                out += map(frame, chunks.of(event))
            await writer.write(b"".join(out) if out else self._framing.comment(answer.describe()))
            out = []
            batch = await answer.rest()
        await writer.write(self._framing.end, last=True)

    async def _begin(self, answer: Answer, writer: sse.EventWriter) -> list[RequestEvent]:
        """The first batch; the wait for it is filled with comments once it becomes long."""
        beginning = asyncio.create_task(answer.begin())
        try:
            await asyncio.wait({beginning}, timeout=self._patience.headers_s)
            while not beginning.done():
                await writer.write(self._framing.comment(answer.describe()))
                await asyncio.wait({beginning}, timeout=self._patience.keep_alive_s)
            return beginning.result()
        finally:
            beginning.cancel()

    async def _end(self, writer: sse.EventWriter, error: Exception, info: ErrorInfo) -> None:
        """End a started stream with the error alone; else leave it to HTTP."""
        if not writer.started and not isinstance(error, _Late):
            raise error
        self._pool.totals.add_error(info)
        unsent = error.unsent if isinstance(error, _Late) else b""
        chunks = self._chunks
        told = self._framing.event(chunks.failed(info)) if chunks else self._early(info)
        await writer.write(unsent + told, last=True)


class _Late(RemoteError):
    """A request failed behind events that its client has not seen yet."""

    def __init__(self, info: ErrorInfo, unsent: bytes) -> None:
        super().__init__(info)
        self.unsent = unsent


async def until_disconnected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do `work`, but cancel it when the client goes. Raises what the work raises."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
        await asyncio.wait({working, leaving})
    if not working.cancelled():
        working.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
