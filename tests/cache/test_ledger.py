"""The hits of heads: kept over restarts, added up by all, and nobody waits for the disk."""

from __future__ import annotations

import errno
import logging
import threading
from pathlib import Path

import pytest

from llm_server.cache import ledger
from llm_server.cache.files import Files
from llm_server.cache.folder import LEDGER, LOCK
from llm_server.cache.ledger import Ledger, Record, Use, read_ledger
from llm_server.cache.survey import clear, survey
from tests.cache.scenario import FINGERPRINT, MODEL, keep, open_store

KEY, OTHER = b"\x01" * 32, b"\x02" * 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache folder that the model has a folder in."""
    (tmp_path / MODEL).mkdir()
    return tmp_path


def count(folder: Path, *keys: bytes, model: str = "a.gguf", files: Files | None = None) -> None:
    counting = Ledger(folder, FINGERPRINT, model, files=files)
    for key in keys:
        counting.hit(key)
    counting.close(10)


def hits(folder: Path) -> dict[str, int]:
    return {key: use.hits for key, use in read_ledger(folder, MODEL).heads.items()}


def test_hits_survive_a_restart_and_add_up_with_those_of_others(folder: Path) -> None:
    count(folder, KEY, KEY)
    count(folder, KEY, OTHER, model="renamed.gguf")
    assert hits(folder) == {KEY.hex(): 3, OTHER.hex(): 1}
    assert read_ledger(folder, MODEL).model == "renamed.gguf"


def test_a_name_is_written_without_a_hit_and_only_if_it_is_new(folder: Path) -> None:
    written = []
    for name in ("a.gguf", "a.gguf", "b.gguf"):
        counting = Ledger(folder, FINGERPRINT, name)
        counting.named()
        counting.close(10)
        assert read_ledger(folder, MODEL).model == name
        written.append((folder / MODEL / LEDGER).stat().st_ino)
    assert written[0] == written[1] != written[2]


def test_a_name_that_was_cleared_is_written_again(folder: Path) -> None:
    files = Full()
    files.tries = 2
    counting = Ledger(folder, FINGERPRINT, "a.gguf", files=files)
    counting.named()
    assert files.written.wait(10)
    (folder / MODEL / LEDGER).unlink()
    counting.named()
    counting.close(10)
    assert read_ledger(folder, MODEL).model == "a.gguf"


def test_nothing_is_made_where_nothing_of_the_model_is_stored(tmp_path: Path) -> None:
    count(tmp_path, KEY)
    count(tmp_path / "none", KEY)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    assert read_ledger(tmp_path, MODEL) == Record()


class Slow(Files):
    """Its lock can be had once somebody opens the gate."""

    def __init__(self) -> None:
        self.gate = threading.Event()

    def lock(self, path: str) -> int | None:
        self.gate.wait(10)
        return super().lock(path)


def test_whoever_counts_does_not_wait_for_the_disk(folder: Path) -> None:
    files = Slow()
    counting = Ledger(folder, FINGERPRINT, "a.gguf", files=files)
    for _ in range(1000):
        counting.hit(KEY)
    assert not (folder / MODEL / LEDGER).exists()
    files.gate.set()
    counting.close(10)
    assert hits(folder) == {KEY.hex(): 1000}


class Full(Files):
    """Has no room for a file until the third try."""

    def __init__(self) -> None:
        self.tries = 0
        self.written = threading.Event()

    def rename(self, source: str, target: str) -> None:
        self.tries += 1
        if self.tries < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().rename(source, target)
        self.written.set()


def test_a_full_disk_costs_one_warning_and_no_count(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = Full()
    counting = Ledger(folder, FINGERPRINT, "a.gguf", save_s=0.0, files=files)
    counting.hit(KEY)
    assert files.written.wait(10)
    counting.close(10)
    assert len(caplog.records) == 1 and "No space left" in caplog.text
    assert hits(folder) == {KEY.hex(): 1}


def test_what_could_not_be_saved_is_saved_later(folder: Path) -> None:
    files = Files()
    other = files.lock(str(folder / LOCK))
    assert other is not None
    counting = Ledger(folder, FINGERPRINT, "a.gguf")
    counting.hit(KEY)
    counting.hit(KEY)
    files.close(other)
    counting.close(10)
    assert hits(folder) == {KEY.hex(): 2}


def test_who_closes_waits_a_moment_for_others_that_close(folder: Path) -> None:
    class Busy(Files):
        asked = 0

        def lock(self, path: str) -> int | None:
            self.asked += 1
            return None if self.asked < 5 else super().lock(path)

    count(folder, KEY, files=Busy())
    assert hits(folder) == {KEY.hex(): 1}


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"{",
        b"[1]",
        b'{"heads": {"x": {"hits": "y"}}}',
        b'{"model": "\xff"}',
        b'{"other": ' + b"[" * 100_000,
    ],
    ids=["empty", "cut", "list", "text", "bytes", "deep"],
)
def test_a_damaged_file_is_begun_anew(folder: Path, contents: bytes) -> None:
    (folder / MODEL / LEDGER).write_bytes(contents)
    (folder / MODEL / (LEDGER + ".tmp")).write_bytes(b"left over")
    assert read_ledger(folder, MODEL) == Record()
    count(folder, KEY)
    assert hits(folder) == {KEY.hex(): 1}


def test_what_fails_in_an_unknown_way_ends_no_counting(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(Full):
        def rename(self, source: str, target: str) -> None:
            self.tries += 1
            if self.tries == 1:
                self.written.set()
                raise RuntimeError
            Files.rename(self, source, target)

    files = Odd()
    counting = Ledger(folder, FINGERPRINT, "a.gguf", save_s=0.0, files=files)
    counting.hit(KEY)
    assert files.written.wait(10)
    counting.hit(OTHER)
    counting.close(10)
    assert hits(folder) == {OTHER.hex(): 1}
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


class Later(Slow):
    """Each use is a second after the one before."""

    seconds = 0.0

    def now(self) -> float:
        self.seconds += 1
        return self.seconds


def test_a_disk_that_takes_nothing_does_not_fill_the_memory(folder: Path) -> None:
    files = Later()
    counting = Ledger(folder, FINGERPRINT, "a.gguf", files=files)
    keys = [i.to_bytes(32, "big") for i in range(5 * ledger.MAX_HEADS)]
    for key in keys:
        counting.hit(key)
    assert len(counting._new) <= 2 * ledger.MAX_HEADS
    files.gate.set()
    counting.close(10)
    assert set(hits(folder)) == {key.hex() for key in keys[-ledger.MAX_HEADS :]}


def test_the_heads_that_were_used_last_are_kept(folder: Path) -> None:
    files = Later()
    files.gate.set()
    keys = [i.to_bytes(32, "big") for i in range(ledger.MAX_HEADS + 1)]
    count(folder, *keys, files=files)
    assert set(hits(folder)) == {key.hex() for key in keys[1:]}


def test_a_clock_that_was_ahead_once_does_not_end_the_counting(folder: Path) -> None:
    ahead, right = Later(), Later()
    ahead.seconds = 1e9
    for files in (ahead, right):
        files.gate.set()
    old = [i.to_bytes(32, "big") for i in range(ledger.MAX_HEADS)]
    count(folder, *old, files=ahead)
    count(folder, KEY, old[7], files=right)
    assert KEY.hex() in hits(folder)
    assert hits(folder)[old[7].hex()] == 2


def test_a_survey_shows_them_and_clearing_takes_them_along(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    keep(store, [1, 2, 3, 4, 5], head=True)
    store.close(10)
    (end,) = survey(tmp_path).heads()
    assert (end.n_tokens, end.hits) == (5, 0)
    (chunk,) = [file.chunk for file in survey(tmp_path).stored if file.chunk.n_tokens == 1]
    count(tmp_path, chunk.key, chunk.key)
    (end,) = survey(tmp_path).heads()
    assert (end.n_tokens, end.hits) == (5, 2)
    assert survey(tmp_path).name(end.model) == "a.gguf"
    assert survey(tmp_path).use(survey(tmp_path).stored[0]) != Use(0, 0.0)
    clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
