"""Vectors of real tiny models: a text's vector is its own, whoever is in the batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import PoolingType

from llm_server.engine.embedder import Embedder
from llm_server.llama.embedding import EmbeddingContext
from llm_server.llama.model import Model
from tests import tiny_encoders

TEXTS = ["hello world", "the time", "people could find a long day", "a", "name part system made"]


@pytest.fixture(params=["mean", "cls", "last of a decoder"])
def context(
    request: pytest.FixtureRequest, tmp_path: Path, attention_gguf: Path
) -> Iterator[EmbeddingContext]:
    pooling = request.param.split()[0]
    if pooling == "last":
        model = Model(attention_gguf)
    else:
        kind = PoolingType[pooling.upper()]
        model = Model(tiny_encoders.build_bert(tmp_path / "bert.gguf", kind))
    context = EmbeddingContext(model, pooling, n_batch=64, max_texts=8, n_threads=1)
    yield context
    context.close()
    model.close()


def tokens_of(context: EmbeddingContext, text: str) -> list[int]:
    return context.model.vocab.tokenize(text, parse_special=False, add_special=True)


def test_a_batch_gives_what_each_text_gives_alone(context: EmbeddingContext) -> None:
    texts = [tokens_of(context, text) for text in TEXTS]
    together = context.embed(texts)
    alone = np.concatenate([context.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    closeness = together @ together.T
    assert np.max(closeness - np.eye(len(TEXTS))) < 0.999, "different texts, different vectors"


def test_a_full_batch_is_one_text(context: EmbeddingContext) -> None:
    full = (tokens_of(context, "hello world people") * 64)[: context.n_batch]
    assert np.isfinite(context.embed([full])).all()


def test_requests_take_turns_and_keep_their_order(context: EmbeddingContext) -> None:
    embedder = Embedder(context)
    short = [tokens_of(context, TEXTS[0])]
    many = [tokens_of(context, TEXTS[i % len(TEXTS)]) for i in range(20)]
    embedder.submit(1, many)
    embedder.submit(2, short)
    embedder.submit(3, many)
    first = embedder.step()
    assert [vector.id for vector in first[:3]] == [1, 2, 3]
    embedder.cancel(3)
    found = first
    while not embedder.idle:
        found = found + embedder.step()
    mine = [vector for vector in found if vector.id == 1]
    assert [vector.index for vector in mine] == list(range(20))
    assert [vector.last for vector in mine] == [False] * 19 + [True]
    np.testing.assert_allclose(
        np.stack([vector.values for vector in mine]),
        np.concatenate([context.embed([text]) for text in many]),
        atol=1e-4,
    )
    assert len([vector for vector in found if vector.id == 3]) < 20
