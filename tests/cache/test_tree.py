"""The bookkeeping of cells against a plain reference: sequences as lists of cell objects."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llm_server.cache.tree import CellTree, common_prefix

tokens = st.lists(st.integers(0, 2), max_size=12)


@given(tokens, tokens, st.integers(0, 12), st.integers(0, 12))
def test_common_prefix_is_what_a_loop_finds(a: list[int], b: list[int], i: int, j: int) -> None:
    i, j = min(i, len(a)), min(j, len(b))
    n = 0
    while i + n < len(a) and j + n < len(b) and a[i + n] == b[j + n]:
        n += 1
    assert common_prefix(a, i, b, j) == n


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7), tokens), max_size=40))
def test_the_tree_counts_and_matches_like_lists_of_cells(
    operations: list[tuple[int, int, list[int]]],
) -> None:
    tree = CellTree()
    cells: dict[int, list[list[int]]] = {}
    for operation, sequence, new in operations:
        if operation == 0 and sequence not in cells:
            tree.open(sequence)
            n, source = tree.match(new)
            if n:
                assert [c[0] for c in cells[source][:n]] == new[:n]
                tree.attach(sequence, source, n)
            cells[sequence] = cells[source][:n] if n else []
        elif operation in (1, 2) and sequence in cells and new:
            tree.extend(sequence, new)
            cells[sequence] = cells[sequence] + [[t] for t in new]
        elif operation == 3 and sequence in cells:
            tree.close(sequence)
            del cells[sequence]
        tree.check()
        assert tree.n_cells == len({id(c) for row in cells.values() for c in row})
        for s, row in cells.items():
            assert tree.tokens(s) == [c[0] for c in row]
        odd = {id(c) for s, row in cells.items() if s % 2 for c in row}
        assert tree.count(lambda s: s % 2 == 1) == len(odd)
        whole = [len(r) for r in cells.values() if r and [c[0] for c in r] == new[: len(r)]]
        assert tree.match(new, whole=True)[0] == max(whole, default=0)


@given(st.lists(tokens.filter(bool), min_size=1, max_size=6), tokens)
def test_match_finds_the_longest_prefix_that_anybody_has(
    sequences: list[list[int]], wanted: list[int]
) -> None:
    tree = CellTree()
    for sequence, row in enumerate(sequences):
        tree.open(sequence)
        n, source = tree.match(row)
        if n:
            tree.attach(sequence, source, n)
        if row[n:]:
            tree.extend(sequence, row[n:])
    longest = max(common_prefix(row, 0, wanted, 0) for row in sequences)
    assert tree.match(wanted)[0] == longest


def test_match_of_whole_states_needs_a_sequence_that_ends_there() -> None:
    tree = CellTree()
    tree.open(1)
    tree.extend(1, [1, 2, 3, 4])
    assert tree.match([1, 2, 3, 9], whole=True) == (0, -1)
    assert tree.match([1, 2, 3, 4, 9], whole=True) == (4, 1)
    assert tree.match([1, 2, 3, 9]) == (3, 1)


def test_match_sees_the_shorter_of_two_runs_computed_side_by_side() -> None:
    tree = CellTree()
    for sequence, row in ((0, [7]), (1, [7, 7])):
        tree.open(sequence)
        tree.extend(sequence, row)
    assert tree.match([7], whole=True) == (1, 0)
    assert tree.match([7, 7, 7], whole=True) == (2, 1)


def test_a_whole_state_has_uses_of_its_own() -> None:
    tree = CellTree()
    tree.open(1)
    tree.extend(1, [1, 2])
    for sequence, source in ((2, 1), (3, 2), (4, 3)):  # each goes on from the one before
        tree.open(sequence)
        tree.attach(sequence, source, len(tree.tokens(source)), whole=True)
        assert tree.n_wanted(sequence, 2, whole=True) == 0
        tree.extend(sequence, [sequence])
    tree.open(5)
    tree.attach(5, 2, 3, whole=True)
    assert tree.n_wanted(5, 2, whole=True) == 3
