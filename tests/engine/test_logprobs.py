"""Probabilities of tokens: the right numbers, in the right order, no more than the text shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from llm_server.chat.stream import PlainText
from llm_server.engine.logprobs import LEAST, Scores
from llm_server.engine.sequence import Prompt
from llm_server.llama.sampler import Sampler
from llm_server.worker.messages import (
    Content,
    Finished,
    Logprobs,
    Progress,
    RequestEvent,
    Sampling,
    TokenLogprobs,
)
from tests.engine.fake_context import EOG, N_VOCAB, Bench, FakeVocabulary, reference
from tests.engine.real import Runner, open_context
from tests.engine.test_answer import Script

PROMPT = [5, 6, 7]
LOGITS = np.random.default_rng(1).normal(size=N_VOCAB).astype(np.float32) * 3


class Rows:
    """Remembers which rows were looked at."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, row: int) -> npt.NDArray[np.float32]:
        self.seen.append(row)
        return LOGITS


def scores(top: int = 3, logits: Rows | None = None) -> Scores:
    return Scores(1, logits or Rows(), FakeVocabulary(), top)


def told(events: list[RequestEvent]) -> list[TokenLogprobs]:
    return [token for e in events if isinstance(e, Logprobs) for token in e.tokens]


def spelled(tokens: list[TokenLogprobs]) -> str:
    return b"".join(token.token.piece for token in tokens).decode()


def run(bench: Bench) -> list[RequestEvent]:
    events: list[RequestEvent] = []
    while not bench.engine.idle:
        events += bench.step()
    return events


def test_they_are_the_logarithms_of_a_softmax() -> None:
    subject = scores(top=5)
    subject.look(0)
    subject.took(9, 1)
    (event,) = subject.shown(1)
    (token,) = event.tokens
    expected = LOGITS - np.log(np.exp(LOGITS.astype(np.float64)).sum())
    assert token.token.logprob == pytest.approx(float(expected[9]), abs=1e-5)
    assert [entry.logprob for entry in token.top] == pytest.approx(
        sorted(expected.tolist(), reverse=True)[:5], abs=1e-5
    )


def test_what_is_nearly_certain_is_told_exactly() -> None:
    logits = np.full(N_VOCAB, 500, np.float32)
    logits[3] = 510
    subject = Scores(1, lambda row: logits, FakeVocabulary(), 0)
    subject.look(0)
    subject.took(3, 1)
    token = subject.shown(1)[0].tokens[0].token
    assert token.logprob == pytest.approx(-np.log1p((N_VOCAB - 1) * np.exp(-10.0)), rel=1e-3)


def test_more_alternatives_than_tokens_are_all_tokens_and_none_are_none() -> None:
    for top, expected in ((0, 0), (N_VOCAB + 5, N_VOCAB)):
        subject = scores(top)
        subject.look(0)
        subject.took(1, 1)
        assert len(subject.shown(1)[0].tokens[0].top) == expected


def test_what_cannot_come_has_a_number_that_json_knows() -> None:
    logits = np.full(N_VOCAB, -np.inf, np.float32)
    logits[3] = 0
    subject = Scores(1, lambda row: logits, FakeVocabulary(), 2)
    subject.look(0)
    subject.took(4, 1)
    token = subject.shown(1)[0].tokens[0]
    assert token.token.logprob == LEAST
    assert [entry.logprob for entry in token.top] == [0, LEAST]


def test_every_token_of_an_answer_is_told_before_its_text() -> None:
    bench = Bench()
    bench.submit(1, PROMPT, max_tokens=6, scores=scores())
    events = run(bench)
    assert spelled(told(events)) == bench.texts[1] == reference(PROMPT, 6)
    kinds = [type(event) for event in events]
    assert kinds == [Progress, *[Logprobs, Content] * (len(kinds) // 2 - 1), Finished]


def test_of_a_stop_string_nothing_is_told() -> None:
    whole = reference(PROMPT, 12)
    bench = Bench()
    bench.submit(1, PROMPT, max_tokens=12, stop=[whole[4:6]], scores=scores())
    events = run(bench)
    assert spelled(told(events)) == bench.texts[1] == whole[: whole.index(whole[4:6])]


def test_what_was_held_back_for_a_stop_string_is_told_at_the_end() -> None:
    whole = reference(PROMPT, 5)
    bench = Bench()
    bench.submit(1, PROMPT, max_tokens=5, stop=[whole[-1] + "never"], scores=scores())
    assert spelled(told(run(bench))) == bench.texts[1] == whole


def test_forced_tokens_are_scored_by_logits_of_their_own() -> None:
    rows = Rows()
    bench = Bench()
    forced = {0: [9, 10], 3: [11, 12, 13], 7: [14, EOG]}
    script = Script(dict(forced))
    bench.submit(1, PROMPT, max_tokens=20, constraint=script, scores=scores(logits=rows))
    events = run(bench)
    assert len(told(events)) == 8 and spelled(told(events)) == bench.texts[1]
    assert len(rows.seen) == 9, "one row for each token, and one for the end"
    fast = Bench()
    fast.submit(1, PROMPT, max_tokens=20, constraint=Script(dict(forced)))
    fast.run()
    assert fast.texts == bench.texts


def test_an_end_that_comes_too_early_is_replaced_one_by_one() -> None:
    prompt = next([a, b] for a in range(64) for b in range(64) if not reference([a, b], 1))
    bench = Bench()
    bench.submit(1, prompt, max_tokens=3, constraint=Script({}, instead=[21, 22]), scores=scores())
    assert spelled(told(run(bench))) == bench.texts[1]
    assert bench.texts[1].startswith(chr(48 + 21) + chr(48 + 22))


def test_a_real_models_answer_is_scored_by_its_own_logits(attention_gguf: Path) -> None:
    """Greedy, no constraint: each token is the best one, and its alternatives are in order."""
    with open_context(attention_gguf) as context:
        runner = Runner(context)
        seen: list[TokenLogprobs] = []
        vocab = context.model.vocab
        tokens = vocab.tokenize("hello world", parse_special=True)
        runner.engine.submit(
            Prompt(
                1,
                tokens,
                make_sampler=lambda: Sampler(context, Sampling(temperature=0), tokens),
                parser=PlainText(1),
                max_tokens=8,
                scores=Scores(1, context.logits, vocab, 4),
            )
        )
        while not runner.engine.idle:
            seen += told(runner.engine.step())
        assert len(seen) == 8
        for entry in seen:
            assert entry.token == entry.top[0]
            probabilities = [np.exp(top.logprob) for top in entry.top]
            assert probabilities == sorted(probabilities, reverse=True)
            assert 0 < sum(probabilities) <= 1.0001
