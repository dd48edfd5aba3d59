"""Processes with pipes: their last words, and what is left of one that nobody wants any more."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from llm_server.worker.process import Process, spawn


class Unwanted:
    """An owner who has not been told anything."""

    def connected(self, process: Process) -> None:
        raise AssertionError("it is connected")

    def received(self, data: bytes) -> None:
        raise AssertionError("it speaks")

    def output_ended(self) -> None:
        raise AssertionError("it is silent")

    def exited(self, status: int) -> None:
        raise AssertionError("it has ended")


@pytest.mark.parametrize("n_turns", range(1, 4))
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_start_that_is_given_up_leaves_no_pipe_open(
    run: Callable[[Coroutine[Any, Any, None]], None], n_turns: int
) -> None:
    async def give_up() -> None:
        starting = asyncio.ensure_future(spawn(Unwanted(), ["sleep", "100"]))
        for _ in range(n_turns):
            await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await asyncio.sleep(0.01)

    run(give_up())
    gc.collect()  # A pipe that is open is a ResourceWarning, which is an error here.


class Listener:
    """An owner who notes what it is told, in order."""

    def __init__(self) -> None:
        self.told: list[bytes | int | None] = []
        self.ended = asyncio.Event()
        self.process: Process

    def connected(self, process: Process) -> None:
        self.process = process

    def received(self, data: bytes) -> None:
        self.told.append(data)

    def output_ended(self) -> None:
        self.told.append(None)

    def exited(self, status: int) -> None:
        self.told.append(status)
        self.ended.set()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_last_words_are_heard_though_the_end_is_known_before_they_are_read(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    async def listen() -> None:
        loop, listener = asyncio.get_running_loop(), Listener()
        await spawn(listener, ["sh", "-c", "read line; echo last words; exit 3"])
        name = f"process-{listener.process.pid}"
        (waiting,) = [thread for thread in threading.enumerate() if thread.name == name]
        source, target = os.pipe()

        def be_busy() -> None:
            """Something else was read, which takes until the process has ended."""
            loop.remove_reader(source)
            waiting.join()
            loop.call_soon(lambda: None)

        loop.add_reader(source, be_busy)
        os.write(target, b"!")
        listener.process.write(b"go\n", droppable=False)
        await listener.ended.wait()
        assert listener.told == [b"last words\n", None, 3]
        listener.process.close()
        os.close(source)
        os.close(target)

    run(listen())
