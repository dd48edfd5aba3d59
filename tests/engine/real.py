"""Runs an engine on a real context: what the tests on tiny models share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llm_server.cache.disk import DiskTier
from llm_server.engine.answer import Mask
from llm_server.engine.engine import Engine
from llm_server.engine.pace import Pace
from llm_server.engine.sequence import Prompt
from llm_server.llama.context import Context
from llm_server.llama.model import Model
from llm_server.llama.sampler import Sampler
from llm_server.worker.config import LoadConfig
from llm_server.worker.messages import Content, Failed, Finished, Sampling
from tests.engine.fake_context import Text

GREEDY = Sampling(temperature=0, max_tokens=16)


@contextmanager
def open_context(path: Path, *, n_ctx: int = 2048, parallel: int = 8) -> Iterator[Context]:
    """A context of one thread, so that results do not depend on the machine."""
    model = Model(path)
    context = Context(model, LoadConfig(n_threads=1), n_ctx, parallel)
    try:
        yield context
    finally:
        context.close()
        model.close()


TOLERANCE = 0.02
"""How far below the best logit a greedy token may be. Logits of the tiny models have a standard
deviation of about 4; the batch shape moves them by up to 2e-3 (measured below in the tests)."""


class Recorder:
    """A real sampler that remembers what it picked."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self.tokens: list[int] = []

    def sample(self, row: int, mask: Mask | None) -> int:
        self.tokens.append(self._sampler.sample(row, mask))
        return self.tokens[-1]

    def accept(self, token: int) -> None:
        self._sampler.accept(token)

    def close(self) -> None:
        self._sampler.close()


def assert_greedy(
    context: Context, prompt: str, picked: Sequence[int], among: Sequence[int] | None = None
) -> None:
    """Each picked token is the model's best one after the prompt and those before, computed alone.

    With `among` the best one of those; other tokens must not be picked.

    Unlike comparing two answers this does not break on a tie that another batch shape decides
    the other way.
    """
    tokens = [*context.model.vocab.tokenize(prompt, parse_special=True), *picked[:-1]]
    n_before = len(tokens) - len(picked)
    context.clear()
    context.batch.clear()
    if n_before:
        context.batch.add(0, 0, tokens[:n_before], logits=False)
    rows = [
        context.batch.add(0, at, [token], logits=True)
        for at, token in enumerate(tokens[n_before:], start=n_before)
    ]
    assert context.decode() == "done"
    for row, token in zip(rows, picked, strict=True):
        logits = context.logits(row)
        best = logits.max() if among is None else logits[among].max()
        assert among is None or token in among
        assert logits[token] >= best - TOLERANCE


class FreeGuesses(Pace):
    """Every step takes as long as any other, so that guessing always pays."""

    def decode_seconds(self, n_rows: int) -> float:
        return 1.0


class Runner:
    """Feeds an engine and collects what it answers."""

    def __init__(
        self, context: Context, disk: DiskTier | None = None, *, draft_max: int = 0
    ) -> None:
        context.clear()  # a new engine knows of no cells
        self.context = context
        pace = FreeGuesses(context.n_batch)
        self.engine = Engine(
            context, context.model.vocab, disk=disk, pace=pace, draft_max=draft_max
        )
        self.texts: dict[int, str] = {}
        self.ends: dict[int, Finished] = {}
        self.recorders: dict[int, Recorder] = {}

    def submit(
        self,
        id: int,
        text: str,
        sampling: Sampling = GREEDY,
        *,
        head: int = 0,
        persist: bool = False,
    ) -> None:
        tokens = self.context.model.vocab.tokenize(text, parse_special=True)
        self.texts[id] = ""

        def make_sampler() -> Recorder:
            self.recorders[id] = Recorder(Sampler(self.context, sampling, tokens))
            return self.recorders[id]

        self.engine.submit(
            Prompt(
                id,
                tokens,
                make_sampler=make_sampler,
                parser=Text(id),
                max_tokens=sampling.max_tokens,
                stop=sampling.stop,
                head=head,
                boundaries=[len(tokens) - 4],
                persist=persist,
            )
        )

    def run(self) -> None:
        while not self.engine.idle:
            for event in self.engine.step():
                assert not isinstance(event, Failed), event
                if isinstance(event, Content):
                    self.texts[event.id] += event.text
                elif isinstance(event, Finished):
                    self.ends[event.id] = event
        self.engine.check()

    def assert_all_greedy(self, prompts: Sequence[str]) -> None:
        """Every answer so far is what the model answers alone; `prompts` by request id."""
        for id, prompt in enumerate(prompts):
            assert_greedy(self.context, prompt, self.recorders[id].tokens)

    def answer(
        self, text: str, sampling: Sampling = GREEDY, *, head: int = 0, persist: bool = False
    ) -> str:
        """One request alone."""
        id = len(self.texts)
        self.submit(id, text, sampling, head=head, persist=persist)
        self.run()
        return self.texts[id]

    def answers(self, texts: Sequence[str], sampling: Sampling = GREEDY) -> list[str]:
        """Several requests at once."""
        first = len(self.texts)
        for i, text in enumerate(texts):
            self.submit(first + i, text, sampling)
        self.run()
        return [self.texts[first + i] for i in range(len(texts))]
