"""The pool on fake workers: one load for many, draining, failing, dying, closing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llm_server.errors import (
    InsufficientMemory,
    InvalidRequest,
    ModelLoadFailed,
    ModelLoading,
    ModelNotFound,
    QueueFull,
    RateLimitExceeded,
    RemoteError,
    ServerError,
    ShuttingDown,
)
from llm_server.models.lease import Lease
from llm_server.models.loader import Loader
from llm_server.models.plan import ModelDefaults, Planner
from llm_server.models.pool import Pool
from llm_server.models.registry import Registry
from llm_server.opening import new_loop
from llm_server.worker import standby
from llm_server.worker.client import Worker
from llm_server.worker.config import CacheConfig, LoadConfig
from llm_server.worker.messages import Load
from llm_server.worker.process import spawn
from llm_server.worker.standby import Standby
from tests.fake_live import FAKE_WORKER, add_models
from tests.fake_worker import NARROW_N_CTX, UNLUCKY_N_CTX
from tests.forked import children
from tests.gguf_bytes import TINY, gguf

FAKE_START = partial(Worker.start, spawn=partial(spawn, argv=FAKE_WORKER))
AMPLE = 1 << 40
SCARCE = 64 << 20
"""Room for one of the fake models, and not for two."""


def with_pool(
    folder: Path,
    test: Callable[[Pool], Coroutine[Any, Any, None]],
    *,
    memory: int = AMPLE,
    loader: Loader | None = None,
    **kwargs: Any,
) -> None:
    """Run `test` on a pool, close it, and see that none of its processes is left."""
    others = set(children())

    async def run() -> None:
        pool = Pool(
            Planner(Registry(folder), budget=memory, defaults=LoadConfig(parallel=4)),
            loader or Loader(start_worker=FAKE_START),
            **({"queue_size": 64} | kwargs),
        )
        try:
            await test(pool)
        finally:
            await pool.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())
    assert set(children()) <= others


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


async def answers(pool: Pool, name: str | None, **kwargs: Any) -> str:
    """The model that a request is given."""
    lease = await pool.acquire(name, **kwargs)
    lease.release()
    return lease.model.name


def test_no_name_means_the_model_named_last_and_else_the_first(tmp_path: Path) -> None:
    add_models(tmp_path, "b.gguf", "a.gguf")

    async def test(pool: Pool) -> None:
        assert await answers(pool, None) == "a.gguf"
        assert await answers(pool, "b") == "b.gguf"
        assert await answers(pool, None) == "b.gguf"
        assert pool.status().model == "b.gguf"
        assert await answers(pool, "a") == "a.gguf"
        assert await answers(pool, None) == "a.gguf"
        # Going back and forth between models that are loaded loads nothing.
        assert len(loads(tmp_path)) == 2

    with_pool(tmp_path, test)


def test_a_named_model_that_is_not_to_be_the_default_one_is_not(tmp_path: Path) -> None:
    add_models(tmp_path, "b.gguf", "a.gguf")

    async def test(pool: Pool) -> None:
        assert await answers(pool, None) == "a.gguf"
        assert await answers(pool, "b", make_default=False) == "b.gguf"
        assert await answers(pool, None) == "a.gguf"

    with_pool(tmp_path, test)


@pytest.mark.parametrize("memory", [AMPLE, SCARCE])
def test_a_model_that_makes_vectors_takes_nobodys_place(tmp_path: Path, memory: int) -> None:
    add_models(tmp_path, "a.gguf", "vectors.gguf")

    async def test(pool: Pool) -> None:
        assert await answers(pool, "vectors") == "vectors.gguf"
        assert await answers(pool, None) == "a.gguf"
        assert await answers(pool, "vectors") == "vectors.gguf"
        assert await answers(pool, None) == "a.gguf"
        assert await answers(pool, "vectors", make_default=True) == "vectors.gguf"
        assert await answers(pool, None) == "vectors.gguf"

    with_pool(tmp_path, test, memory=memory)


def test_a_default_model_whose_file_is_gone_gives_way_once_it_is_unloaded(tmp_path: Path) -> None:
    add_models(tmp_path, "b.gguf", "a.gguf")

    async def test(pool: Pool) -> None:
        assert await answers(pool, "b") == "b.gguf"
        (tmp_path / "b.gguf").unlink()
        assert await answers(pool, None) == "b.gguf"
        pool._registry.scan()  # as a list of the models does: it does not know the file any more
        assert (await pool.unload("b")).was_loaded
        assert await answers(pool, None) == "a.gguf"

    with_pool(tmp_path, test)


@pytest.mark.parametrize("name", ["sub/b.gguf", "sub/b", "b.gguf", "b", "small"])
def test_a_loaded_model_whose_file_is_gone_is_found_by_its_names(tmp_path: Path, name: str) -> None:
    add_models(tmp_path, "sub/b.gguf", "a.gguf")

    async def test(pool: Pool) -> None:
        pool._registry._aliases = {"small": "b"}
        assert await answers(pool, name) == "sub/b.gguf"
        (tmp_path / "sub/b.gguf").unlink()
        for _ in range(2):
            assert await answers(pool, name) == "sub/b.gguf"
        assert await answers(pool, "a") == "a.gguf"
        assert (await pool.unload(name)).was_loaded
        with pytest.raises(ModelNotFound):
            await pool.acquire(name)
        assert len(loads(tmp_path / "sub")) == 1

    with_pool(tmp_path, test)


def test_a_new_file_of_exactly_that_name_is_the_one_that_is_meant(tmp_path: Path) -> None:
    add_models(tmp_path, "sub/x.gguf")

    async def test(pool: Pool) -> None:
        assert await answers(pool, "x.gguf") == "sub/x.gguf"
        add_models(tmp_path, "x.gguf")
        assert await answers(pool, "x.gguf") == "x.gguf"
        assert await answers(pool, "sub/x.gguf") == "sub/x.gguf"

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


def test_a_switch_waits_for_running_requests_and_then_takes_all_that_wait(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")

    async def test(pool: Pool) -> None:
        running = await pool.acquire("a")
        # Alternating, in this order: yet each model is loaded once more at most.
        names = ["b", "a", "b", "a"]
        waiting = []
        for i, name in enumerate(names):
            waiting.append(asyncio.create_task(pool.acquire(name)))
            await until(lambda i=i: pool.status().waiting == i + 1)  # type: ignore[misc]
            await until(lambda: any(r.leaving for r in pool.loaded))
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
        await until(lambda: len(children()) == 1)

    with_pool(tmp_path, test, memory=SCARCE)


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


def test_settings_asked_for_in_vain_say_nothing_about_the_model(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")

    async def test(pool: Pool) -> None:
        with pytest.raises(InvalidRequest):
            await pool.acquire("a", {"flash_attn": "off", "type_v": "q8_0"})
        status = pool.status()
        assert (status.state, status.error) == ("empty", None)

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


def test_a_failing_load_brings_all_back_that_made_room_for_it(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf", "c.gguf", "broken.gguf")

    async def test(pool: Pool) -> None:
        for name in ("a", "b", "c"):
            await answers(pool, name)
        running = await pool.acquire("b")
        wide = {"n_ctx": 65_536, "n_batch": 60_000, "n_ubatch": 60_000}
        loading = asyncio.create_task(pool.acquire("broken", wide))
        await until(lambda: all(r.leaving for r in pool.loaded))
        # This one is to go in any case.
        unloading = asyncio.create_task(pool.unload("b"))
        await until(lambda: any(r.leaving > 1 for r in pool.loaded))
        running.release()
        with pytest.raises(RemoteError):
            await loading
        await unloading
        await until(lambda: [r.model.name for r in pool.loaded] == ["a.gguf", "c.gguf"])
        # The one that was used last is there first.
        assert [line[:1] for line in loads(tmp_path)] == ["a", "b", "c", "c", "a"]

    with_pool(tmp_path, test, memory=200 << 20)


def test_a_load_that_fails_in_a_way_nobody_knows_brings_the_old_model_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")

    async def start(load: Load, **kwargs: Any) -> Worker:
        if load.model_path.match("*b.gguf"):
            raise RuntimeError("can't start new thread")
        return await FAKE_START(load, **kwargs)

    async def test(pool: Pool) -> None:
        await answers(pool, "a")
        with pytest.raises(ServerError):
            await pool.acquire("b")
        await until(lambda: [r.model.name for r in pool.loaded] == ["a.gguf"])
        assert await answers(pool, None) == "a.gguf"

    with_pool(tmp_path, test, memory=SCARCE, loader=Loader(start_worker=start))
    assert [bool(r.exc_info) for r in caplog.records if "new thread" in r.message] == [True]


def test_idle_models_that_a_load_wanted_the_memory_of_come_back_when_it_fails(
    tmp_path: Path,
) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")

    async def start(load: Load, **kwargs: Any) -> Worker:
        if load.model_path.match("*b.gguf"):
            raise InsufficientMemory("too much")
        return await FAKE_START(load, **kwargs)

    async def test(pool: Pool) -> None:
        await answers(pool, "a")
        with pytest.raises(InsufficientMemory):
            await pool.acquire("b")
        await until(lambda: [r.model.name for r in pool.loaded] == ["a.gguf"])
        assert len(loads(tmp_path)) == 2

    with_pool(tmp_path, test, loader=Loader(start_worker=start))


def test_idle_models_go_where_a_worker_reports_that_memory_falls_short(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf", "crowded.gguf")

    async def test(pool: Pool) -> None:
        await answers(pool, "a")
        running = await pool.acquire("b")
        with pytest.raises(RemoteError) as caught:
            await pool.acquire("crowded")
        assert caught.value.info.code == "insufficient_memory"
        # The idle one went for it in vain; the one that is used stays in any case.
        await until(lambda: {r.model.name for r in pool.loaded} == {"a.gguf", "b.gguf"})
        running.release()
        assert await answers(pool, "crowded") == "crowded.gguf"
        assert [r.model.name for r in pool.loaded] == ["crowded.gguf"]

    with_pool(tmp_path, test)


def test_a_dead_worker_that_has_no_room_any_more_takes_nobodys(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "crowded.gguf")

    async def test(pool: Pool) -> None:
        lease = await pool.acquire("crowded")
        lease.release()
        await answers(pool, "a")
        os.kill(lease.worker.pid, signal.SIGKILL)
        await until(lambda: pool.status().error is not None)
        assert await answers(pool, None) == "a.gguf"
        assert loads(tmp_path) == ["crowded.gguf n_ctx=4096", "a.gguf n_ctx=4096"]

    with_pool(tmp_path, test)


def test_an_open_context_is_as_small_as_the_worker_had_to_make_it(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "narrow.gguf")
    (tmp_path / "narrow.gguf").write_bytes(gguf(TINY | {"llama.context_length": 2 * NARROW_N_CTX}))

    async def test(pool: Pool) -> None:
        await answers(pool, "a")
        lease = await pool.acquire("narrow")
        # The idle model had to go before the context became smaller.
        assert [r.model.name for r in pool.loaded] == ["narrow.gguf"]
        plan = lease.plan
        assert lease.worker.loaded.n_ctx == plan.config.n_ctx == plan.effect.n_ctx == NARROW_N_CTX
        assert plan.asked.n_ctx == 0 and pool.planner.sources(plan)["n_ctx"] == "fitted"
        whole = pool.planner.weigh(lease.model)
        assert (whole.config.n_ctx, plan.memory.kv) == (2 * NARROW_N_CTX, whole.memory.kv // 2)
        lease.release()
        # That is what is in force; who asks for more is told that it does not fit.
        await answers(pool, "narrow", overrides={"n_ctx": NARROW_N_CTX})
        assert loads(tmp_path) == ["a.gguf n_ctx=4096", "narrow.gguf n_ctx=16384"]
        with pytest.raises(RemoteError) as caught:
            await pool.acquire("narrow", {"n_ctx": 2 * NARROW_N_CTX})
        assert caught.value.info.code == "insufficient_memory"
        await until(lambda: [r.plan.config.n_ctx for r in pool.loaded] == [NARROW_N_CTX])

    with_pool(tmp_path, test)


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
            {"n_threads": pool.planner.n_threads},
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


def test_no_owner_takes_all_places_and_each_takes_all_that_run(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")

    async def test(pool: Pool) -> None:
        async def held_by(owner: str) -> int:
            asked = [pool.acquire("a", owner=owner) for _ in range(16)]
            results = await asyncio.gather(*asked, return_exceptions=True)
            assert all(isinstance(r, RateLimitExceeded | Lease) for r in results)
            return sum(isinstance(r, Lease) for r in results)

        # Of 4 that run and 8 that wait.
        assert [await held_by(owner) for owner in ("one", "two", "three")] == [6, 3, 2]
        await pool.acquire("a", owner="four")
        with pytest.raises(QueueFull):
            await pool.acquire("a", owner="five")

    with_pool(tmp_path, test, queue_size=8)


def test_an_owner_without_others_beside_it_keeps_every_slot_busy(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")

    async def test(pool: Pool) -> None:
        await asyncio.gather(*(pool.acquire("a", owner="one") for _ in range(4)))
        with pytest.raises(QueueFull):
            await pool.acquire("a", owner="one")

    with_pool(tmp_path, test, queue_size=0)


def test_owners_take_turns_in_choosing_the_next_model(tmp_path: Path) -> None:
    names = [f"m{i}.gguf" for i in range(5)]
    add_models(tmp_path, *names)

    async def test(pool: Pool) -> None:
        running = await pool.acquire("m0", owner="many")
        waiting = []
        for i, owner in ((1, "many"), (2, "many"), (3, "many"), (4, "one")):
            waiting.append(asyncio.create_task(answers(pool, names[i], owner=owner)))
            await until(lambda i=i: pool.status().waiting == i)  # type: ignore[misc]
        running.release()
        await asyncio.gather(*waiting)
        assert [line[:2] for line in loads(tmp_path)] == ["m0", "m1", "m4", "m2", "m3"]

    with_pool(tmp_path, test, memory=SCARCE)


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
        await until(lambda: any(r.leaving for r in pool.loaded))
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

    with_pool(tmp_path, test, memory=SCARCE)


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

    with_pool(tmp_path, test, memory=SCARCE)


def test_closing_in_the_middle_of_a_load_leaves_nothing(tmp_path: Path) -> None:
    add_models(tmp_path, "gate.gguf")

    others = set(children())

    async def test(pool: Pool) -> None:
        waiting = asyncio.create_task(pool.acquire("gate"))
        await until(lambda: pool.status().fraction == 0.5)
        await pool.close()
        with pytest.raises(ServerError):
            await waiting
        assert set(children()) <= others

    with_pool(tmp_path, test)


def test_workers_are_told_the_cache_and_the_log_level(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    cache = CacheConfig(tmp_path / "cache", 1000, "all")

    async def test(pool: Pool) -> None:
        (await pool.acquire(None)).release()

    with_pool(tmp_path, test, loader=Loader(cache, "debug", start_worker=FAKE_START))
    load = msgspec.json.decode(
        (tmp_path / "commands.log").read_bytes(), type=Load, dec_hook=lambda kind, text: kind(text)
    )
    assert load.log_level == "debug"
    assert load.cache == CacheConfig(cache.folder, 1000, "all", "a.gguf")


def test_tokens_of_the_configuration_that_a_model_lacks_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_models(tmp_path, "a.gguf")
    told = ModelDefaults(sampling={"temperature": 0, "logit_bias": {1: -100.0, 2: 5.0, 77: 5.0}})

    async def test(pool: Pool) -> None:
        pool.planner.by_model = {"a": told}
        for _ in range(2):
            lease = await pool.acquire("a")
            sampling = pool.planner.sampling(lease.plan)
            assert sampling == {"temperature": 0, "logit_bias": {1: -100.0}}
            lease.release()

    with_pool(tmp_path, test)
    (warning,) = (r for r in caplog.records if "logit_bias" in r.getMessage())
    assert warning.getMessage().startswith("a.gguf has no token 2, 77")


def test_the_log_says_what_is_on_graphics_cards(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_models(tmp_path, "a.gguf", "cards.gguf")

    async def test(pool: Pool) -> None:
        for name in ("a", "cards"):
            (await pool.acquire(name)).release()

    with caplog.at_level("INFO"):
        with_pool(tmp_path, test)
    a, cards = (said for r in caplog.records if (said := r.getMessage()).startswith("loaded "))
    assert cards.endswith(", 20 of 33 layers on graphics cards") and "cards" not in a


def test_models_stay_beside_each_other_while_the_budget_holds_them(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf", "c.gguf")

    async def test(pool: Pool) -> None:
        leases = {name: await pool.acquire(name) for name in ("a", "b")}
        assert len(children()) == 2
        assert pool.status().running == 2
        leases["a"].release()
        # `c` needs room, and `b` is in use: `a` goes, though it was used later.
        assert await answers(pool, "c") == "c.gguf"
        assert leases["b"].worker.alive and not leases["a"].worker.alive
        leases["b"].release()
        assert await answers(pool, "c") == "c.gguf"
        # Now `b` is the one that nobody has used for longest.
        assert await answers(pool, "a") == "a.gguf"
        assert [r.model.name for r in pool.loaded] == ["a.gguf", "c.gguf"]
        assert len(loads(tmp_path)) == 4

    with_pool(tmp_path, test, memory=100 << 20)


def test_a_busy_model_in_the_way_drains_and_takes_nobody_new(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")

    async def test(pool: Pool) -> None:
        running = await pool.acquire("a")
        for_b = asyncio.create_task(pool.acquire("b"))
        await until(lambda: any(r.leaving for r in pool.loaded))
        late = asyncio.create_task(pool.acquire("a"))
        await until(lambda: pool.status().waiting == 2)
        assert running.worker.alive and not late.done()
        running.release()
        (await for_b).release()
        (await late).release()
        assert [line.split(".")[0] for line in loads(tmp_path)] == ["a", "b", "a"]

    with_pool(tmp_path, test, memory=SCARCE)


def test_a_loaded_model_answers_while_another_is_loading(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "gate.gguf")

    async def test(pool: Pool) -> None:
        await answers(pool, "a")
        loading = asyncio.create_task(pool.acquire("gate"))
        await until(lambda: pool.status().fraction == 0.5)
        assert await answers(pool, "a") == "a.gguf"
        assert pool.status().state == "ready"
        (tmp_path / "gate.gguf.open").touch()
        await loading

    with_pool(tmp_path, test)


def test_what_never_fits_is_refused_before_anything_is_ended(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")

    async def test(pool: Pool) -> None:
        lease = await pool.acquire("a")
        lease.release()
        wide = {"n_ubatch": 65_536, "n_batch": 65_536}
        with pytest.raises(InvalidRequest, match="longest context that fits is 4096") as told:
            await pool.acquire("a", wide | {"n_ctx": 1 << 24})
        assert (told.value.info.status, told.value.info.param) == (400, "load_model_configs.n_ctx")
        assert lease.worker.alive
        # No context is too long here: the model does not fit with any, and no request chose one.
        pool.planner.budget = 0
        with pytest.raises(InsufficientMemory, match="not fit with any context") as caught:
            await pool.acquire("a", wide)
        assert caught.value.info.status == 503 and not caught.value.info.retry
        assert lease.worker.alive

    with_pool(tmp_path, test, memory=SCARCE)


def test_a_model_leaves_when_its_time_is_up(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")

    async def test(pool: Pool) -> None:
        first = await pool.acquire("a", keep_alive_s=0)
        second = await pool.acquire("a")
        first.release()
        assert second.worker.alive
        await answers(pool, "b")
        second.release()
        await until(lambda: [r.model.name for r in pool.loaded] == ["b.gguf"])
        # It comes back when it is asked for, and then stays as the option says.
        assert await answers(pool, "a") == "a.gguf"
        assert len(pool.loaded) == 2

    with_pool(tmp_path, test)


@pytest.mark.parametrize("n_ctx", [512, UNLUCKY_N_CTX])
def test_how_long_a_model_is_kept_outlives_a_reload_and_a_failed_one(
    tmp_path: Path, n_ctx: int
) -> None:
    add_models(tmp_path, "a.gguf")

    async def test(pool: Pool) -> None:
        await answers(pool, "a", keep_alive_s=-1)
        with contextlib.suppress(RemoteError):
            await answers(pool, "a", overrides={"n_ctx": n_ctx})
        await until(lambda: bool(pool.loaded))
        assert [resident.keep_alive_s for resident in pool.loaded] == [-1]
        assert len(loads(tmp_path)) == 2

    with_pool(tmp_path, test, keep_alive_s=60)


def test_when_a_model_will_leave_is_known_while_nobody_uses_it(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")

    async def test(pool: Pool) -> None:
        lease = await pool.acquire("a", keep_alive_s=60)
        (resident,) = pool.loaded
        assert resident.expires_in_s is None
        lease.release()
        assert 50 < (resident.expires_in_s or 0) <= 60
        lease = await pool.acquire("a", keep_alive_s=-1)
        unloading = asyncio.create_task(pool.unload("a"))
        await until(lambda: resident.state == "unloading")
        waits = asyncio.create_task(pool.acquire("a"))
        await until(lambda: pool.waiting == {"a.gguf": 1})
        lease.release()
        assert resident.expires_in_s is None
        await unloading
        (await waits).release()
        assert [resident.state for resident in pool.loaded] == ["ready"]

    with_pool(tmp_path, test)


def test_a_model_can_be_unloaded(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")

    async def test(pool: Pool) -> None:
        lease = await pool.acquire("a")
        unloading = asyncio.create_task(pool.unload("a"))
        await until(lambda: any(r.leaving for r in pool.loaded))
        assert lease.worker.alive
        lease.release()
        assert (await unloading).was_loaded
        assert pool.status().state == "empty"
        assert not (await pool.unload("b")).was_loaded
        with pytest.raises(ModelNotFound):
            await pool.unload("nope")
        assert await answers(pool, None) == "a.gguf"

    with_pool(tmp_path, test)


def test_a_dead_worker_comes_back_by_itself_as_it_was(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")

    async def test(pool: Pool) -> None:
        lease = await pool.acquire("a", {"n_ctx": 512})
        lease.release()
        os.kill(lease.worker.pid, signal.SIGKILL)
        await until(lambda: len(loads(tmp_path)) == 2 and pool.status().state == "ready")
        assert loads(tmp_path) == ["a.gguf n_ctx=512"] * 2
        await until(lambda: pool.status().running == pool.status().waiting == 0)

    with_pool(tmp_path, test)


def test_what_a_load_took_corrects_the_next_estimate(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")

    async def test(pool: Pool) -> None:
        planner = pool.planner
        await answers(pool, "a")
        model = planner.registry.find("a")
        first = plan = planner.plan(model, planner.asked(model, {}))
        for taken in (plan.memory.total + 1000, plan.memory.total + 3000):
            assert planner.learn(plan, taken) == taken
            plan = planner.plan(model, planner.asked(model, {}))
            assert plan.memory.total == taken
        assert planner.learn(plan, 0) == plan.memory.total
        # A model that is put back is loaded by the plan it had: what that takes is no news.
        for _ in range(3):
            assert planner.learn(first, taken) == taken
        assert planner.plan(model, planner.asked(model, {})).memory.total == taken

    with_pool(tmp_path, test)


# ---- a process that waits ----------------------------------------------------------------------


def test_a_model_that_is_not_loaded_has_a_process_waiting_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby, "REST_S", 0.0)
    ready = Standby(FAKE_WORKER)
    loader = Loader(start_worker=partial(Worker.start, spawn=ready.spawn), standby=ready)
    add_models(tmp_path, "a.gguf", "b.gguf")
    others = set(children())

    async def test(pool: Pool) -> None:
        lease = await pool.acquire("a")
        (first,) = set(children()) - others
        await asyncio.sleep(0.05)
        assert ready.pid is None, "not while a request runs"
        lease.release()
        await until(lambda: ready.pid is not None)
        waiting = ready.pid
        (await pool.acquire("b")).release()
        assert pool.pids == [waiting, first.pid]
        await asyncio.sleep(0.05)
        assert len(set(children()) - others) == 2, "none waits when all are loaded"
        await pool.unload("a")
        await until(lambda: ready.pid is not None)

    with_pool(tmp_path, test, loader=loader)


def test_a_model_whose_requester_left_while_it_was_loaded_expires(tmp_path: Path) -> None:
    add_models(tmp_path, "gate.gguf")

    async def test(pool: Pool) -> None:
        waiting = asyncio.create_task(pool.acquire("gate"))
        await until(lambda: pool.status().loading is not None)
        waiting.cancel()
        (tmp_path / "gate.gguf.open").touch()
        await until(lambda: pool.status().loading is None)
        await until(lambda: not pool.loaded)
        assert loads(tmp_path) == ["gate.gguf n_ctx=4096"]

    with_pool(tmp_path, test, keep_alive_s=0.1)


@pytest.mark.parametrize("keep_alive_s", [0.0, -1.0])
def test_a_model_that_is_not_kept_is_there_for_who_asked(
    tmp_path: Path, keep_alive_s: float
) -> None:
    add_models(tmp_path, "a.gguf")

    async def test(pool: Pool) -> None:
        for kept in (0.0, None, 0.0):
            # Who comes while it is on its way out waits for the next.
            lease = await pool.acquire("a", keep_alive_s=kept)
            lease.release()
            await asyncio.sleep(0)
        await until(lambda: not pool.loaded)

    with_pool(tmp_path, test, keep_alive_s=keep_alive_s)


def test_who_names_no_model_does_not_get_one_for_embeddings(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    (tmp_path / "gate-vectors.gguf").write_bytes(gguf({**TINY, "llama.pooling_type": 1}))

    async def test(pool: Pool) -> None:
        assert await answers(pool, None) == "a.gguf"
        await pool.unload("a")
        vectors = asyncio.create_task(pool.acquire("gate-vectors"))
        await until(lambda: pool.status().loading is not None)
        unnamed = asyncio.create_task(pool.acquire(None))
        await until(lambda: pool.status().waiting == 2)
        (tmp_path / "gate-vectors.gguf.open").touch()
        lease = await unnamed
        assert lease.model.name == "a.gguf"
        lease.release()
        (await vectors).release()

    with_pool(tmp_path, test)
