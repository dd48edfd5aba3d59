"""What the command line sees of a cache folder, and what it may delete."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from llm_server.cache.survey import clear, damage, model_of, stored_chunks
from tests.cache.scenario import FINGERPRINT, chunk_files, keep, open_store


def filled(folder: Path) -> None:
    store = open_store(folder)
    keep(store, [1, 2, 3, 4, 5], head=True)
    store.close(10)


def test_chunks_are_listed_with_their_model(tmp_path: Path) -> None:
    filled(tmp_path)
    found = stored_chunks(tmp_path)
    assert sorted(file.path for file in found) == [str(path) for path in chunk_files(tmp_path)]
    assert {model_of(file) for file in found} == {FINGERPRINT.hex()[:16] + "-v1"}
    assert stored_chunks(tmp_path / "none") == []


def test_damage_is_told(tmp_path: Path) -> None:
    filled(tmp_path)
    one, other = sorted(stored_chunks(tmp_path), key=lambda file: -file.size)
    assert damage(one) is None
    assert damage(other) is None
    contents = Path(one.path).read_bytes()
    Path(one.path).write_bytes(contents[:-1])
    assert damage(one) == "it has 159 bytes instead of 160"
    Path(other.path).write_bytes(contents)
    assert damage(other) == "its name belongs to other contents"
    moved = Path(str(one.path).replace(FINGERPRINT.hex()[:16], "0" * 16))
    moved.parent.mkdir(parents=True)
    moved.write_bytes(contents)
    assert [
        damage(file) for file in stored_chunks(tmp_path) if model_of(file).startswith("0000")
    ] == ["it belongs to another model"]
    Path(one.path).unlink()
    assert damage(one) is None


def test_clearing_deletes_what_can_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path)
    stuck = stored_chunks(tmp_path)[0].path
    real = os.unlink

    def unlink(path: str) -> None:
        if path == stuck:
            raise PermissionError(errno.EACCES, "Permission denied")
        real(path)

    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(PermissionError):
        clear(tmp_path)
    assert [str(path) for path in chunk_files(tmp_path)] == [stuck]


def test_clearing_leaves_foreign_files(tmp_path: Path) -> None:
    filled(tmp_path)
    n_bytes = sum(path.stat().st_size for path in chunk_files(tmp_path))
    (tmp_path / "notes").write_text("mine")
    assert clear(tmp_path) == (2, n_bytes)
    assert [path.name for path in tmp_path.rglob("*")] == ["notes"]
    assert clear(tmp_path) == (0, 0)
