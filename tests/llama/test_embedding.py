"""Vectors of real tiny models: a text's vector is its own, whoever is in the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, PoolingType

from llm_server.engine.embedder import unit
from llm_server.llama.batch import Batch
from llm_server.llama.embedding import EmbeddingContext
from llm_server.llama.lib import lib
from llm_server.llama.model import Model
from llm_server.worker.config import LoadConfig, Pooling
from tests import tiny_encoders, tiny_models

TEXTS = ["hello world", "the time", "people could find a long day", "a", "name part system made"]


@pytest.fixture(params=["mean", "cls", "last of a decoder"])
def context(
    request: pytest.FixtureRequest, tmp_path: Path, attention_gguf: Path
) -> Iterator[EmbeddingContext]:
    pooling: Pooling = request.param.split()[0]
    if pooling == "last":
        model = Model(attention_gguf)
    else:
        kind = PoolingType[pooling.upper()]
        model = Model(tiny_encoders.build_bert(tmp_path / "bert.gguf", kind))
    context = opened(model, pooling)
    yield context
    context.close()
    model.close()


def opened(model: Model, pooling: Pooling, n_batch: int = 64) -> EmbeddingContext:
    one = LoadConfig(n_threads=1)
    return EmbeddingContext(model, pooling, n_batch=n_batch, n_shared=64, max_texts=8, config=one)


def tokens_of(context: EmbeddingContext, text: str) -> list[int]:
    return context.model.vocab.tokenize(text, parse_special=False, add_special=True)


def test_a_batch_gives_what_each_text_gives_alone(context: EmbeddingContext) -> None:
    texts = [tokens_of(context, text) for text in TEXTS]
    together = context.embed(texts)
    alone = np.concatenate([context.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    directions = unit(together)
    closeness = directions @ directions.T
    assert np.max(closeness - np.eye(len(TEXTS))) < 0.999, "different texts, different vectors"


def test_a_full_batch_is_one_text(context: EmbeddingContext) -> None:
    full = (tokens_of(context, "hello world people") * 64)[: context.n_batch]
    assert np.isfinite(context.embed([full])).all()


def token_vectors(model: Model, tokens: list[int]) -> np.ndarray:
    """What the last layer makes of each token, [len(tokens), n_embd]: llama.cpp without pooling."""
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 64
    params.embeddings = True
    params.pooling_type = lib.LLAMA_POOLING_TYPE_NONE
    context = lib.llama_init_from_model(model.handle, params)
    batch = Batch(64)
    batch.add(0, 0, tokens, logits=len(tokens))
    assert lib.llama_decode(context, batch.struct) == 0
    rows = [lib.llama_get_embeddings_ith(context, i) for i in range(len(tokens))]
    found = np.stack([np.ctypeslib.as_array(row, (model.n_embd,)).copy() for row in rows])
    lib.llama_free(context)
    return found


POOLED: dict[Pooling, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda rows: rows.mean(axis=0),
    "cls": lambda rows: rows[0],
    "last": lambda rows: rows[-1],
}


@pytest.mark.parametrize("pooling", POOLED)
def test_pooling_is_what_its_name_says(tmp_path: Path, pooling: Pooling) -> None:
    model = Model(tiny_encoders.build_bert(tmp_path / "bert.gguf", PoolingType.MEAN))
    tokens = model.vocab.tokenize(TEXTS[2], parse_special=False, add_special=True)
    expected = POOLED[pooling](token_vectors(model, tokens))
    context = opened(model, pooling)
    np.testing.assert_allclose(context.embed([tokens])[0], expected, atol=1e-5)
    context.close()
    model.close()


def test_a_vector_is_as_long_as_the_model_makes_it(tmp_path: Path) -> None:
    """LFM2-ColBERT's are shorter than its layers: behind them lies memory of somebody else."""
    vectors = {}
    for n_embd_out in (None, 16):
        path = tiny_models.build_hybrid(tmp_path / f"{n_embd_out}.gguf", n_embd_out=n_embd_out)
        model = Model(path)
        context = opened(model, "mean")
        vectors[n_embd_out] = context.embed([[1, 2, 3], [4, 5, 6, 7]])
        context.close()
        model.close()
    (projection,) = (t.data for t in GGUFReader(path).tensors if t.name == "dense_2.weight")
    np.testing.assert_allclose(vectors[16], vectors[None] @ projection.T, atol=1e-5)
