"""What a step computes: rows of sequences, and what they are computed by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from llm_server.cache.prefix import Memory
from llm_server.engine.logprobs import Logits
from llm_server.engine.sequence import Sequence


class Rows(Protocol):
    """The rows of a step (`llama.batch.Batch`; a fake in tests)."""

    def clear(self) -> None: ...

    def add(self, seq_id: int, start: int, tokens: list[int], *, logits: int) -> int: ...


class Decoder(Memory, Protocol):
    """What computes the rows (`llama.context.Context`; a fake in tests)."""

    n_batch: int
    max_outputs: int

    @property
    def batch(self) -> Rows: ...

    def decode(self) -> Literal["done", "no_cells"]: ...

    def logits(self, row: int) -> Logits: ...

    def put_back(self, logits: Logits) -> int: ...


@dataclass(slots=True, eq=False)
class Row:
    """A sequence's part of a step: its next `n` tokens, the last of them at `index`.

    `n` is 0 where nothing had to be computed. Behind them come those of a `draft`: guesses, to be
    kept as far as they turn out right.
    """

    sequence: Sequence
    n: int
    index: int
    draft: list[int]
