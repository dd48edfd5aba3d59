"""One worker process as the API process sees it: spawned, loaded, asked, stopped and reaped.

`Worker` owns the process and its pipes and routes events to requests. Whatever happens to the
process, every `EventStream` ends in exactly one `Finished` or `Failed`. It decides nothing about
when a worker should live: the pool does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import msgspec

import llm_server
from llm_server.errors import (
    ErrorInfo,
    InsufficientMemory,
    ModelLoadFailed,
    QueueFull,
    RemoteError,
    RequestTooLarge,
    ServerError,
    ShuttingDown,
    WorkerCrashed,
)
from llm_server.worker import frames
from llm_server.worker.messages import (
    CacheStats,
    Cancel,
    Command,
    Event,
    Failed,
    Finished,
    Load,
    Loaded,
    LoadFailed,
    LoadProgress,
    Question,
    Request,
    Stop,
    Submit,
    Told,
)
from llm_server.worker.stream import EventStream
from llm_server.worker.totals import Totals

logger = logging.getLogger(__name__)

WORKER_ARGV = (sys.executable, "-P", "-m", "llm_server.worker")
"""-P: no file of the folder the server was started in shall pass for a library."""

MAX_UNSENT = 64 * 1024 * 1024
"""Bytes of commands that may wait for a worker that does not read its pipe."""

# Nothing else of the environment reaches the process that runs native code on untrusted files.
_ENVIRONMENT = frozenset(
    "PATH LANG LANGUAGE TZ TMPDIR PYTHONPATH VIRTUAL_ENV LD_LIBRARY_PATH SYSTEMROOT".split()
)
_ENVIRONMENT_PREFIXES = ("LC_", "OMP_", "GGML_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "HSA_", "VK_")
_SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD")


def worker_environment(environment: dict[str, str]) -> dict[str, str]:
    """The part of `environment` a worker gets: what libraries need, no home and no secrets."""
    allowed = {
        name: value
        for name, value in environment.items()
        if (name in _ENVIRONMENT or name.startswith(_ENVIRONMENT_PREFIXES))
        and not any(word in name.upper() for word in _SECRETS)
    }
    # Without this ggml forks a debugger when it aborts: seconds, and arguments on stderr.
    allowed["GGML_NO_BACKTRACE"] = "1"
    # A package that runs from its sources is found again without the folder we were started in.
    source = Path(llm_server.__file__).parents[1]
    if source.name not in ("site-packages", "dist-packages"):
        paths = [allowed["PYTHONPATH"]] if allowed.get("PYTHONPATH") else []
        allowed["PYTHONPATH"] = os.pathsep.join([*paths, str(source)])
    return allowed


class Worker:
    """A running worker process with its model loaded. Made by `start`, single event loop only."""

    def __init__(self, on_progress: Callable[[float], None] | None, totals: Totals) -> None:
        loop = asyncio.get_running_loop()
        self._on_progress = on_progress
        self._totals = totals
        self._cache_stats = CacheStats()
        self._splitter = frames.FrameSplitter()
        self._streams: dict[int, EventStream] = {}
        self._last_id = 0
        self._transport: asyncio.SubprocessTransport
        self._loading: asyncio.Future[Loaded] = loop.create_future()
        self._exited: asyncio.Future[int] = loop.create_future()
        self._usable = True
        self._stopping = False
        self._killed = False
        self.loaded: Loaded
        """What the worker said about its model."""

    @classmethod
    async def start(
        cls,
        load: Load,
        *,
        argv: Sequence[str] = WORKER_ARGV,
        on_progress: Callable[[float], None] | None = None,
        totals: Totals | None = None,
    ) -> Worker:
        """Spawn a process and load a model in it; `on_progress` gets fractions from 0 to 1.

        What it does is added to `totals`.

        Raises RemoteError with the worker's own words when it refuses the model, and
        ModelLoadFailed or InsufficientMemory when the process dies of it. Nothing is left behind
        then, nor when the call is cancelled.
        """
        worker = cls(on_progress, totals or Totals())
        loop = asyncio.get_running_loop()
        # A session of its own: Ctrl-C in a terminal must reach the server only, which drains.
        await loop.subprocess_exec(
            lambda: _Pipes(worker),
            *argv,
            stderr=None,
            env=worker_environment(dict(os.environ)),
            start_new_session=True,
        )
        try:
            worker._send(load)
            worker.loaded = await worker._loading
        except BaseException:
            worker.kill()
            await worker.wait()
            raise
        return worker

    @property
    def pid(self) -> int:
        """The process id."""
        return self._transport.get_pid()

    @property
    def alive(self) -> bool:
        """Whether requests may be submitted."""
        return self._usable

    def submit(self, *requests: Request | Question) -> EventStream:
        """Start requests that make one answer; their events come from the stream returned, which
        must be closed. One that fails ends them all.

        On a dead worker the stream holds one `Failed`. Raises RequestTooLarge, QueueFull.
        """
        first = self._last_id + 1
        self._last_id += len(requests)
        stream = EventStream(range(first, first + len(requests)), self._cancel)
        self._streams.update(dict.fromkeys(stream.ids, stream))
        if not self._usable:
            self._fail_all(WorkerCrashed(_CRASHED).info)
            return stream
        try:
            for id, request in zip(stream.ids, requests, strict=True):
                self._send(Submit(id=id, request=request))
        except ServerError:
            self._withdraw(stream)
            raise
        return stream

    async def stop(self, deadline_s: float) -> None:
        """Fail what runs with ShuttingDown, let the worker end itself, kill it at the deadline."""
        self._stopping = True
        self._fail_all(ShuttingDown("The server is shutting down.").info)
        if self._usable:
            self._usable = False
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
        for stream in set(self._streams.values()):
            self._fail(stream, error)
            stream.wake()

    # ---- what the pipes report -----------------------------------------------------------------

    def connected(self, transport: asyncio.SubprocessTransport) -> None:
        """The process runs."""
        self._transport = transport

    def received(self, data: bytes) -> None:
        """Bytes from the worker: route all events of all complete frames, then wake readers."""
        touched: set[EventStream] = set()
        try:
            for body in self._splitter.feed(data):
                for event in frames.decode_events(body):
                    self._route(event, touched)
        except (frames.FrameError, msgspec.DecodeError, _ProtocolError) as error:
            logger.error("worker %d broke the protocol: %s", self.pid, error)
            self.kill()
            self._fail_all(WorkerCrashed(_CRASHED).info)
        for stream in touched:
            stream.wake()

    def output_ended(self) -> None:
        """No more events can come, so the process is of no use, whatever it still does."""
        if not self._stopping:
            self._end_process()
        self._fail_all(WorkerCrashed(_CRASHED).info)

    def exited(self, status: int) -> None:
        """The process has been reaped."""
        self._usable = False
        if not self._stopping or status != 0:
            logger.log(
                logging.INFO if self._stopping else logging.ERROR,
                "worker %d %s with %d requests running",
                self.pid,
                describe_exit(status),
                len(self._streams),
            )
        if not self._loading.done():
            self._loading.set_exception(_died_loading(status, self._killed))
            self._loading.exception()  # Read here: the loader may have been cancelled.
        if not self._exited.done():
            self._exited.set_result(status)
        self._fail_all(WorkerCrashed(_CRASHED).info)
        self._transport.close()

    # ---- the details ---------------------------------------------------------------------------

    def _route(self, event: Event, touched: set[EventStream]) -> None:
        if isinstance(event, CacheStats):
            self._totals.add_cache(self._cache_stats, event)
            self._cache_stats = event
            return
        if isinstance(event, LoadProgress | Loaded | LoadFailed):
            self._route_load(event)
            return
        stream = self._streams.get(event.id)
        if stream is None:
            if not 0 < event.id <= self._last_id:
                raise _ProtocolError(f"an event for request {event.id}, which was never made")
            return  # Cancelled here while the event was on its way.
        touched.add(stream)
        if not stream.add(event):
            self._fail(stream, QueueFull("The client reads its answer too slowly.").info)
        elif isinstance(event, Told):
            del self._streams[event.id]
        elif isinstance(event, Finished):
            del self._streams[event.id]
            self._totals.add(event)
        elif isinstance(event, Failed):
            self._withdraw(stream, ended=event.id)
            self._totals.add(event)

    def _route_load(self, event: LoadProgress | Loaded | LoadFailed) -> None:
        if self._loading.done():
            raise _ProtocolError(f"{type(event).__name__} after the model was loaded")
        if isinstance(event, LoadProgress):
            if self._on_progress is not None:
                self._on_progress(min(max(event.fraction, 0.0), 1.0))
        elif isinstance(event, Loaded):
            self._loading.set_result(event)
        else:
            self._stopping = True  # It exits after this, and that is no crash.
            self._loading.set_exception(RemoteError(event.error))

    def _end_process(self) -> None:
        self._usable = False
        if not self._exited.done():
            # Not by the transport: asyncio's polls first, and steals the exit status from the loop.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _cancel(self, stream: EventStream) -> None:
        if self._withdraw(stream):
            self._totals.requests["cancelled"] += 1

    def _withdraw(self, stream: EventStream, ended: int = 0) -> bool:
        """Take what runs of a stream's requests back from the worker; False if nothing does.

        `ended` has just ended there by itself.
        """
        running = [id for id in stream.ids if self._streams.pop(id, None) is not None]
        if self._usable:
            for id in running:
                if id != ended:
                    self._send(Cancel(id=id))
        return bool(running)

    def _fail(self, stream: EventStream, error: ErrorInfo) -> None:
        if self._withdraw(stream):
            failed = Failed(id=stream.ids[0], error=error)
            self._totals.add(failed)
            stream.add(failed)

    def _fail_all(self, error: ErrorInfo) -> None:
        streams, self._streams = self._streams, {}
        for stream in set(streams.values()):
            failed = Failed(id=stream.ids[0], error=error)
            self._totals.add(failed)
            stream.add(failed)
            stream.wake()

    def _send(self, command: Command) -> None:
        pipe = cast("asyncio.WriteTransport | None", self._transport.get_pipe_transport(0))
        if pipe is None or pipe.is_closing():
            return  # The process is ending; its exit tells everyone.
        if isinstance(command, Submit) and pipe.get_write_buffer_size() > MAX_UNSENT:
            raise QueueFull("The worker does not take requests at the moment.")
        try:
            pipe.write(frames.pack(frames.encode_command(command)))
        except frames.FrameTooLong:
            raise RequestTooLarge("The request is too large.") from None


class _ProtocolError(Exception):
    """A well-formed event that cannot be right."""


class _Pipes(asyncio.SubprocessProtocol):
    """Tells a worker what happens on its pipes."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._transport: asyncio.SubprocessTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.SubprocessTransport, transport)
        self._worker.connected(self._transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._worker.received(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 1:
            self._worker.output_ended()

    def process_exited(self) -> None:
        status = self._transport.get_returncode()
        assert status is not None
        self._worker.exited(status)


_CRASHED = "The model's worker process ended unexpectedly. It is started again on the next request."


def describe_exit(status: int) -> str:
    """An exit status in words, naming the signal of a negative one."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def _died_loading(status: int, killed_by_us: bool) -> ServerError:
    if status == -signal.SIGKILL and not killed_by_us:
        return InsufficientMemory(
            "The system ended the worker while it was loading the model, which most likely does "
            "not fit into memory. Try a smaller n_ctx or a smaller model."
        )
    return ModelLoadFailed(
        "The worker process ended while it was loading the model; the server's log says more."
    )
