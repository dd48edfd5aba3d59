"""The API's side of a worker: spawn, route, death, and nothing left behind. On fake workers."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from llm_server.errors import (
    InsufficientMemory,
    ModelLoadFailed,
    RemoteError,
    RequestTooLarge,
    ShuttingDown,
)
from llm_server.worker.client import Worker
from llm_server.worker.deaths import describe_exit
from llm_server.worker.messages import (
    ChatRequest,
    Content,
    Failed,
    Finished,
    Load,
    Message,
    RequestEvent,
)
from llm_server.worker.process import SPIN_COUNT, spawn, worker_environment
from llm_server.worker.stream import MAX_UNREAD, EventStream
from llm_server.worker.totals import Totals
from tests.fake_live import FAKE_WORKER, add_models, until
from tests.forked import children


def ask(text: str) -> ChatRequest:
    return ChatRequest(messages=[Message(role="user", content=text)])


async def started(folder: Path, name: str = "a.gguf", **kwargs: Any) -> Worker:
    add_models(folder, name)
    return await Worker.start(
        Load(model_path=folder / name), spawn=partial(spawn, argv=FAKE_WORKER), **kwargs
    )


async def collect(stream: EventStream) -> list[RequestEvent]:
    return [event async for batch in stream for event in batch]


def ends(events: list[RequestEvent]) -> list[RequestEvent]:
    return [event for event in events if isinstance(event, Finished | Failed)]


def with_worker(
    folder: Path, test: Callable[[Worker], Coroutine[Any, Any, None]], name: str = "a.gguf"
) -> None:
    """Run `test` on a worker, then see that the process is gone and reaped."""

    async def run() -> None:
        worker = await started(folder, name)
        try:
            await test(worker)
        finally:
            worker.kill()
            await worker.wait()
        assert not psutil.pid_exists(worker.pid)

    asyncio.run(run())


# ---- loading -----------------------------------------------------------------------------------


def test_loading_reports_progress_and_what_is_in_force(tmp_path: Path) -> None:
    async def run() -> None:
        seen: list[float] = []
        worker = await started(tmp_path, on_progress=seen.append)
        assert seen == [0.5]
        assert (worker.loaded.n_ctx, worker.loaded.parallel) == (4096, 4)
        await worker.stop(5)

    asyncio.run(run())


def test_a_refusal_arrives_in_the_workers_words(tmp_path: Path) -> None:
    with pytest.raises(RemoteError) as caught:
        asyncio.run(started(tmp_path, "broken.gguf"))
    assert caught.value.info.code == "model_load_failed"
    assert not children()


def test_a_crash_while_loading_is_a_failed_load(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed):
        asyncio.run(started(tmp_path, "crash.gguf"))
    assert not children()


def test_a_worker_that_leaves_while_loading_is_not_put_down_to_memory(tmp_path: Path) -> None:
    """Its output has ended before it has: Python takes a moment for that."""
    with pytest.raises(ModelLoadFailed):
        asyncio.run(started(tmp_path, "mute.gguf"))
    assert not children()


def test_a_kill_by_the_system_while_loading_is_put_down_to_memory(tmp_path: Path) -> None:
    async def run() -> None:
        loading = asyncio.Event()
        starting = asyncio.create_task(
            started(tmp_path, "gate.gguf", on_progress=lambda _: loading.set())
        )
        await loading.wait()
        (child,) = children()
        child.send_signal(signal.SIGKILL)
        with pytest.raises(InsufficientMemory):
            await starting

    asyncio.run(run())


def test_a_cancelled_load_leaves_no_process_and_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        loading = asyncio.Event()
        starting = asyncio.create_task(
            started(tmp_path, "gate.gguf", on_progress=lambda _: loading.set())
        )
        await loading.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not children()

    asyncio.run(run())
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        asyncio.run(
            Worker.start(
                Load(model_path=Path("x")), spawn=partial(spawn, argv=[str(tmp_path / "nothing")])
            )
        )


# ---- requests ----------------------------------------------------------------------------------


def test_requests_get_their_own_events_and_one_end(tmp_path: Path) -> None:
    async def test(worker: Worker) -> None:
        streams = [worker.submit(ask(f"request {i}")) for i in range(50)]
        for i, events in enumerate(await asyncio.gather(*map(collect, streams))):
            text = "".join(event.text for event in events if isinstance(event, Content))
            assert text == f"request {i} "
            assert ends(events) == events[-1:]

    with_worker(tmp_path, test)


def test_closing_a_stream_cancels_once_and_only_what_runs(tmp_path: Path) -> None:
    async def test(worker: Worker) -> None:
        hanging = worker.submit(ask("hang"))
        await anext(hanging)
        hanging.close()
        hanging.close()
        done = worker.submit(ask("done"))
        await collect(done)
        done.close()
        gone = worker.submit(ask("hang"))
        gone.close()
        await collect(worker.submit(ask("the worker has read all before this")))
        notes = (tmp_path / "cancels.log").read_text().split()
        assert notes == [str(hanging.ids[0]), str(gone.ids[0])]

    with_worker(tmp_path, test)


def test_what_the_cancelled_took_counts_and_is_no_answer(tmp_path: Path) -> None:
    async def run() -> None:
        totals = Totals()
        worker = await started(tmp_path, totals=totals)
        hanging = worker.submit(ask("hang"))
        await anext(hanging)
        hanging.close()
        await collect(worker.submit(ask("the worker has read all before this")))
        assert (totals.prompt_tokens, totals.completion_tokens) == (3 + 1, 1 + 7)
        assert totals.requests == {"cancelled": 1, "stop": 1}
        await worker.stop(5)

    asyncio.run(run())


def test_poking_gives_an_empty_batch(tmp_path: Path) -> None:
    async def test(worker: Worker) -> None:
        stream = worker.submit(ask("hang"))
        await anext(stream)
        waiting = asyncio.create_task(stream.__anext__())
        await asyncio.sleep(0)
        stream.poke()
        assert await waiting == []

    with_worker(tmp_path, test)


@pytest.mark.parametrize("behaviour", ["crash", "garbage", "foreign", "huge"])
def test_death_ends_every_request_once_with_one_error(tmp_path: Path, behaviour: str) -> None:
    async def test(worker: Worker) -> None:
        streams = [worker.submit(ask("hang")) for _ in range(3)]
        for stream in streams:
            await anext(stream)
        streams.append(worker.submit(ask(behaviour)))
        for events in await asyncio.gather(*map(collect, streams)):
            (end,) = ends(events)
            assert isinstance(end, Failed) and end.error.code == "worker_crashed"
            assert "SIG" not in end.error.message
        assert not worker.alive
        await worker.wait()
        (late,) = await collect(worker.submit(ask("too late")))
        assert isinstance(late, Failed) and late.error.code == "worker_crashed"

    with_worker(tmp_path, test)


def test_one_that_crashes_before_it_is_stopped_has_crashed(tmp_path: Path) -> None:
    async def test(worker: Worker) -> None:
        stream = worker.submit(ask("hang"))
        await anext(stream)
        os.kill(worker.pid, signal.SIGSEGV)
        worker.output_ended()
        await worker.stop(5)
        (end,) = ends(await collect(stream))
        assert isinstance(end, Failed) and end.error.code == "worker_crashed"
        assert worker.crashed_at is not None

    with_worker(tmp_path, test)


def test_the_log_names_the_signal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(worker: Worker) -> None:
        os.kill(worker.pid, signal.SIGSEGV)
        await worker.wait()

    with_worker(tmp_path, test)
    assert "was ended by SIGSEGV" in caplog.text
    assert describe_exit(1) == "exited with status 1"
    assert describe_exit(-64) == "was ended by SIGRTMAX"


def test_a_reader_that_does_not_read_is_given_up(tmp_path: Path) -> None:
    async def test(worker: Worker) -> None:
        stuck = worker.submit(ask("flood"))
        other = await collect(worker.submit(ask("fine")))
        assert isinstance(other[-1], Finished)
        await asyncio.to_thread(until, (tmp_path / "cancels.log").exists)
        events = await collect(stuck)
        (end,) = ends(events)
        assert isinstance(end, Failed) and events[-1] is end
        size = sum(len(event.text) for event in events if isinstance(event, Content))
        assert MAX_UNREAD / 2 < size < 2 * MAX_UNREAD

    with_worker(tmp_path, test)


def test_a_request_over_the_frame_limit_is_refused_and_harms_nobody(tmp_path: Path) -> None:
    async def test(worker: Worker) -> None:
        with pytest.raises(RequestTooLarge):
            worker.submit(ask("x" * (8 * 1024 * 1024)))
        assert isinstance((await collect(worker.submit(ask("fine"))))[-1], Finished)

    with_worker(tmp_path, test)


# ---- the end -----------------------------------------------------------------------------------


def test_stopping_fails_what_runs_and_exits_cleanly(tmp_path: Path) -> None:
    async def test(worker: Worker) -> None:
        stream = worker.submit(ask("hang"))
        await worker.stop(5)
        (end,) = ends(await collect(stream))
        assert isinstance(end, Failed)
        assert end.error.code == ShuttingDown("").info.code
        assert await worker.wait() == 0

    with_worker(tmp_path, test)


def test_a_worker_that_does_not_stop_is_killed_at_the_deadline(tmp_path: Path) -> None:
    async def test(worker: Worker) -> None:
        await worker.stop(0.05)
        assert await worker.wait() == -signal.SIGKILL

    with_worker(tmp_path, test, "stubborn.gguf")


def test_killing_fails_what_runs_and_what_comes_late_as_stopping_does(tmp_path: Path) -> None:
    async def test(worker: Worker) -> None:
        stream = worker.submit(ask("hang"))
        await anext(stream)
        worker.kill()
        late = worker.submit(ask("too late"))
        for stopped in (stream, late):
            (end,) = ends(await collect(stopped))
            assert isinstance(end, Failed) and end.error.code == "shutting_down"

    with_worker(tmp_path, test)


def test_failing_the_running_leaves_the_worker_alive(tmp_path: Path) -> None:
    async def test(worker: Worker) -> None:
        stream = worker.submit(ask("hang"))
        await anext(stream)
        worker.fail_running(ShuttingDown("Enough.").info)
        (end,) = ends(await collect(stream))
        assert isinstance(end, Failed) and end.error.message == "Enough."
        assert isinstance((await collect(worker.submit(ask("fine"))))[-1], Finished)

    with_worker(tmp_path, test)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere OpenMP waits briefly")
@pytest.mark.parametrize(
    ("given", "count"),
    [
        ({}, SPIN_COUNT),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_threads_that_wait_leave_the_cores_to_others_soon(
    given: dict[str, str], count: str | None
) -> None:
    assert worker_environment(given).get("GOMP_SPINCOUNT") == count


def test_the_environment_of_a_worker_has_no_secrets() -> None:
    given = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "OMP_NUM_THREADS": "2",
        "CUDA_API_KEY": "secret",
        "HOME": "/home/me",
        "LLM_SERVER_API_KEYS": "secret",
        "OPENAI_API_KEY": "secret",
    }
    environment = worker_environment(given)
    environment.pop("GOMP_SPINCOUNT", None)
    environment.pop("PYTHONPATH", None)  # where our own sources are, when they are not installed
    assert environment == {
        "PATH": "/bin",
        "LC_ALL": "C",
        "OMP_NUM_THREADS": "2",
        "GGML_NO_BACKTRACE": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
