"""The store as the worker uses it: kept, found, loaded, evicted, shared, damaged."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_server.cache.chunkfile import HEADER_BYTES, decode
from llm_server.cache.disk import DiskTier
from llm_server.cache.files import Files
from llm_server.cache.keys import TOKEN_BYTES, Chain, Kind, root_key, unpack
from llm_server.cache.store import MAX_NEW_SIBLINGS, ChunkStore
from tests.cache.scenario import (
    BUDGET,
    FINGERPRINT,
    SIZE,
    chain_of,
    chunk_files,
    keep,
    open_store,
    payload_of,
    recall,
)

PROMPT = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


class Opened(Files):
    """Counts files that were opened; `all` is set once they are `n`."""

    def __init__(self, n: int) -> None:
        self._n = n
        self.n_opened = 0
        self.all = threading.Event()

    def open(self, path: str) -> tuple[int, int, float]:
        self.n_opened += 1
        if self.n_opened == self._n:
            self.all.set()
        return super().open(path)


def keep_conversations(folder: Path, n: int) -> None:
    """`n` prompts of three tokens, each three times its number."""
    store = open_store(folder)
    for i in range(n):
        assert store.put(chain_of([i] * 3), 0, 3, payload_of(chain_of([i] * 3), 0, 3))
    assert store.close(10)


def conversation_of(path: Path) -> int:
    return unpack(decode(path.read_bytes())[0].packed)[0]


def warnings(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.levelno >= logging.WARNING for record in caplog.records)


# ---- finding -----------------------------------------------------------------------------------


def test_a_prompt_is_found_again_also_after_a_restart(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert recall(store, PROMPT) == 0
    assert all(keep(store, PROMPT))
    assert store.flush(10)
    assert recall(store, PROMPT) == len(PROMPT)
    assert store.close(10)
    assert recall(open_store(tmp_path), PROMPT) == len(PROMPT)


def test_a_prompt_that_leaves_in_the_middle_of_a_chunk_uses_the_part_before(
    tmp_path: Path,
) -> None:
    store = open_store(tmp_path)
    keep(store, PROMPT)
    store.close(10)
    for again in (store, open_store(tmp_path)):
        assert recall(again, [1, 2, 3, 4, 5, 6, 70, 80, 90]) == 6
        assert recall(again, [1, 2, 3]) == 3
        assert recall(again, [*PROMPT, 11, 12]) == len(PROMPT)
        assert recall(again, [2, *PROMPT]) == 0
        partial = again.match(chain_of([1, 2, 3, 4, 5, 60]))[-1]
        assert (partial.n_used, partial.n_tokens) == (1, SIZE)


def test_the_last_used_of_many_conversations_go_on_at_once_after_a_restart(tmp_path: Path) -> None:
    keep_conversations(tmp_path, 3 * MAX_NEW_SIBLINGS)
    for path in chunk_files(tmp_path):
        os.utime(path, (10**9, 10**9 - conversation_of(path)))
    for i in range(MAX_NEW_SIBLINGS):
        assert recall(open_store(tmp_path), [i, i, i, 9]) == 3


def test_the_reading_thread_learns_all_of_them_while_nothing_else_is_to_do(tmp_path: Path) -> None:
    n = 3 * MAX_NEW_SIBLINGS
    keep_conversations(tmp_path, n)
    files = Opened(n)
    store = open_store(tmp_path, files)
    disk = DiskTier(store, FINGERPRINT, whole_state=False, size=SIZE)
    disk.fetch([10**6] * 20, "", 0, lambda: None)
    assert files.all.wait(10)
    disk.close(10)
    n_opened = files.n_opened
    assert all(recall(store, [i, i, i, 9]) == 3 for i in range(n))
    assert files.n_opened == n_opened + n, "one for each payload"


PROMPTS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=11), min_size=1, max_size=6)


@settings(max_examples=60)
@given(kept=PROMPTS, asked=PROMPTS, reopen=st.booleans())
def test_every_prompt_finds_its_longest_kept_prefix(
    kept: list[list[int]], asked: list[list[int]], reopen: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Path(folder))
        for tokens in kept:
            keep(store, tokens)
        assert store.close(10)
        if reopen:
            store = open_store(Path(folder))
        for tokens in asked:
            common = (os.path.commonprefix([tokens, other]) for other in kept)
            assert recall(store, tokens) == max(map(len, common))
        assert store.stats().misses == store.stats().corrupt == 0


def test_checkpoints_restore_the_latest_whole_state(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    chain = chain_of(PROMPT)
    for stop in (3, 8, 9):
        start = chain.chunk_start(stop)
        state = payload_of(chain, start, stop)
        assert store.put(chain, start, stop, state, kind=Kind.CHECKPOINT)
    assert store.close(10)
    assert store.match(chain) == []
    for again in (store, open_store(tmp_path)):
        for n_max, expected in ((10, 9), (8, 8), (7, 3), (2, None)):
            hit = again.checkpoint(chain, n_max)
            assert (hit.start + hit.n_tokens if hit else None) == expected
            if hit:
                assert again.load(hit) == payload_of(chain, hit.start, hit.start + hit.n_tokens)
        assert again.checkpoint(chain_of([1, 2, 4, 4]), 4) is None
        assert again.holds(chain, 4, 8, Kind.CHECKPOINT)
        assert not again.holds(chain, 4, 8)


def test_models_and_namespaces_do_not_see_each_other(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    keep(store, PROMPT)
    store.close(10)
    salted = Chain.of(root_key(FINGERPRINT, "key of another"), PROMPT, SIZE)
    assert store.match(salted) == []
    other = ChunkStore(tmp_path, b"x" * 32, BUDGET)
    assert other.match(Chain.of(root_key(b"x" * 32), PROMPT, SIZE)) == []
    assert other.stats().chunks == 0
    assert other.stats().used_bytes == store.stats().used_bytes > 0


# ---- keeping -----------------------------------------------------------------------------------


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    store = open_store(tmp_path / "cache")
    keep(store, PROMPT)
    store.close(10)
    for path in [tmp_path / "cache", *(tmp_path / "cache").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_nothing_is_written_twice(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for _ in range(3):
        assert all(keep(store, PROMPT))
        assert store.flush(10)
    assert store.stats().written == 3
    assert len(chunk_files(tmp_path)) == 3


class StuckFiles(Files):
    """A disk on which nothing can be created until `release` is called."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def create(self, path: str) -> int:
        os.read(self.reader, 1)
        return super().create(path)

    def release(self) -> None:
        os.close(self.writer)


def test_what_others_have_cleared_is_stored_again(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    keep(store, PROMPT)
    assert store.flush(10)
    chain = chain_of(PROMPT)
    cuts = [*range(0, len(PROMPT), SIZE), len(PROMPT)]
    chunks = list(pairwise(cuts))
    assert all(store.holds(chain, start, stop) for start, stop in chunks)
    for path in chunk_files(tmp_path):
        path.unlink()
    assert not any(store.holds(chain, start, stop) for start, stop in chunks)
    keep(store, PROMPT)
    assert store.close(10)
    assert recall(open_store(tmp_path), PROMPT) == len(PROMPT)


def test_a_slow_disk_makes_nobody_wait(tmp_path: Path) -> None:
    files = StuckFiles()
    store = open_store(tmp_path, files, queue_bytes=1000)
    prompts = [[i] for i in range(20)]
    accepted = [keep(store, tokens)[0] for tokens in prompts]
    assert accepted[0]
    assert not accepted[-1]
    assert store.holds(chain_of([0]), 0, 1)
    assert store.stats().dropped == accepted.count(False)
    assert not store.flush(0)
    files.release()
    assert store.close(10)
    assert [bool(recall(store, tokens)) for tokens in prompts] == accepted
    assert not keep(store, [99])[0], "closed"


def test_the_budget_holds_and_heads_stay(tmp_path: Path) -> None:
    head, budget = [1, 2, 3, 4], 3000
    store = open_store(tmp_path, budget_bytes=budget)
    keep(store, head, head=True)
    for i in range(50):
        keep(store, [*head, 100 + i, 7, 7, 7])
        assert store.flush(10)
        assert sum(path.stat().st_size for path in chunk_files(tmp_path)) <= budget
        assert recall(store, [*head, 100 + i]) == 5, "what was just written stays"
    stats = store.stats()
    assert stats.evicted == 51 - stats.chunks
    assert stats.used_bytes == sum(path.stat().st_size for path in chunk_files(tmp_path))
    assert stats.used_bytes > budget // 2


def test_what_is_used_stays(tmp_path: Path) -> None:
    store = open_store(tmp_path, budget_bytes=2700)
    prompts = [[i] * SIZE for i in range(10)]
    for tokens in prompts:
        keep(store, tokens)
    store.flush(10)
    for path in chunk_files(tmp_path):
        os.utime(path, (0, 0))
    assert recall(store, prompts[4]) == SIZE
    for i in range(12):
        keep(store, [100 + i])
    store.close(10)
    assert recall(store, prompts[4]) == SIZE
    assert all(recall(store, [100 + i]) for i in range(12))
    assert [recall(store, tokens) for tokens in prompts].count(0) >= 4


def test_what_is_used_without_being_read_stays(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    keep(store, [1, 2])
    keep(store, [3, 4], head=True)
    assert store.flush(10)
    for path in chunk_files(tmp_path):
        os.utime(path, (0, 0))
    for tokens in ([1, 2], [3, 4]):
        assert store.touch(chain_of(tokens), 0, 2)
    assert all(path.stat().st_mtime > 0 for path in chunk_files(tmp_path))
    for path in chunk_files(tmp_path):
        path.unlink()
    assert not store.touch(chain_of([1, 2]), 0, 2)
    assert not store.touch(chain_of([5, 6]), 0, 2)


def test_a_chunk_larger_than_the_budget_is_not_kept(tmp_path: Path) -> None:
    store = open_store(tmp_path, budget_bytes=100)
    assert keep(store, [1]) == [False]
    assert store.stats().dropped == 1


def test_a_stored_chunk_can_become_a_head(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    other = open_store(tmp_path)
    keep(store, [1, 2])
    store.flush(10)
    other.refresh()
    keep(store, [1, 2], head=True)
    assert store.close(10)
    assert ["-rh-" in path.name for path in chunk_files(tmp_path)] == [True]
    for again in (store, other, open_store(tmp_path)):
        assert recall(again, [1, 2]) == 2, "another process may know it by its old name"


def test_a_chunk_on_its_way_to_the_disk_can_become_a_head(tmp_path: Path) -> None:
    files = StuckFiles()
    store = open_store(tmp_path, files)
    for tokens in ([1], [2]):  # the first is being written, the second waits
        keep(store, tokens)
    for tokens in ([1], [2]):
        keep(store, tokens, head=True)
    files.release()
    assert store.close(10)
    assert ["-rh-" in path.name for path in chunk_files(tmp_path)] == [True, True]
    assert recall(store, [1]) == recall(store, [2]) == 1


def test_what_has_gone_meanwhile_does_not_become_a_head(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    keep(store, [1, 2])
    assert store.flush(10)
    chunk_files(tmp_path)[0].unlink()
    store.mark_head(chain_of([1, 2]), 0, 2)
    assert store.flush(10)
    assert not store.holds(chain_of([1, 2]), 0, 2)
    assert (chunk_files(tmp_path), store.stats().dropped) == ([], 1)


# ---- damage ------------------------------------------------------------------------------------


def damaged_is_a_miss(
    folder: Path, caplog: pytest.LogCaptureFixture, *, found_by_name: int
) -> None:
    """Exactly one warning, no payload, the file gone, and room for the chunk to be kept anew."""
    caplog.clear()
    store = open_store(folder)
    assert store.stats().chunks == found_by_name
    assert recall(store, [1, 2]) == 0
    assert recall(store, [1, 2]) == 0
    assert warnings(caplog) == store.stats().corrupt == found_by_name
    assert chunk_files(folder) == []
    keep(store, [1, 2])
    store.close(10)
    assert recall(store, [1, 2]) == 2


@pytest.fixture
def one_chunk(tmp_path: Path) -> Path:
    """The file of a folder with one small chunk."""
    store = open_store(tmp_path)
    keep(store, [1, 2])
    store.close(10)
    (path,) = chunk_files(tmp_path)
    return path


def test_every_changed_byte_is_a_miss(
    one_chunk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = one_chunk.read_bytes()
    for at in range(len(data)):
        one_chunk.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        damaged_is_a_miss(tmp_path, caplog, found_by_name=1)


def test_every_truncation_and_a_byte_too_many_is_a_miss(
    one_chunk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = one_chunk.read_bytes()
    n_least = HEADER_BYTES + 2 * TOKEN_BYTES
    cut_off = [data[:n] for n in range(n_least, len(data))]
    for damaged in [*cut_off, data + b"\0", bytes(len(data))]:
        one_chunk.write_bytes(damaged)
        damaged_is_a_miss(tmp_path, caplog, found_by_name=1)


def test_what_is_too_short_to_be_a_chunk_is_not_found_by_its_name(
    one_chunk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = one_chunk.read_bytes()
    for n in range(HEADER_BYTES + 2 * TOKEN_BYTES):
        one_chunk.write_bytes(data[:n])
        store = open_store(tmp_path)
        assert store.stats().chunks == recall(store, [1, 2]) == warnings(caplog) == 0
        keep(store, [1, 2])
        store.close(10)
        assert recall(store, [1, 2]) == 2


def test_what_is_cut_off_while_it_is_known_is_not_stored(one_chunk: Path, tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert store.holds(chain_of([1, 2]), 0, 2)
    one_chunk.write_bytes(b"")
    assert not store.holds(chain_of([1, 2]), 0, 2)


def test_what_a_power_failure_has_emptied_is_swept(one_chunk: Path, tmp_path: Path) -> None:
    one_chunk.write_bytes(b"")
    open_store(tmp_path)
    assert one_chunk.exists()
    os.utime(one_chunk, (0, 0))
    open_store(tmp_path)
    assert not one_chunk.exists()


def test_swapped_files_are_misses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(tmp_path)
    keep(store, [1, 2])
    keep(store, [3, 4])
    store.close(10)
    one, other = chunk_files(tmp_path)
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])
    store = open_store(tmp_path)
    assert recall(store, [1, 2]) == recall(store, [3, 4]) == 0
    assert warnings(caplog) == 2


def test_a_chunk_of_another_model_is_a_miss(
    one_chunk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = ChunkStore(tmp_path / "other", b"x" * 32, BUDGET)
    chain = Chain.of(root_key(FINGERPRINT), [1, 2], SIZE)  # the same keys, as a bug would have it
    other.put(chain, 0, 2, b"cells of another model")
    other.close(10)
    one_chunk.write_bytes(chunk_files(tmp_path / "other")[0].read_bytes())
    chunk_files(tmp_path / "other")[0].unlink()
    damaged_is_a_miss(tmp_path, caplog, found_by_name=1)


@pytest.mark.parametrize("name", ["README", "x.kv", ".DS_Store", "0" * 64 + ".kv"])
def test_foreign_files_are_left_alone(one_chunk: Path, tmp_path: Path, name: str) -> None:
    foreign = [tmp_path / name, one_chunk.with_name(name)]
    for path in foreign:
        path.write_text("mine")
    store = open_store(tmp_path, budget_bytes=one_chunk.stat().st_size)
    keep(store, [3, 4])
    store.close(10)
    assert recall(store, [3, 4]) == 2
    assert recall(store, [1, 2]) == 0
    assert all(path.read_text() == "mine" for path in foreign)


def test_links_and_pipes_are_not_opened(one_chunk: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    one_chunk.rename(target)
    one_chunk.symlink_to(target)
    store = open_store(tmp_path)
    assert recall(store, [1, 2]) == 0
    one_chunk.unlink()
    os.mkfifo(one_chunk)
    assert recall(open_store(tmp_path), [1, 2]) == 0


def test_left_over_temporary_files_are_swept(one_chunk: Path, tmp_path: Path) -> None:
    old, young = one_chunk.with_name("a.tmp"), one_chunk.with_name("b.tmp")
    old.write_bytes(b"torn")
    young.write_bytes(b"being written by another process")
    os.utime(old, (0, 0))
    open_store(tmp_path)
    assert not old.exists()
    assert young.exists()
