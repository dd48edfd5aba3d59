"""The one thing the engine sees of the prompt cache: sequences that start with what is known.

It owns the sequence ids and the cells: every running sequence has a `Lease`, and finished ones
stay behind as idle prefixes until their room is wanted. It does not schedule and does not decode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from llm_server.cache.tree import CellTree


class Memory(Protocol):
    """What the cache needs of a KV memory (`llama.context.Context`; a fake in tests)."""

    n_ctx: int
    n_seq: int
    parallel: int
    whole_state: bool

    def share(self, source: int, target: int, n: int) -> None: ...

    def drop(self, sequence: int) -> None: ...

    def clear(self) -> None: ...


class Lease:
    """A running sequence's id in the memory. Valid from `acquire` to `release`, used by one."""

    __slots__ = ("n_reused", "namespace", "sequence")

    def __init__(self, sequence: int, n_reused: int, namespace: str) -> None:
        self.sequence = sequence
        self.n_reused = n_reused
        self.namespace = namespace


class PrefixCache:
    """Shares KV cells between sequences with a common beginning, and counts them.

    Ids below `memory.parallel` run, the others hold idle prefixes, oldest first out. Each
    `namespace` (API key) has a tree of its own: nobody can see another's prompts in the timing.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._trees: dict[str, CellTree] = {}
        self._free_running = list(range(memory.parallel))[::-1]
        self._free_idle = list(range(memory.parallel, memory.n_seq))[::-1]
        self._idle: dict[int, str] = {}  # sequence -> namespace, least recently used first
        self._n_running = 0

    @property
    def n_free(self) -> int:
        """Cells that nobody uses, not even an idle prefix."""
        return self._memory.n_ctx - sum(tree.n_cells for tree in self._trees.values())

    @property
    def n_leased(self) -> int:
        """Cells of running sequences; all others are free or can be made so."""
        running = self._memory.parallel
        return sum(t.count(lambda sequence: sequence < running) for t in self._trees.values())

    @property
    def n_idle(self) -> int:
        """Idle prefixes held."""
        return len(self._idle)

    def match(self, tokens: Sequence[int], namespace: str = "") -> int:
        """How many tokens at the beginning of `tokens` need not be computed."""
        return self._match(tokens, namespace)[0]

    def acquire(self, tokens: Sequence[int], namespace: str = "") -> Lease | None:
        """A lease that holds the longest known prefix of `tokens`, always short of its last one.

        None when as many sequences run as the memory can tell apart.
        """
        if not self._free_running:
            return None
        n, source = self._match(tokens, namespace)
        tree = self._trees.setdefault(namespace, CellTree())
        sequence = self._free_running.pop()
        self._n_running += 1
        tree.open(sequence)
        if n:
            self._memory.share(source, sequence, n)
            tree.attach(sequence, source, n)
            self._touch(source)
        return Lease(sequence, n, namespace)

    def reserve(self, n: int) -> bool:
        """Make room for `n` more cells, dropping idle prefixes; False when even that is not enough.

        Idle prefixes go oldest first, and stay when dropping all of them would not help.
        """
        while self.n_free < n and self._idle:
            self._drop_idle(next(iter(self._idle)))
        return self.n_free >= n

    def extend(self, lease: Lease, tokens: Sequence[int]) -> None:
        """`tokens` were computed at the end of the lease's sequence."""
        self._trees[lease.namespace].extend(lease.sequence, tokens)

    def release(self, lease: Lease, *, keep: bool) -> None:
        """End a lease. With `keep`, its cells stay as an idle prefix while there is room."""
        tree = self._trees[lease.namespace]
        if keep and not self._redundant(tree, lease.sequence):
            self._retain(tree, lease)
        self._remove(tree, lease.sequence)
        self._free_running.append(lease.sequence)
        self._n_running -= 1
        self._forget_empty(lease.namespace)

    def reset(self) -> None:
        """Forget every idle prefix; after a failed decode nothing in the memory is believed.

        All leases must have been released.
        """
        assert self._n_running == 0, "reset under running sequences"
        for sequence in list(self._idle):
            self._drop_idle(sequence)
        self._memory.clear()

    def check(self) -> None:
        """Verify that ids and cells add up; for tests and at idle."""
        for tree in self._trees.values():
            tree.check()
        held = [s for tree in self._trees.values() for s in tree.sequences()]
        assert len(held) == len(set(held)) == self._n_running + len(self._idle)
        assert len(self._free_running) + self._n_running == self._memory.parallel
        assert len(self._free_idle) + len(self._idle) == self._memory.n_seq - self._memory.parallel
        assert 0 <= self.n_free <= self._memory.n_ctx

    def _match(self, tokens: Sequence[int], namespace: str) -> tuple[int, int]:
        tree = self._trees.get(namespace)
        if tree is None:
            return 0, -1
        # The last token is always computed: its logits choose the first new one.
        return tree.match(tokens[:-1], whole=self._memory.whole_state)

    def _redundant(self, tree: CellTree, sequence: int) -> bool:
        """Whether nothing is lost without this sequence. A whole state is never redundant."""
        return tree.covered(sequence) and not self._memory.whole_state

    def _retain(self, tree: CellTree, lease: Lease) -> None:
        tokens = tree.tokens(lease.sequence)
        if not tokens:
            return
        if not self._free_idle:
            self._drop_idle(next(iter(self._idle)))
        idle = self._free_idle.pop()
        self._memory.share(lease.sequence, idle, len(tokens))
        tree.open(idle)
        tree.attach(idle, lease.sequence, len(tokens))
        self._idle[idle] = lease.namespace

    def _touch(self, source: int) -> None:
        """An idle prefix was used: it is the youngest now, or superfluous."""
        namespace = self._idle.get(source)
        if namespace is None:
            return
        if self._redundant(self._trees[namespace], source):
            self._drop_idle(source)
        else:
            self._idle[source] = self._idle.pop(source)

    def _drop_idle(self, sequence: int) -> None:
        namespace = self._idle.pop(sequence)
        self._remove(self._trees[namespace], sequence)
        self._free_idle.append(sequence)
        self._forget_empty(namespace)

    def _remove(self, tree: CellTree, sequence: int) -> None:
        tree.close(sequence)
        self._memory.drop(sequence)

    def _forget_empty(self, namespace: str) -> None:
        if not any(True for _ in self._trees[namespace].sequences()):
            del self._trees[namespace]
