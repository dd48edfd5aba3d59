"""Memory that was zeroed and not used yet, given back to the system until it is (Linux).

llama.cpp zeroes the whole memory of a context, and so takes it, though most of it may never be
needed. A page that is given back is zero when it is next looked at: nothing else changes.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

_BLOCK = 1 << 16
"""Bytes that are looked at together, and given back if all of them are zero."""


def mapped() -> list[tuple[int, int]]:
    """The anonymous writable memory of this process, ranges [start, stop); none but on Linux."""
    try:
        # Bytes: names of mapped files need not be text, and may hold what ends a line of text.
        lines = Path("/proc/self/maps").read_bytes().rstrip(b"\n").split(b"\n")
    except OSError:
        return []
    ranges = []
    for line in lines:
        addresses, mode, _, _, inode, *_ = line.split()
        if mode == b"rw-p" and inode == b"0":
            start, stop = addresses.split(b"-")
            ranges.append((int(start, 16), int(stop, 16)))
    return ranges


def mapped_since(before: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """What is mapped now and was not; neighbours may have become one range."""
    new = []
    for start, stop in mapped():
        for known, end in before:
            if start < end and known < stop:
                if start < known:
                    new.append((start, known))
                start = max(start, end)
        if start < stop:
            new.append((start, stop))
    return new


def give_back_zeros(ranges: Iterable[tuple[int, int]]) -> None:
    """Give back what is zero in that memory, as far as it is still mapped.

    The caller vouches that no other thread uses it meanwhile: what it writes might be lost.
    """
    libc = ctypes.CDLL(None)
    for start, stop in _common(ranges, mapped()):
        first = -(-start // _BLOCK) * _BLOCK
        n_blocks = max(0, stop - first) // _BLOCK
        resident = np.zeros((n_blocks, _BLOCK // mmap.PAGESIZE), np.uint8)
        size = ctypes.c_size_t(n_blocks * _BLOCK)
        # A look at memory that nobody has touched would take it.
        libc.mincore(ctypes.c_void_p(first), size, ctypes.c_void_p(resident.ctypes.data))
        for taken in _runs(_not_zero(resident)):
            for zero in _runs(~_not_zero(_blocks(first, taken))):
                address = first + (taken.start + zero.start) * _BLOCK
                size = ctypes.c_size_t(len(zero) * _BLOCK)
                libc.madvise(ctypes.c_void_p(address), size, mmap.MADV_DONTNEED)


def _common(
    some: Iterable[tuple[int, int]], others: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """What is in both."""
    for start, stop in some:
        for low, high in others:
            if low < stop and start < high:
                yield max(start, low), min(stop, high)


def _blocks(first: int, run: range) -> npt.NDArray[np.uint64]:
    """A view of blocks counted from `first`, [blocks, words]."""
    n_words = len(run) * _BLOCK // 8
    words = (ctypes.c_uint64 * n_words).from_address(first + run.start * _BLOCK)
    return np.ctypeslib.as_array(words).reshape(len(run), -1)


def _not_zero(rows: npt.NDArray[np.uint8] | npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Which rows are not zero throughout."""
    found: npt.NDArray[np.bool_] = np.bitwise_or.reduce(rows, axis=1) != 0
    return found


def _runs(marked: npt.NDArray[np.bool_]) -> Iterator[range]:
    """The runs of True."""
    edges = np.flatnonzero(np.diff(marked, prepend=False, append=False)).tolist()
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        yield range(start, stop)
