"""Processes with pipes: what is left of one that nobody wants any more."""

from __future__ import annotations

import asyncio
import gc
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
