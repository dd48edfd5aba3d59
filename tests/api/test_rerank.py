"""`POST /rerank` over real HTTP from fake workers: a document's score is how long it is."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.fake_live import Live, until

ASKED: dict[str, Any] = {"query": "hey", "documents": ["a", "bcd", "ef", "ghi"]}


def ask(live: Live, body: dict[str, Any], path: str = "/v1/rerank") -> Any:
    response = live.post(path, body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/reranking", "/v1/reranking"])
def test_the_best_come_first_and_equals_as_they_came(live: Live, path: str) -> None:
    assert ask(live, ASKED, path) == {
        "object": "list",
        "model": "a.gguf",
        "results": [
            {"index": 1, "relevance_score": 3.0},
            {"index": 3, "relevance_score": 3.0},
            {"index": 2, "relevance_score": 2.0},
            {"index": 0, "relevance_score": 1.0},
        ],
        "usage": {"prompt_tokens": 21, "total_tokens": 21},
    }


@pytest.mark.parametrize(("top_n", "indices"), [(1, [1]), (3, [1, 3, 2]), (9, [1, 3, 2, 0])])
def test_only_the_best(live: Live, top_n: int, indices: list[int]) -> None:
    answer = ask(live, ASKED | {"top_n": top_n})
    assert [result["index"] for result in answer["results"]] == indices
    assert answer["usage"]["total_tokens"] == 21


def test_documents_as_objects_and_back(live: Live) -> None:
    documents = [{"text": "a", "title": "x"}, "", {"text": "bé"}]
    answer = ask(live, ASKED | {"documents": documents, "return_documents": True})
    assert answer["results"] == [
        {"index": 2, "relevance_score": 2.0, "document": {"text": "bé"}},
        {"index": 0, "relevance_score": 1.0, "document": {"text": "a"}},
        {"index": 1, "relevance_score": 0.0, "document": {"text": ""}},
    ]


def test_as_many_as_may_be(live: Live) -> None:
    answer = ask(live, {"query": "q", "documents": ["x"] * 2048})
    assert [result["index"] for result in answer["results"]] == list(range(2048))


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"query": None}, "query", "invalid_type"),
        ({"query": ""}, "query", "invalid_value"),
        ({"query": ["a"]}, "query", "invalid_type"),
        ({"documents": None}, "documents", "invalid_type"),
        ({"documents": []}, "documents", "invalid_value"),
        ({"documents": "a"}, "documents", "invalid_type"),
        ({"documents": ["a"] * 2049}, "documents", "invalid_value"),
        ({"documents": ["a", 1]}, "documents[1]", "invalid_type"),
        ({"documents": ["a", None]}, "documents[1]", "invalid_type"),
        ({"documents": [{"content": "a"}]}, "documents[0].text", "missing_required_parameter"),
        ({"top_n": 0}, "top_n", "invalid_value"),
        ({"top_n": 1.5}, "top_n", "invalid_type"),
        ({"return_documents": "yes"}, "return_documents", "invalid_type"),
        ({"load_model_configs": {"pooling": "best"}}, "load_model_configs.pooling", None),
        ({"tools": [{}]}, "tools", "unsupported_parameter"),
    ],
)
def test_what_is_wrong_is_said(
    live: Live, change: dict[str, Any], param: str, code: str | None
) -> None:
    response = live.post("/v1/rerank", ASKED | change)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code or "invalid_value")


@pytest.mark.parametrize("name", ["query", "documents"])
def test_what_is_missing_is_named(live: Live, name: str) -> None:
    response = live.post("/rerank", {k: v for k, v in ASKED.items() if k != name})
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (name, "missing_required_parameter")


def test_unknown_fields_are_named(live: Live) -> None:
    response = live.post("/rerank", ASKED | {"max_tokens_per_doc": 512})
    assert response.status_code == 200
    assert response.headers["x-ignored-parameters"] == "max_tokens_per_doc"


def test_the_worker_dies(live: Live) -> None:
    response = live.post("/rerank", ASKED | {"documents": ["a", "crash"]})
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "worker_crashed"
    assert len(ask(live, ASKED)["results"]) == 4


def test_a_client_that_leaves_cancels(live: Live) -> None:
    before = len(live.notes("cancels.log"))
    with pytest.raises(httpx.ReadTimeout):
        body = ASKED | {"documents": ["a", "hang"]}
        live.client.post("/rerank", json=body, timeout=0.2)
    until(lambda: len(live.notes("cancels.log")) == before + 1)
    until(live.is_quiet)
