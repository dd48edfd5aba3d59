"""The process of a worker: how it is spawned, what it is given, and how it is ended.

It knows no protocol: bytes and ends go to an `Owner`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import subprocess
import threading
from collections.abc import Awaitable, Sequence
from typing import Protocol

from llm_server.errors import QueueFull
from llm_server.programs import PYTHON, with_source

WORKER_ARGV = (*PYTHON, "llm_server.worker")

# Nothing else of the environment reaches the process that runs native code on untrusted files.
_ENVIRONMENT = frozenset(
    "PATH LANG LANGUAGE TZ TMPDIR PYTHONPATH VIRTUAL_ENV LD_LIBRARY_PATH SYSTEMROOT".split()
)
_ENVIRONMENT_PREFIXES = tuple("LC_ OMP_ GOMP_ KMP_ GGML_ CUDA_ NVIDIA_ HIP_ ROCR_ HSA_ VK_".split())
SPIN_COUNT = "1000"
"""GOMP_SPINCOUNT: how often a thread looks whether the others are done, before it sleeps."""

_SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD")

MAX_UNSENT = 64 * 1024 * 1024
"""Bytes that may wait for a process that does not read its pipe."""


class Process:
    """A process that runs, or has just ended. What happens to it goes to its `owner`."""

    def __init__(self, owner: Owner, popen: subprocess.Popen[bytes]) -> None:
        self.owner = owner
        self._popen = popen
        self._input: asyncio.WriteTransport
        self._output: asyncio.BaseTransport
        self._silent = False
        self._status: int | None = None

    @property
    def pid(self) -> int:
        """Its id."""
        return self._popen.pid

    @property
    def ended(self) -> bool:
        """Whether it has ended, which its owner may not have been told yet."""
        import psutil

        try:
            return psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def write(self, data: bytes, *, droppable: bool) -> None:
        """Send to its standard input. Raises QueueFull for what may be refused."""
        if self._input.is_closing():
            return  # It is ending; its exit tells everyone.
        if droppable and self._input.get_write_buffer_size() > MAX_UNSENT:
            raise QueueFull("The worker does not take requests at the moment.")
        self._input.write(data)

    def kill(self) -> None:
        """End it now, if it has not ended."""
        self._popen.kill()

    def close(self) -> None:
        """Close its pipes, once it has ended."""
        self._input.close()
        self._output.close()

    async def connect(self) -> None:
        """Let the owner know of it, and then of what it says and when it has ended."""
        loop = asyncio.get_running_loop()
        assert self._popen.stdin is not None and self._popen.stdout is not None
        self._input, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, self._popen.stdin)
        await loop.connect_read_pipe(lambda: _Output(self), self._popen.stdout)

    def connected(self, output: asyncio.BaseTransport) -> None:
        """Both pipes are open: from now on the owner is told everything."""
        self._output = output
        loop, name = asyncio.get_running_loop(), f"process-{self.pid}"
        threading.Thread(target=self._wait, args=(loop,), name=name, daemon=True).start()
        self.owner.connected(self)

    def silent(self) -> None:
        """All that it has said was read."""
        self._silent = True
        self.owner.output_ended()
        self._tell_end()

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        status = self._popen.wait()
        with contextlib.suppress(RuntimeError):  # The loop may be closed by then.
            loop.call_soon_threadsafe(self._exited, status)

    def _exited(self, status: int) -> None:
        self._status = status
        self._tell_end()

    def _tell_end(self) -> None:
        # Its last words may be read later than a thread has seen its end, and count nevertheless.
        if self._silent and self._status is not None:
            self.owner.exited(self._status)


class _Output(asyncio.Protocol):
    """What a process writes."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The pipe is open, and nothing has been read from it."""
        self._process.connected(transport)

    def data_received(self, data: bytes) -> None:
        """Bytes of it."""
        self._process.owner.received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The pipe is closed at its end."""
        self._process.silent()


class Owner(Protocol):
    """Who is told what happens to a process, in the event loop's thread."""

    def connected(self, process: Process) -> None:
        """The process runs."""

    def received(self, data: bytes) -> None:
        """Bytes from its standard output."""

    def output_ended(self) -> None:
        """No more bytes can come."""

    def exited(self, status: int) -> None:
        """The process has ended, which comes last; a negative status is a signal."""


class _Nobody:
    """Who wants no process any more."""

    def connected(self, process: Process) -> None:
        """It is being closed."""

    def received(self, data: bytes) -> None:
        """Nobody reads it."""

    def output_ended(self) -> None:
        """As it should."""

    def exited(self, status: int) -> None:
        """As it should."""


class Spawn(Protocol):
    """`spawn`, as far as owners need it."""

    def __call__(self, owner: Owner, /) -> Awaitable[None]: ...


async def spawn(owner: Owner, argv: Sequence[str] = WORKER_ARGV) -> None:
    """Start a process with pipes for input and output; its stderr is ours.

    Raises:
        OSError: it cannot be started.
    """
    # Not by the loop: uvloop forks and runs Python there, where a lock that another thread held
    # stays locked; and waits for it. What `subprocess` has between fork and exec takes no locks.
    popen = subprocess.Popen(  # noqa: ASYNC220 - a millisecond or two
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=worker_environment(dict(os.environ)),
        # A session of its own: Ctrl-C in a terminal must reach the server only, which drains.
        start_new_session=True,
    )
    process = Process(owner, popen)
    connecting = asyncio.ensure_future(process.connect())
    try:
        await asyncio.shield(connecting)
    except BaseException:
        popen.kill()
        popen.wait()
        if not connecting.done():
            # It is not broken off: uvloop would lose a pipe that it is about to open.
            process.owner = _Nobody()
            await asyncio.wait([connecting])
            if connecting.exception() is None:
                process.close()
        raise


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
    # numpy's own threads would start at its import, before a sandbox that binds only later ones.
    allowed["OPENBLAS_NUM_THREADS"] = "1"
    # libgomp's own 300,000 are some 10 ms: where another program has one of the cores, each of the
    # hundreds of waits in a step lasts until the system takes the core from whoever waits.
    if platform.machine() == "x86_64" and "OMP_WAIT_POLICY" not in allowed:
        allowed.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    return with_source(allowed)
