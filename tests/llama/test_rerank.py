"""Scores of real tiny rerankers, against their classifiers in numpy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, PoolingType

from llm_server.llama.embedding import EmbeddingContext
from llm_server.llama.model import Model
from tests import tiny_encoders
from tests.llama.test_embedding import TEXTS, opened, token_vectors

Weights = dict[str, np.ndarray]


def of_first_token(rows: np.ndarray, weights: Weights) -> np.ndarray:
    """BERT's classifier."""
    dense = np.tanh(weights["cls.weight"] @ rows[0] + weights["cls.bias"])
    scores: np.ndarray = weights["cls.output.weight"] @ dense + weights["cls.output.bias"]
    return scores


def of_last_token(rows: np.ndarray, weights: Weights) -> np.ndarray:
    """Qwen3-Reranker's: how probable yes and no are."""
    odds = np.exp(weights["cls.output.weight"] @ rows[-1])
    scores: np.ndarray = odds / odds.sum()
    return scores


def check(path: Path, expected: Callable[[np.ndarray, Weights], np.ndarray]) -> None:
    model = Model(path)
    tensors = GGUFReader(path).tensors
    weights = {t.name: t.data for t in tensors if t.name.startswith("cls.")}
    texts = [model.vocab.tokenize(t, parse_special=False, add_special=True) for t in TEXTS]
    context = opened(model, "rank")
    together = context.embed(texts)
    assert together.shape == (len(TEXTS), model.n_cls_out)
    alone = np.concatenate([context.embed([text]) for text in texts])
    context.close()
    found = np.stack([expected(token_vectors(model, text), weights) for text in texts])
    np.testing.assert_allclose(alone, found, atol=1e-5)
    np.testing.assert_allclose(together, found, atol=1e-3)
    assert len(np.unique(together[:, 0].round(2))) > 2, "different texts, different scores"
    model.close()


@pytest.mark.parametrize("n_labels", [1, 3])
def test_scores_of_an_encoder(tmp_path: Path, n_labels: int) -> None:
    path = tmp_path / "bert.gguf"
    check(tiny_encoders.build_bert(path, PoolingType.RANK, n_labels=n_labels), of_first_token)


def test_scores_of_a_decoder(reranker_gguf: Path) -> None:
    check(reranker_gguf, of_last_token)


def test_a_full_batch_is_one_pair(reranker_gguf: Path) -> None:
    model = Model(reranker_gguf)
    context: EmbeddingContext = opened(model, "rank")
    assert np.isfinite(context.embed([[1] * context.n_batch])).all()
    context.close()
    model.close()
