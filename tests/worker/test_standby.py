"""A process that waits for a model: who gets it, and that it is never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llm_server.worker import standby
from llm_server.worker.client import Worker
from llm_server.worker.messages import Load
from llm_server.worker.standby import Standby
from tests.fake_live import FAKE_WORKER, add_models
from tests.forked import children


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "REST_S", 0.0)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    others = set(children())
    yield
    assert set(children()) <= others


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - what happens, happens in another process
            await asyncio.sleep(0.002)


def with_standby(test: Callable[[Standby], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        ready = Standby(FAKE_WORKER)
        try:
            await test(ready)
        finally:
            await ready.close()

    asyncio.run(run())


async def started(ready: Standby, folder: Path) -> Worker:
    add_models(folder, "a.gguf")
    start = partial(Worker.start, spawn=ready.spawn)
    return await start(Load(model_path=folder / "a.gguf"))


def end(pid: int) -> None:
    """End a process before the loop, which does not go round, can be told of it."""
    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):  # the thread that waits for it was quicker
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_the_next_load_gets_the_process_that_waits(tmp_path: Path) -> None:
    async def test(ready: Standby) -> None:
        ready.refill(lambda: False)
        await until(lambda: ready.pid is not None)
        pid = ready.pid
        worker = await started(ready, tmp_path)
        assert worker.pid == pid and ready.pid is None
        await worker.stop(5)

    with_standby(test)


def test_one_that_ended_while_it_waited_is_nobodys_failed_load(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")

    async def test(ready: Standby) -> None:
        ready.refill(lambda: False)
        await until(lambda: ready.pid is not None)
        children()[0].send_signal(signal.SIGKILL)
        await until(lambda: "the worker that waited has ended with status -9" in caplog.text)
        worker = await started(ready, tmp_path)
        await worker.stop(5)

    with_standby(test)


def test_one_that_ended_and_nobody_knows_it_yet_is_nobodys_failed_load(tmp_path: Path) -> None:
    async def test(ready: Standby) -> None:
        ready.refill(lambda: False)
        await until(lambda: ready.pid is not None)
        (child,) = children()
        end(child.pid)
        assert ready.pid == child.pid
        worker = await started(ready, tmp_path)
        assert worker.pid != child.pid
        await worker.stop(5)

    with_standby(test)


def test_there_is_one_at_most_and_none_while_the_machine_is_busy() -> None:
    async def test(ready: Standby) -> None:
        asked = 0

        def busy() -> bool:
            nonlocal asked
            asked += 1
            assert ready.pid is None
            return asked < 5

        ready.refill(busy)
        ready.refill(busy)
        await until(lambda: ready.pid is not None)
        ready.refill(lambda: False)
        assert len(children()) == 1

    with_standby(test)


def test_a_command_that_cannot_be_run_is_no_error_before_a_load(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        ready = Standby([str(tmp_path / "nothing")])
        ready.refill(lambda: False)
        await until(lambda: "no worker can be kept ready" in caplog.text)
        with pytest.raises(OSError):
            await ready.spawn(ready)
        await ready.close()

    asyncio.run(test())
