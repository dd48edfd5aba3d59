"""`llm-server cache`: what a person sees of the folder, and does to it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from llm_server.cache.keys import Chain, Kind, root_key
from llm_server.cache.store import ChunkStore
from llm_server.cli import app
from tests.cache.scenario import add_head

FINGERPRINT = bytes(range(32))


def run(folder: Path, *args: str, answer: str = "") -> Result:
    return CliRunner().invoke(app, ["cache", *args, "--cache-dir", str(folder)], input=answer)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache with a full chunk and a shorter head behind it."""
    store = ChunkStore(tmp_path, FINGERPRINT, 1 << 20)
    chain = Chain.of(root_key(FINGERPRINT), list(range(300)))
    assert store.put(chain, 0, 256, bytes(5000))
    assert store.put(chain, 256, 300, bytes(100), head=True)
    assert store.close(10)
    return tmp_path


def test_ls_names_every_chunk(folder: Path) -> None:
    result = run(folder, "ls")
    assert result.exit_code == 0
    assert "0 to 256" in result.output and "256 to 300" in result.output
    assert "range, head" in result.output


def test_a_checkpoint_counts_from_the_beginning(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path, FINGERPRINT, 1 << 20)
    chain = Chain.of(root_key(FINGERPRINT), list(range(300)))
    assert store.put(chain, 256, 300, bytes(100), kind=Kind.CHECKPOINT)
    assert store.close(10)
    assert "0 to 300" in run(tmp_path, "ls").output
    assert " 300 " in run(tmp_path, "stats").output


def test_ls_and_stats_name_the_model_and_ls_counts_hits_of_heads(folder: Path) -> None:
    add_head(folder, model="a.gguf", hits=1234)
    rows = run(folder, "ls").output.splitlines()
    assert [row.split()[-3] for row in rows if "1234" in row] == ["1234"]
    assert sum(row.startswith("a.gguf") for row in rows) == 3
    assert "a.gguf" in run(folder, "stats").output


def test_stats_adds_up(folder: Path) -> None:
    result = run(folder, "stats")
    assert result.exit_code == 0
    (row,) = [line for line in result.output.splitlines() if FINGERPRINT.hex()[:8] in line]
    assert " 2 " in row and " 300 " in row


def test_verify_finds_the_damaged_one(folder: Path) -> None:
    assert "2 chunks read, 0 damaged" in run(folder, "verify").output
    victim = max(folder.rglob("*.kv"), key=lambda file: file.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    result = run(folder, "verify")
    assert result.exit_code == 1
    assert "1 damaged" in result.output and "checksum" in result.output


def test_verify_goes_on_after_a_file_that_cannot_be_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (locked,) = [file for file in folder.rglob("*.kv") if file.stat().st_size > 4000]
    whole = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path == locked:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    result = run(folder, "verify")
    assert result.exit_code == 1
    reason = "it cannot be read (Permission denied)"
    assert result.stdout == f"{locked}: {reason}\n2 chunks read, 1 damaged.\n"


def test_clear_tells_what_it_could_not_delete(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (locked,) = [file for file in folder.rglob("*.kv") if file.stat().st_size > 4000]
    unlink = os.unlink

    def refusing(path: str) -> None:
        if path == str(locked):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        unlink(path)

    monkeypatch.setattr(os, "unlink", refusing)
    result = run(folder, "clear", "--yes")
    assert result.exit_code == 1
    told = f"{locked}: Permission denied; all but 1 chunks are deleted"
    assert result.output == f"llm-server: {told}\n"


def test_clear_asks_first(folder: Path) -> None:
    assert run(folder, "clear", answer="n\n").exit_code == 1
    assert len(list(folder.rglob("*.kv"))) == 2
    assert "2 chunks deleted" in run(folder, "clear", "--yes").output
    assert list(folder.rglob("*.kv")) == []


@pytest.mark.parametrize("command", ["ls", "stats", "verify", "clear"])
def test_a_missing_folder_is_told(tmp_path: Path, command: str) -> None:
    result = run(tmp_path / "nothing", command)
    assert result.exit_code == 0
    assert result.output == f"There is no cache at {tmp_path / 'nothing'} yet.\n"


def test_an_empty_folder_is_fine(tmp_path: Path) -> None:
    for command in ("ls", "stats", "verify"):
        result = run(tmp_path, command)
        assert result.exit_code == 0 and "no cache" not in result.output
