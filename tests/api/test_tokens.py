"""Questions about tokens over real HTTP from fake workers, to which a token is a character."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fake_live import Live, chat_body

ROOTS = ["", "/v1"]


def ask(live: Live, path: str, body: dict[str, Any], root: str = "") -> Any:
    response = live.post(root + path, body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("root", ROOTS)
def test_there_and_back(live: Live, root: str) -> None:
    assert ask(live, "/tokenize", {"content": "hi"}, root) == {"tokens": [104, 105]}
    assert ask(live, "/detokenize", {"tokens": [104, 105]}, root) == {"content": "hi"}
    assert ask(live, "/tokenize", {"content": ""}, root) == {"tokens": []}


def test_pieces_are_text_or_bytes(live: Live) -> None:
    answer = ask(live, "/tokenize", {"content": "aß", "with_pieces": True})
    assert answer == {"tokens": [{"id": 97, "piece": "a"}, {"id": 223, "piece": [195]}]}


@pytest.mark.parametrize("root", ROOTS)
def test_prompts_are_shown_and_counted(live: Live, root: str) -> None:
    body = chat_body("hello", n=2, stream=True, max_tokens=0)
    assert ask(live, "/apply-template", body, root) == {"prompt": "hello"}
    count = ask(live, "/chat/completions/input_tokens", body, root)
    assert count == {"object": "response.input_tokens", "input_tokens": 5}
    body = {"instructions": "be", "input": "hello", "stream": True}
    count = ask(live, "/responses/input_tokens", body, root)
    assert count == {"object": "response.input_tokens", "input_tokens": len("be|hello")}


def test_the_model_is_picked_as_chat_picks_it(live: Live) -> None:
    bodies = {
        "/tokenize": {"content": "x"},
        "/detokenize": {"tokens": [1]},
        "/apply-template": chat_body("x"),
        "/chat/completions/input_tokens": chat_body("x"),
        "/responses/input_tokens": {"input": "x"},
    }
    for path, body in bodies.items():
        response = live.post(path, body | {"model": "no-such.gguf"})
        assert response.status_code == 404, path
        assert response.json()["error"]["code"] == "model_not_found"
        assert live.post(path, body | {"model": "a"}).status_code == 200


def test_a_question_makes_no_model_the_default_one(live: Live) -> None:
    assert live.chat("x", model="a").status_code == 200
    for path, body in (("/tokenize", {"content": "x"}), ("/apply-template", chat_body("x"))):
        assert live.post(path, body | {"model": "b"}).status_code == 200
        assert live.chat("x").json()["model"] == "a.gguf"


def test_they_count_as_nobodys_answers(live: Live) -> None:
    before = live.client.get("/metrics").text
    ask(live, "/tokenize", {"content": "hi"})
    after = live.client.get("/metrics").text
    lines = [line for line in before.splitlines() if line.startswith("llm_requests")]
    assert [line for line in after.splitlines() if line.startswith("llm_requests")] == lines


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": 3}, "content"),
        ("/tokenize", {"content": "x", "with_pieces": 1}, "with_pieces"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [True]}, "tokens[0]"),
        ("/apply-template", {}, "messages"),
        ("/chat/completions/input_tokens", {"messages": []}, "messages"),
        ("/responses/input_tokens", {"input": []}, "input"),
        (
            "/responses/input_tokens",
            {"input": "x", "previous_response_id": "y"},
            "previous_response_id",
        ),
    ],
)
def test_what_is_wrong_is_refused(live: Live, path: str, body: Any, param: str) -> None:
    response = live.post(path, body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_unknown_fields_are_named(live: Live) -> None:
    response = live.post("/tokenize", {"content": "x", "fast": True})
    assert response.headers["x-ignored-parameters"] == "fast"
