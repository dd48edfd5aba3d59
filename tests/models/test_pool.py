"""The pool on fake workers: one load for many, draining, failing, dying, closing."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from llm_server.errors import (
    ModelLoadFailed,
    ModelLoading,
    ModelNotFound,
    QueueFull,
    RemoteError,
    ServerError,
    ShuttingDown,
)
from llm_server.models.pool import Pool
from llm_server.models.registry import Registry
from llm_server.worker.client import Worker
from llm_server.worker.messages import CacheConfig, Load, LoadConfig
from tests.fake_live import FAKE_WORKER, add_models
from tests.fake_worker import UNLUCKY_N_CTX

AMPLE, SCARCE = 1 << 40, 0


def with_pool(
    folder: Path,
    test: Callable[[Pool], Coroutine[Any, Any, None]],
    *,
    memory: int = AMPLE,
    **kwargs: Any,
) -> None:
    """Run `test` on a pool, close it, and see that none of its processes is left."""
    others = set(psutil.Process().children())

    async def run() -> None:
        pool = Pool(
            Registry(folder),
            defaults=LoadConfig(),
            start_worker=partial(Worker.start, argv=FAKE_WORKER),
            available_memory=lambda: memory,
            **({"queue_size": 64} | kwargs),
        )
        try:
            await test(pool)
        finally:
            await pool.close()

    asyncio.run(run())
    assert set(psutil.Process().children()) <= others


def loads(folder: Path) -> list[str]:
    path = folder / "loads.log"
    return [" ".join(line.split()[:2]) for line in path.read_text().splitlines()]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - what happens, happens in other processes too
            await asyncio.sleep(0.002)


def test_many_requests_for_an_unloaded_model_cause_one_load(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")

    async def test(pool: Pool) -> None:
        leases = await asyncio.gather(*(pool.acquire("a") for _ in range(50)))
        assert len({lease.worker.pid for lease in leases}) == 1
        assert pool.status().running == 50
        for lease in leases:
            lease.release()
            lease.release()  # Once more does nothing.
        assert pool.status().running == 0
        assert loads(tmp_path) == ["a.gguf n_ctx=4096"]

    with_pool(tmp_path, test)


def test_no_name_means_the_current_model_and_else_the_first(tmp_path: Path) -> None:
    add_models(tmp_path, "b.gguf", "a.gguf")

    async def test(pool: Pool) -> None:
        for name, expected in ((None, "a.gguf"), ("b", "b.gguf"), (None, "b.gguf")):
            lease = await pool.acquire(name)
            assert lease.model.name == expected
            lease.release()

    with_pool(tmp_path, test)


def test_the_first_model_can_be_told(tmp_path: Path) -> None:
    add_models(tmp_path, "b.gguf", "a.gguf")

    async def test(pool: Pool) -> None:
        assert (await pool.acquire(None)).model.name == "b.gguf"

    with_pool(tmp_path, test, first_model="b")


def test_errors_that_need_no_worker(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        with pytest.raises(ModelNotFound):
            await pool.acquire("nope")
        with pytest.raises(ModelLoading):
            await pool.acquire(None)

    with_pool(tmp_path, test)


@pytest.mark.parametrize("memory", [AMPLE, SCARCE])
def test_a_switch_waits_for_running_requests_and_then_takes_all_that_wait(
    tmp_path: Path, memory: int
) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")

    async def test(pool: Pool) -> None:
        running = await pool.acquire("a")
        # Alternating, in this order: yet each model is loaded once more at most.
        names = ["b", "a", "b", "a"]
        waiting = []
        for i, name in enumerate(names):
            waiting.append(asyncio.create_task(pool.acquire(name)))
            await until(lambda i=i: pool.status().waiting == i + 1)  # type: ignore[misc]
        assert running.worker.alive and loads(tmp_path) == ["a.gguf n_ctx=4096"]
        running.release()
        for task in (waiting[0], waiting[2]):
            lease = await task
            assert lease.model.name == "b.gguf"
            lease.release()
        for task in (waiting[1], waiting[3]):
            lease = await task
            assert lease.model.name == "a.gguf"
            lease.release()
        assert [line.split(".")[0] for line in loads(tmp_path)] == ["a", "b", "a"]
        await until(lambda: len(psutil.Process().children()) == 1)

    with_pool(tmp_path, test, memory=memory)


@pytest.mark.parametrize("name", ["broken.gguf", "crash.gguf"])
def test_a_failing_load_beside_leaves_the_old_worker_alone(tmp_path: Path, name: str) -> None:
    add_models(tmp_path, "a.gguf", name)

    async def test(pool: Pool) -> None:
        lease = await pool.acquire("a")
        lease.release()
        with pytest.raises(RemoteError if name == "broken.gguf" else ModelLoadFailed):
            await pool.acquire(name)
        again = await pool.acquire(None)
        assert again.worker is lease.worker
        status = pool.status()
        assert (status.state, status.model) == ("ready", "a.gguf")
        assert status.error

    with_pool(tmp_path, test, memory=AMPLE)


def test_a_failing_load_instead_brings_the_old_model_back(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "broken.gguf")

    async def test(pool: Pool) -> None:
        lease = await pool.acquire("a", {"n_ctx": 512})
        lease.release()
        with pytest.raises(RemoteError):
            await pool.acquire("broken")
        again = await pool.acquire(None)
        assert again.model.name == "a.gguf"
        assert loads(tmp_path) == ["a.gguf n_ctx=512"] * 2

    with_pool(tmp_path, test, memory=SCARCE)


def test_a_failed_load_fails_all_who_want_the_same_and_nobody_else(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "broken.gguf")

    async def test(pool: Pool) -> None:
        async def briefly(name: str) -> None:
            # Names are looked up in threads, so that any of the three may come first.
            (await pool.acquire(name)).release()

        names = ["broken", "a", "broken.gguf"]
        results = await asyncio.gather(*map(briefly, names), return_exceptions=True)
        assert isinstance(results[0], RemoteError) and isinstance(results[2], RemoteError)
        assert not isinstance(results[1], BaseException)

    with_pool(tmp_path, test)


@pytest.mark.parametrize("memory", [AMPLE, SCARCE])
def test_a_failing_change_of_configuration_ends(tmp_path: Path, memory: int) -> None:
    """The model that fails is the current one, loaded otherwise: no endless retries."""
    add_models(tmp_path, "a.gguf")

    async def test(pool: Pool) -> None:
        lease = await pool.acquire("a")
        lease.release()
        with pytest.raises(RemoteError):
            await pool.acquire("a", {"n_ctx": UNLUCKY_N_CTX})
        assert (await pool.acquire("a")).worker.loaded.n_ctx == 4096

    with_pool(tmp_path, test, memory=memory)


def test_equal_in_effect_is_no_reload(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")

    async def test(pool: Pool) -> None:
        for overrides in (
            {},
            {"n_ctx": 0},
            {"n_ctx": 4096},
            {"parallel": 4, "n_gpu_layers": -1},
            {"n_threads": 0},
        ):
            (await pool.acquire("a", overrides)).release()
        assert len(loads(tmp_path)) == 1
        (await pool.acquire("a", {"n_ctx": 512})).release()
        # What is set stays in force for requests that leave it out.
        (await pool.acquire("a", {"n_threads": 3})).release()
        (await pool.acquire("a", {})).release()
        assert loads(tmp_path)[1:] == ["a.gguf n_ctx=512"] * 2

    with_pool(tmp_path, test)


def test_a_dead_worker_is_started_again_on_the_next_request(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")

    async def test(pool: Pool) -> None:
        lease = await pool.acquire("a", {"n_ctx": 512})
        os.kill(lease.worker.pid, signal.SIGKILL)
        await lease.worker.wait()
        assert pool.status().state != "ready"
        # Though the old lease is still held: it is for a process that is gone.
        again = await pool.acquire(None)
        assert again.worker.pid != lease.worker.pid
        assert loads(tmp_path) == ["a.gguf n_ctx=512"] * 2
        lease.release()
        assert pool.status().running == 1

    with_pool(tmp_path, test)


def test_a_model_that_keeps_crashing_is_tried_ever_more_slowly(tmp_path: Path) -> None:
    add_models(tmp_path, "crash.gguf")

    async def test(pool: Pool) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        for _ in range(2):
            with pytest.raises(ModelLoadFailed):
                await pool.acquire("crash")
        assert loop.time() - started >= 0.5
        assert pool.status().state == "failed"

    with_pool(tmp_path, test)


def test_the_queue_is_bounded(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")

    async def test(pool: Pool) -> None:
        results = await asyncio.gather(
            *(pool.acquire("a") for _ in range(8)), return_exceptions=True
        )
        assert sum(isinstance(result, QueueFull) for result in results) == 2  # 4 + 2 fit.

    with_pool(tmp_path, test, queue_size=2)


def test_a_waiting_request_can_give_up(tmp_path: Path) -> None:
    add_models(tmp_path, "gate.gguf")

    async def test(pool: Pool) -> None:
        waiting = [asyncio.create_task(pool.acquire("gate")) for _ in range(2)]
        await until(lambda: pool.status().fraction == 0.5)
        waiting[0].cancel()
        await until(lambda: pool.status().waiting == 1)
        (tmp_path / "gate.gguf.open").touch()
        await waiting[1]
        assert pool.status().running == 1

    with_pool(tmp_path, test)


def test_a_lease_granted_to_a_request_that_is_just_gone_comes_back(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")

    async def test(pool: Pool) -> None:
        running = await pool.acquire("a")
        switching = asyncio.create_task(pool.acquire("b"))
        await until(lambda: pool.status().waiting == 1)
        waiting = asyncio.create_task(pool.acquire("a"))
        await until(lambda: pool.status().waiting == 2)
        # Without the switch in front of it, the other is granted and cancelled in one breath.
        switching.cancel()
        asyncio.get_running_loop().call_soon(waiting.cancel)
        await asyncio.wait({switching, waiting})
        assert waiting.cancelled()
        assert pool.status().running == 1
        running.release()
        assert pool.status().running == 0

    with_pool(tmp_path, test)


def test_closing_refuses_the_waiting_and_new_ones_and_drains(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")

    async def test(pool: Pool) -> None:
        running = await pool.acquire("a")
        waiting = asyncio.create_task(pool.acquire("b"))
        await until(lambda: pool.status().waiting == 1)
        pool.begin_close()
        for refused in (waiting, pool.acquire("a")):
            with pytest.raises(ShuttingDown):
                await refused
        assert not await pool.drained(0.01)
        running.release()
        assert await pool.drained(5)

    with_pool(tmp_path, test)


def test_closing_in_the_middle_of_a_load_leaves_nothing(tmp_path: Path) -> None:
    add_models(tmp_path, "gate.gguf")

    others = set(psutil.Process().children())

    async def test(pool: Pool) -> None:
        waiting = asyncio.create_task(pool.acquire("gate"))
        await until(lambda: pool.status().fraction == 0.5)
        await pool.close()
        with pytest.raises(ServerError):
            await waiting
        assert set(psutil.Process().children()) <= others

    with_pool(tmp_path, test)


def test_workers_are_told_the_cache_and_the_log_level(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    cache = CacheConfig(str(tmp_path / "cache"), 1000, "all")

    async def test(pool: Pool) -> None:
        (await pool.acquire(None)).release()

    with_pool(tmp_path, test, cache=cache, log_level="debug")
    load = msgspec.json.decode((tmp_path / "commands.log").read_bytes(), type=Load)
    assert (load.cache, load.log_level) == (cache, "debug")
