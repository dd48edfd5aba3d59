"""Which KV cells hold which tokens, and which sequences own them: a pure bookkeeping tree.

A node is a run of cells at consecutive positions; a sequence is the path from the root to its
tail. Cells of a node are counted once, however many sequences run through it. It moves no data:
`cache/prefix` mirrors every change in llama.cpp's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field


def common_prefix(a: Sequence[object], a_start: int, b: Sequence[object], b_start: int) -> int:
    """How many items of `a` from `a_start` and of `b` from `b_start` agree: tokens, characters,
    bytes.

    Slices are compared in halves, so that long equal runs go at memcmp-like speed.
    """
    low, high = 0, min(len(a) - a_start, len(b) - b_start)
    if a[a_start : a_start + high] == b[b_start : b_start + high]:
        return max(high, 0)
    while high - low > 1:
        middle = (low + high) // 2
        if a[a_start + low : a_start + middle] == b[b_start + low : b_start + middle]:
            low = middle
        else:
            high = middle
    return low


@dataclass(slots=True, eq=False)
class Node:
    """A run of cells. `owners` are the sequences whose path goes through it, never none.

    `hits` is how often somebody else has attached to it, or to the state at its end.
    """

    parent: Node | None
    tokens: list[int]
    owners: set[int]
    hits: int = 0
    children: list[Node] = field(default_factory=list)


class CellTree:
    """Tokens by cell and sequence. `n_cells` is the number of distinct cells in use."""

    def __init__(self) -> None:
        self._root = Node(None, [], set())
        self._tails: dict[int, Node] = {}
        self.n_cells = 0

    def __contains__(self, sequence: int) -> bool:
        return sequence in self._tails

    def sequences(self) -> Iterator[int]:
        """Ids of all sequences, empty ones included."""
        return iter(self._tails)

    def open(self, sequence: int) -> None:
        """Begin a sequence with no tokens."""
        assert sequence not in self._tails, f"sequence {sequence} is open already"
        self._tails[sequence] = self._root

    def match(self, tokens: Sequence[int], *, whole: bool = False) -> tuple[int, int]:
        """The longest prefix of `tokens` that cells hold: its length, and a sequence that has it.

        With `whole`, only sequences that end exactly there count: their state cannot be cut.
        (0, -1) when there is none.
        """
        best = (0, -1)
        stack = [(self._root, 0)]
        # Sequences that computed the same tokens side by side are siblings with equal beginnings.
        while stack:
            node, start = stack.pop()
            for child in node.children if start < len(tokens) else ():
                if child.tokens[0] != tokens[start]:
                    continue
                length = common_prefix(child.tokens, 0, tokens, start)
                n = start + length
                if length == len(child.tokens):
                    stack.append((child, n))
                    owners = [s for s in child.owners if not whole or self._tails[s] is child]
                else:
                    owners = [] if whole else list(child.owners)
                if owners and n > best[0]:
                    best = (n, owners[0])
        return best

    def attach(
        self, sequence: int, source: int, n: int, *, hit: bool = True, whole: bool = False
    ) -> None:
        """Let the empty `sequence` own the first `n` cells of `source` too.

        `hit`: a later request uses them, or with `whole` the state at their end alone; not so when
        a prefix is only kept.
        """
        assert self._tails[sequence] is self._root, "attach to a sequence that has cells"
        path = self._path(source)
        for node in path:
            if n < len(node.tokens):
                node = self._split(node, n)
            node.owners.add(sequence)
            node.hits += hit and (not whole or n == len(node.tokens))
            self._tails[sequence] = node
            n -= len(node.tokens)
            if n == 0:
                return
        assert n == 0, "attach beyond the end of the source"

    def extend(self, sequence: int, tokens: Sequence[int]) -> None:
        """Add cells for `tokens` at the end of `sequence`."""
        tail = self._tails[sequence]
        if tail is not self._root and len(tail.owners) == 1 and not tail.children:
            tail.tokens.extend(tokens)
        else:
            node = Node(tail, list(tokens), {sequence})
            tail.children.append(node)
            self._tails[sequence] = node
        self.n_cells += len(tokens)

    def close(self, sequence: int) -> None:
        """Forget a sequence; cells that nobody else owns are free again."""
        node = self._tails.pop(sequence)
        while node.parent is not None:
            parent = node.parent
            node.owners.discard(sequence)
            if not node.owners:
                parent.children.remove(node)
                self.n_cells -= len(node.tokens)
            node = parent

    def covered(self, sequence: int) -> bool:
        """Whether other sequences own every cell of this one too."""
        tail = self._tails[sequence]
        return tail is self._root or len(tail.owners) > 1

    def ends_with_another(self, sequence: int) -> bool:
        """Whether another sequence has exactly the same cells."""
        tail = self._tails[sequence]
        return any(self._tails[other] is tail for other in tail.owners if other != sequence)

    def ways_on(self, sequence: int) -> list[set[int]]:
        """Who goes on from where a sequence ends: the owners of each way."""
        return [child.owners for child in self._tails[sequence].children]

    def forks(self, sequence: int) -> Iterator[tuple[set[int], set[int]]]:
        """Back from where a sequence ends: at each node who took another way, and who ends."""
        node = self._tails[sequence]
        while node.parent is not None:
            owners = node.parent.owners - node.owners
            ends = {s for s in owners if self._tails[s] is node.parent}
            yield owners - ends, ends
            node = node.parent

    def count(self, chosen: Callable[[int], bool]) -> int:
        """Distinct cells of all sequences that are `chosen`."""
        total, stack = 0, list(self._root.children)
        while stack:
            node = stack.pop()
            if any(chosen(owner) for owner in node.owners):
                total += len(node.tokens)
                stack.extend(node.children)
        return total

    def tokens(self, sequence: int) -> list[int]:
        """All tokens of a sequence that have cells."""
        return [t for node in self._path(sequence) for t in node.tokens]

    def n_wanted(self, sequence: int, hits: int, *, whole: bool = False) -> int:
        """How many first tokens of a sequence have been attached to at least `hits` times.

        With `whole` it is all or nothing, as the state at its end has been used.
        """
        path = self._path(sequence)
        if whole:
            return sum(len(node.tokens) for node in path) if path[-1].hits >= hits else 0
        n = 0
        for node in path:
            if node.hits < hits:
                break
            n += len(node.tokens)
        return n

    def check(self) -> None:
        """Verify the tree's own invariants; for tests and at idle."""
        total, stack = 0, list(self._root.children)
        while stack:
            node = stack.pop()
            assert node.owners and node.tokens
            tails = {s for s in node.owners if self._tails[s] is node}
            below = [s for child in node.children for s in child.owners]
            assert len(below) == len(set(below)) and tails.isdisjoint(below)
            assert node.owners == tails | set(below)
            total += len(node.tokens)
            stack.extend(node.children)
        assert total == self.n_cells, f"{self.n_cells} cells counted, {total} in the tree"

    def _path(self, sequence: int) -> list[Node]:
        node, path = self._tails[sequence], []
        while node.parent is not None:
            path.append(node)
            node = node.parent
        return path[::-1]

    def _split(self, node: Node, n: int) -> Node:
        """Cut `node` after its first `n` tokens; returns the upper part."""
        assert node.parent is not None
        upper = Node(node.parent, node.tokens[:n], set(node.owners), node.hits, [node])
        node.parent.children[node.parent.children.index(node)] = upper
        node.parent, node.tokens = upper, node.tokens[n:]
        return upper
