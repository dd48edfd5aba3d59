"""Zeroed memory goes back to the system, and nothing but zeros."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from llm_server.llama import pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MIB = 1 << 20


def anonymous() -> int:
    """Bytes of this process's own memory."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("Anonymous:"))
    return int(line.split()[1]) << 10


def test_zeros_are_given_back_and_what_is_written_stays() -> None:
    before = pages.mapped()
    memory = mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    content = np.frombuffer(memory, np.uint8)
    content[: 48 * MIB] = 0  # the rest is never touched
    content[10 * MIB + 5] = 7
    content[20 * MIB : 30 * MIB] = 9
    taken = anonymous()
    pages.give_back_zeros(pages.mapped_since(before))
    assert taken - anonymous() > 36 * MIB
    assert content[10 * MIB + 5] == 7 and content[20 * MIB : 30 * MIB].min() == 9
    assert int(content.sum(dtype=np.int64)) == 7 + 9 * 10 * MIB
    content[:] = 1
    assert content.min() == 1


def test_memory_that_was_there_before_is_left_alone() -> None:
    memory = mmap.mmap(-1, 16 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    np.frombuffer(memory, np.uint8)[:] = 0
    before, taken = pages.mapped(), anonymous()
    pages.give_back_zeros(pages.mapped_since(before))
    assert taken - anonymous() < 8 * MIB


@pytest.mark.parametrize("name", [b"caf\xe9", b"a\rb", "a\u2028b".encode()])
def test_a_mapped_file_may_have_any_name(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(b"x")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        assert pages.mapped()
