"""One worker process as the API process sees it: spawned, loaded, asked, stopped and reaped.

`Worker` owns the process and its pipes and routes events to requests. Whatever happens to the
process, every `EventStream` ends in exactly one `Finished` or `Failed`. It decides nothing about
when a worker should live: the pool does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial

import msgspec

from llm_server.errors import (
    ErrorInfo,
    QueueFull,
    RemoteError,
    RequestTooLarge,
    ServerError,
    WorkerCrashed,
)
from llm_server.looks import ask
from llm_server.worker import deaths, frames
from llm_server.worker.messages import (
    Asked,
    CacheStats,
    Cancel,
    Cancelled,
    Cells,
    Command,
    Event,
    Failed,
    Finished,
    Load,
    Loaded,
    LoadFailed,
    LoadProgress,
    RequestEvent,
    Stop,
    Submit,
    Told,
)
from llm_server.worker.model_file import Change, ModelFile
from llm_server.worker.on_disk import OnDisk
from llm_server.worker.process import Process, Spawn, spawn
from llm_server.worker.progress import Progress, mapped_files
from llm_server.worker.stream import EventStream, Sent
from llm_server.worker.totals import Totals
from llm_server.worker.watchdog import Limits, OomKills, Watchdog, own_memory

logger = logging.getLogger(__name__)


class Worker:
    """A running worker process with its model loaded. Made by `start`, single event loop only."""

    def __init__(
        self,
        load: Load,
        file: ModelFile,
        on_progress: Callable[[float], None] | None,
        totals: Totals,
        limits: Limits,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._model_path = str(load.model_path)
        self.on_disk = OnDisk(load, file, self._heed)
        self._progress = Progress(file.size, on_progress)
        self._totals = totals
        self._tick_s = limits.tick_s
        self._watchdog = Watchdog(limits, file.size)
        self._oom_kills = OomKills()
        self._cache_stats = CacheStats()
        self._splitter = frames.FrameSplitter()
        self._running: dict[int, Sent] = {}
        self._last_id = 0
        self._process: Process
        self._ticking: asyncio.TimerHandle
        self._loading: asyncio.Future[Loaded] = loop.create_future()
        self._exited: asyncio.Future[int] = loop.create_future()
        self._usable = True
        self._stopping = self._killed = False
        self._verdict: ServerError | None = None
        self._n_lost = 0
        self.answered = False
        """Whether a request has come to its end."""
        self.crashed_at: float | None = None
        """When it was reaped, by the monotonic clock, if nobody had told it to end."""
        self.cells = Cells()
        self.loaded: Loaded
        """What the worker said about its model."""

    @classmethod
    async def start(
        cls,
        load: Load,
        *,
        spawn: Spawn = spawn,
        on_progress: Callable[[float], None] | None = None,
        totals: Totals | None = None,
        limits: Limits | None = None,
    ) -> Worker:
        """Load a model in a process that `spawn` gives; `on_progress` gets fractions from 0 to 1.
        What it does is added to `totals`; it is ended when it goes beyond `limits`.

        Raises RemoteError with the worker's own words when it refuses the model, and
        ModelLoadFailed or InsufficientMemory when the process dies of it or takes too long,
        or DiskTimeout. Nothing is left behind then, nor when the call is cancelled.
        """
        file = await ask(load.model_path, partial(ModelFile, load))
        worker = cls(load, file, on_progress, totals or Totals(), limits or Limits())
        await spawn(worker)
        try:
            worker._send(load)
            worker.loaded = await worker._loading
            await worker.on_disk.look()
        except BaseException:
            worker.kill()
            await worker.wait()
            raise
        return worker

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether requests may be submitted."""
        return self._usable

    @property
    def n_queued(self) -> int:
        """Answers that the worker has not begun with."""
        streams = {sent.stream for sent in list(self._running.values())}
        return sum(not stream.begun for stream in streams)

    def submit(self, *requests: Asked, owner: str = "") -> EventStream:
        """Start requests that make one answer; their events come from the stream returned, which
        must be closed. One that fails ends them all. Owners take turns in the worker.

        On a dead worker the stream holds one `Failed`. Raises RequestTooLarge, QueueFull, and
        CrashesWorker for a request that has ended several workers.
        """
        for request in requests:
            self._totals.suspects.check(self._model_path, request)
        first = self._last_id + 1
        self._last_id += len(requests)
        stream = EventStream(range(first, first + len(requests)), self._cancel)
        if not self._running:
            self._watchdog.heard()
        try:
            for id, request in zip(stream.ids, requests, strict=True):
                body = frames.encode_command(Submit(id, request, owner))
                self._running[id] = Sent(request, stream, len(body))
                if self._usable:
                    self._write(body, droppable=True)
        except ServerError:
            self._withdraw(stream)
            raise
        if not self._usable:
            crashed = WorkerCrashed(deaths.CRASHED).info
            self.fail(stream, deaths.STOPPED if self._told_to else crashed)
        return stream

    async def stop(self, deadline_s: float) -> None:
        """Fail what runs with ShuttingDown, let the worker end itself, kill it at the deadline.
        One that is ending already is waited for."""
        if self._usable:
            self._stopping, self._usable = True, False
            self._lose(deaths.STOPPED, at_fault=False)
            # Half of the time is for keeping cached prompts, the other half for leaving.
            self._send(Stop(deadline_s=deadline_s / 2))
        try:
            await asyncio.wait_for(self.wait(), deadline_s)
        except TimeoutError:
            logger.warning("worker %d did not stop within %.1f s", self.pid, deadline_s)
            self.kill()
            await self.wait()

    def kill(self) -> None:
        """End the process now; its requests fail. Does not wait for it to be gone."""
        self._killed = True
        self._end_process()

    async def wait(self) -> int:
        """The exit status, negative for a signal, once the process has been reaped."""
        return await asyncio.shield(self._exited)

    def fail_running(self, error: ErrorInfo) -> None:
        """End every open stream with `error`, cancelling the requests in the worker."""
        for stream in {sent.stream for sent in self._running.values()}:
            self.fail(stream, error)

    def fail(self, stream: EventStream, error: ErrorInfo) -> None:
        """End an open stream with `error`, cancelling its requests in the worker."""
        if self._withdraw(stream):
            stream.add(Failed(id=stream.ids[0], error=error))
            stream.wake()

    # ---- what the pipes report -----------------------------------------------------------------

    def connected(self, process: Process) -> None:
        """The process runs."""
        self._process = process
        self._tick_later()

    def received(self, data: bytes) -> None:
        """Bytes from the worker: route all events of all complete frames, then wake readers."""
        touched: set[EventStream] = set()
        try:
            for body in self._splitter.feed(data):
                for event in frames.decode_events(body):
                    self._route(event, touched)
        except (frames.FrameError, msgspec.DecodeError, frames.ProtocolError) as error:
            logger.error("worker %d broke the protocol: %s", self.pid, error)
            self._end(WorkerCrashed(deaths.CRASHED))
        for stream in touched:
            stream.wake()

    def output_ended(self) -> None:
        """No more events can come, so the process is of no use, whatever it still does."""
        if not self._loading.done():
            # What it ends with by itself says why there is no model.
            asyncio.get_running_loop().call_later(deaths.LEAVING_S, self.kill)
        elif not self._stopping:
            self._end_process()

    def exited(self, status: int) -> None:
        """The process has been reaped."""
        self._usable = False
        self._ticking.cancel()
        if not self._told_to:
            self.crashed_at = time.monotonic()
            self._totals.worker_crashes += 1
        if self._told_to or not self._running:
            self._tell_end(status)
        else:
            # A file that is just being written can end it before anybody looks at the file.
            looking = asyncio.ensure_future(self.on_disk.change.again())
            looking.add_done_callback(lambda _: self._tell_end(status))

    # ---- the details ---------------------------------------------------------------------------

    def _tell_end(self, status: int) -> None:
        self._died(status)
        if not self._told_to or status != 0:
            level = logging.INFO if self._told_to else logging.ERROR
            ended, n = deaths.describe_exit(status), self._n_lost
            logger.log(level, "worker %d %s with %d requests running", self.pid, ended, n)
        if not self._loading.done():
            self._loading.set_exception(self._verdict or deaths.died_loading(status, self._killed))
            self._loading.exception()  # Read here: the loader may have been cancelled.
        if not self._exited.done():
            self._exited.set_result(status)
        self._process.close()

    def _route(self, event: Event, touched: set[EventStream]) -> None:
        match event:
            case CacheStats():
                self._totals.add_cache(self._cache_stats, event)
                self._cache_stats = event
            case Cells():
                self.cells = event
            case Cancelled():
                self._totals.add_work(event)
            case LoadProgress() | Loaded() | LoadFailed():
                self._route_load(event)
            case _:
                self._route_request(event, touched)

    def _route_request(self, event: RequestEvent, touched: set[EventStream]) -> None:
        sent = self._running.get(event.id)
        if sent is None:
            if not 0 < event.id <= self._last_id:
                raise frames.ProtocolError(f"an event for request {event.id}, which was never made")
            if isinstance(event, Finished):
                self._totals.add_work(event)
            return  # Cancelled here while the event was on its way.
        touched.add(sent.stream)
        self._watchdog.heard()
        if not sent.stream.add(event):
            self.fail(sent.stream, QueueFull("The client reads its answer too slowly.").info)
            return
        if isinstance(event, Told | Finished):
            del self._running[event.id]
        elif isinstance(event, Failed):
            self._withdraw(sent.stream, ended=event.id)
        else:
            return
        self._totals.suspects.finished(self._model_path, sent.request)
        if isinstance(event, Finished):
            self.answered = True
            self._totals.add(event)

    def _route_load(self, event: LoadProgress | Loaded | LoadFailed) -> None:
        if self._loading.done():
            raise frames.ProtocolError(f"{type(event).__name__} after the model was loaded")
        if isinstance(event, LoadProgress):
            self._progress.said(event.fraction)
        elif isinstance(event, Loaded):
            self._loading.set_result(event)
        else:
            self._stopping = True  # It exits after this, and that is no crash.
            self._loading.set_exception(RemoteError(event.error))

    def _tick_later(self) -> None:
        self._ticking = asyncio.get_running_loop().call_later(self._tick_s, self._tick)

    def _tick(self) -> None:
        """Ask the watchdog, and look at the model's file while it is being used."""
        self._tick_later()
        self._oom_kills.tick()
        if self._stopping or not self._usable:
            return
        longest = max((sent.size for sent in self._running.values()), default=None)
        verdict = self._watchdog.tick(
            loaded=self._loading.done(),
            longest=longest,
            memory=own_memory(self.pid),
            mapped=mapped_files(self.pid),
            vectors=longest is not None and self.loaded.pooling is not None,
        )
        if verdict is not None:
            self._end(verdict)
        elif not self._loading.done():
            self._progress.look(self.pid)
        elif longest is not None:
            self.on_disk.change.begin()

    def _heed(self, change: Change) -> None:
        """If even the bytes of the loaded file are others, its answers are wrong: it is ended."""
        if change == "overwritten" and self._usable:
            self._end(WorkerCrashed(deaths.OVERWRITTEN), at_fault=False)

    def _end(self, why: ServerError, *, at_fault: bool = True) -> None:
        """End the process and fail its requests for that reason."""
        logger.error("worker %d is ended: %s", self.pid, why)
        self._verdict = why
        self.kill()
        self._lose(why.info, at_fault=at_fault)

    @property
    def _told_to(self) -> bool:
        """Whether its end, if it comes, is what somebody wanted."""
        return self._stopping or (self._killed and self._verdict is None)

    def _died(self, status: int) -> None:
        """Fail what runs, for the reason that the process has ended for."""
        if self._told_to:
            self._lose(deaths.STOPPED, at_fault=False)
        elif self.on_disk.change.known == "overwritten":
            self._lose(WorkerCrashed(deaths.OVERWRITTEN).info, at_fault=False)
        else:
            self._lose(deaths.died(status, memory_ran_out=self._oom_kills.lately).info)

    def _lose(self, why: ErrorInfo, *, at_fault: bool = True) -> None:
        """Fail what runs, which may be what has ended the process."""
        lost, self._running = list(self._running.values()), {}
        self._n_lost += len(lost)
        if at_fault:
            self._totals.suspects.died(self._model_path, [sent.request for sent in lost])
        for stream in {sent.stream for sent in lost}:
            stream.add(Failed(id=stream.ids[0], error=why))
            stream.wake()

    def _end_process(self) -> None:
        self._usable = False
        if not self._exited.done():
            self._process.kill()

    def _cancel(self, stream: EventStream) -> None:
        if self._withdraw(stream):
            self._totals.requests["cancelled"] += 1

    def _withdraw(self, stream: EventStream, ended: int = 0) -> bool:
        """Take what runs of a stream's requests back from the worker, where `ended` has just ended
        by itself; False if nothing runs."""
        running = [id for id in stream.ids if self._running.pop(id, None) is not None]
        if self._usable:
            for id in running:
                if id != ended:
                    self._send(Cancel(id=id))
        return bool(running)

    def _send(self, command: Command) -> None:
        self._write(frames.encode_command(command))

    def _write(self, body: bytes, *, droppable: bool = False) -> None:
        """Send a frame. Raises RequestTooLarge, and QueueFull for one that may be refused."""
        try:
            data = frames.pack(body)
        except frames.FrameTooLong:
            raise RequestTooLarge("The request is too large.") from None
        self._process.write(data, droppable=droppable)
