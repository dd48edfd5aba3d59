"""Drafts: what is guessed, when it pays, and that nothing but the number of steps depends on it."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from llm_server.engine.draft import Lookup, sizes
from llm_server.engine.pace import Pace
from llm_server.worker.messages import Finished
from tests.engine.fake_context import EOG, Bench, FakeContext, Model, reference


def cycle(n: int) -> Model:
    """A model that counts to `n` and begins again."""
    return lambda tokens: tokens[-1] % n + 1


def copy_with_errors(tokens: Sequence[int]) -> int:
    """Counts, but now and then does something that depends on all that came before."""
    return sum(tokens) % 7 if sum(tokens) % 11 == 0 else tokens[-1] % 9 + 1


def test_it_guesses_what_followed_the_last_time() -> None:
    lookup = Lookup([1, 2, 3, 4, 5, 9, 1, 2])
    assert lookup.guess(2) == []
    lookup.extend([3])
    assert lookup.guess(2) == [4, 5]


def test_a_short_repetition_is_guessed_on_and_on() -> None:
    lookup = Lookup([1, 2, 1, 2])
    lookup.extend([1])
    assert lookup.guess(5) == [2, 1, 2, 1, 2]


def test_only_what_comes_true_is_worth_rows() -> None:
    def seconds(n_rows: int) -> float:
        return Pace(512).decode_seconds(n_rows)

    right = Lookup([*range(1, 100), 1, 2])
    wrong = Lookup([*range(1, 100), 1, 2])
    assert sizes([wrong], seconds, 32) == [0]
    for i in range(3, 20):
        right.extend([i])
        wrong.extend([200 + i if i % 3 else i])
    assert sizes([right], seconds, 32)[0] > 3
    assert sizes([wrong], seconds, 32) == [0]
    assert sizes([right], seconds, 4) == [3]
    assert sum(sizes([right, wrong, right], seconds, 32)) <= 29


def test_copying_takes_fewer_steps() -> None:
    def n_steps(draft_max: int) -> int:
        bench = Bench(FakeContext(model=cycle(20)), draft_max=draft_max)
        bench.submit(1, range(1, 21), max_tokens=100)
        bench.run()
        assert bench.texts[1] == reference(range(1, 21), 100, cycle(20))
        end = bench.ends[1]
        assert isinstance(end, Finished) and end.usage.completion_tokens == 100
        assert end.timings.draft_n_accepted <= end.timings.draft_n
        return len(bench.context.steps)

    assert n_steps(16) < n_steps(0) / 3


prompts = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=30), min_size=1, max_size=4)


@given(prompts, st.integers(1, 60), st.integers(0, 20), st.integers(70, 300))
def test_drafts_change_no_answer(
    prompts: list[list[int]], max_tokens: int, draft_max: int, n_ctx: int
) -> None:
    """Also with cells so short that sequences preempt each other; `check` counts the cells."""
    context = FakeContext(n_ctx, parallel=3, n_seq=9, model=copy_with_errors)
    bench = Bench(context, draft_max=draft_max)
    for id, prompt in enumerate(prompts):
        bench.submit(id, prompt, max_tokens=max_tokens)
    bench.run()
    for id, prompt in enumerate(prompts):
        n = min(max_tokens, n_ctx - len(prompt))
        assert bench.texts[id] == reference(prompt, n, copy_with_errors)


def test_a_guess_may_run_into_the_end_of_the_answer() -> None:
    def model(tokens: Sequence[int]) -> int:
        return EOG if len(tokens) == 57 else tokens[-1] % 5 + 1

    bench = Bench(FakeContext(model=model), draft_max=16)
    bench.submit(1, [1, 2, 3, 4, 5], max_tokens=100)
    bench.run()
    assert bench.texts[1] == reference([1, 2, 3, 4, 5], 100, model)
    assert len(bench.texts[1]) == 52


def test_whole_states_are_never_guessed_with() -> None:
    bench = Bench(FakeContext(whole_state=True, model=cycle(5)), draft_max=16)
    bench.submit(1, [1, 2, 3, 4, 5], max_tokens=40)
    bench.run()
    assert bench.texts[1] == reference([1, 2, 3, 4, 5], 40, cycle(5))
