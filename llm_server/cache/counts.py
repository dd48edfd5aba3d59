"""What a disk cache has done: numbers that only grow, counted by the store and told by a worker."""

from __future__ import annotations

import msgspec


class Counts(msgspec.Struct):
    """Chunks, and bytes of payload; `dropped` were not written for want of room, `corrupt` read and
    not believed, `errors` are operations on files that failed."""

    hits: int = 0
    misses: int = 0
    read_bytes: int = 0
    written: int = 0
    written_bytes: int = 0
    dropped: int = 0
    evicted: int = 0
    corrupt: int = 0
    errors: int = 0


class Stats(Counts):
    """Counters since the start, and what there is now: this model's `chunks`, all models'
    `used_bytes` as far as known."""

    chunks: int = 0
    used_bytes: int = 0
