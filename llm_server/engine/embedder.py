"""Texts to vectors, for many requests at once: who gets into the next batch, what comes out.

Requests take turns text by text, so that a short one behind a long one is answered soon. Nothing is
kept between batches, hence no cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Computes(Protocol):
    """What the embedder needs of `llama.embedding.EmbeddingContext`."""

    n_batch: int
    max_texts: int

    def embed(self, texts: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Vectors of `texts`, [len(texts), n_embd]."""


@dataclass(frozen=True, slots=True)
class Vector:
    """The vector of a request's text `index`; `last` when it is the request's last one."""

    id: int
    index: int
    values: npt.NDArray[np.float32]
    last: bool


@dataclass(slots=True)
class _Waiting:
    id: int
    texts: Sequence[Sequence[int]]
    n_taken: int = 0


class Embedder:
    """Requests wait in a round; each `step` computes one batch. Single thread only."""

    def __init__(self, context: Computes) -> None:
        self._context = context
        self._round: deque[_Waiting] = deque()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute."""
        return not self._round

    def submit(self, id: int, texts: Sequence[Sequence[int]]) -> None:
        """Wait for vectors of `texts`, each of 1 to `n_batch` tokens; at least one text."""
        assert texts and all(0 < len(text) <= self._context.n_batch for text in texts)
        self._round.append(_Waiting(id, texts))

    def cancel(self, id: int) -> None:
        """Compute no more of that request."""
        self._round = deque(waiting for waiting in self._round if waiting.id != id)

    def step(self) -> list[Vector]:
        """Compute the next batch; a request's vectors come in the order of its texts.

        Raises:
            DecodeError: the computation failed. The texts of the batch are lost: cancel all.
        """
        places: list[tuple[int, int, bool]] = []
        texts: list[Sequence[int]] = []
        room = self._context.n_batch
        while self._round and len(texts) < self._context.max_texts:
            waiting = self._round[0]
            text = waiting.texts[waiting.n_taken]
            if len(text) > room:
                break
            self._round.popleft()
            room -= len(text)
            texts.append(text)
            last = waiting.n_taken + 1 == len(waiting.texts)
            places.append((waiting.id, waiting.n_taken, last))
            waiting.n_taken += 1
            if not last:
                self._round.append(waiting)
        if not texts:
            return []
        vectors = self._context.embed(texts)
        return [
            Vector(id, index, values, last)
            for (id, index, last), values in zip(places, vectors, strict=True)
        ]
