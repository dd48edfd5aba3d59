"""What may happen to a model at the same moment: the pool on fake workers, event by event."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from llm_server.errors import InsufficientMemory, ModelLoadFailed, RemoteError, ServerError
from llm_server.models import policy
from llm_server.models.lease import Lease
from llm_server.models.loader import Loader
from llm_server.models.policy import MAX_REVIVALS, Crashes
from llm_server.models.pool import Pool
from llm_server.worker.client import Worker
from llm_server.worker.messages import ChatRequest, Load, Message
from tests.fake_live import add_models
from tests.gguf_bytes import TINY, gguf
from tests.models.test_pool import AMPLE, FAKE_START, SCARCE, answers, loads, until, with_pool


async def turns(n: int) -> None:
    """Let the loop go round that often."""
    for _ in range(n):
        await asyncio.sleep(0)


def names(pool: Pool) -> list[str]:
    return [resident.model.name for resident in pool.loaded]


def test_a_model_that_is_unloaded_does_not_come_back_from_a_crash_before(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")

    async def test(pool: Pool) -> None:
        lease = await pool.acquire("a")
        lease.release()
        os.kill(lease.worker.pid, signal.SIGKILL)
        # It is on its way back: its pause after a crash is half a second.
        await until(lambda: pool.status().loading == "a.gguf")
        assert not (await pool.unload("a")).was_loaded
        await until(lambda: pool.status().loading is None)
        assert pool.status().waiting == 0 and pool.status().state == "empty"
        assert len(loads(tmp_path)) == 1
        assert await answers(pool, "a") == "a.gguf"

    with_pool(tmp_path, test)


def test_a_model_that_is_unloaded_while_it_is_being_loaded_goes_afterwards(tmp_path: Path) -> None:
    add_models(tmp_path, "gate.gguf")

    async def test(pool: Pool) -> None:
        answering = asyncio.create_task(answers(pool, "gate"))
        await until(lambda: pool.status().loading == "gate.gguf")
        unloading = asyncio.create_task(pool.unload("gate"))
        await turns(3)
        assert not unloading.done()
        (tmp_path / "gate.gguf.open").touch()
        # Whoever it was loaded for has an answer of it before.
        assert await answering == "gate.gguf"
        assert (await unloading).was_loaded
        assert names(pool) == []

    with_pool(tmp_path, test)


def test_a_model_that_is_unloaded_while_it_is_being_put_back_goes_afterwards(
    tmp_path: Path,
) -> None:
    add_models(tmp_path, "gate.gguf", "broken.gguf")
    gate = tmp_path / "gate.gguf.open"
    gate.touch()

    async def test(pool: Pool) -> None:
        await answers(pool, "gate")
        gate.unlink()
        with pytest.raises(RemoteError):
            await pool.acquire("broken")
        await until(lambda: pool.status().loading == "gate.gguf")
        unloading = asyncio.create_task(pool.unload("gate"))
        await turns(3)
        gate.touch()
        assert (await unloading).was_loaded
        assert names(pool) == []

    with_pool(tmp_path, test, memory=SCARCE)


@pytest.mark.parametrize("useful", [False, True])
def test_workers_that_die_after_their_loads_come_back_if_they_were_of_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, useful: bool
) -> None:
    monkeypatch.setattr(policy, "FORGIVEN_S", -1.0)
    monkeypatch.setattr(policy, "FIRST_BACKOFF_S", 0.0)
    add_models(tmp_path, "a.gguf")

    async def test(pool: Pool) -> None:
        (await pool.acquire("a")).release()
        for n in range(1, MAX_REVIVALS + 2):
            await until(lambda: bool(pool.loaded))
            worker = pool.loaded[0].worker
            if useful:
                stream = worker.submit(ChatRequest([Message("user", "fine")]))
                assert [batch async for batch in stream]
            os.kill(worker.pid, signal.SIGKILL)
            await until(lambda n=n: pool.totals.worker_crashes == n)  # type: ignore[misc]
        if useful:
            await until(lambda: bool(pool.loaded))
        else:
            await turns(10)
            assert (pool.status().waiting, pool.status().loading) == (0, None)

    with_pool(tmp_path, test)


def test_the_pause_after_crashes_is_nobody_elses(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf", "c.gguf")
    pauses = {"c.gguf": Crashes(9, time.monotonic() + 1000)}

    async def test(pool: Pool) -> None:
        await answers(pool, "a")
        pausing = asyncio.create_task(pool.acquire("c"))
        await until(lambda: pool.status().loading == "c.gguf")
        # Nobody has made room so far, and others are loaded first.
        assert names(pool) == ["a.gguf"]
        assert await answers(pool, "b") == "b.gguf"
        await until(lambda: pool.status().loading == "c.gguf")
        # It ends when whoever asked has left.
        pausing.cancel()
        await turns(3)
        assert (pool.status().loading, pool.status().waiting) == (None, 0)

    loader = Loader(start_worker=FAKE_START, _crashes=pauses)
    with_pool(tmp_path, test, memory=SCARCE, loader=loader)


def test_a_model_that_is_unloaded_after_it_made_room_stays_away_when_the_load_fails(
    tmp_path: Path,
) -> None:
    add_models(tmp_path, "a.gguf", "gate-broken.gguf")

    async def test(pool: Pool) -> None:
        await answers(pool, "a")
        failing = asyncio.create_task(pool.acquire("gate-broken"))
        await until(lambda: pool.status().loading == "gate-broken.gguf")
        assert not (await pool.unload("a")).was_loaded
        (tmp_path / "gate-broken.gguf.open").touch()
        with pytest.raises(RemoteError):
            await failing
        assert pool.status().loading is None and names(pool) == []
        assert await answers(pool, "a") == "a.gguf"

    with_pool(tmp_path, test, memory=SCARCE)


def test_a_worker_that_dies_while_it_is_unloaded_does_not_come_back(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")

    async def test(pool: Pool) -> None:
        lease = await pool.acquire("a")
        unloading = asyncio.create_task(pool.unload("a"))
        await until(lambda: any(r.leaving for r in pool.loaded))
        os.kill(lease.worker.pid, signal.SIGKILL)
        await lease.worker.wait()
        lease.release()
        assert (await unloading).was_loaded
        await turns(10)
        assert (pool.status().waiting, pool.status().loading) == (0, None)
        assert len(loads(tmp_path)) == 1

    with_pool(tmp_path, test)


def test_a_worker_that_dies_while_it_is_in_the_way_is_not_waited_for(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")

    async def test(pool: Pool) -> None:
        # Its client reads so slowly that the answer is still being sent.
        lease = await pool.acquire("a")
        asking = asyncio.create_task(pool.acquire("b"))
        await until(lambda: any(resident.leaving for resident in pool.loaded))
        os.kill(lease.worker.pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            assert (await asking).model.name == "b.gguf"
        lease.release()
        assert names(pool) == ["b.gguf"]

    with_pool(tmp_path, test, memory=SCARCE)


def test_a_worker_that_dies_while_the_pool_closes_does_not_come_back(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")

    async def test(pool: Pool) -> None:
        lease = await pool.acquire("a")
        pool.begin_close()
        os.kill(lease.worker.pid, signal.SIGKILL)
        await lease.worker.wait()
        lease.release()
        assert await pool.drained(10)
        assert pool.status().waiting == 0

    with_pool(tmp_path, test)


@pytest.mark.parametrize("n", range(4))
def test_an_unload_that_is_given_up_is_done_or_not(tmp_path: Path, n: int) -> None:
    add_models(tmp_path, "a.gguf")

    async def test(pool: Pool) -> None:
        lease = await pool.acquire("a")
        lease.release()
        unloading = asyncio.create_task(pool.unload("a"))
        await turns(n)
        unloading.cancel()
        await asyncio.wait({unloading})
        # Either it stays and serves, or it goes; nothing is left in between.
        await until(lambda: all(not r.leaving for r in pool.loaded))
        if names(pool):
            assert await answers(pool, "a") == "a.gguf"
            assert len(loads(tmp_path)) == 1
        else:
            await lease.worker.wait()

    with_pool(tmp_path, test)


def test_two_unloads_of_which_one_is_given_up(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")

    async def test(pool: Pool) -> None:
        lease = await pool.acquire("a")
        first, second = (asyncio.create_task(pool.unload("a")) for _ in range(2))
        await until(lambda: any(r.leaving == 2 for r in pool.loaded))
        first.cancel()
        await asyncio.wait({first})
        lease.release()
        assert await second
        assert names(pool) == [] and not lease.worker.alive

    with_pool(tmp_path, test)


def test_memory_is_free_when_the_process_is_gone_and_not_before(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")

    async def test(pool: Pool) -> None:
        lease = await pool.acquire("a")
        lease.release()
        os.kill(lease.worker.pid, signal.SIGSTOP)
        unloading = asyncio.create_task(pool.unload("a"))
        await until(lambda: not lease.worker.alive)
        asking = asyncio.create_task(pool.acquire("b"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(asking), 0.5)
        assert pool.status().loading is None
        os.kill(lease.worker.pid, signal.SIGCONT)
        assert (await unloading).was_loaded
        assert (await asking).model.name == "b.gguf"

    with_pool(tmp_path, test, memory=SCARCE)


@pytest.mark.parametrize("memory", [SCARCE, AMPLE], ids=["by_plan", "by_a_second_try"])
def test_a_request_that_goes_while_another_model_is_ended_for_it(
    tmp_path: Path, memory: int
) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")

    async def start(load: Load, **kwargs: Any) -> Worker:
        if lease is not None and lease.worker.alive:
            raise InsufficientMemory("not beside another")
        return await FAKE_START(load, **kwargs)

    async def test(pool: Pool) -> None:
        nonlocal lease
        lease = await pool.acquire("a")
        lease.release()
        os.kill(lease.worker.pid, signal.SIGSTOP)
        asking = asyncio.create_task(pool.acquire("b"))
        await until(lambda: not lease.worker.alive)
        asking.cancel()
        await asyncio.wait({asking})
        os.kill(lease.worker.pid, signal.SIGCONT)
        await until(lambda: names(pool) == ["b.gguf"])

    lease: Lease | None = None
    with_pool(tmp_path, test, memory=memory, loader=Loader(start_worker=start))


def test_a_request_at_the_moment_when_the_time_of_its_model_is_up(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")

    async def test(pool: Pool) -> None:
        for n in range(8):
            lease = await pool.acquire("a", keep_alive_s=0)
            lease.release()
            await turns(n)
            again = await pool.acquire("a", keep_alive_s=-1)
            assert again.worker.alive
            again.release()

    with_pool(tmp_path, test)


def test_time_that_is_up_while_others_wait_for_another_setting(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")

    async def test(pool: Pool) -> None:
        running = await pool.acquire("a", keep_alive_s=0)
        waiting = [
            asyncio.create_task(pool.acquire("a.gguf", {"n_ctx": n_ctx}, keep_alive_s=0))
            for n_ctx in (512, 1024)
        ]
        await until(lambda: pool.status().waiting == 2)
        running.release()
        for task in waiting:
            (await task).release()
        await until(lambda: names(pool) == [])
        assert [line.split("=")[1] for line in loads(tmp_path)] == ["4096", "512", "1024"]

    with_pool(tmp_path, test)


@pytest.mark.parametrize("n", [0, 1, 2, 4, 8, 50])
def test_closing_at_any_moment_of_a_switch(tmp_path: Path, n: int) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")

    async def test(pool: Pool) -> None:
        (await pool.acquire("a")).release()
        asking = asyncio.create_task(ended(pool.acquire("b")))
        await turns(n)
        await pool.close()
        await asking
        assert names(pool) == []

    with_pool(tmp_path, test, memory=SCARCE)


async def ended(asking: Awaitable[Lease]) -> bool:
    """Whether it came to a lease, which is given back, and not to an error of ours."""
    try:
        (await asking).release()
    except ServerError:
        return False
    return True


def test_a_model_that_cannot_be_put_back_is_loaded_when_it_is_asked_for(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "broken.gguf")
    broken = asyncio.Event()

    async def start(load: Load, **kwargs: Any) -> Worker:
        if broken.is_set() and not load.model_path.match("*broken.gguf"):
            raise ModelLoadFailed("not now")
        return await FAKE_START(load, **kwargs)

    async def test(pool: Pool) -> None:
        (await pool.acquire("a")).release()
        broken.set()
        with pytest.raises(RemoteError):
            await pool.acquire("broken")
        broken.clear()
        assert await answers(pool, None) == "a.gguf"
        assert pool.status().waiting == 0

    with_pool(tmp_path, test, memory=SCARCE, loader=Loader(start_worker=start))


def test_a_model_that_is_replaced_while_it_is_waited_for(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")

    async def test(pool: Pool) -> None:
        running = await pool.acquire("a")
        waiting = asyncio.create_task(pool.acquire("b"))
        await until(lambda: pool.status().waiting == 1)
        # Its load has been thought through already, and waits for room.
        await until(lambda: any(resident.leaving for resident in pool.loaded))
        (tmp_path / "new").write_bytes(gguf({**TINY, "llama.context_length": 1024}))
        (tmp_path / "new").rename(tmp_path / "b.gguf")
        running.release()
        (await waiting).release()
        assert await answers(pool, "b") == "b.gguf"
        (resident,) = pool.loaded
        assert (resident.plan.facts.n_ctx_train, resident.plan.config.n_ctx) == (1024, 1024)
        assert [line.split(".")[0] for line in loads(tmp_path)] == ["a", "b"]

    with_pool(tmp_path, test, memory=SCARCE)


@pytest.mark.parametrize("in_place", [False, True])
def test_the_default_model_is_known_anew_when_its_file_is_another(
    tmp_path: Path, in_place: bool
) -> None:
    add_models(tmp_path, "a.gguf")

    async def test(pool: Pool) -> None:
        assert await answers(pool, None) == "a.gguf"
        (before,) = pool.loaded
        other = gguf({**TINY, "llama.context_length": 1024})
        if in_place:
            (tmp_path / "a.gguf").write_bytes(other)
        else:
            (tmp_path / "new").write_bytes(other)
            (tmp_path / "new").rename(tmp_path / "a.gguf")
        assert await answers(pool, None) == "a.gguf"
        (after,) = pool.loaded
        assert after.worker is not before.worker
        assert (after.plan.facts.n_ctx_train, after.model.size) == (1024, len(other))

    with_pool(tmp_path, test)
