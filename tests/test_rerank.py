"""Rerankers as their users meet them: a real server with tiny real models."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import PoolingType

from llm_server.llama.model import Model
from tests import tiny_encoders, tiny_models
from tests.live import LiveServer
from tests.llama.test_embedding import opened

QUERY = "hello world"
DOCUMENTS = ["the time", "people could find a long day", "a", "", "name part system made"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, reranker_gguf: Path) -> Path:
    folder = tmp_path_factory.mktemp("rerank")
    tiny_encoders.build_bert(folder / "bert.gguf", PoolingType.RANK, n_labels=1)
    tiny_encoders.build_bert(folder / "silent.gguf", PoolingType.NONE, n_labels=1)
    tiny_encoders.build_bert(folder / "headless.gguf", PoolingType.RANK)
    shutil.copy(reranker_gguf, folder / "decoder.gguf")
    tiny_models.build_attention(folder / "chat.gguf")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[LiveServer]:
    server = LiveServer(folder, ["--model-name", "bert.gguf"])
    server.wait_ready()
    yield server
    server.close()


def post(server: LiveServer, body: dict[str, Any], path: str = "/v1/rerank") -> Any:
    asked = {"model": "bert.gguf", "query": QUERY, "documents": DOCUMENTS} | body
    return server.client.post(path, json=asked)


def results(server: LiveServer, **body: Any) -> list[dict[str, Any]]:
    response = post(server, body)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["results"]
    return found


def scores(server: LiveServer, **body: Any) -> list[float]:
    """By document."""
    return [r["relevance_score"] for r in sorted(results(server, **body), key=lambda r: r["index"])]


def refused(server: LiveServer, path: str = "/v1/rerank", **body: Any) -> dict[str, Any]:
    response = post(server, body, path)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def computed(path: Path, prompts: Sequence[str], *, template: bool) -> list[float]:
    """The scores of whole prompts, one at a time, by llama.cpp alone."""
    model = Model(path)
    context = opened(model, "rank", n_batch=128)
    found = []
    for prompt in prompts:
        tokens = model.vocab.tokenize(prompt, parse_special=True)
        if not template:
            tokens = [2, *tokens, 3]  # [CLS] and [SEP]
        found.append(float(context.embed([tokens])[0, 0]))
    context.close()
    model.close()
    return found


def test_scores_are_llama_cpps(server: LiveServer, folder: Path) -> None:
    pairs = [f"{QUERY}[SEP]{document}" for document in DOCUMENTS]
    expected = computed(folder / "bert.gguf", pairs, template=False)
    np.testing.assert_allclose(scores(server), expected, atol=1e-3)
    in_order = results(server, return_documents=True)
    assert [r["index"] for r in in_order] == list(np.argsort(expected)[::-1])
    assert [r["document"]["text"] for r in in_order] == [DOCUMENTS[r["index"]] for r in in_order]
    filled = [
        tiny_models.RERANK.replace("{query}", QUERY).replace("{document}", document)
        for document in DOCUMENTS
    ]
    expected = computed(folder / "decoder.gguf", filled, template=True)
    np.testing.assert_allclose(scores(server, model="decoder"), expected, atol=1e-3)


def test_whoever_else_asks_changes_nothing(server: LiveServer) -> None:
    """But for what flash attention, which adds up in 16 bits, rounds otherwise in other batches."""
    alone = [scores(server, documents=[document])[0] for document in DOCUMENTS]
    assert np.min(np.diff(sorted(alone))) > 0.1
    many = [[*DOCUMENTS[i % 5 :], *DOCUMENTS[: i % 5]] * 40 for i in range(8)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda documents: scores(server, documents=documents), many))
    for i, found in enumerate(answers):
        expected = [*alone[i % 5 :], *alone[: i % 5]] * 40
        np.testing.assert_allclose(found, expected, atol=0.01)


def test_pairs_too_long(server: LiveServer) -> None:
    long = refused(server, documents=["a", "a " * 125])  # With the query and the markers 130.
    assert (long["param"], long["code"]) == ("documents[1]", "context_length_exceeded")
    assert (long["n_prompt_tokens"], long["n_ctx"]) == (130, 128)
    assert len(results(server, documents=["a " * 123])) == 1
    for query in ("a " * 130, "a" * 100_000 + " a" * 50_000):
        error = refused(server, query=query)
        assert (error["param"], error["code"]) == ("query", "context_length_exceeded")


def test_a_small_body_does_not_ask_for_any_number_of_tokens(server: LiveServer) -> None:
    asked = {"model": "decoder", "query": "hello " * 1000, "documents": ["a"] * 2048}
    error = refused(server, **asked)
    assert (error["param"], error["code"]) == ("documents", "too_many_items")


def test_what_a_reranker_cannot_do(server: LiveServer) -> None:
    messages = [{"role": "user", "content": "hello"}]
    for path, body in {
        "/v1/chat/completions": {"messages": messages, "documents": None},
        "/v1/completions": {"prompt": "hello", "documents": None},
        "/v1/embeddings": {"input": "hello", "documents": None},
    }.items():
        error = refused(server, path, **body)
        assert (error["param"], error["code"]) == ("model", "unsupported_model")
        assert "/v1/rerank" in error["message"]
    tokens = server.client.post("/tokenize", json={"model": "bert", "content": "hello"}).json()
    assert len(tokens["tokens"]) == 1


def test_other_models_say_what_to_do(server: LiveServer) -> None:
    for body in ({"model": "chat"}, {"load_model_configs": {"pooling": "cls"}}):
        error = refused(server, **body)
        assert (error["param"], error["code"]) == ("model", "unsupported_model")
        assert "load_model_configs.pooling to rank" in error["message"]
    as_the_file_says = scores(server, load_model_configs={"pooling": "auto"})
    # The same weights in a file that does not say what it is, as old ones do not.
    assert refused(server, model="silent")["code"] == "unsupported_model"
    told = scores(server, model="silent", load_model_configs={"pooling": "rank"})
    np.testing.assert_allclose(told, as_the_file_says, atol=1e-3)


def test_what_has_no_classifier_does_not_rerank(server: LiveServer) -> None:
    headless = refused(server, model="headless")
    chat = refused(server, model="chat", load_model_configs={"pooling": "rank"})
    for error in (headless, chat):
        assert (error["param"], error["code"]) == (
            "load_model_configs.pooling",
            "model_load_failed",
        )
        assert "cls.output" in error["message"]
    vectors = {"model": "headless", "input": "a", "load_model_configs": {"pooling": "cls"}}
    assert server.client.post("/v1/embeddings", json=vectors).status_code == 200


def test_models_tell_what_reranks(server: LiveServer) -> None:
    listed = {m["id"]: m for m in server.client.get("/v1/models").json()["data"]}
    assert listed["decoder.gguf"]["pooling"] == "rank"
    assert listed["chat.gguf"]["pooling"] is None
