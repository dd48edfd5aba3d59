"""A worker at work: answers until told to stop.

The main thread steps the engine and writes frames; others read commands, prepare prompts and wait
for the disk. All state of a request lives in the main thread's engine. Knows no HTTP.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Iterator
from typing import BinaryIO, TypeAlias

import msgspec

from llm_server.engine.embedder import Embedder, Texts
from llm_server.engine.engine import Engine
from llm_server.engine.sequence import Prompt
from llm_server.errors import ShuttingDown
from llm_server.llama.embedding import EmbeddingContext
from llm_server.logs import say
from llm_server.worker.disk_waits import Reading, Storing
from llm_server.worker.frames import (
    FrameError,
    decode_command,
    encode_events,
    event_frames,
    read_frame,
    write_frame,
)
from llm_server.worker.load import Ready
from llm_server.worker.messages import (
    CacheStats,
    Cancel,
    Cells,
    Command,
    Event,
    Failed,
    Finished,
    Stop,
    Submit,
    Told,
)
from llm_server.worker.prepare import STACK_BYTES
from llm_server.worker.preparing import PreparingThreads, Work

logger = logging.getLogger(__name__)

_TOLD_S = 1.0  # while requests run, cells and counters of the cache are told at most this often
_DISK_WAIT_S = 0.02  # how long an engine with nothing but writes to do waits for the disk
_DISK_TOLD_S = 2.0  # how often it is told that requests wait for the disk
_REST_S = 2.0
"""A worker without work for so long does what is left of its load: agents come again sooner, people
later."""

Arrival: TypeAlias = Command | Work | Told | Failed | Finished | None


class Worker:
    """The main thread's side: what arrives in `inbox` goes to the engine, its events go out."""

    def __init__(self, ready: Ready, out: BinaryIO) -> None:
        self._threads = PreparingThreads(
            lambda submit: ready.prepare(submit.id, submit.request),
            lambda result: self._inbox.put(result),
            guard=True,
        )
        self._disk = ready.disk
        self._finishing = threading.Thread(target=ready.finish, name="finish", daemon=True)
        self._out = out
        self._inbox: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self._engine = self._engine_for(ready)
        self._preparing: dict[int, str] = {}  # the owners of what is being prepared
        self._storing = Storing(ready.disk, self._inbox.put)
        self._reading = Reading()
        self._disk_told = 0.0
        self._stop: Stop | None = None
        self._reported = CacheStats()
        self._cache_told = 0.0
        self._writing = False  # whether more is to be reported without another request
        self._cells = Cells()
        self._cells_told = 0.0

    def _engine_for(self, ready: Ready) -> Engine | Embedder:
        if isinstance(ready.context, EmbeddingContext):
            return Embedder(ready.context)
        return Engine(
            ready.context,
            ready.context.model.vocab,
            disk=ready.disk,
            wake=lambda: self._inbox.put(None),
            draft_max=ready.draft_max,
        )

    def receive(self, source: BinaryIO) -> None:
        """The reading thread: commands until end of file, which means that the server is gone."""
        try:
            while (frame := read_frame(source)) is not None:
                self._inbox.put(decode_command(frame))
        except (FrameError, msgspec.DecodeError) as error:
            say(f"worker {os.getpid()} ends: its commands are broken: {error}")
        finally:
            # Nobody is left to answer, and the main thread may be deep in a long computation.
            os._exit(0)

    def prepare(self) -> None:
        """Start preparing what comes."""
        self._threads.start()

    def run(self) -> None:
        """Step until told to stop."""
        while self._stop is None:
            events: list[Event] = []
            for arrived in self._arrivals():
                events += self._handle(arrived)
            stepped = self._engine.step()
            events += self._storing.hold_back(stepped)
            events += self._waits()
            self._write(events + self._changed_cells() + self._changed_cache())
            if self._engine.idle:
                self._engine.check()
        self._write(list(self._engine.fail_all(ShuttingDown())))
        self._engine.close(self._stop.deadline_s)
        self._write(self._cache_did())
        if self._finishing.ident is not None:
            # A thread that the interpreter ends inside native code takes the process down with it.
            self._finishing.join()

    def _arrivals(self) -> Iterator[Arrival]:
        """Everything that has arrived; waits for something when there is nothing else to do."""
        try:
            if self._engine.idle:
                yield self._next()
            elif self._engine.blocked:
                yield self._inbox.get(timeout=_DISK_WAIT_S)
            while True:
                yield self._inbox.get_nowait()
        except queue.Empty:
            return

    def _next(self) -> Arrival:
        """The next arrival, whenever it comes.

        What is left of the load keeps the interpreter busy, so it waits until nobody would notice:
        a first request, as soon as there is somebody to ask, is answered before.
        """
        if self._finishing.ident is None:
            try:
                return self._inbox.get(timeout=_REST_S)
            except queue.Empty:
                self._finishing.start()
        waits = self._storing.holds or self._writing
        return self._inbox.get(timeout=_TOLD_S if waits else None)

    def _handle(self, arrived: Arrival) -> list[Event]:
        match arrived:
            case None:
                return []  # the engine can go on
            case Finished():
                return self._storing.settle(arrived)
            case Prompt() | Texts() | Told() | Failed():
                return self._prepared(arrived)
            case Submit():
                self._preparing[arrived.id] = arrived.owner
                self._threads.submit(arrived)
            case Cancel():
                self._preparing.pop(arrived.id, None)
                self._storing.forget(arrived.id)
                self._threads.cancel(arrived.id)
                self._engine.cancel(arrived.id)
            case Stop():
                self._stop = arrived
            case _:
                raise RuntimeError("a worker loads one model, once")
        return []

    def _prepared(self, result: Work | Told | Failed) -> list[Event]:
        """A prompt is ready, or cannot be; nobody may want it any more."""
        owner = self._preparing.pop(result.id, None)
        if owner is None:
            return []
        if isinstance(result, Told | Failed):
            return [result]
        match self._engine, result:
            case Engine() as engine, Prompt() as prompt:
                if prompt.persist:
                    self._storing.expect(prompt)
                engine.submit(prompt, owner)
            case Embedder() as embedder, Texts() as texts:
                embedder.submit(texts, owner)
            case _:
                raise RuntimeError("what was prepared is for another kind of model")
        return []

    def _waits(self) -> list[Event]:
        """That requests wait for the disk, not too often: else they might be thought forgotten."""
        now = time.monotonic()
        if now - self._disk_told < _DISK_TOLD_S:
            return []
        self._disk_told = now
        return [*self._reading.progress(self._engine.reading), *self._storing.progress]

    def _changed_cells(self) -> list[Event]:
        """The cells in use, if they are others than were told, and not too often."""
        now = time.monotonic()
        if isinstance(self._engine, Embedder):
            return []
        if not self._engine.idle and now - self._cells_told < _TOLD_S:
            return []
        cells = self._engine.cells
        if cells == self._cells:
            return []
        self._cells, self._cells_told = cells, now
        return [cells]

    def _changed_cache(self) -> list[Event]:
        """What the disk cache has done, if that was not told, and not too often."""
        now = time.monotonic()
        if not self._engine.idle and now - self._cache_told < _TOLD_S:
            return []
        self._cache_told = now
        return self._cache_did()

    def _cache_did(self) -> list[Event]:
        """What the disk cache has done, if that was not told."""
        if self._disk is None:
            return []
        # In this order: what the writer is done with meanwhile is in the counters.
        self._writing = self._disk.store.writing
        now = self._disk.store.stats()
        stats = CacheStats(**{name: getattr(now, name) for name in CacheStats.__struct_fields__})
        if stats == self._reported:
            return []
        self._reported = stats
        return [stats]

    def _write(self, events: list[Event]) -> None:
        if events:
            for body in event_frames(events):
                write_frame(self._out, body)


def serve(ready: Ready, confinement: str, source: BinaryIO, out: BinaryIO) -> None:
    """Serve a model: commands come from `source`, events go to `out`.

    `confinement` is what the process's sandbox came to, for the API process to show.
    """
    worker = Worker(ready, out)
    threading.Thread(target=worker.receive, args=(source,), name="commands", daemon=True).start()
    threading.stack_size(STACK_BYTES)
    worker.prepare()
    loaded = msgspec.structs.replace(ready.loaded, sandbox=confinement)
    write_frame(out, encode_events([loaded]))
    worker.run()
