"""Owners take turns: in the queue, in the order of prompts, in the engine."""

from __future__ import annotations

import pytest

from llm_server.engine import admission
from llm_server.engine.scheduler import Want, in_turn, plan
from llm_server.engine.turns import Turns
from tests.engine.fake_context import Bench, FakeContext


def test_owners_take_turns_and_each_is_served_in_order() -> None:
    turns = Turns[int]()
    for owner, item in (("a", 1), ("a", 2), ("a", 3), ("b", 10), ("c", 20), ("c", 21)):
        turns.add(owner, item)
    assert turns.first == 1
    assert [turns.take() for _ in range(2)] == [1, 10]
    turns.add("b", 11)  # Behind `c` and `a`, who have waited for longer.
    assert [turns.take() for _ in range(5)] == [20, 2, 11, 21, 3]
    assert not turns


def test_what_is_dropped_leaves_the_turns_alone() -> None:
    turns = Turns[int]()
    for owner, item in (("a", 1), ("a", 2), ("b", 10), ("c", 20)):
        turns.add(owner, item)
    turns.drop(lambda item: item in (1, 10))
    assert list(turns) == [2, 20]
    assert [turns.take() for _ in range(2)] == [2, 20]


def want(n: int, owner: str = "", waited: float = 0.0) -> Want:
    return Want(n, n, n * 0.01, waited, owner=owner)


def test_the_most_urgent_of_each_owner_in_turn() -> None:
    wants = [want(10, "a"), want(20, "a"), want(30, "a"), want(100, "b"), want(90, "b")]
    assert in_turn(wants) == [0, 4, 1, 3, 2]
    assert in_turn(wants, served=["a", "a"]) == [4, 3, 0, 1, 2]
    assert in_turn(wants, last={"a": 7}) == [4, 0, 3, 1, 2]
    assert in_turn(wants, last={"a": 7, "b": 8}) == in_turn(wants)
    assert in_turn([want(30), want(10), want(20, waited=9)]) == [2, 1, 0]


def test_prompts_of_one_owner_do_not_fill_the_steps() -> None:
    wants = [*(want(40, "many") for _ in range(10)), want(60, "one")]
    assert list(plan(wants, 100, 512)) == [(0, 40), (10, 60)]


def test_who_submits_one_request_behind_many_of_another_is_next_but_one() -> None:
    bench = Bench(FakeContext(n_ctx=4096, parallel=1))
    for id in range(8):
        bench.submit(id, [id * 20 + n for n in range(20)], max_tokens=3, owner="many")
    bench.step()
    bench.clock.pass_(1)  # The others have waited for longer.
    bench.submit(100, list(range(200, 220)), max_tokens=3, owner="one")
    bench.run()
    assert list(bench.ends)[:2] == [0, 100]
    assert len(bench.ends) == 9


def test_two_owners_with_much_to_ask_take_the_only_place_in_turn() -> None:
    bench = Bench(FakeContext(n_ctx=4096, parallel=1))
    for id in range(8):
        bench.submit(id, [id * 20 + n for n in range(20)], owner="first" if id < 4 else "second")
        bench.clock.pass_(1)
    bench.run()
    assert list(bench.ends) == [0, 4, 1, 5, 2, 6, 3, 7]


def test_of_more_owners_than_are_remembered_each_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "MAX_OWNERS", 64)
    bench = Bench(FakeContext(n_ctx=4096, parallel=1))
    for id in range(2 * admission.MAX_OWNERS):
        bench.submit(id, [id % 60 + 1, id // 60 + 1], max_tokens=1, owner=f"owner {id}")
    bench.run()
    assert len(bench.ends) == 2 * admission.MAX_OWNERS
