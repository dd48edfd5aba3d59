"""The reading thread: who is read first, and what is not read any more."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from llm_server.cache.chunkfile import PARENT_BYTES, Chunk
from llm_server.cache.disk import DiskTier
from llm_server.cache.files import Files
from llm_server.cache.index import Hit
from llm_server.cache.keys import Kind
from llm_server.cache.reading import Fetch, Piece, Reader
from llm_server.cache.store import ChunkStore
from tests.cache.scenario import BUDGET, FINGERPRINT, SIZE, chain_of, keep, open_store

T = TypeVar("T")
LONG = list(range(100, 100 + 20 * SIZE))
SHORT = list(range(1, 5 * SIZE + 1))


class Gate(Files):
    """A disk on which as many files are opened as it is told."""

    def __init__(self) -> None:
        self.n_opened = 0
        self._open = threading.Semaphore(0)

    def let(self, n: int) -> None:
        self._open.release(n)

    def open(self, path: str) -> tuple[int, int, float]:
        self._open.acquire()
        self.n_opened += 1
        return super().open(path)


class Bench:
    """A reader of a folder with a long and a short prompt, on a disk that waits to be told."""

    def __init__(self, folder: Path) -> None:
        store = open_store(folder)
        keep(store, LONG)
        keep(store, SHORT)
        store.close(10)
        self.files = Gate()
        self.reader = Reader(open_store(folder, self.files), Kind.RANGE)

    def fetch(self, tokens: list[int]) -> tuple[Fetch, threading.Event]:
        woken = threading.Event()
        chain, n = partial(chain_of, tokens), len(tokens)
        fetch = self.reader.fetch(chain, n_known=0, n_most=n, head=0, wake=woken.set)
        return fetch, woken


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.files.let(1000)
    bench.reader.close(10)


def test_a_prompt_that_is_not_stored_does_not_wait_for_one_that_is_read(bench: Bench) -> None:
    long, woken = bench.fetch(LONG)
    nothing, told = bench.fetch([*LONG[:1], 7, *LONG[2:]])
    bench.files.let(2)  # at most one file is opened before, and the other tells its first tokens
    assert told.wait(10)
    assert nothing.is_over and not long.done
    bench.files.let(1000)
    assert woken.wait(10)
    assert len(long.pieces) == len(LONG) // SIZE


def test_a_short_prompt_is_read_before_the_rest_of_a_long_one(bench: Bench) -> None:
    long, woken = bench.fetch(LONG)
    short, told = bench.fetch(SHORT)
    bench.files.let(1 + len(SHORT) // SIZE)
    assert told.wait(10)
    assert len(short.pieces) == len(SHORT) // SIZE and not long.done
    bench.files.let(1000)
    assert woken.wait(10)
    assert [piece.start for piece in long.pieces] == list(range(0, len(LONG), SIZE))


def test_what_nobody_waits_for_any_more_is_not_read_on(bench: Bench) -> None:
    long, _ = bench.fetch(LONG)
    bench.files.let(1)
    long.drop()
    _, told = bench.fetch(SHORT)
    bench.files.let(1000)
    assert told.wait(10)
    assert long.is_over
    assert bench.files.n_opened <= 2 + len(SHORT) // SIZE


def test_the_last_piece_of_what_is_being_attached_is_never_out_of_sight() -> None:
    class Looked(deque[T]):
        def append(self, item: T) -> None:
            super().append(item)
            seen.append(fetch.is_over)

        def popleft(self) -> T:
            item = super().popleft()
            seen.append(fetch.is_over)
            return item

    seen: list[bool] = []
    fetch = Fetch(changed=threading.Condition())
    chunk = Chunk(bytes(32), bytes(PARENT_BYTES), Kind.RANGE, 0, SIZE)
    fetch.left, fetch.pieces = Looked([Hit(chunk, bytes(32), bytes(SIZE))]), Looked()
    fetch.done = True  # as much as is read ahead had been read before
    fetch.add(Piece(0, SIZE, SIZE, memoryview(b"cells")))
    assert seen == [False, False]
    fetch.take()
    assert fetch.is_over


def test_a_job_that_fails_ends_nobodys_reading(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.reader.do(lambda: 1 // 0)
    bench.files.let(1000)
    short, told = bench.fetch(SHORT)
    assert told.wait(10)
    assert len(short.pieces) == len(SHORT) // SIZE
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


class Store(ChunkStore):
    """Remembers how long it was given to write what is left."""

    deadline_s = 0.0

    def close(self, deadline_s: float) -> bool:
        self.deadline_s = deadline_s
        return super().close(deadline_s)


def test_a_read_that_hangs_leaves_time_to_write_at_the_end(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    keep(store, LONG)
    store.close(10)
    files = Gate()
    store = Store(tmp_path, FINGERPRINT, BUDGET, files=files)
    disk = DiskTier(store, FINGERPRINT, whole_state=False, size=SIZE)
    disk.fetch(LONG, "", 0, lambda: None)
    disk.close(0.4)
    assert store.deadline_s > 0.1
    files.let(1000)
