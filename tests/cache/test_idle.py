"""Which idle prefix goes first, and which the disk should have before it does."""

from __future__ import annotations

from collections.abc import Sequence

from llm_server.cache.idle import RENT_ROWS, Idle, IdlePrefixes, Mark
from llm_server.cache.tree import CellTree

HEAD, USER, ANSWER = [1, 2], [3, 4], [5, 6]


class Shelf:
    """Idle prefixes of one namespace; rows are not counted."""

    def __init__(self, n_ids: int = 8, *, whole: bool = True) -> None:
        self.tree = CellTree()
        self.idle = IdlePrefixes(range(n_ids), {"": self.tree}, whole=whole)

    def keep(self, tokens: Sequence[int], mark: Mark = Mark.END) -> int:
        sequence = self.idle.add(Idle("", 0, mark))
        self.tree.open(sequence)
        n, source = self.tree.match(tokens)
        if n:
            self.tree.attach(sequence, source, n)
        if tokens[n:]:
            self.tree.extend(sequence, tokens[n:])
        return sequence

    def passed(self) -> list[int]:
        return [sequence for sequence in self.idle if self.idle.passed(sequence)]

    def endangered(self, n_free: int = 100, now: int = 0, *, busy: bool = False) -> int | None:
        return self.idle.endangered(n_free, 100, now, busy=busy)


def test_a_conversation_needs_its_head_its_last_turn_and_its_end() -> None:
    shelf = Shelf()
    tokens = list(HEAD)
    shelf.keep(tokens, Mark.HEAD)
    made = []
    for turn in range(3):
        tokens += [*USER, turn]
        made.append(shelf.keep(tokens, Mark.TURN))
        tokens += ANSWER
        made.append(shelf.keep(tokens))
    assert shelf.passed() == made[:-2]
    assert shelf.idle.first_out() == made[0]


def test_an_end_is_left_behind_once_a_turn_has_come_elsewhere() -> None:
    shelf = Shelf()
    shelf.keep(HEAD, Mark.HEAD)
    turn = shelf.keep([*HEAD, *USER], Mark.TURN)
    one, another = (shelf.keep([*HEAD, *USER, 9, n]) for n in (1, 2))
    assert shelf.passed() == [], "either may be gone on from"
    shelf.keep([*HEAD, *USER, 9, 2, *USER], Mark.TURN)
    assert shelf.passed() == [turn, one, another]


def test_a_state_where_ways_part_is_none_that_was_passed() -> None:
    shelf = Shelf()
    shelf.keep(HEAD, Mark.HEAD)
    shared = shelf.keep([*HEAD, *USER], Mark.TURN)
    for way in (7, 8):
        shelf.keep([*HEAD, *USER, way], Mark.TURN)
        shelf.keep([*HEAD, *USER, way, *ANSWER])
    assert shared not in shelf.passed() and shelf.passed() == []


def test_what_the_disk_has_goes_before_what_only_the_memory_has() -> None:
    shelf = Shelf()
    oldest, other, _ = (shelf.keep([n]) for n in range(3))
    assert shelf.idle.first_out() == oldest
    shelf.idle.saved.add(other)
    assert shelf.idle.first_out() == other


def test_whole_states_are_in_danger_when_ids_run_short() -> None:
    shelf = Shelf(n_ids=8)
    first = [shelf.keep([n]) for n in range(5)][0]
    assert shelf.endangered(busy=True) is None
    assert shelf.endangered() == first
    shelf.idle.saved.add(first)
    assert shelf.endangered() is None, "it can be spared now"
    assert shelf.endangered(now=10 * RENT_ROWS) is None, "states are in nobody's way"
    assert shelf.endangered(n_free=10) == first + 1


def test_ranges_are_in_danger_when_cells_run_short_or_they_outstay() -> None:
    shelf = Shelf(n_ids=2, whole=False)
    first, _ = (shelf.keep([n]) for n in range(2))
    assert shelf.endangered() is None
    assert shelf.endangered(n_free=49) == first
    assert shelf.endangered(n_free=49, busy=True) is None
    assert shelf.endangered(now=RENT_ROWS + 1) == first
