"""The plan of a step, and the pace that limits it: pure functions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_server.engine.pace import TILE, WIDE, Pace
from llm_server.engine.scheduler import Want, next_depth, plan

decode = Want(n=1, n_first=1, seconds=0, waited=0, is_decode=True)


def prompt(n: int, waited: float = 0.0, n_first: int | None = None) -> Want:
    return Want(n, n if n_first is None else n_first, n * 0.01, waited)


def test_everybody_who_decodes_gets_a_row_before_any_prompt() -> None:
    assert list(plan([prompt(100), decode, decode], 16, 64)) == [(1, 1), (2, 1), (0, 16)]


def test_forced_tokens_go_together_and_before_prompts() -> None:
    forced = Want(n=7, n_first=7, seconds=0, waited=0, is_decode=True)
    assert list(plan([prompt(100), forced, decode], 16, 64)) == [(1, 7), (2, 1), (0, 16)]


def test_smallest_remaining_prompt_first() -> None:
    assert list(plan([prompt(300), prompt(20), prompt(40)], 64, 512)) == [(1, 20), (2, 40), (0, 4)]


def test_waiting_outweighs_size() -> None:
    assert list(plan([prompt(300, waited=5), prompt(20)], 64, 512)) == [(0, 64)]


def test_a_step_ends_at_a_boundary() -> None:
    assert list(plan([prompt(300, n_first=30)], 64, 512)) == [(0, 30)]


def test_a_prompt_a_little_over_budget_is_finished() -> None:
    assert list(plan([prompt(70)], 64, 512)) == [(0, 70)]
    assert list(plan([prompt(70)], 64, 64)) == [(0, 64)]


wants = st.lists(
    st.builds(
        lambda n, first, waited: Want(n, min(n, first), n * 0.01, waited, is_decode=n == 1),
        st.integers(1, 500),
        st.integers(1, 500),
        st.floats(0, 100),
    ),
    max_size=12,
)


@given(wants, st.integers(1, 256), st.integers(12, 256))
def test_a_plan_keeps_its_limits_and_always_gets_somewhere(
    wants: list[Want], budget: int, n_batch: int
) -> None:
    rows = list(plan(wants, budget, n_batch))
    assert sum(n for _, n in rows) <= n_batch
    assert len({i for i, _ in rows}) == len(rows)
    assert all(0 < n <= wants[i].n_first for i, n in rows)
    assert {i for i, w in enumerate(wants) if w.is_decode} <= {i for i, _ in rows}
    assert bool(rows) == bool(wants)


def test_the_budget_is_what_the_latency_target_leaves() -> None:
    pace = Pace(2048, busy_s=0.15, alone_s=0.5)
    for _ in range(50):
        pace.learn(1, 0, 0.014)
        pace.learn(0, 128, 0.430)
    assert pace.prompt_budget(0, 0) == 144  # 0.5 s at 3.12 ms are 160 rows, 10 of them for the step
    assert pace.prompt_budget(1, 0) == 35  # 48 rows less 10, by tiles of 4, less the decoding one
    assert (pace.prompt_budget(3, 0) + 3) % TILE == 0


@pytest.mark.parametrize(
    ("wanted", "steps"),
    [
        (60, [60]),
        (136, [136]),  # 96 and 40 would take longer than all together
        (150, [78, 72]),
        (300, [96, 96, 108]),
        (260, [96, 92, 72]),
    ],
)
def test_no_step_is_left_with_a_few_rows(wanted: int, steps: list[int]) -> None:
    pace = Pace(2048, alone_s=0.43)
    pace.learn(0, 128, 0.004 * 138)
    taken = []
    while wanted:
        n = min(wanted, pace.prompt_budget(0, 0, n_wanted=wanted))
        taken.append(n)
        wanted -= n
    assert taken == steps


def test_a_crowd_of_short_prompts_outweighs_the_few_who_read() -> None:
    pace = Pace(2048, busy_s=0.15, alone_s=0.5)
    for _ in range(50):
        pace.learn(0, 128, 0.430)
    assert pace.is_short(150) and not pace.is_short(170)
    alone, beside = pace.prompt_budget(0, 0), pace.prompt_budget(2, 0)
    assert alone > 3 * beside
    assert pace.prompt_budget(2, 0, n_short=2) == beside
    assert pace.prompt_budget(2, 0, n_short=3) == alone - 2


def test_a_step_is_wide_where_that_fits_the_target() -> None:
    pace = Pace(2048, busy_s=0.2, alone_s=0.5)
    pace.learn(0, 128, 0.003 * 138)
    pace.learn(1, 31, 0.003 * 42)
    assert pace.prompt_budget(1, 0) == WIDE - 1, "74 rows' time is a tenth over the target"
    for _ in range(20):
        pace.learn(1, WIDE - 1, 0.005 * 74)
    assert pace.prompt_budget(1, 0) == 55, "0.2 s at 3 ms are 66 rows, 10 of them for the step"


@pytest.mark.parametrize(
    ("wide_ms", "narrow_ms", "rows"),
    [
        (7, 7, WIDE - 1),  # 122 tokens a second by steps of 0.52 s, or 90 by steps of 0.21
        (4, 4, 43),  # 213 by steps of 0.3 s, or 199
        (4, 3, 59),  # 213, or 281
        (13, 13, WIDE - 1),  # 66 by steps of 0.96 s, or 40 by steps of 0.3
        (14, 14, 12),  # nobody waits a second for a token
        (14, 25, WIDE - 1),  # but for 61 tokens a second instead of 21 by steps of 0.58 s
    ],
)
def test_a_wide_step_is_taken_where_it_is_worth_the_gap(
    wide_ms: float, narrow_ms: float, rows: int
) -> None:
    pace = Pace(2048, busy_s=0.22, alone_s=0.5)
    pace.learn(0, 64, wide_ms * 74 / 1000)
    pace.learn(1, 15, narrow_ms * 26 / 1000)
    assert pace.prompt_budget(1, 0) == rows


def test_wide_steps_are_tried_where_narrow_ones_become_dear() -> None:
    pace = Pace(2048, busy_s=0.22, alone_s=0.5)
    budgets = []
    for depth in range(0, 1600, 20):
        budgets.append(pace.prompt_budget(1, depth))
        rows = budgets[-1] + 1
        cost = 0.007 * (rows + 10) if rows >= WIDE else 0.007 * (rows + 10) * (1 + depth / 400)
        pace.learn(1, rows - 1, cost, depth=depth)
    assert budgets[0] == 4 * TILE
    assert max(budgets) == budgets[-1] == WIDE - 1


def test_a_wide_step_that_a_busy_machine_made_long_is_tried_again() -> None:
    pace = Pace(2048, busy_s=0.22, alone_s=0.5)
    pace.learn(1, 63, 1.2)
    budgets = []
    for _ in range(600):
        n = pace.prompt_budget(1, 0)
        pace.learn(1, n, 0.007 * (n + 11))
        budgets.append(n)
    assert set(budgets[1:400]) == {19}
    assert budgets[-1] == WIDE - 1


def test_rows_cost_more_behind_many_tokens() -> None:
    pace = Pace(2048, busy_s=0.2, alone_s=0.5)
    for _ in range(5):
        for depth in (0, 400, 800, 1200, 1600):
            cost = 0.002 * (1 + depth / 800)
            pace.learn(0, 128, cost * 138, depth=depth)
    for depth in (0, 600, 1600, 2400):
        rows = 0.5 / (0.002 * (1 + depth / 800)) - 10
        assert pace.prompt_budget(0, depth) == pytest.approx(rows, abs=0.1 * rows + 16)


def test_a_long_step_is_behind_its_own_rows_too() -> None:
    pace = Pace(2048, busy_s=0.22)

    def seconds(n: int, depth: int) -> float:
        return 0.0003 * (n + 11) * (1 + (depth + n / 2) / 800)

    for depth in (0, 300, 600, 900):
        pace.learn(1, 200, seconds(200, depth), depth=depth + 100)
    for depth in (0, 500, 1500):
        n = pace.prompt_budget(1, depth)
        assert 0.85 * 0.22 < seconds(n, depth) <= 0.22


def test_a_busy_machine_is_noticed_within_a_few_steps() -> None:
    pace = Pace(2048, alone_s=0.5)
    for _ in range(50):
        pace.learn(0, 128, 0.003 * 138)
    before = pace.prompt_budget(0, 0)
    for _ in range(6):
        pace.learn(0, 64, 0.006 * 74)
    assert pace.prompt_budget(0, 0) <= before * 0.6


def test_the_next_prompt_is_the_most_urgent_one() -> None:
    wants = [
        Want(n=1, n_first=1, seconds=0, waited=0, is_decode=True, depth=900),
        Want(n=500, n_first=500, seconds=2, waited=0, depth=700),
        Want(n=20, n_first=20, seconds=0.1, waited=0, depth=30),
    ]
    assert next_depth(wants) == 30
    assert next_depth(wants[:1]) == 0


def test_a_fast_machine_gets_whole_batches_and_a_slow_one_a_few_rows() -> None:
    fast, slow = Pace(2048), Pace(2048)
    fast.learn(0, 512, 0.01)
    slow.learn(0, 128, 60.0)
    assert fast.prompt_budget(0, 0) == 2048
    assert slow.prompt_budget(1, 0) == 12
    assert slow.prompt_budget(0, 0) == 32


def test_a_prompt_that_nobody_waits_beside_keeps_most_of_its_speed() -> None:
    for tokens_per_second in (4, 20, 60, 100, 130, 1000):
        pace = Pace(2048)
        row_s = 1 / tokens_per_second
        pace.learn(0, 128, 138 * row_s)
        pace.learn(0, 32, 42 * row_s)
        n = pace.prompt_budget(0, 0)
        assert n / ((n + 10) * row_s) >= 0.75 * tokens_per_second
        assert n < 40 or (n + 10) * row_s <= 1.0, "a newcomer is noticed within a second"


def test_before_anything_is_known_the_first_steps_are_careful() -> None:
    assert Pace(2048).prompt_budget(1, 0) == 4 * TILE
    assert Pace(2048).prompt_budget(0, 0) == 32 * TILE
