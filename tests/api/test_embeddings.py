"""`POST /embeddings` over real HTTP from fake workers: a text's vector begins with its length."""

from __future__ import annotations

import base64
import struct
from typing import Any

import httpx
import pytest

from tests.fake_live import Live, until


def ask(live: Live, body: dict[str, Any], root: str = "") -> Any:
    response = live.post(f"{root}/embeddings", body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("root", ["", "/v1"])
def test_one_text(live: Live, root: str) -> None:
    assert ask(live, {"input": "hello", "user": "me"}, root) == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [5.0, 0.0, 0.0, 0.0]}],
        "model": "a.gguf",
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }


@pytest.mark.parametrize(
    ("given", "lengths"),
    [
        (["a", "bcd", "ef"], [1, 3, 2]),
        ([4, 5, 6], [3]),
        ([[1], [2, 3]], [1, 2]),
        (["x"] * 2048, [1] * 2048),
    ],
    ids=["texts", "tokens", "token arrays", "most"],
)
def test_several_keep_their_order(live: Live, given: Any, lengths: list[int]) -> None:
    data = ask(live, {"input": given})["data"]
    assert [item["embedding"][0] for item in data] == lengths
    assert [item["index"] for item in data] == list(range(len(lengths)))


def test_base64_is_the_same_numbers(live: Live) -> None:
    body = {"input": ["a", "bcd"], "dimensions": 2}
    numbers = [item["embedding"] for item in ask(live, body)["data"]]
    encoded = [i["embedding"] for i in ask(live, body | {"encoding_format": "base64"})["data"]]
    assert [list(struct.unpack("<2f", base64.b64decode(text))) for text in encoded] == numbers


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "input", "missing_required_parameter"),
        ({"input": None}, "input", "invalid_type"),
        ({"input": ""}, "input", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": ["a", ""]}, "input[1]", "invalid_value"),
        ({"input": ["a"] * 2049}, "input", "invalid_value"),
        ({"input": [[1], []]}, "input[1]", "invalid_value"),
        ({"input": [1, -1]}, "input[1]", "invalid_value"),
        ({"input": [1, "a"]}, "input[1]", "invalid_type"),
        ({"input": ["a", 1]}, "input[1]", "invalid_type"),
        ({"input": {"text": "a"}}, "input", "invalid_type"),
        ({"input": "a", "dimensions": 0}, "dimensions", "invalid_value"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "invalid_value"),
        (
            {"input": "a", "load_model_configs": {"pooling": "none"}},
            "load_model_configs.pooling",
            "invalid_value",
        ),
        ({"input": "a", "tools": [{}]}, "tools", "unsupported_parameter"),
    ],
)
def test_what_is_wrong_is_said(live: Live, body: dict[str, Any], param: str, code: str) -> None:
    response = live.post("/v1/embeddings", body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code)


def test_unknown_fields_are_named(live: Live) -> None:
    response = live.post("/embeddings", {"input": "a", "input_type": "query"})
    assert response.status_code == 200
    assert response.headers["x-ignored-parameters"] == "input_type"


def test_an_unknown_model(live: Live) -> None:
    response = live.post("/embeddings", {"input": "a", "model": "no-such.gguf"})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


def test_the_worker_dies(live: Live) -> None:
    response = live.post("/embeddings", {"input": "crash"})
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "worker_crashed"
    assert response.headers["x-should-retry"] == "false"
    assert len(ask(live, {"input": "a"})["data"]) == 1


def test_a_client_that_leaves_cancels(live: Live) -> None:
    before = len(live.notes("cancels.log"))
    with pytest.raises(httpx.ReadTimeout):
        live.client.post("/embeddings", json={"input": ["a", "hang", "b"]}, timeout=0.2)
    until(lambda: len(live.notes("cancels.log")) == before + 1)
    until(live.is_quiet)
