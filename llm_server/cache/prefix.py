"""The one thing the engine sees of the prompt cache: sequences that start with what is known.

It owns the sequence ids and the cells: every running sequence has a `Lease`, and finished ones
stay behind as idle prefixes until their room is wanted. Behind the cells is the disk tier. It
does not schedule and does not decode.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from llm_server.cache.disk import DiskTier
from llm_server.cache.idle import Idle, IdlePrefixes, Mark
from llm_server.cache.reading import Fetch
from llm_server.cache.tree import CellTree

logger = logging.getLogger(__name__)

WORTH_WRITING = 2
"""Uses of a prefix by later requests after which it is written at once. The rest waits until it has
to leave the memory: it may grow until then, and an SD card is not a log file."""


class Memory(Protocol):
    """What the cache needs of a KV memory (`llama.context.Context`; a fake in tests)."""

    n_ctx: int
    running: range
    idle: range
    whole_state: bool

    def share(self, source: int, target: int, start: int, stop: int) -> None: ...

    def size(self, sequence: int) -> int: ...

    def save(self, source: int, start: int, stop: int) -> memoryview: ...

    def load(self, payload: memoryview, target: int, start: int, stop: int) -> None: ...

    def cut(self, sequence: int, start: int) -> None: ...

    def drop(self, sequence: int) -> None: ...

    def clear(self) -> None: ...


@dataclass(slots=True, eq=False)
class Lease:
    """A running sequence's id in the memory. Valid from `acquire` to `release`, used by one.

    `n_reused` tokens were there already; what `fetch` brings is still to be restored.
    """

    sequence: int
    tokens: Sequence[int]
    n_reused: int
    namespace: str
    fetch: Fetch | None = None


class PrefixCache:
    """Shares KV cells between sequences with a common beginning, and counts them.

    Ids of `memory.running` run, those of `memory.idle` hold idle prefixes. Each `namespace` (API
    key) has a tree of its own: nobody can see another's prompts in the timing.
    """

    def __init__(self, memory: Memory, disk: DiskTier | None = None) -> None:
        self._memory = memory
        self._disk = disk
        self._trees: dict[str, CellTree] = {}
        self._free_running = list(memory.running)[::-1]
        self._idle = IdlePrefixes(memory.idle, self._trees, whole=memory.whole_state)
        self._leaving: set[int] = set()  # those that go once the disk has them
        self._n_running = 0
        self._n_rows = 0

    @property
    def n_free(self) -> int:
        """Cells that nobody uses, not even an idle prefix."""
        return self._memory.n_ctx - sum(tree.n_cells for tree in self._trees.values())

    @property
    def n_leased(self) -> int:
        """Cells of running sequences; all others are free or can be made so."""
        running = self._memory.running
        return sum(t.count(lambda sequence: sequence in running) for t in self._trees.values())

    @property
    def n_idle(self) -> int:
        """Idle prefixes held."""
        return len(self._idle)

    # ---- finding what is known -----------------------------------------------------------------

    def match(self, tokens: Sequence[int], namespace: str = "") -> int:
        """How many tokens at the beginning of `tokens` have cells."""
        return self._match(tokens, namespace)[0]

    def fetch(
        self, tokens: Sequence[int], namespace: str, wake: Callable[[], None], head: int = 0
    ) -> Fetch:
        """Begin to read what only the disk knows of `tokens`; `wake` is called at any news.

        The first `head` of them are a head.
        """
        known = self.match(tokens, namespace)
        if self._disk is None:
            return Fetch()
        return self._disk.fetch(tokens, namespace, known, wake, head)

    def give_up(self) -> None:
        """If the disk hangs, let all who wait for what they fetch go on without."""
        if self._disk is not None:
            self._disk.give_up()

    def acquire(
        self, tokens: Sequence[int], namespace: str = "", fetch: Fetch | None = None
    ) -> Lease | None:
        """A lease that holds the longest known prefix of `tokens`.

        What `fetch` brings beyond the cells is the lease's to restore. None when as many sequences
        run as the memory can tell apart.
        """
        if not self._free_running:
            return None
        n, source = self._match(tokens, namespace)
        if fetch and not (fetch.pieces and n < fetch.stop):
            fetch.drop()
        elif fetch and self._memory.whole_state:
            n = 0  # a state from the disk replaces all of what is there
        elif fetch and fetch.pieces[0].start > n:
            fetch.drop()  # the cells before it were evicted since it was looked up
        tree = self._trees.setdefault(namespace, CellTree())
        sequence = self._free_running.pop()
        self._n_running += 1
        tree.open(sequence)
        if n:
            self._memory.share(source, sequence, 0, n)
            tree.attach(sequence, source, n, whole=self._memory.whole_state)
            self._touch(tree, source)
            self._keep_if_wanted(tree, sequence, namespace)
        lease = Lease(sequence, tokens, n, namespace)
        if fetch and fetch.pieces:
            fetch.attach()
            lease.fetch = fetch
        return lease

    def restore(self, lease: Lease) -> int:
        """Attach the lease's next piece, which has been read; returns how many tokens it brought.

        0 when the cells have them, or when there is no room: then the rest is given up, to be
        computed.

        Raises:
            StateError: the memory did not take it and must be reset; the disk is not read again.
        """
        assert lease.fetch is not None
        piece = lease.fetch.take()
        tree = self._trees[lease.namespace]
        start = lease.n_reused
        if piece.stop <= start:
            return 0
        if not self.reserve(piece.n_cells):
            lease.fetch.drop()
            return 0
        try:
            self._memory.load(piece.payload, lease.sequence, start, piece.stop)
        except Exception:
            assert self._disk is not None
            self._disk.distrust()
            raise
        tree.extend(lease.sequence, lease.tokens[start : piece.stop])
        lease.n_reused = piece.stop
        return piece.stop - start

    # ---- using cells ---------------------------------------------------------------------------

    def reserve(self, n: int) -> bool:
        """Make room for `n` more cells, dropping idle prefixes; False when even that is not enough.

        They go oldest first.
        """
        while self.n_free < n and self._idle:
            self._drop_idle(next(iter(self._idle)))
        return self.n_free >= n

    def extend(self, lease: Lease, tokens: Sequence[int]) -> None:
        """`tokens` were computed at the end of the lease's sequence."""
        self._n_rows += len(tokens)
        self._trees[lease.namespace].extend(lease.sequence, tokens)

    def cut(self, lease: Lease, n: int) -> None:
        """Forget what was computed behind the first `n` tokens and never told to `extend`."""
        self._memory.cut(lease.sequence, n)

    def release(self, lease: Lease, *, keep: bool) -> None:
        """End a lease. With `keep`, its cells stay as an idle prefix while there is room."""
        tree = self._trees[lease.namespace]
        if lease.fetch:
            lease.fetch.drop()
        if keep:
            self.keep(lease)
            if self._disk and self._disk.policy == "all":
                self._disk.want(tree.tokens(lease.sequence), lease.namespace, head=False, tail=True)
        self._remove(tree, lease.sequence)
        self._free_running.append(lease.sequence)
        self._n_running -= 1
        self._forget_empty(lease.namespace)

    def keep(self, lease: Lease, mark: Mark = Mark.END) -> None:
        """Leave what the lease holds now behind as an idle prefix, unless others hold it too.

        Where ids run short, `mark` says for how long it is worth one (`idle.py`).
        """
        tree = self._trees[lease.namespace]
        tokens = tree.tokens(lease.sequence)
        if not tokens or self._redundant(tree, lease.sequence):
            return
        if not self._idle.free:
            self._drop_idle(self._idle.first_out())
        idle = self._idle.add(Idle(lease.namespace, self._n_rows, mark))
        self._memory.share(lease.sequence, idle, 0, len(tokens))
        tree.open(idle)
        tree.attach(idle, lease.sequence, len(tokens), hit=False)

    def reset(self) -> None:
        """Forget every idle prefix; after a failed decode nothing in the memory is believed.

        All leases must have been released.
        """
        assert self._n_running == 0, "reset under running sequences"
        for sequence in list(self._idle):
            self._drop_idle(sequence)
        self._memory.clear()

    def size(self, lease: Lease) -> int:
        """Bytes that what the lease holds takes on disk; 0 if nothing is written."""
        if self._disk is None or self._disk.policy == "off":
            return 0
        return self._memory.size(lease.sequence)

    # ---- keeping on disk -----------------------------------------------------------------------

    @property
    def copying(self) -> bool:
        """Whether something that is to be stored is still to be copied out."""
        return self._disk is not None and self._disk.pending

    @property
    def unsaved(self) -> bool:
        """Whether `save_some` has something to do, if nobody is in a hurry."""
        return self.copying or self._endangered(busy=False) is not None

    def persist(self, tokens: Sequence[int], namespace: str) -> None:
        """Store these tokens as a head: first to be written, last to be evicted."""
        if self._disk:
            self._disk.want(tokens, namespace, head=True, tail=True)

    def persist_head(self, tokens: Sequence[int], namespace: str) -> None:
        """Store a head that was computed, unless heads are used only once here."""
        if self._disk:
            self._disk.want_head(tokens, namespace)

    def count_hit(self, tokens: Sequence[int], namespace: str) -> None:
        """A request began with this head and did not compute it."""
        if self._disk:
            self._disk.count_hit(tokens, namespace)

    def save_some(self, *, busy: bool = False) -> bool:
        """Copy one chunk out of the memory, unless the disk is behind; whether it did.

        A chunk whose cells are gone meanwhile is given up. `busy`: somebody is waiting for the
        next token, so that what can wait does.
        """
        if self._disk is None or self._disk.store.busy:
            return False
        self._disk.want_missing()
        if not self._disk.pending:
            self._drop_left()
            endangered = self._endangered(busy)
            if endangered is not None:
                self._disk.want(*self._idle.tokens(endangered), head=False, tail=True)
                self._idle.saved.add(endangered)
                if not self._memory.whole_state:
                    self._leaving.add(endangered)
        if not self._disk.pending:
            return False
        copy = self._disk.next_copy()
        n, source = self._match(copy.tokens[: copy.stop], copy.namespace)
        if n == copy.stop:
            self._disk.put(copy, self._memory.save(source, copy.start, copy.stop))
        return True

    def close(self, deadline_s: float) -> None:
        """Store what is worth it of the idle prefixes, newest first, within `deadline_s` seconds.

        The memory is not used afterwards.
        """
        if self._disk is None:
            return
        end = time.monotonic() + deadline_s
        self._save_wanted(self._disk, end)
        for sequence in reversed(self._idle):
            if not self._idle.passed(sequence):
                self._disk.want(*self._idle.tokens(sequence), head=False, tail=True)
                self._save_wanted(self._disk, end)
        self._disk.close(max(0.0, end - time.monotonic()))

    def _save_wanted(self, disk: DiskTier, end: float) -> None:
        """Copy out what is wanted, until the time `end`."""
        while disk.pending and (left := end - time.monotonic()) > 0:
            if not self.save_some():
                disk.store.flush(left)

    def _endangered(self, busy: bool) -> int | None:
        """The idle prefix that the disk should have now."""
        if self._disk is None or self._disk.policy == "off":
            return None
        return self._idle.endangered(self.n_free, self._memory.n_ctx, self._n_rows, busy=busy)

    def _drop_left(self) -> None:
        """Give up the idle prefixes that are in the way, if the disk really has them."""
        assert self._disk is not None
        if not self._leaving or self._disk.store.writing:
            return
        for sequence in [s for s in self._leaving if self._idle.outstayed(s, self._n_rows)]:
            self._leaving.remove(sequence)
            if self._disk.surely_has(*self._idle.tokens(sequence)):
                self._drop_idle(sequence)

    def _keep_if_wanted(self, tree: CellTree, sequence: int, namespace: str) -> None:
        n = tree.n_wanted(sequence, WORTH_WRITING, whole=self._memory.whole_state)
        if self._disk and n:
            tokens = tree.tokens(sequence)[:n]
            self._disk.want(tokens, namespace, head=False, tail=False)

    # ---- bookkeeping ---------------------------------------------------------------------------

    def check(self) -> None:
        """Verify that ids and cells add up; for tests and at idle."""
        for tree in self._trees.values():
            tree.check()
        held = [s for tree in self._trees.values() for s in tree.sequences()]
        assert len(held) == len(set(held)) == self._n_running + len(self._idle)
        assert len(self._free_running) + self._n_running == len(self._memory.running)
        assert len(self._idle.free) + len(self._idle) == len(self._memory.idle)
        assert 0 <= self.n_free <= self._memory.n_ctx

    def _match(self, tokens: Sequence[int], namespace: str) -> tuple[int, int]:
        tree = self._trees.get(namespace)
        if tree is None:
            return 0, -1
        return tree.match(tokens, whole=self._memory.whole_state)

    def _redundant(self, tree: CellTree, sequence: int) -> bool:
        """Whether other sequences hold all that this one does; a state, at the same position."""
        if self._memory.whole_state:
            return tree.ends_with_another(sequence)
        return tree.covered(sequence)

    def _touch(self, tree: CellTree, source: int) -> None:
        """An idle prefix was used: it is the youngest now, or superfluous."""
        if source not in self._idle:
            return
        self._idle.touch(source, self._n_rows)
        if not self._memory.whole_state and self._redundant(tree, source):
            self._drop_idle(source)

    def _drop_idle(self, sequence: int) -> None:
        namespace = self._idle.discard(sequence)
        self._leaving.discard(sequence)
        self._remove(self._trees[namespace], sequence)
        self._forget_empty(namespace)

    def _remove(self, tree: CellTree, sequence: int) -> None:
        tree.close(sequence)
        self._memory.drop(sequence)

    def _forget_empty(self, namespace: str) -> None:
        if not any(True for _ in self._trees[namespace].sequences()):
            del self._trees[namespace]
