"""Embeddings as their users meet them: a real server with tiny real models, openai's client."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from gguf import PoolingType

from tests import tiny_encoders
from tests.fake_live import until
from tests.live import LiveServer

TEXTS = ["hello world", "the time", "people could find a long day", "a"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, attention_gguf: Path) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("embedding")
    tiny_encoders.build_bert(folder / "bert.gguf", PoolingType.CLS)
    tiny_encoders.build_bert(folder / "silent.gguf", PoolingType.NONE)
    shutil.copy(attention_gguf, folder / "chat.gguf")
    server = LiveServer(folder, ["--model-name", "bert.gguf"])
    server.wait_ready()
    yield server
    server.close()


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def embed(server: LiveServer, **body: Any) -> list[list[float]]:
    response = server.client.post("/v1/embeddings", json={"model": "bert.gguf"} | body)
    assert response.status_code == 200, response.text
    return [item["embedding"] for item in response.json()["data"]]


def refused(server: LiveServer, path: str = "/v1/embeddings", **body: Any) -> dict[str, Any]:
    response = server.client.post(path, json={"model": "bert.gguf"} | body)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def test_the_openai_client(server: LiveServer, client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="bert.gguf", input=TEXTS)  # it asks for base64
    found = np.array([item.embedding for item in answer.data])
    assert [item.index for item in answer.data] == [0, 1, 2, 3]
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    as_float = np.array(embed(server, input=TEXTS, encoding_format="float"))
    np.testing.assert_allclose(found, as_float, atol=1e-6)
    alone = [embed(server, input=text)[0] for text in TEXTS]
    np.testing.assert_allclose(found, alone, atol=1e-5)
    tokens = server.client.post("/tokenize", json={"content": "a", "add_special": True}).json()
    np.testing.assert_allclose(embed(server, input=tokens["tokens"]), found[3:], atol=1e-5)
    assert len(tokens["tokens"]) == 3
    only = client.embeddings.create(model="bert.gguf", input="a")
    assert only.usage.prompt_tokens == only.usage.total_tokens == 3


def test_dimensions_are_the_first_ones_scaled(server: LiveServer) -> None:
    whole = np.array(embed(server, input=TEXTS))[:, :5]
    short = np.array(embed(server, input=TEXTS, dimensions=5))
    np.testing.assert_allclose(short, whole / np.linalg.norm(whole, axis=1)[:, None], atol=1e-5)
    n_embd = tiny_encoders.N_EMBD
    assert len(embed(server, input="a", dimensions=n_embd)[0]) == n_embd
    error = refused(server, input="a", dimensions=n_embd + 1)
    assert error["param"] == "dimensions" and str(n_embd) in error["message"]


def test_pooling_comes_from_the_file_and_can_be_set(server: LiveServer) -> None:
    cls = np.array(embed(server, input=TEXTS))
    mean = np.array(embed(server, input=TEXTS, load_model_configs={"pooling": "mean"}))
    assert np.max(np.sum(cls * mean, axis=1)) < 0.999
    # The same weights in another file; an encoder that does not say takes the mean.
    silent = np.array(embed(server, input=TEXTS, model="silent.gguf"))
    np.testing.assert_allclose(silent, mean, atol=1e-5)
    back = embed(server, input=TEXTS, load_model_configs={"pooling": "auto"})
    np.testing.assert_allclose(back, cls, atol=1e-6)


def test_wrong_inputs(server: LiveServer) -> None:
    long = refused(server, input=["a", "a " * tiny_encoders.N_CTX_TRAIN])
    assert (long["param"], long["code"]) == ("input[1]", "context_length_exceeded")
    assert refused(server, input="a " * 500)["param"] == "input"
    huge = refused(server, input="a" * 100_000 + " a" * 50_000)
    assert huge["code"] == "context_length_exceeded" and "in at least" in huge["message"]
    unknown = refused(server, input=[1, 2, 1_000_000])
    assert unknown["param"] == "input" and "1000000" in unknown["message"]


def test_chat_on_an_embedding_model(server: LiveServer) -> None:
    messages = [{"role": "user", "content": "hello"}]
    for path, body in {
        "/v1/chat/completions": {"messages": messages},
        "/v1/completions": {"prompt": "hello"},
        "/apply-template": {"messages": messages},
    }.items():
        error = refused(server, path, **body)
        assert (error["param"], error["code"]) == ("model", "unsupported_model")
        assert "/v1/embeddings" in error["message"]


def test_a_model_that_chats_makes_vectors_only_when_told(server: LiveServer) -> None:
    chat = {"model": "chat.gguf", "messages": [{"role": "user", "content": "hello"}]}
    error = refused(server, model="chat.gguf", input="hello world")
    assert error["code"] == "unsupported_model"
    assert "load_model_configs.pooling" in error["message"]
    last = {"load_model_configs": {"pooling": "last"}}
    (vector,) = embed(server, model="chat.gguf", input="hello world", **last)
    assert np.linalg.norm(vector) == pytest.approx(1)
    assert embed(server, model="chat.gguf", input="hello world") == [vector]
    assert refused(server, "/v1/chat/completions", **chat)["code"] == "unsupported_model"
    auto = {"load_model_configs": {"pooling": "auto"}, "max_tokens": 4}
    response = server.client.post("/v1/chat/completions", json=chat | auto)
    assert response.status_code == 200, response.text


def test_a_worker_that_dies_comes_back(server: LiveServer) -> None:
    embed(server, input="a")
    workers = server.workers()
    for worker in workers:
        worker.kill()
    until(lambda: not any(worker.is_running() for worker in workers))
    assert len(embed(server, input=TEXTS)) == 4
