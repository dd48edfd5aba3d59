"""Texts to vectors or scores, for many requests at once: who is in the next batch, what comes out.

Owners take turns, and the requests of each, text by text: a short one behind a long one is answered
soon. Nothing is kept between batches, hence no cache. To its worker it looks like `engine.Engine`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llm_server.engine.turns import Turns
from llm_server.errors import ModelFailed, ServerError
from llm_server.worker.messages import Embedded, Failed, Finished, RequestEvent, Timings, Usage

logger = logging.getLogger(__name__)


class Computes(Protocol):
    """What the embedder needs of `llama.embedding.EmbeddingContext`."""

    n_batch: int
    n_shared: int
    max_texts: int

    def embed(self, texts: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Pooled vectors of `texts`, [len(texts), n_embd_out], or a reranker's outputs."""

    def close(self) -> None:
        """Free the memory."""


@dataclass(slots=True)
class Texts:
    """A prepared request: texts as tokens, at least one, each of 1 to `n_batch` tokens.

    Vectors have length 1, after they were cut to the first `dimensions`. With `scored` there are
    scores in their place.
    """

    id: int
    texts: Sequence[Sequence[int]]
    dimensions: int | None = None
    scored: bool = False
    arrived: float = field(default_factory=time.monotonic)
    started: float | None = None
    n_taken: int = 0
    owner: str = ""

    @property
    def next(self) -> Sequence[int]:
        """The first text that is in no batch yet."""
        return self.texts[self.n_taken]


class Embedder:
    """Requests wait in a round; each `step` computes one batch. Single thread only."""

    unsaved = False
    blocked = False
    reading = ()

    def __init__(self, context: Computes) -> None:
        self._context = context
        self._round: Turns[Texts] = Turns()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute."""
        return not self._round

    def submit(self, texts: Texts, owner: str = "") -> None:
        """Take a request."""
        assert all(0 < len(text) <= self._context.n_batch for text in texts.texts)
        texts.owner = owner
        self._round.add(owner, texts)

    def cancel(self, id: int) -> None:
        """Compute no more of that request. Unknown ids are fine."""
        self._round.drop(lambda request: request.id == id)

    def step(self) -> list[RequestEvent]:
        """Compute the next batch. A request's vectors come in the order of its texts."""
        batch = self._take()
        if not batch:
            return []
        texts = [text for _, text in batch]
        of: dict[int, list[int]] = {}
        for row, (request, _) in enumerate(batch):
            of.setdefault(request.id, []).append(row)
        requests = {request.id: request for request, _ in batch}
        try:
            vectors = self._context.embed(texts)
        except Exception:
            logger.exception("a batch of %d texts could not be computed", len(texts))
            for id in requests:
                self.cancel(id)
            return [Failed(id, ModelFailed().info) for id in requests]
        events: list[RequestEvent] = []
        for id, rows in of.items():
            request = requests[id]
            if request.scored:
                own = vectors[rows, :1]
            else:
                own = unit(vectors[rows, : request.dimensions])
            events.append(Embedded(id, len(rows), own.astype("<f4").tobytes()))
            if request.n_taken == len(request.texts):
                events.append(_finished(request))
        return events

    def _take(self) -> list[tuple[Texts, Sequence[int]]]:
        """One text after the other from each request in turn, while they fit in a batch.

        Short texts share a batch up to `n_shared` tokens: attention is computed over all of it,
        whosever tokens they are, so that a larger one costs more than it saves.
        """
        batch: list[tuple[Texts, Sequence[int]]] = []
        room = self._context.n_shared
        while self._round and len(batch) < self._context.max_texts:
            request = self._round.first
            text = request.next
            if batch and len(text) > room:
                break
            self._round.take()
            room -= len(text)
            batch.append((request, text))
            request.started = request.started or time.monotonic()
            request.n_taken += 1
            if request.n_taken < len(request.texts):
                self._round.add(request.owner, request)
        return batch

    def fail_all(self, error: ServerError) -> list[RequestEvent]:
        """End every request with `error`; used when the worker stops."""
        ended, self._round = self._round, Turns()
        return [Failed(request.id, error.info) for request in ended]

    def check(self) -> None:
        """Verify that nothing leaked: there is nothing to leak."""

    def close(self, deadline_s: float) -> None:
        """Free the context. The embedder is not used afterwards."""
        self._context.close()


def unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Each row of a matrix scaled to length 1; zero stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms == 0, 1, norms)).astype(np.float32)


def _finished(request: Texts) -> Finished:
    assert request.started is not None, "a finished request was computed"
    timings = Timings(
        queue_ms=1000 * (request.started - request.arrived),
        prompt_ms=1000 * (time.monotonic() - request.started),
        predicted_ms=0.0,
    )
    usage = Usage(sum(map(len, request.texts)), completion_tokens=0, cached_tokens=0)
    return Finished(request.id, "stop", usage, timings)
