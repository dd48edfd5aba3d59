"""How far a load is: what the worker says, and what it has read."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

import pytest

from llm_server.worker import progress
from llm_server.worker.progress import Progress, mapped_files

MB = 1 << 20


def test_fractions_never_fall() -> None:
    told: list[float] = []
    load = Progress(100, told.append)
    for fraction in (0.0, 0.5, 0.25, -1.0, 7.0):
        load.said(fraction)
    assert told == [0.0, 0.5, 1.0]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_what_is_read_of_a_file_counts_before_a_word_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 64 * MB
    path = tmp_path / "model"
    path.write_bytes(bytes(size))
    monkeypatch.setattr(progress, "_LIBRARIES", mapped_files(os.getpid()))
    told: list[float] = []
    load = Progress(size, told.append)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for part in range(4):
            for at in range(part * size // 4, (part + 1) * size // 4, mmap.PAGESIZE):
                mapped[at]
            load.look(os.getpid())
    assert told == sorted(told) and len(told) >= 3
    assert 0.9 < told[-1] < 1.0
    load.said(0.01)
    load.said(1.0)
    assert told[-1] == 1.0


def test_a_process_that_is_gone_tells_nothing() -> None:
    told: list[float] = []
    Progress(1, told.append).look(2**30)
    assert told == []
