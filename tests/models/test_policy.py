"""The pool's judgements."""

from __future__ import annotations

import pytest

from llm_server.machine import Memory
from llm_server.models.policy import (
    FORGIVEN_S,
    Crashes,
    Holding,
    backoff_s,
    budget_bytes,
    keep_alive_seconds,
    whom_to_evict,
)

MACHINE = Memory(total=10_000, available=6000)


def idle(memory: int, used: float) -> Holding:
    return Holding(memory, used, busy=False)


def test_nobody_goes_for_nothing() -> None:
    assert whom_to_evict(3, 10, []) == []
    assert whom_to_evict(3, 10, [idle(7, 1)]) == []


def test_the_least_recently_used_goes_first() -> None:
    holdings = [idle(4, 3), idle(4, 1), idle(2, 2)]
    assert whom_to_evict(1, 10, holdings) == [1]
    assert whom_to_evict(5, 10, holdings) == [1, 2]
    assert whom_to_evict(10, 10, holdings) == [1, 2, 0]


def test_the_idle_go_before_the_busy() -> None:
    holdings = [Holding(5, 1, busy=True), idle(5, 2)]
    assert whom_to_evict(5, 10, holdings) == [1]
    assert whom_to_evict(6, 10, holdings) == [1, 0]


def test_a_small_one_stays_when_a_big_one_has_to_go_anyway() -> None:
    assert whom_to_evict(8, 10, [idle(1, 1), idle(9, 2)]) == [1]


def test_the_backoff_doubles_up_to_a_limit() -> None:
    assert [backoff_s(n) for n in (1, 2, 3, 7, 100)] == [0.5, 1.0, 2.0, 30.0, 30.0]


def test_only_a_good_life_makes_earlier_crashes_count_no_more() -> None:
    crashes = Crashes()
    for n, (lived_s, answered) in enumerate([(0.0, False), (1e6, False), (1.0, True)], start=1):
        crashes.note(100.0, lived_s, answered=answered)
        assert (crashes.count, crashes.not_before) == (n, 100.0 + backoff_s(n))
    crashes.note(100.0, FORGIVEN_S + 1, answered=True)
    assert (crashes.count, crashes.not_before) == (1, 100.5)


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        (0, 0),
        (-1, -1),
        (-7, -1),
        ("0", 0),
        ("-1", -1),
        ("2.5", 2.5),
        ("5m", 300),
        ("1h30m", 5400),
        ("forever", -1),
    ],
)
def test_times_are_written_as_people_do(told: str | int, seconds: float) -> None:
    assert keep_alive_seconds(told) == seconds


@pytest.mark.parametrize("told", ["", "m", "5 m", "soon", "5x", "1m1h", "inf", "nan"])
def test_what_is_no_time(told: str) -> None:
    with pytest.raises(ValueError, match="5m"):
        keep_alive_seconds(told)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (None, 5000),
        ("80%", 8000),
        ("8GB", 8 * 1000**3),
        ("8 gib", 8 * 1024**3),
        ("1.5g", 1_500_000_000),
        ("512MB", 512_000_000),
        ("4096", 4096),
    ],
)
def test_a_budget_is_told_as_a_size_or_a_share(told: str | None, expected: int) -> None:
    assert budget_bytes(told, MACHINE) == expected


@pytest.mark.parametrize("told", ["", "much", "120%", "-1GB", "8XB", "8GBB"])
def test_what_is_no_size(told: str) -> None:
    with pytest.raises(ValueError):
        budget_bytes(told, MACHINE)
