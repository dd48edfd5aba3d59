"""A worker that exists and is of no use is ended, and its requests are told why."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from llm_server.errors import (
    CrashesWorker,
    ModelLoadFailed,
    OutOfMemory,
    ServerError,
    WorkerCrashed,
)
from llm_server.worker import watchdog
from llm_server.worker.client import Worker
from llm_server.worker.messages import ChatRequest, Failed, Load, Message, RequestEvent
from llm_server.worker.process import spawn
from llm_server.worker.stream import EventStream
from llm_server.worker.suspects import MAX_CRASHES, Suspects
from llm_server.worker.totals import Totals
from llm_server.worker.watchdog import (
    LATELY_TICKS,
    PAGING,
    Limits,
    OomKills,
    Watchdog,
    oom_kills,
    own_memory,
)
from tests.fake_live import FAKE_WORKER, add_models

QUICK = Limits(silence_s=0.2, text_rate=1e9, tick_s=0.05)


def ask(text: str) -> ChatRequest:
    return ChatRequest([Message("user", text)])


async def start(folder: Path, limits: Limits, name: str = "a.gguf", **more: Totals) -> Worker:
    add_models(folder, name)
    load = Load(folder / name)
    return await Worker.start(load, spawn=partial(spawn, argv=FAKE_WORKER), limits=limits, **more)


async def end_of(stream: EventStream) -> RequestEvent:
    return [event async for batch in stream for event in batch][-1]


def test_a_silent_worker_is_ended_and_its_requests_say_so(tmp_path: Path) -> None:
    async def run() -> None:
        worker = await start(tmp_path, QUICK)
        waiting = [worker.submit(ask("hang")), worker.submit(ask("hang"))]
        os.kill(worker.pid, signal.SIGSTOP)
        for stream in waiting:
            end = await end_of(stream)
            assert isinstance(end, Failed)
            assert end.error.code == "worker_crashed" and not end.error.retry
            assert "has not answered for" in end.error.message
        assert await worker.wait() == -signal.SIGKILL
        assert worker.crashed_at is not None

    asyncio.run(run())


def test_an_idle_worker_may_be_silent(tmp_path: Path) -> None:
    async def run() -> None:
        worker = await start(tmp_path, QUICK)
        ticks = asyncio.Event()
        asyncio.get_running_loop().call_later(6 * QUICK.silence_s, ticks.set)
        await ticks.wait()
        assert worker.alive
        await worker.stop(5)
        assert worker.crashed_at is None

    asyncio.run(run())


def verdicts(watchdog: Watchdog, n: int, longest: int | None = 0) -> list[ServerError | None]:
    return [watchdog.tick(loaded=True, longest=longest, memory=0) for _ in range(n)]


def test_silence_is_allowed_by_the_length_of_the_request() -> None:
    limits = Limits(silence_s=60, text_rate=10e3)
    assert not any(verdicts(Watchdog(limits, 0), 60))
    assert isinstance(verdicts(Watchdog(limits, 0), 61)[-1], WorkerCrashed)
    long = Watchdog(limits, 0)
    assert not any(verdicts(long, 160, 1_000_000))
    assert isinstance(verdicts(long, 1, 1_000_000)[0], WorkerCrashed)
    vectors = Watchdog(Limits(silence_s=60, vector_rate=40), 0)
    told = [vectors.tick(loaded=True, longest=40_000, memory=0, vectors=True) for _ in range(1061)]
    assert not any(told[:-1]) and isinstance(told[-1], WorkerCrashed)


def test_any_word_and_any_pause_begin_the_silence_anew() -> None:
    watchdog = Watchdog(Limits(silence_s=10), 0)
    for _ in range(5):
        assert not any(verdicts(watchdog, 9))
        watchdog.heard()
        assert not any(verdicts(watchdog, 9))
        assert not any(verdicts(watchdog, 1, None))


def test_who_reads_its_model_in_again_is_not_silent_yet() -> None:
    watchdog = Watchdog(Limits(silence_s=10), 0)
    sizes = [*range(1, 101), *[100] * 11]
    said = [watchdog.tick(loaded=True, longest=0, memory=0, mapped=size) for size in sizes]
    assert not any(said[:-1])
    assert "not answered for 111 s" in str(said[-1])


def test_who_reads_it_in_for_ever_is_ended_at_last() -> None:
    watchdog = Watchdog(Limits(silence_s=10), 0)
    sizes = range(1, 10 * PAGING + 12)
    said = [watchdog.tick(loaded=True, longest=0, memory=0, mapped=size) for size in sizes]
    assert not any(said[:-1]) and isinstance(said[-1], WorkerCrashed)


def test_what_a_load_has_read_counts_for_nothing_later() -> None:
    watchdog = Watchdog(Limits(silence_s=10), 0)
    watchdog.tick(loaded=False, longest=None, memory=0, mapped=1000)
    said = [watchdog.tick(loaded=True, longest=0, memory=0, mapped=1000) for _ in range(11)]
    assert not any(said[:-1]) and isinstance(said[-1], WorkerCrashed)


def test_a_load_may_take_as_long_as_its_size_deserves() -> None:
    limits = Limits(load_s=100, load_rate=10e6)
    watchdog = Watchdog(limits, 1_000_000_000)
    ticks = [watchdog.tick(loaded=False, longest=None, memory=0) for _ in range(201)]
    assert not any(ticks[:200])
    assert isinstance(ticks[200], ModelLoadFailed)


def test_a_load_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="not loaded within"):
        asyncio.run(start(tmp_path, Limits(load_s=0.2, tick_s=0.05), "gate.gguf"))


def test_a_worker_that_grows_too_big_is_ended(tmp_path: Path) -> None:
    async def run() -> None:
        worker = await start(tmp_path, Limits(tick_s=0.05, memory=None))
        used = own_memory(worker.pid)
        assert 1 << 20 < used < 1 << 30
        await worker.stop(5)
        worker = await start(tmp_path, Limits(tick_s=0.05, memory=10 * used))
        stream = worker.submit(ask("grow:" + str(20 * used)))
        end = await end_of(stream)
        assert isinstance(end, Failed)
        assert (end.error.status, end.error.code) == (503, "out_of_memory")
        assert end.error.retry_after == 10
        await worker.wait()

    asyncio.run(run())


def test_a_load_that_grows_too_big_is_ended(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory):
        asyncio.run(start(tmp_path, Limits(tick_s=0.05, memory=1), "gate.gguf"))


def test_the_kernels_counter_can_be_read() -> None:
    assert oom_kills() >= 0
    assert own_memory(2**30) == 0, "there is no such process"


def kills(path: Path, n: int) -> None:
    path.write_text(f"oom_kills_of_others 9\noom_kill {n}\n")


@pytest.fixture
def vmstat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "vmstat"
    kills(path, 3)
    monkeypatch.setattr(watchdog, "VMSTAT", path)
    return path


def test_what_the_system_killed_long_ago_is_forgotten(vmstat: Path) -> None:
    counter = OomKills()
    assert not counter.lately
    kills(vmstat, 4)
    for _ in range(LATELY_TICKS - 1):
        counter.tick()
        assert counter.lately
    counter.tick()
    assert not counter.lately


@pytest.mark.parametrize(
    ("how", "n_kills", "code"),
    [
        (signal.SIGKILL, 4, "out_of_memory"),
        (signal.SIGKILL, 3, "worker_crashed"),
        (signal.SIGSEGV, 4, "worker_crashed"),
    ],
)
def test_only_a_kill_while_memory_ran_out_is_put_down_to_that(
    tmp_path: Path,
    vmstat: Path,
    caplog: pytest.LogCaptureFixture,
    how: signal.Signals,
    n_kills: int,
    code: str,
) -> None:
    async def run() -> None:
        worker = await start(tmp_path, Limits(tick_s=60))
        waiting = [worker.submit(ask("hang")), worker.submit(ask("hang"))]
        kills(vmstat, n_kills)
        os.kill(worker.pid, how)
        for stream in waiting:
            end = await end_of(stream)
            assert isinstance(end, Failed) and end.error.code == code
        await worker.wait()
        assert f"was ended by {how.name} with 2 requests running" in caplog.text

    asyncio.run(run())


# ---- requests that crash every worker ----------------------------------------------------------


def test_a_request_is_refused_after_three_deaths_and_only_on_that_model() -> None:
    suspects = Suspects()
    culprit, bystander = ask("culprit"), ask("bystander")
    for _ in range(MAX_CRASHES):
        suspects.check("m", culprit)
        suspects.died("m", [culprit, bystander, culprit])
        suspects.finished("m", bystander)
    with pytest.raises(CrashesWorker):
        suspects.check("m", culprit)
    suspects.check("m", bystander)
    suspects.check("other", culprit)


def test_only_so_many_suspects_are_remembered() -> None:
    suspects = Suspects()
    for _ in range(MAX_CRASHES):
        suspects.died("m", [ask("culprit")])
    suspects.died("m", [ask(str(i)) for i in range(2000)])
    suspects.check("m", ask("culprit"))


@pytest.mark.parametrize("end", ["crash", "garbage", "stop"])
def test_who_is_blamed_for_an_end(tmp_path: Path, end: str) -> None:
    async def run() -> None:
        totals = Totals()
        request = ask(end)
        for _ in range(MAX_CRASHES):
            worker = await start(tmp_path, Limits(), totals=totals)
            stream = worker.submit(request)
            if end == "stop":
                await worker.stop(5)
            assert isinstance(await end_of(stream), Failed) or end == "stop"
            await worker.wait()
        worker = await start(tmp_path, Limits(), totals=totals)
        if end == "stop":
            assert not isinstance(await end_of(worker.submit(request)), Failed)
        else:
            with pytest.raises(CrashesWorker):
                worker.submit(request)
        await worker.stop(5)

    asyncio.run(run())
