"""Whatever the disk or the clock does, the store never raises and never gives a wrong payload."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from llm_server.cache.files import Entry, Files
from tests.cache.scenario import chain_of, chunk_files, keep, open_store, recall

PROMPTS = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 9], [7, 8]]
OTHER_MODEL = "ab" * 8 + "-v1"
OPERATIONS = (
    "make_folder list_folder size create write open read_into close rename remove remove_folder "
    "touch lock"
).split()


class FaultyFiles(Files):
    """Counts the operations and lets those that `fails` picks, by name and number, fail."""

    def __init__(self, fails: Callable[[str, int], bool], code: int = errno.EIO) -> None:
        self.fails = fails
        self.code = code
        self.n = 0
        self.wall = 1_900_000_000.0
        self.seconds = 0.0

    def now(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.seconds

    def failing(self, name: str) -> bool:
        self.n += 1
        return self.fails(name, self.n)


def _faulty(name: str) -> Any:
    real = getattr(Files, name)

    def operation(self: FaultyFiles, *args: Any, **kwargs: Any) -> Any:
        if self.failing(name):
            if name == "write":  # a torn write: half of it is there
                real(self, args[0], memoryview(args[1])[: len(args[1]) // 2])
            if name == "close":
                real(self, *args)
            raise OSError(self.code, os.strerror(self.code))
        return real(self, *args, **kwargs)

    return operation


for _name in OPERATIONS:
    setattr(FaultyFiles, _name, _faulty(_name))


def scenario(folder: Path, files: Files) -> None:
    """A life of a store with everything in it: two openings, heads, hits, misses, evictions."""
    store = open_store(folder, files, budget_bytes=1200)
    for tokens in PROMPTS:
        keep(store, tokens)
        store.flush(10)
        recall(store, tokens)
    keep(store, [7, 8], head=True)
    store.flush(10)
    store.touch(chain_of([7, 8]), 0, 2)
    store.refresh()
    for i in range(4):
        keep(store, [100 + i])
        store.flush(10)
        recall(store, [100 + i])
    store.close(10)
    store = open_store(folder, files, budget_bytes=1200)
    for tokens in PROMPTS:
        recall(store, tokens)
    store.close(10)


def count_operations(folder: Path) -> int:
    files = FaultyFiles(lambda name, n: False)
    scenario(folder, files)
    return files.n


def n_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def healthy_again(folder: Path) -> None:
    """After the fault: what is there is right or a miss, and everything can be kept anew."""
    store = open_store(folder)
    for tokens in PROMPTS:
        recall(store, tokens)
        keep(store, tokens)
    assert store.close(10)
    for tokens in PROMPTS:
        assert recall(store, tokens) == len(tokens)


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
def test_any_operation_may_fail(tmp_path: Path, lasting: bool) -> None:
    total = count_operations(tmp_path / "count")
    assert total > 100
    before = n_descriptors()
    for number in range(1, total + 1):
        folder = tmp_path / str(number)
        scenario(folder, FaultyFiles(lambda _, n, k=number: n >= k if lasting else n == k))
        healthy_again(folder)
    assert n_descriptors() == before


def test_the_scenario_uses_every_operation(tmp_path: Path) -> None:
    used: set[str] = set()
    scenario(tmp_path, FaultyFiles(lambda name, n: used.add(name) or False))
    assert used == set(OPERATIONS)


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_full_or_forbidden_disk_is_one_warning_and_recovers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    caplog.set_level(logging.INFO)
    broken = True
    files = FaultyFiles(lambda name, n: broken and name == "write", code)
    store = open_store(tmp_path, files)
    keep(store, PROMPTS[0])
    store.flush(10)
    operations = files.n
    for _ in range(5):
        assert not any(keep(store, PROMPTS[0])), "the disk is left alone for a while"
    assert files.n == operations
    files.seconds += 60
    keep(store, PROMPTS[0])
    store.flush(10)
    assert len(messages(caplog, logging.WARNING)) == 1
    assert chunk_files(tmp_path) == []
    assert not list(tmp_path.rglob("*.tmp"))
    broken = False
    files.seconds += 60
    assert all(keep(store, PROMPTS[0]))
    store.close(10)
    assert recall(store, PROMPTS[0]) == len(PROMPTS[0])
    assert len(messages(caplog, logging.WARNING)) == 1
    assert len(messages(caplog, logging.INFO)) == 1


def test_a_folder_that_vanishes_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    store = open_store(folder)
    keep(store, PROMPTS[0])
    store.flush(10)
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
    assert recall(store, PROMPTS[0]) == 0
    keep(store, PROMPTS[0])
    store.flush(10)
    keep(store, PROMPTS[0])  # the first write found out that the rest had vanished too
    store.close(10)
    assert recall(store, PROMPTS[0]) == len(PROMPTS[0])


@pytest.mark.parametrize("blocked", ["cache", "cache/below"])
def test_a_folder_that_is_a_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, blocked: str
) -> None:
    (tmp_path / "cache").write_text("a file")
    store = open_store(tmp_path / blocked)
    keep(store, PROMPTS[0])
    assert store.close(10)
    assert recall(store, PROMPTS[0]) == 0
    assert 1 <= len(messages(caplog, logging.WARNING)) <= 2, "one for reading, one for writing"
    assert (tmp_path / "cache").read_text() == "a file"


def test_unreadable_chunks_are_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tmp_path)
    keep(store, PROMPTS[0])
    store.close(10)
    store = open_store(tmp_path, FaultyFiles(lambda name, n: name == "read_into"))
    for _ in range(3):
        assert recall(store, PROMPTS[0]) == 0
    assert len(messages(caplog, logging.WARNING)) == 1
    assert len(chunk_files(tmp_path)) == 2, "they may be readable another day"


@pytest.mark.parametrize("years", [-10, 10])
def test_a_clock_that_jumps(tmp_path: Path, years: int) -> None:
    files = FaultyFiles(lambda name, n: False)
    files.wall = 1_700_000_000.0 + years * 365 * 86_400
    store = open_store(tmp_path, files, budget_bytes=1200)
    for i in range(20):
        keep(store, [i, i])
        store.flush(10)
        assert recall(store, [i, i]) == 2, "what was just written stays"
    assert sum(path.stat().st_size for path in chunk_files(tmp_path)) <= 1200
    store.close(10)


class Stuck(FaultyFiles):
    """Folders that cannot be listed, or files that cannot be deleted: those with `part` in their
    paths."""

    def __init__(self, part: str) -> None:
        super().__init__(lambda name, n: False)
        self.part = part

    def list_folder(self, path: str) -> list[Entry]:
        if self.part in path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return super().list_folder(path)

    def remove(self, path: str) -> None:
        if self.part in path:
            raise PermissionError(errno.EACCES, "Permission denied")
        super().remove(path)


@pytest.mark.parametrize("part", [OTHER_MODEL, f"{OTHER_MODEL}/00"])
def test_a_folder_below_that_cannot_be_read_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    (tmp_path / OTHER_MODEL / "00").mkdir(parents=True)
    store = open_store(tmp_path, Stuck(part))
    keep(store, PROMPTS[0])
    assert store.close(10)
    assert recall(store, PROMPTS[0]) == len(PROMPTS[0])
    assert len(messages(caplog, logging.WARNING)) == 1


def test_a_file_that_cannot_be_looked_at_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unreadable:
        name = "unreadable"

        def stat(self, *, follow_symlinks: bool) -> os.stat_result:
            raise PermissionError

    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: nullcontext([Unreadable(), *real(path)]))
    store = open_store(tmp_path)
    keep(store, PROMPTS[0])
    assert store.close(10)
    assert recall(open_store(tmp_path), PROMPTS[0]) == len(PROMPTS[0])


def test_a_file_that_cannot_be_deleted_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep(store := open_store(tmp_path), [1])
    store.close(10)
    (stuck,) = chunk_files(tmp_path)
    files = Stuck(stuck.name)
    store = open_store(tmp_path, files, budget_bytes=1200)
    for i in range(20):
        files.wall += 60
        keep(store, [100 + i])
        store.flush(10)
        assert recall(store, [100 + i]) == 1
    assert stuck.exists()
    assert sum(path.stat().st_size for path in chunk_files(tmp_path)) <= 1200
    assert len(messages(caplog, logging.WARNING)) == 1


def test_a_left_over_file_that_cannot_be_deleted_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep(store := open_store(tmp_path), [1])
    store.close(10)
    (chunk,) = chunk_files(tmp_path)
    for name in ("a.tmp", "b.tmp"):
        (chunk.parent / name).touch()
    removes = count()
    open_store(tmp_path, FaultyFiles(lambda name, n: name == "remove" and next(removes) == 0))
    assert len(list(tmp_path.rglob("*.tmp"))) == 1
    assert len(messages(caplog, logging.WARNING)) == 1


def test_where_nothing_can_be_deleted_the_disk_is_left_alone_for_a_while(tmp_path: Path) -> None:
    files = Stuck(".kv")
    store = open_store(tmp_path, files, budget_bytes=400)
    for i in range(4):
        keep(store, [i])
        store.flush(10)
    kept, operations = chunk_files(tmp_path), files.n
    assert kept and store.stats().errors == 1
    assert keep(store, [9]) == [False] and files.n == operations
    files.part = "none"
    files.seconds += 60
    assert keep(store, [9]) == [True]
    assert store.close(10) and recall(store, [9]) == 1
