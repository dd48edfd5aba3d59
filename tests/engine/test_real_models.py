"""The engine on llama.cpp, for each kind of memory: batching and sharing change no answer.

The tiny models have F32 weights, for which the CPU kernels give the same tokens in any batch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

from llm_server.llama.context import Context
from llm_server.worker.config import MAX_PARALLEL
from llm_server.worker.messages import Sampling
from tests.engine.real import GREEDY, Runner, assert_greedy, open_context
from tests.tiny_models import WINDOW, WORDS

KINDS = ["attention", "spm", "sliding", "recurrent", "hybrid"]
HEAD = "<|im_start|>system\n" + "you may make a name for each word " * 12 + "<|im_end|>\n"


def turn(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


QUESTIONS = [turn(f"what is {word} {i}") for i, word in enumerate("oil water people time".split())]


@pytest.fixture(scope="module", params=KINDS)
def context(request: pytest.FixtureRequest) -> Iterator[Context]:
    with open_context(request.getfixturevalue(f"{request.param}_gguf"), parallel=4) as opened:
        yield opened


@pytest.fixture
def runner(context: Context) -> Runner:
    return Runner(context)


def test_batched_answers_are_those_of_the_model_alone(context: Context) -> None:
    runner = Runner(context)
    assert len(set(runner.answers(QUESTIONS))) > 1, "the model does not read its prompt"
    runner.assert_all_greedy(QUESTIONS)


def test_sharing_a_head_changes_no_answer(context: Context) -> None:
    prompts = [HEAD + q for q in QUESTIONS]
    runner = Runner(context)
    runner.answers(prompts)
    head = len(context.model.vocab.tokenize(HEAD, parse_special=True))
    reused = sorted(end.usage.cached_tokens for end in runner.ends.values())
    assert reused[0] == 0
    assert all(n >= head for n in reused[1:])
    runner.assert_all_greedy(prompts)


def test_the_next_turn_reuses_the_last_one(context: Context) -> None:
    runner = Runner(context)
    first = HEAD + QUESTIONS[0]
    # The reply is tokenized anew, so that only its beginning need agree with what was sampled.
    longer = first + runner.answer(first) + "<|im_end|>\n" + QUESTIONS[1]
    runner.answer(longer)
    if not context.whole_state:
        n_first = len(context.model.vocab.tokenize(first, parse_special=True))
        assert runner.ends[1].usage.cached_tokens >= n_first
    runner.assert_all_greedy([first, longer])


def test_idle_prefixes_are_exact_in_every_order(runner: Runner) -> None:
    prompts = [HEAD + q for q in QUESTIONS] + [HEAD[:120] + q for q in QUESTIONS]
    prompts += prompts[::-1]
    for prompt in prompts:
        runner.answer(prompt)
    runner.assert_all_greedy(prompts)


def test_the_same_prompt_again_answers_the_same(context: Context) -> None:
    runner = Runner(context)
    prompts = [HEAD + QUESTIONS[0]] * 3
    first = runner.answer(prompts[0])
    assert runner.answers(prompts[1:]) == [first, first]
    if not context.whole_state:
        assert all(
            runner.ends[i].usage.cached_tokens == runner.ends[i].usage.prompt_tokens for i in (1, 2)
        )
    wild = Sampling(temperature=1.5, seed=7, max_tokens=16)
    assert runner.answer(prompts[0], wild) == Runner(context).answer(prompts[0], wild)


def test_thirty_two_streams_on_four_sequences(runner: Runner) -> None:
    prompts = [turn(f"name {i} {'word ' * (i % 7)}") for i in range(32)]
    runner.answers(prompts)
    runner.assert_all_greedy(prompts)


def test_guessing_changes_no_answer(context: Context) -> None:
    """Confined to two tokens an answer repeats itself, so that some guesses are right."""
    runner = Runner(context, draft_max=16)
    two = context.model.vocab.tokenize("you may", parse_special=False)[:2]
    bias = dict.fromkeys(two, 1000.0)
    runner.answers(QUESTIONS, Sampling(temperature=0, max_tokens=60, logit_bias=bias))
    timings = [end.timings for end in runner.ends.values()]
    n_right = sum(t.draft_n_accepted for t in timings)
    assert (0 < n_right < sum(t.draft_n for t in timings)) is not context.whole_state
    for id, prompt in enumerate(QUESTIONS):
        assert_greedy(context, prompt, runner.recorders[id].tokens, among=two)


def test_guessing_follows_the_seed(context: Context) -> None:
    """With a temperature too: the sampler draws as if nobody had guessed."""
    warm = Sampling(temperature=0.3, seed=7, max_tokens=60)
    guessed = Runner(context, draft_max=16).answers(QUESTIONS[:1], warm)
    assert guessed == Runner(context).answers(QUESTIONS[:1], warm)


def test_logits_do_not_depend_on_the_batch(context: Context) -> None:
    """The tolerance behind the tests above: one row against four, as numbers."""
    tokens = context.model.vocab.tokenize(HEAD, parse_special=True)
    n_ids = 3

    def last_logits(sequences: int) -> np.ndarray:
        context.clear()
        context.batch.clear()
        row = -1
        for sequence in context.running[:sequences]:
            row = context.batch.add(sequence, 0, tokens, logits=True)
        assert context.decode() == "done"
        return context.logits(row).copy()

    assert np.abs(last_logits(1) - last_logits(n_ids)).max() < 2e-3


def test_a_context_of_few_cells_serves_many_by_preemption(
    request: pytest.FixtureRequest,
) -> None:
    prompts = [turn(f"write {i}") for i in range(6)]
    with open_context(request.getfixturevalue("attention_gguf"), n_ctx=256, parallel=6) as small:
        runner = Runner(small)
        runner.answers(prompts, Sampling(temperature=0, max_tokens=60))
        preempted = sum(len(r.tokens) for r in runner.recorders.values()) > small.n_ctx
        assert preempted, "the context was large enough for all"
        runner.assert_all_greedy(prompts)


@pytest.mark.parametrize("kind", ["attention", "sliding"])
def test_no_prompt_takes_cells_of_another_that_are_still_shared(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """llama.cpp would take cells outside their window, with empty ones at hand."""

    def words(seed: int, n: int) -> str:
        pick = random.Random(seed)
        return "".join(" " + pick.choice(WORDS) for _ in range(n))

    with open_context(request.getfixturevalue(f"{kind}_gguf"), n_ctx=512, parallel=4) as small:
        runner = Runner(small)
        # The first leaves a hole for the fourth, which is longer: it goes on where the second is.
        for seed, n in ((1, 92), (2, 192), (3, 142), (4, 150)):
            runner.answer(words(seed, n), Sampling(temperature=0, max_tokens=8))
        again = words(2, 50) + words(5, 20)
        runner.answer(again, Sampling(temperature=0, max_tokens=8))
        assert runner.ends[4].usage.cached_tokens > 50 - WINDOW, "nothing was shared"
        assert_greedy(small, again, runner.recorders[4].tokens)


@pytest.mark.parametrize("kind", ["attention", "sliding", "recurrent"])
def test_as_many_requests_run_as_can_be_asked_for(
    kind: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(f"{kind}_gguf")
    with open_context(path, n_ctx=512, parallel=MAX_PARALLEL) as many:
        runner = Runner(many)
        runner.answers(QUESTIONS)
        runner.assert_all_greedy(QUESTIONS)


def test_a_stop_string_across_tokens_never_shows(runner: Runner) -> None:
    plain = runner.answer(QUESTIONS[0])
    stop = plain[3:7]
    stopped = runner.answer(QUESTIONS[0], Sampling(temperature=0, max_tokens=16, stop=[stop]))
    assert stopped == plain[: plain.index(stop)]
    assert GREEDY.stop == []
