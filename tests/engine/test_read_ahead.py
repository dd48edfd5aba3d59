"""Prompts that are read from the disk before they are attached: how far ahead, and for whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_server.cache.reading import Fetch
from llm_server.worker.messages import Finished
from tests.engine.fake_context import reference
from tests.engine.test_disk_tier import SIZE, Server, prompt


def test_what_is_read_ahead_is_never_more_than_there_are_cells(tmp_path: Path) -> None:
    server = Server(tmp_path, n_ctx=200, policy="all")
    for i in range(12):
        server.ask(i, prompt(i, 150), max_tokens=1)
    server.restart()
    for i in range(12):
        server.bench.submit(100 + i, prompt(i, 150) + prompt(50 + i, 5), max_tokens=9)
    most = 0
    while len(server.bench.ends) < 12:
        if server.bench.engine.blocked:
            assert server.woken.wait(10)
            server.woken.clear()
        waiting = [s.fetch for s in server.bench.engine._admission.waiting if s.fetch]
        most = max(most, sum(piece.n_cells for fetch in waiting for piece in fetch.pieces))
        server.bench.step()
    assert 0 < most <= 200
    for i in range(12):
        end = server.bench.ends[100 + i]
        assert isinstance(end, Finished) and end.usage.disk_tokens >= 144
        assert server.bench.texts[100 + i] == reference(prompt(i, 150) + prompt(50 + i, 5), 9)


def fetches(server: Server) -> list[Fetch]:
    engine = server.bench.engine
    held = [s.fetch for s in engine._admission.waiting]
    held += [s.lease.fetch for s in engine._running if s.lease]
    return [fetch for fetch in held if fetch]


def test_no_more_is_read_ahead_than_may_be_however_long_prompts_are(tmp_path: Path) -> None:
    piece = SIZE + 4
    server = Server(tmp_path, n_ctx=10_000, read_ahead=3 * piece)
    long = {id: prompt(id, 40 * SIZE) for id in range(6)}
    for id, tokens in long.items():
        server.ask(id, tokens, max_tokens=0, persist=True)
    server.restart()
    for id, tokens in long.items():
        server.bench.submit(10 + id, [*tokens, 1, 2], max_tokens=3)
    most = 0
    while not server.bench.engine.idle:
        if server.bench.engine.blocked:
            assert server.woken.wait(10)
            server.woken.clear()
        most = max(most, sum(fetch.n_bytes for fetch in fetches(server)))
        server.bench.step()
    assert 0 < most <= 4 * piece, "and one that is attached while others wait"
    for id, tokens in long.items():
        end = server.bench.ends[10 + id]
        assert isinstance(end, Finished) and end.usage.cached_tokens == len(tokens)
        assert server.bench.texts[10 + id] == reference([*tokens, 1, 2], 3)


def finish(server: Server) -> None:
    """Step until idle, on nothing but what the engine was woken for."""
    while not server.bench.engine.idle:
        if server.bench.engine.blocked:
            assert server.woken.wait(10)
            server.woken.clear()
        server.bench.step()


def test_who_waits_with_what_was_read_holds_up_nobody_who_attaches(tmp_path: Path) -> None:
    server = Server(tmp_path, n_ctx=10_000, parallel=1, read_ahead=1)
    long, short = prompt(1, 40 * SIZE), prompt(2, 20 * SIZE)
    for id, tokens in enumerate([long, short]):
        server.ask(id, tokens, max_tokens=0, persist=True)
    server.restart()
    server.bench.submit(10, [*long, 1], max_tokens=3)
    while not server.bench.engine._running:
        server.bench.step()
    server.bench.submit(11, [*short, 1], max_tokens=3)
    finish(server)
    for id, tokens in ((10, long), (11, short)):
        end = server.bench.ends[id]
        assert isinstance(end, Finished) and end.usage.cached_tokens == len(tokens)


@pytest.mark.parametrize("running", [False, True])
def test_who_goes_leaves_room_for_what_others_read(tmp_path: Path, running: bool) -> None:
    server = Server(tmp_path, n_ctx=10_000, parallel=2, read_ahead=1)
    long, other = prompt(301, 40 * SIZE), prompt(302, 40 * SIZE)
    for id, tokens in enumerate([long, other]):
        server.ask(id, tokens, max_tokens=0, persist=True)
    server.restart()
    streams = [p for s in range(200) if len(reference(p := prompt(s), 30)) == 30][: 2 - running]
    for id, tokens in enumerate(streams):
        server.bench.submit(20 + id, tokens, max_tokens=30)
    while len(server.bench.engine._running) < len(streams):
        server.step()
    server.bench.submit(10, [*long, 1], max_tokens=3)
    while not any(fetch.pieces and fetch.attaching == running for fetch in fetches(server)):
        server.bench.step()
        assert server.woken.wait(10)
        server.woken.clear()
    server.bench.engine.cancel(10)
    server.bench.submit(11, [*other, 1], max_tokens=3)
    finish(server)
    assert 10 not in server.bench.ends
    end = server.bench.ends[11]
    assert isinstance(end, Finished) and end.usage.cached_tokens == len(other)


def test_decoding_goes_on_while_a_long_prompt_is_restored(tmp_path: Path) -> None:
    server = Server(tmp_path)
    long = prompt(5, 1600)
    server.ask(1, long, max_tokens=0, persist=True)
    server.restart(killed=True)
    server.context.on_load = lambda: server.bench.clock.pass_(0.004)
    stream = next(p for s in range(100) if len(reference(p := prompt(s), 30)) == 30)
    server.bench.submit(2, stream, max_tokens=30)
    while not server.bench.texts[2]:
        server.bench.step()
    server.woken.clear()
    server.bench.submit(3, long + prompt(3), max_tokens=1)
    server.bench.step()
    assert server.woken.wait(10)
    loads = []
    while 3 not in server.bench.ends:
        before = server.context.n_loads
        server.bench.step()
        loads.append(server.context.n_loads - before)
        if 2 not in server.bench.ends:
            assert server.context.steps[-1], "the stream was stalled"
    assert sum(loads) == 100
    assert max(loads) <= 7, "20 ms at 4 ms a piece, and the one that passes it"
