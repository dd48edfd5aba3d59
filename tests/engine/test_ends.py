"""What is remembered of the ends of prompts, and that it saves computing them."""

from __future__ import annotations

import numpy as np
import pytest

from llm_server.engine.ends import PromptEnds
from llm_server.worker.messages import Finished
from tests.engine.fake_context import Bench, FakeContext, reference
from tests.engine.test_engine import HEAD, prompt

LOGITS = np.arange(100, dtype=np.float32)


def cached(bench: Bench, id: int) -> int:
    end = bench.ends[id]
    assert isinstance(end, Finished)
    return end.usage.cached_tokens


def test_what_is_remembered_is_what_was_computed_whatever_is_done_to_it() -> None:
    ends, logits = PromptEnds(), LOGITS.copy()
    ends.remember([1, 2, 3], "", logits)
    logits[:] = -np.inf
    found = ends.recall([1, 2, 3], "")
    assert found is not None and (found == LOGITS).all()


def test_only_the_same_tokens_of_the_same_namespace_are_found() -> None:
    ends = PromptEnds()
    ends.remember([1, 2, 3], "a", LOGITS)
    assert ends.recall([1, 2, 3], "b") is None
    assert ends.recall([1, 2], "a") is None
    assert ends.recall([1, 2, 4], "a") is None


def test_the_least_recently_used_goes_when_there_is_no_room() -> None:
    ends = PromptEnds(max_bytes=2 * LOGITS.nbytes)
    for token in (1, 2):
        ends.remember([token], "", LOGITS)
    ends.remember([2], "", LOGITS)
    ends.recall([1], "")
    ends.remember([3], "", LOGITS)
    assert [ends.recall([token], "") is not None for token in (1, 2, 3)] == [True, False, True]


def test_the_same_prompt_again_computes_only_its_answer() -> None:
    bench = Bench()
    for id in (1, 2):
        bench.submit(id, HEAD, max_tokens=5)
        bench.run()
    assert bench.texts[1] == bench.texts[2] == reference(HEAD, 5)
    assert cached(bench, 2) == len(HEAD)
    # What is sampled last need not be computed.
    assert bench.context.n_decoded == len(HEAD) + 2 * 4


def test_those_who_wait_with_the_same_prompt_need_not_compute_its_end() -> None:
    bench = Bench()
    for id in range(8):
        bench.submit(id, HEAD, max_tokens=1)
    bench.run()
    assert bench.context.n_decoded == len(HEAD)
    assert bench.texts == dict.fromkeys(range(8), reference(HEAD, 1))


def test_another_namespace_computes_it_anew() -> None:
    bench = Bench()
    for id, namespace in enumerate("ab"):
        bench.submit(id, HEAD, max_tokens=1, namespace=namespace)
        bench.run()
    assert cached(bench, 1) == 0


def test_an_end_is_no_use_without_what_comes_before_it() -> None:
    bench = Bench(FakeContext(n_ctx=100))
    bench.submit(1, HEAD, max_tokens=4)
    bench.run()
    bench.submit(2, prompt(2, 90), max_tokens=4)  # its cells are those of the first
    bench.run()
    bench.submit(3, HEAD, max_tokens=4)
    bench.run()
    assert cached(bench, 3) == 0
    assert bench.texts[3] == bench.texts[1] == reference(HEAD, 4)


def test_who_waits_for_room_is_not_forgotten_by_a_step_without_rows() -> None:
    bench = Bench(FakeContext(n_ctx=100))
    bench.submit(1, HEAD, max_tokens=1)
    bench.run()
    bench.submit(2, HEAD, max_tokens=1)
    bench.submit(3, prompt(3, 90), max_tokens=1)
    bench.step()
    assert 2 in bench.ends and 3 not in bench.ends
    assert not bench.engine.blocked
    bench.run()
    assert bench.texts[3] == reference(prompt(3, 90), 1)


@pytest.mark.parametrize("whole_state", [False, True])
def test_a_warmed_prompt_answers_at_once(whole_state: bool) -> None:
    bench = Bench(FakeContext(whole_state=whole_state))
    bench.submit(1, HEAD, max_tokens=0, persist=True)
    bench.run()
    bench.submit(2, HEAD, max_tokens=1)
    bench.run()
    assert cached(bench, 2) == len(HEAD) == bench.context.n_decoded
    assert bench.texts[2] == reference(HEAD, 1)


def test_an_answer_under_way_is_not_taken_for_its_prompt() -> None:
    """Were it sent back to wait, its next token would be drawn from the end of the prompt."""
    bench = Bench()
    bench.submit(1, HEAD, max_tokens=0)
    bench.run()
    bench.submit(2, HEAD, max_tokens=9)
    bench.step()
    (sequence,) = bench.engine._running
    assert sequence.reusable == sequence.tokens[:-1] != HEAD
