"""Several processes on one folder: what each sees of the others, and nobody waits for anybody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_server.cache.files import NO_LOCKS, Entry, Files
from llm_server.cache.keys import Kind
from llm_server.cache.store import RESCAN_S
from llm_server.cache.survey import clear
from tests.cache.scenario import chain_of, chunk_files, keep, open_store, payload_of, recall

_PEER = """
import random, sys
from pathlib import Path

import pytest
from tests.cache.scenario import keep, open_store, recall
seed = int(sys.argv[2])
choose = random.Random(seed)
store = open_store(Path(sys.argv[1]), budget_bytes=4000)
for _ in range(150):
    tokens = [choose.randrange(3) for _ in range(choose.randrange(1, 9))]
    if choose.random() < 0.5:
        keep(store, tokens, head=choose.random() < 0.2)
        store.flush(10)
    else:
        recall(store, tokens)
    if choose.random() < 0.1:
        store.refresh()
store.close(10)
stats = store.stats()
assert stats.corrupt == stats.errors == 0, stats
assert stats.written > 0 and stats.hits > 0, stats
"""


def test_processes_share_a_folder(tmp_path: Path) -> None:
    peers = [
        subprocess.Popen(
            [sys.executable, "-c", _PEER, str(tmp_path), str(seed)],
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
        )
        for seed in range(2)
    ]
    for peer in peers:
        _, errors = peer.communicate(timeout=60)
        assert (peer.returncode, errors) == (0, b"")
    total = sum(path.stat().st_size for path in chunk_files(tmp_path))
    assert total <= 4000 + 4 * 200, "each may be one chunk ahead of what it knows of the other"


def test_what_another_process_stores_is_found_at_once(tmp_path: Path) -> None:
    reader, writer = open_store(tmp_path), open_store(tmp_path)
    head, turn = [1, 2, 3, 4, 5, 6], [7, 8, 9]
    keep(writer, head, head=True)
    writer.flush(10)
    chain = chain_of([*head, *turn])
    assert [hit.n_used for hit in reader.match(chain, len(head))] == [4, 2]
    assert recall(reader, [*head, *turn]) == len(head), "and is known from then on"
    # What goes on from there: full chunks alone, for whoever does not know where it ends.
    keep(writer, [*head, *turn])
    writer.flush(10)
    assert recall(reader, [*head, *turn]) == 8
    reader.refresh()
    assert recall(reader, [*head, *turn]) == 9
    # An ordinary chunk that became a head meanwhile has another name.
    late = open_store(tmp_path)
    keep(writer, [5, 5, 5, 5])
    keep(writer, [5, 5, 5, 5], head=True)
    writer.close(10)
    assert recall(late, [5, 5, 5, 5]) == recall(reader, [5, 5, 5, 5]) == 4


def test_the_state_after_a_head_is_found_when_another_process_stores_it(tmp_path: Path) -> None:
    reader, writer = open_store(tmp_path), open_store(tmp_path)
    chain = chain_of([1, 2, 3, 4, 5, 6, 7])
    state = payload_of(chain, 4, 6)
    writer.put(chain, 4, 6, state, kind=Kind.CHECKPOINT, head=True)
    writer.close(10)
    assert reader.checkpoint(chain, 7) is None
    hit = reader.checkpoint(chain, 7, 6)
    assert hit is not None and reader.load(hit) == state


def test_a_chunk_that_another_process_has_written_is_not_written_again(tmp_path: Path) -> None:
    first, second = open_store(tmp_path), open_store(tmp_path)
    for store in (first, second):
        keep(store, [1, 2])
        store.flush(10)
    assert second.stats().written == 0
    keep(second, [1, 2], head=True)
    keep(second, [3], head=True)
    assert second.close(10)
    keep(first, [3])
    assert first.close(10)
    assert (first.stats().written, second.stats().written) == (1, 1)
    assert ["-rh-" in path.name for path in chunk_files(tmp_path)] == [True] * 2
    assert recall(first, [1, 2]) == 2
    assert first.stats().errors == second.stats().errors == 0


def test_a_look_up_that_misses_does_not_look_through_the_folder(tmp_path: Path) -> None:
    class Counted(Files):
        asked = 0

        def size(self, path: str) -> int | None:
            self.asked += 1
            return super().size(path)

        def list_folder(self, path: str) -> list[Entry]:
            assert not self.asked, "the folder is listed at the start alone"
            return super().list_folder(path)

    files = Counted()
    store = open_store(tmp_path, files)
    assert recall(store, list(range(100))) == 0
    assert files.asked == 2, "the first missing chunk, under each of its names"


def test_what_others_store_is_counted_after_a_while(tmp_path: Path) -> None:
    class Clock(Files):
        seconds = 0.0

        def monotonic(self) -> float:
            return self.seconds

    files = Clock()
    store, other = open_store(tmp_path, files), open_store(tmp_path)
    for i in range(20):
        keep(other, [i])
    other.close(10)
    keep(store, [100])
    store.flush(10)
    before = store.stats().used_bytes
    files.seconds += RESCAN_S
    keep(store, [101])
    store.close(10)
    assert before < store.stats().used_bytes == sum(p.stat().st_size for p in chunk_files(tmp_path))


def test_another_process_may_delete_the_folder_that_was_just_made(tmp_path: Path) -> None:
    class Contested(Files):
        deleted = 0

        def make_folder(self, path: str, *, parents: bool = False) -> None:
            super().make_folder(path, parents=parents)
            if path.startswith(f"{tmp_path}/") and self.deleted < 3:
                os.rmdir(path)
                self.deleted += 1

    files = Contested()
    store = open_store(tmp_path, files)
    keep(store, [1, 2])
    assert store.close(10)
    assert files.deleted == 3 and store.stats().errors == 0
    assert recall(open_store(tmp_path), [1, 2]) == 2


def test_a_folder_that_is_cleared_while_a_chunk_is_written(tmp_path: Path) -> None:
    class Cleared(Files):
        cleared = 0

        def rename(self, source: str, target: str) -> None:
            if not self.cleared:
                self.cleared += 1
                clear(tmp_path)
            super().rename(source, target)

    store = open_store(tmp_path, Cleared())
    keep(store, [1, 2])
    assert store.close(10)
    assert store.stats().errors == store.stats().dropped == 0
    assert recall(open_store(tmp_path), [1, 2]) == 2


def test_a_dead_lock_holder_blocks_nobody(tmp_path: Path) -> None:
    hold = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_CREAT | os.O_RDWR), 2)"
    hold += "; print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        holder.stdout.readline()
        store = open_store(tmp_path, budget_bytes=400)
        keep(store, [1])
        keep(store, [2])
        keep(store, [3])
        assert store.flush(10), "no waiting for the lock"
        assert store.stats().dropped == 1, "nor more than the budget"
        holder.kill()
    keep(store, [4])
    assert store.close(10)
    assert recall(store, [4]) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="has no flock")
@pytest.mark.parametrize("code", NO_LOCKS)
def test_a_file_system_without_locks_is_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    store = open_store(tmp_path, budget_bytes=400)
    for token in range(4):
        keep(store, [token])
        assert store.flush(10)
    stats = store.stats()
    assert (stats.written, stats.dropped, stats.errors) == (4, 0, 0)
    assert stats.evicted > 0
