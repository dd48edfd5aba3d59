"""Prompts that are told with their probabilities: every token once, by the right logits."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from llm_server.chat.stream import PlainText
from llm_server.engine.logprobs import Scores
from llm_server.engine.sequence import Echo, Prompt
from llm_server.llama.sampler import Sampler
from llm_server.worker.messages import (
    Content,
    Finished,
    Logprobs,
    RequestEvent,
    Sampling,
    TokenLogprobs,
)
from tests.engine.fake_context import (
    N_VOCAB,
    Bench,
    FakeContext,
    FakeVocabulary,
    next_token,
    reference,
)
from tests.engine.real import TOLERANCE, Runner, open_context


def prompt(seed: int, n: int = 20) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1, N_VOCAB) for _ in range(n)]


def text(tokens: list[int]) -> str:
    return "".join(chr(ord("0") + token) for token in tokens)


class Echoes:
    """A bench with echoing requests, and what was told of each."""

    def __init__(self, context: FakeContext | None = None) -> None:
        self.bench = Bench(context)
        self.told: dict[int, list[TokenLogprobs]] = {}
        self.openings: dict[int, list[bytes]] = {}

    def submit(self, id: int, tokens: list[int], *, start: int = 0, max_tokens: int = 3) -> None:
        self.told[id], self.openings[id] = [], []
        echo = Echo(start, [FakeVocabulary().piece(t, special=True) for t in tokens[start:]])
        scores = Scores(id, self._logits, FakeVocabulary(), 1)
        self.bench.submit(id, tokens, max_tokens=max_tokens, scores=scores, echo=echo)

    def run(self) -> list[RequestEvent]:
        events: list[RequestEvent] = []
        while not self.bench.engine.idle:
            events += self.bench.step()
        for event in events:
            if isinstance(event, Logprobs):
                self.told[event.id] += event.tokens
                self.openings[event.id] += [] if event.opening is None else [event.opening]
        return events

    def check(self, id: int, tokens: list[int], *, start: int = 0, max_tokens: int = 3) -> None:
        """All is told once, and each token's alternative is what the model says at its place."""
        whole = tokens + [ord(c) - ord("0") for c in reference(tokens, max_tokens)]
        assert self.bench.texts[id] == text(whole[start:])
        assert self.openings[id] == [text(tokens[start : start + 1]).encode()]
        assert [t.token.piece for t in self.told[id]] == [
            text([t]).encode() for t in whole[start + 1 :]
        ]
        expected = [next_token(whole[:n]) for n in range(start + 1, len(whole))]
        assert [t.top[0].piece for t in self.told[id]] == [text([t]).encode() for t in expected]

    def _logits(self, row: int) -> npt.NDArray[np.float32]:
        logits = np.zeros(N_VOCAB, np.float32)
        logits[self.bench.context.output(row)] = 9
        return logits


@pytest.mark.parametrize("n", [1, 2, 20, 300])
@pytest.mark.parametrize("max_tokens", [0, 1, 3])
@pytest.mark.parametrize("whole_state", [False, True])
def test_a_prompt_is_told_before_its_answer(n: int, max_tokens: int, whole_state: bool) -> None:
    echoes = Echoes(FakeContext(n_ctx=1024, whole_state=whole_state))
    echoes.submit(1, prompt(1, n), max_tokens=max_tokens)
    events = echoes.run()
    echoes.check(1, prompt(1, n), max_tokens=max_tokens)
    assert isinstance(events[-1], Finished) and events[-1].usage.prompt_tokens == n
    kinds = [type(e) for e in events if isinstance(e, Logprobs | Content)]
    assert all(kind is Logprobs for kind in kinds[::2]), "probabilities come before their text"


def test_what_stands_before_the_text_is_computed_and_not_told() -> None:
    echoes = Echoes()
    echoes.submit(1, prompt(1), start=1)
    echoes.run()
    echoes.check(1, prompt(1), start=1)


def test_a_known_prompt_is_computed_anew_and_another_uses_it() -> None:
    echoes = Echoes()
    for id in (1, 2):
        echoes.submit(id, prompt(1, 60), max_tokens=1)
        echoes.run()
        echoes.check(id, prompt(1, 60), max_tokens=1)
    end = echoes.bench.ends[2]
    assert isinstance(end, Finished) and end.usage.cached_tokens == 0
    echoes.bench.submit(3, prompt(1, 60), max_tokens=1)
    echoes.bench.run()
    end = echoes.bench.ends[3]
    assert isinstance(end, Finished) and end.usage.cached_tokens == 60


def test_many_at_once_share_the_logits_of_a_step_and_stop_nobody() -> None:
    """The fake context fails when a step asks for more logits than it has room for."""
    context = FakeContext(n_ctx=2048)
    echoes = Echoes(context)
    decoding = next(p for s in range(100) if len(reference(p := prompt(s), 40)) == 40)
    echoes.bench.submit(9, decoding, max_tokens=40)
    echoes.bench.step()
    for id in range(3):
        echoes.submit(id, prompt(id, 150 + id))
    echoes.run()
    for id in range(3):
        echoes.check(id, prompt(id, 150 + id))
    assert echoes.bench.texts[9] == reference(decoding, 40)
    both = [step for step in context.steps[1:40] if {1} == {len(row[2]) for row in step[:1]}]
    assert len(both) == 39, "it got a token in every step"


def test_what_was_told_before_a_preemption_is_not_told_again() -> None:
    context = FakeContext(n_ctx=200)
    context.max_outputs = 8
    echoes = Echoes(context)
    old = next(p for s in range(100) if len(reference(p := prompt(s, 50), 60)) == 60)
    echoes.bench.submit(1, old, max_tokens=60)
    echoes.bench.step()
    echoes.submit(2, prompt(7, 145), max_tokens=3)
    echoes.run()
    echoes.check(2, prompt(7, 145), max_tokens=3)
    assert echoes.bench.texts[1] == reference(old, 60)
    assert context.n_decoded > 50 + 59 + 145 + 2, "nobody was preempted"


def test_a_real_prompt_is_scored_by_the_models_logits(attention_gguf: Path) -> None:
    with open_context(attention_gguf) as context:
        runner = Runner(context)
        vocab = context.model.vocab
        tokens = vocab.tokenize("hello world, and all who read this " * 12, parse_special=True)
        assert len(tokens) > context.max_outputs
        events: list[RequestEvent] = []
        runner.engine.submit(
            Prompt(
                1,
                tokens,
                make_sampler=lambda: Sampler(context, Sampling(temperature=0), tokens),
                parser=PlainText(1),
                max_tokens=0,
                scores=Scores(1, context.logits, vocab, 2),
                echo=Echo(0, [vocab.piece(token, special=True) for token in tokens]),
            )
        )
        while not runner.engine.idle:
            events += runner.engine.step()
        told = [token for e in events if isinstance(e, Logprobs) for token in e.tokens]
        assert len(told) == len(tokens) - 1
        context.clear()
        for start in range(0, len(tokens) - 1, context.max_outputs):
            part = tokens[start : start + context.max_outputs]
            context.batch.clear()
            last = context.batch.add(0, start, part, logits=len(part))
            assert context.decode() == "done"
            for row, scored in zip(range(last + 1), told[start:], strict=False):
                logits = context.logits(row).astype(np.float64)
                expected = logits - np.log(np.exp(logits).sum())
                token = tokens[start + row + 1]
                assert scored.token.piece == vocab.piece(token, special=True)
                assert scored.token.logprob == pytest.approx(expected[token], abs=TOLERANCE)
                assert scored.top[0].logprob == pytest.approx(expected.max(), abs=TOLERANCE)
