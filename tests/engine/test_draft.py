"""Drafts: what is guessed, when it pays, and that nothing but the number of steps depends on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


@dataclass
class Decoding:
    """What a draft needs of a sequence."""

    lookup: Lookup
    n_left: int = 100
    id: int = 0


def chosen(*lookups: Lookup, n_max: int = 31, room: int = 64) -> list[int]:
    return sizes([Decoding(lookup) for lookup in lookups], n_max, room, Pace(512).decode_seconds)


def copying(n: int = 20, wrong: Callable[[int], bool] = lambda i: False) -> Lookup:
    """It has copied `n` tokens, but for those that are `wrong`."""
    lookup = Lookup([*range(1, 100), 1, 2])
    lookup.extend([200 + i if wrong(i) else i for i in range(3, 3 + n)])
    return lookup


def test_only_what_comes_true_is_worth_rows() -> None:
    fresh = Lookup([*range(1, 100), 1, 2, 3])
    assert chosen(fresh) == [0]
    assert chosen(copying())[0] > 7
    assert chosen(copying(wrong=lambda i: i % 3 == 0)) == [0]


def test_one_wrong_word_does_not_end_a_copy() -> None:
    edited = copying(60, lambda i: i % 25 == 0)
    assert chosen(edited)[0] > 7
    edited.extend([300])
    assert chosen(edited)[0] > 2
    edited.extend([301, 302, 303, 304])
    assert chosen(edited) == [0]


def test_a_false_trail_is_not_followed() -> None:
    """Three words as before, and then another: what follows them never comes."""
    prompt = [token for i in range(0, 90, 3) for token in (i + 1, i + 2, i + 3, 500 + i)]
    misled = Lookup([*prompt, 1, 2])
    for i in range(3, 90):
        misled.extend([i])
        assert chosen(misled) == [0]


def test_rows_go_to_those_who_copy() -> None:
    idle = [Lookup([1, 2, 3]) for _ in range(7)]
    assert chosen(copying(), *idle)[1:] == [0] * 7
    half = copying(wrong=lambda i: i % 6 == 0)
    sure, doubtful = chosen(copying(), half)
    assert sure > doubtful
    for n in (1, 8):
        both = chosen(*[copying() for _ in range(n)], n_max=16, room=24)
        assert n < n + sum(both) <= 24 and max(both) <= 16
    assert chosen(copying(), room=1) == [0]
    assert chosen() == []


def test_a_guess_is_no_longer_than_the_answer() -> None:
    assert sizes([Decoding(copying(), n_left=3)], 16, 64, Pace(512).decode_seconds) == [2]


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
