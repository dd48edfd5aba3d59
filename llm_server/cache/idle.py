"""Idle prefixes: which there are, in which order they go, and which the disk should have first.

It decides and counts; `cache/prefix` moves the memory.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from llm_server.cache.tree import CellTree

RENT_ROWS = 128
"""Rows that others may compute before an idle prefix leaves the cells for the disk. Every row looks
at the mask of every cell: 2,000 idle ones slow one stream down by 5 % and eight by 12 % (Qwen2.5-
0.5B's shape, 2 cores), about 0.3 us a cell and row, and reading a cell again costs 15 us. So after
some fifty rows keeping has cost more than leaving would; the rest is for the write."""


class Mark(enum.Enum):
    """What a prefix ends with: a head, a user's turn, or anything else, such as an answer."""

    HEAD = enum.auto()
    TURN = enum.auto()
    END = enum.auto()


@dataclass(frozen=True, slots=True)
class Idle:
    """A prefix that nobody runs, last used when `since` rows had been computed."""

    namespace: str
    since: int
    mark: Mark


class IdlePrefixes:
    """The idle prefixes by their sequence ids, the least recently used first.

    `trees` are the owner's, by namespace. Where the memory keeps whole states (`whole`), ids are
    what it runs short of, and a prefix can be `passed`.
    """

    def __init__(self, ids: range, trees: Mapping[str, CellTree], *, whole: bool) -> None:
        self.free = list(ids)[::-1]
        self.saved: set[int] = set()
        """Those that were offered to the disk; what it dropped of them is not offered again."""
        self._n_ids = len(ids)
        self._trees = trees
        self._whole = whole
        self._held: dict[int, Idle] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[int]:
        return iter(self._held)

    def __reversed__(self) -> Iterator[int]:
        return reversed(self._held)

    def __contains__(self, sequence: int) -> bool:
        return sequence in self._held

    def add(self, idle: Idle) -> int:
        """A free id, of which there is one, for a prefix; the most recently used now."""
        sequence = self.free.pop()
        self._held[sequence] = idle
        return sequence

    def discard(self, sequence: int) -> str:
        """Forget a prefix and free its id; returns its namespace."""
        self.saved.discard(sequence)
        self.free.append(sequence)
        return self._held.pop(sequence).namespace

    def touch(self, sequence: int, now: int) -> None:
        """It was used when `now` rows had been computed."""
        self._held[sequence] = replace(self._held.pop(sequence), since=now)

    def tokens(self, sequence: int) -> tuple[list[int], str]:
        """The tokens and the namespace of a prefix."""
        namespace = self._held[sequence].namespace
        return self._trees[namespace].tokens(sequence), namespace

    def outstayed(self, sequence: int, now: int) -> bool:
        """Whether a prefix has been in the way of others for longer than it is worth."""
        return now - self._held[sequence].since > RENT_ROWS

    def passed(self, sequence: int) -> bool:
        """Whether its conversation has gone on without needing this state any more.

        A turn has no use behind the next one, another end none once there is more behind it, or
        once a turn has come elsewhere: templates drop thoughts from answers, and users ask again.
        """
        idle = self._held[sequence]
        if not self._whole or idle.mark is Mark.HEAD:
            return False
        tree = self._trees[idle.namespace]
        if idle.mark is Mark.TURN:
            return sum(self._with_mark(way, Mark.TURN) for way in tree.ways_on(sequence)) == 1
        return len(tree.ways_on(sequence)) == 1 or self._left_behind(tree, sequence)

    def _left_behind(self, tree: CellTree, sequence: int) -> bool:
        """Whether another way from the last turn before this end has led to a turn."""
        for others, ends in tree.forks(sequence):
            if self._with_mark(ends, Mark.HEAD):
                return False
            if self._with_mark(others, Mark.TURN):
                return True
            if self._with_mark(ends, Mark.TURN):
                return False
        return False

    def _with_mark(self, sequences: set[int], mark: Mark) -> bool:
        return any(s in self._held and self._held[s].mark is mark for s in sequences)

    def first_out(self) -> int:
        """Whose id is given to another: a passed one, else one on disk, else the oldest."""
        oldest = list(self._held)
        passed = next((s for s in oldest if self.passed(s)), None)
        if passed is not None:
            return passed
        return next((s for s in oldest if s in self.saved), oldest[0])

    def endangered(self, n_free: int, n_ctx: int, now: int, *, busy: bool) -> int | None:
        """The one to be dropped next, if that may be soon and the disk does not have it.

        `n_free` of `n_ctx` cells are free. What was computed once is not to be computed again
        only because cells or ids ran short. `busy`: what can wait does.
        """
        share = 4 if busy else 2
        short = n_free < n_ctx // share
        if self._whole and not short and not self._short_of_ids(self._n_ids // share):
            return None
        oldest = next((s for s in self._held if not self._spared(s)), None)
        if oldest is None or self._whole or short:
            return oldest
        return oldest if self.outstayed(oldest, now) else None

    def _short_of_ids(self, enough: int) -> bool:
        """Whether fewer than `enough` ids are free or can be spared."""
        n = len(self.free)
        for sequence in self._held:
            if n >= enough:
                return False
            n += self._spared(sequence)
        return n < enough

    def _spared(self, sequence: int) -> bool:
        return sequence in self.saved or self.passed(sequence)
