"""Requests that wait for a disk which is slow, stuck or broken. A real store, on files that are."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from llm_server.cache.disk import DiskTier
from llm_server.cache.files import Files
from llm_server.cache.store import ChunkStore
from llm_server.engine.sequence import Prompt
from llm_server.errors import ServerError
from llm_server.worker.disk_waits import READ_S, STORE_RATE, STORE_S, Reading, Storing
from llm_server.worker.messages import (
    Content,
    Event,
    Failed,
    Finished,
    Progress,
    Timings,
    Usage,
)
from tests.cache.test_faults import FaultyFiles
from tests.cache.test_store import StuckFiles
from tests.engine.fake_context import Bench, Clock, FakeContext, FakeSampler, Text

FINGERPRINT = bytes(32)
TOKENS = list(range(1, 31))
OTHERS = list(range(101, 131))
SIZE = int(5 * STORE_RATE)


def prompt(id: int) -> Prompt:
    sampler = FakeSampler(FakeContext())
    return Prompt(id, TOKENS, make_sampler=lambda: sampler, parser=Text(id), persist=True)


def end(id: int, state_bytes: int = SIZE) -> Finished:
    return Finished(id, "length", Usage(30, 0, 10, 0, state_bytes), Timings(0.0, 0.0, 0.0))


class Desk:
    """Ends held back before a disk, and what the waiting thread says of them."""

    def __init__(self, folder: Path, files: Files) -> None:
        store = ChunkStore(folder, FINGERPRINT, 1 << 30, files=files)
        self.disk = DiskTier(store, FINGERPRINT, whole_state=False)
        self.done: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        self.clock = Clock()
        self.storing = Storing(self.disk, self.done.put, self.clock)

    def hold(self, *ids: int) -> None:
        self.want()
        for id in ids:
            self.storing.expect(prompt(id))
        assert self.step(*map(end, ids)) == []

    def want(self, tokens: Sequence[int] = TOKENS) -> None:
        self.disk.want(tokens, "", head=True, tail=True)

    def copy(self) -> None:
        """Hand what is wanted to the store."""
        while self.disk.pending:
            self.disk.put(self.disk.next_copy(), memoryview(b"cells"))

    def step(self, *events: Event) -> list[Event]:
        return self.storing.hold_back(events)

    def settled(self) -> list[Event]:
        """What comes of the next end that the thread is done with."""
        return self.storing.settle(self.done.get(timeout=30))


def test_an_end_waits_until_its_prompt_is_stored(tmp_path: Path) -> None:
    files = StuckFiles()
    desk = Desk(tmp_path, files)
    desk.hold(1)
    desk.copy()
    assert desk.step(Content(2, "of another")) == [Content(2, "of another")]
    assert desk.storing.progress == [Progress(1, 30, 30, 10)]
    files.release()
    assert desk.settled() == [end(1)]
    assert not desk.storing.holds and desk.storing.progress == []


@pytest.mark.parametrize("copied", [True, False], ids=["stuck", "others_first"])
def test_no_end_waits_for_ever(tmp_path: Path, *, copied: bool) -> None:
    files = StuckFiles()
    desk = Desk(tmp_path, files)
    desk.hold(1, 2)
    if copied:
        desk.copy()
    desk.clock.pass_(STORE_S + SIZE / STORE_RATE - 0.1)
    assert desk.step() == []
    desk.clock.pass_(0.1)
    assert desk.step() == [end(1, 0), end(2, 0)]
    desk.copy()
    assert desk.step() == []
    files.release()
    assert desk.settled() == desk.settled() == [], "they have been told"


def test_a_disk_that_takes_nothing_is_told(tmp_path: Path) -> None:
    desk = Desk(tmp_path, FaultyFiles(lambda name, _: name == "create"))
    desk.hold(1)
    desk.copy()
    desk.step()
    assert desk.settled() == [end(1, 0)]


class OneFile(StuckFiles):
    """A disk that is stuck after its first file."""

    n_created = 0

    def create(self, path: str) -> int:
        if self.n_created:
            return super().create(path)
        descriptor = Files.create(self, path)
        self.n_created += 1
        return descriptor


def test_an_end_does_not_wait_for_what_others_write(tmp_path: Path) -> None:
    files = OneFile()
    desk = Desk(tmp_path, files)
    desk.hold(1)
    desk.copy()
    desk.want(OTHERS)
    desk.copy()
    desk.want(OTHERS[:20])
    assert desk.disk.pending, "others are still to be copied"
    assert desk.step() == []
    assert desk.settled() == [end(1)]
    assert desk.disk.store.writing
    files.release()


def test_an_end_that_comes_late_tells_what_has_been_stored(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Files())
    desk.hold(1)
    desk.copy()
    assert desk.disk.store.flush(30)
    desk.clock.pass_(STORE_S + SIZE / STORE_RATE)
    assert desk.step() == [end(1)]


def test_failures_and_what_nobody_wants_are_not_held(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Files())
    desk.storing.expect(prompt(1))
    failed = Failed(1, ServerError("no").info)
    assert desk.step(failed) == [failed]
    desk.storing.expect(prompt(2))
    desk.storing.forget(2)
    assert desk.step(end(2)) == [end(2)]


def test_without_a_disk_no_end_waits() -> None:
    storing = Storing(None, lambda _: None)
    storing.expect(prompt(1))
    assert storing.hold_back([end(1, 0)]) == [end(1, 0)]


class StuckReads(Files):
    """A disk that gives `n_given` files, and the others once `released` is set."""

    def __init__(self, n_given: int) -> None:
        self.n_given = n_given
        self.stuck, self.released = threading.Event(), threading.Event()

    def open(self, path: str) -> tuple[int, int, float]:
        if self.n_given == 0:
            self.stuck.set()
            self.released.wait(60)
        self.n_given = max(0, self.n_given - 1)
        return super().open(path)


def test_the_engine_tells_how_far_a_prompt_is_read(tmp_path: Path) -> None:
    def bench(files: Files) -> tuple[Bench, ChunkStore]:
        store = ChunkStore(tmp_path, FINGERPRINT, 1 << 30, files=files)
        disk = DiskTier(store, FINGERPRINT, whole_state=False, size=16)
        return Bench(disk=disk, wake=woken.set), store

    tokens = [i % 60 + 1 for i in range(100)]
    woken = threading.Event()
    before, store = bench(Files())
    before.submit(1, tokens, head=64)
    before.run()
    assert store.flush(10)
    files = StuckReads(n_given=2)
    after, _ = bench(files)
    after.submit(2, tokens, head=64)
    after.step()
    assert files.stuck.wait(30)
    assert after.engine.blocked
    assert after.engine.reading == [Progress(2, 100, 32, 0)]
    files.released.set()
    assert woken.wait(30)
    after.run()
    assert after.engine.reading == []
    end = after.ends[2]
    assert isinstance(end, Finished) and end.usage.disk_tokens == 64


def test_a_read_is_told_while_the_disk_gives_something() -> None:
    clock = Clock()
    reading = Reading(clock)
    early, late = Progress(1, 100, 0, 0), Progress(1, 100, 50, 0)
    assert reading.progress([early]) == [early]
    clock.pass_(READ_S - 1)
    assert reading.progress([early]) == [early]
    clock.pass_(1)
    assert reading.progress([early]) == []
    assert reading.progress([late]) == [late]
    clock.pass_(READ_S)
    assert reading.progress([late]) == []
    assert reading.progress([]) == []
