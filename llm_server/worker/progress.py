"""How far a load is, by what the worker says and by how much of the file is in its memory.

llama.cpp says something only once the whole file is mapped and read. Where it is not in the page
cache, that is nearly all of the time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

_READ = 0.95
"""How far a load is when the file is read: weights may yet have to be put into another order."""
_LIBRARIES = 64 << 20
"""What a worker maps beside the model, at most."""


class Progress:
    """Tells `report` of a load of `size` bytes, as fractions from 0 to 1 that never fall."""

    def __init__(self, size: int, report: Callable[[float], None] | None) -> None:
        self._size = size
        self._report = report
        self._fraction = -1.0

    def said(self, fraction: float) -> None:
        """The worker says how far it is."""
        fraction = min(max(fraction, 0.0), 1.0)
        if self._report is not None and fraction > self._fraction:
            self._fraction = fraction
            self._report(fraction)

    def look(self, pid: int) -> None:
        """See how much the worker has read. Nothing is told where the system does not say."""
        n_bytes = mapped_files(pid) - _LIBRARIES
        if n_bytes > 0:
            self.said(_READ * min(1.0, n_bytes / max(1, self._size)))


def mapped_files(pid: int) -> int:
    """Bytes of files that are in a process's memory, its libraries included; 0 where unknown."""
    try:
        shared = Path(f"/proc/{pid}/statm").read_text().split()[2]
    except (OSError, IndexError):
        return 0
    return int(shared) * os.sysconf("SC_PAGE_SIZE")
