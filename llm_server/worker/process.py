"""The process of a worker: how it is spawned, what it is given, and how it is ended.

It knows no protocol: bytes and ends go to an `Owner`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import signal
from collections.abc import Awaitable, Sequence
from typing import Protocol, cast

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


class Process(asyncio.SubprocessProtocol):
    """A process that runs, or has just ended. What happens to it goes to its `owner`."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self._transport: asyncio.SubprocessTransport

    @property
    def pid(self) -> int:
        """Its id."""
        return self._transport.get_pid()

    def write(self, data: bytes, *, droppable: bool) -> None:
        """Send to its standard input. Raises QueueFull for what may be refused."""
        pipe = cast("asyncio.WriteTransport | None", self._transport.get_pipe_transport(0))
        if pipe is None or pipe.is_closing():
            return  # It is ending; its exit tells everyone.
        if droppable and pipe.get_write_buffer_size() > MAX_UNSENT:
            raise QueueFull("The worker does not take requests at the moment.")
        pipe.write(data)

    def kill(self) -> None:
        """End it now; for one that has not been reaped."""
        # Not by the transport: asyncio's polls first, and steals the exit status from the loop.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close its pipes, once it has been reaped."""
        self._transport.close()

    # ---- what asyncio calls --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The process runs."""
        self._transport = cast(asyncio.SubprocessTransport, transport)
        self.owner.connected(self)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Bytes of its output."""
        self.owner.received(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """A pipe is closed at its end."""
        if fd == 1:
            self.owner.output_ended()

    def process_exited(self) -> None:
        """It has been reaped."""
        status = self._transport.get_returncode()
        assert status is not None
        self.owner.exited(status)


class Owner(Protocol):
    """Who is told what happens to a process, in the event loop's thread."""

    def connected(self, process: Process) -> None:
        """The process runs."""

    def received(self, data: bytes) -> None:
        """Bytes from its standard output."""

    def output_ended(self) -> None:
        """No more bytes can come."""

    def exited(self, status: int) -> None:
        """The process has been reaped; a negative status is a signal."""


class Spawn(Protocol):
    """`spawn`, as far as owners need it."""

    def __call__(self, owner: Owner, /) -> Awaitable[None]: ...


async def spawn(owner: Owner, argv: Sequence[str] = WORKER_ARGV) -> None:
    """Start a process with pipes for input and output; its stderr is ours.

    Raises:
        OSError: it cannot be started.
    """
    # A session of its own: Ctrl-C in a terminal must reach the server only, which drains.
    await asyncio.get_running_loop().subprocess_exec(
        lambda: Process(owner),
        *argv,
        stderr=None,
        env=worker_environment(dict(os.environ)),
        start_new_session=True,
    )


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
