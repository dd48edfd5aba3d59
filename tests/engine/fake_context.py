"""A fake KV memory and decoder: the one seam at which engine tests replace llama.cpp.

A cell is an object that holds one token; a sequence is a list of cells. What is "sampled" is a
hash of all tokens that a sequence really holds, so a prefix shared or dropped wrongly changes
the answer.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np

from llm_server.cache.disk import DiskTier
from llm_server.engine.answer import Mask, TextParser, TokenConstraint
from llm_server.engine.engine import Engine
from llm_server.engine.logprobs import Logits, Scores
from llm_server.engine.sequence import Echo, Prompt
from llm_server.worker.messages import (
    Cancelled,
    Content,
    Delta,
    Failed,
    Finished,
    RequestEvent,
)

N_VOCAB = 64
EOG = 0


Model: TypeAlias = Callable[[Sequence[int]], int]


def next_token(tokens: Sequence[int]) -> int:
    """What the fake model answers to a sequence."""
    return zlib.crc32(bytes(tokens)) % N_VOCAB


def reference(prompt: Sequence[int], max_tokens: int, model: Model = next_token) -> str:
    """The text that an engine must produce for a prompt, whatever else it runs."""
    tokens, text = list(prompt), ""
    for _ in range(max_tokens):
        token = model(tokens)
        if token == EOG:
            break
        tokens.append(token)
        text += FakeVocabulary().piece(token, special=False).decode()
    return text


class FakeVocabulary:
    """Every token is a letter; 0 ends the answer."""

    eog = frozenset({EOG})

    def piece(self, token: int, *, special: bool) -> bytes:
        return chr(ord("0") + token).encode()


class FakeBatch:
    def __init__(self, context: FakeContext) -> None:
        self._context = context
        self.rows: list[tuple[int, int, list[int], int]] = []

    def clear(self) -> None:
        self.rows = []

    def add(self, seq_id: int, start: int, tokens: list[int], *, logits: int) -> int:
        assert seq_id in self._context.running and tokens
        self.rows.append((seq_id, start, list(tokens), logits))
        return sum(len(row[2]) for row in self.rows) - 1


class FakeContext:
    """Counts its cells and insists on consecutive positions, as llama.cpp does."""

    def __init__(
        self,
        n_ctx: int = 256,
        parallel: int = 8,
        *,
        n_seq: int = 24,
        n_batch: int = 128,
        whole_state: bool = False,
        model: Model = next_token,
    ) -> None:
        self.n_ctx, self.n_batch = n_ctx, n_batch
        self.max_outputs = 32
        self._model = model
        self.running, self.idle = range(parallel), range(parallel, n_seq)
        self.whole_state = whole_state
        self.batch = FakeBatch(self)
        self.sequences: dict[int, list[list[int]]] = {s: [] for s in range(n_seq)}
        self.steps: list[list[tuple[int, int, list[int], int]]] = []
        self.failures: list[Exception | Literal["no_cells"]] = []
        self.on_decode: Callable[[int], None] = lambda n_rows: None
        self.on_load: Callable[[], None] = lambda: None
        self.refuse: Callable[[], None] = lambda: None
        self.n_refused = self.n_loads = 0
        self._outputs: dict[int, int] = {}
        self._put_back: list[int] = []

    @property
    def n_used(self) -> int:
        """Distinct cells in use."""
        return len({id(cell) for cells in self.sequences.values() for cell in cells})

    @property
    def n_decoded(self) -> int:
        """Tokens computed so far."""
        return sum(len(row[2]) for step in self.steps for row in step)

    def decode(self) -> Literal["done", "no_cells"]:
        rows = self.batch.rows
        n_rows = sum(len(row[2]) for row in rows)
        assert 0 < n_rows <= self.n_batch
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            return failure
        if self.n_used + n_rows > self.n_ctx:
            return "no_cells"
        self.steps.append(rows)
        self.on_decode(n_rows)
        self._outputs, self._put_back, index = {}, [], -1
        for seq_id, start, tokens, logits in rows:
            cells = self.sequences[seq_id]
            assert start == len(cells), f"position {start} after {len(cells)} cells"
            for n_left, token in zip(range(len(tokens), 0, -1), tokens, strict=True):
                cells.append([token])
                index += 1
                if n_left <= logits:
                    self._outputs[index] = self._model([cell[0] for cell in cells])
        assert len(self._outputs) <= self.max_outputs
        return "done"

    def output(self, row: int) -> int:
        return self._put_back[~row] if row < 0 else self._outputs[row]

    def logits(self, row: int) -> Logits:
        return np.array([self.output(row)], np.float32)

    def put_back(self, logits: Logits) -> int:
        self._put_back.append(int(logits[0]))
        return -len(self._put_back)

    def share(self, source: int, target: int, start: int, stop: int) -> None:
        cells = self.sequences[source]
        assert len(self.sequences[target]) == start < stop <= len(cells)
        whole = (start, stop) == (0, len(cells))
        assert not self.whole_state or whole, "a whole state cannot be cut"
        self.sequences[target] = self.sequences[target] + cells[start:stop]

    def size(self, sequence: int) -> int:
        return len(self.sequences[sequence])

    def save(self, source: int, start: int, stop: int) -> memoryview:
        cells = self.sequences[source]
        assert not self.whole_state or stop == len(cells), "a whole state cannot be cut"
        kept = cells if self.whole_state else cells[start:stop]
        first = 0 if self.whole_state else start
        return memoryview(first.to_bytes(4, "big") + bytes(cell[0] for cell in kept))

    def load(self, payload: memoryview, target: int, start: int, stop: int) -> None:
        assert len(self.sequences[target]) == start
        self.refuse()
        self.on_load()
        self.n_loads += 1
        first = int.from_bytes(payload[:4], "big")
        tokens = payload[4:][start - first : stop - first]
        assert len(tokens) == stop - start
        self.sequences[target] = self.sequences[target] + [[token] for token in tokens]
        assert self.n_used <= self.n_ctx

    def cut(self, sequence: int, start: int) -> None:
        assert not self.whole_state, "a whole state cannot be cut"
        self.sequences[sequence] = self.sequences[sequence][:start]

    def drop(self, sequence: int) -> None:
        self.sequences[sequence] = []

    def clear(self) -> None:
        self.sequences = {s: [] for s in self.sequences}


class FakeSampler:
    def __init__(self, context: FakeContext) -> None:
        self._context = context
        self.closed = False
        self.accepted: list[int] = []

    def sample(self, row: int, mask: Mask | None) -> int:
        return self._context.output(row)

    def accept(self, token: int) -> None:
        self.accepted.append(token)

    def close(self) -> None:
        self.closed = True


class Text:
    """A parser that calls everything content."""

    n_calls = 0
    answering = True
    thinking = False
    skipping = False

    def __init__(self, id: int) -> None:
        self._id = id

    def feed(self, text: str) -> list[Delta]:
        return [Content(self._id, text)]

    def close(self) -> list[Delta]:
        return []


class Silent(Text):
    """A parser that shows nothing, as that of a long argument does up to its end."""

    def feed(self, text: str) -> list[Delta]:
        return []


class Clock:
    """Time that passes only when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


class Bench:
    """An engine on a fake context, with what its requests answered."""

    def __init__(
        self,
        context: FakeContext | None = None,
        *,
        disk: DiskTier | None = None,
        wake: Callable[[], None] = lambda: None,
        draft_max: int = 0,
    ) -> None:
        self.context = context or FakeContext()
        self.clock = Clock()
        self.engine = Engine(
            self.context,
            FakeVocabulary(),
            disk=disk,
            wake=wake,
            draft_max=draft_max,
            clock=self.clock,
        )
        self.samplers: list[FakeSampler] = []
        self.texts: dict[int, str] = {}
        self.ends: dict[int, Finished | Failed] = {}

    def submit(
        self,
        id: int,
        tokens: Sequence[int],
        *,
        max_tokens: int | None = 8,
        stop: Sequence[str] = (),
        namespace: str = "",
        head: int = 0,
        boundaries: Sequence[int] = (),
        persist: bool = False,
        parser: TextParser | None = None,
        constraint: TokenConstraint | None = None,
        scores: Scores | None = None,
        echo: Echo | None = None,
        owner: str = "",
    ) -> None:
        self.texts[id] = ""
        self.engine.submit(
            Prompt(
                id,
                list(tokens),
                make_sampler=self._sampler,
                parser=parser or Text(id),
                constraint=constraint,
                scores=scores,
                max_tokens=max_tokens,
                stop=stop,
                namespace=namespace,
                head=head,
                boundaries=boundaries,
                persist=persist,
                echo=echo,
                arrived=self.clock.now,
            ),
            owner,
        )

    def step(self) -> list[RequestEvent | Cancelled]:
        events = self.engine.step()
        for event in events:
            if isinstance(event, Content):
                self.texts[event.id] += event.text
            elif isinstance(event, Finished | Failed):
                assert event.id not in self.ends, "a request ended twice"
                self.ends[event.id] = event
        self.engine.check()
        return events

    def run(self, limit: int = 10_000) -> None:
        """Step until idle."""
        for _ in range(limit):
            if self.engine.idle:
                return
            self.step()
        raise AssertionError(f"not idle after {limit} steps")

    def _sampler(self) -> FakeSampler:
        sampler = FakeSampler(self.context)
        self.samplers.append(sampler)
        return sampler
