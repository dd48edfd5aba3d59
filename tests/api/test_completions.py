"""Completions of plain prompts over real HTTP from fake workers, and what their fields mean."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from llm_server.api.completions import completion_call
from llm_server.errors import ServerError
from llm_server.worker.messages import CompletionRequest
from tests.fake_live import Live, events

PATHS = ["/completions", "/v1/completions"]


def complete(live: Live, prompt: Any, **fields: Any) -> httpx.Response:
    return live.post("/v1/completions", {"prompt": prompt} | fields)


def asked(**fields: Any) -> list[CompletionRequest]:
    requests = completion_call(fields).requests
    assert all(isinstance(request, CompletionRequest) for request in requests)
    return [request for request in requests if isinstance(request, CompletionRequest)]


def refusal(**fields: Any) -> tuple[str | None, str | None]:
    with pytest.raises(ServerError) as caught:
        completion_call({"prompt": "x"} | fields)
    assert caught.value.info.status == 400
    return caught.value.info.code, caught.value.info.param


@pytest.mark.parametrize("path", PATHS)
def test_a_whole_completion(live: Live, path: str) -> None:
    body = live.post(path, {"prompt": "once upon"}).json()
    assert (body["object"], body["model"]) == ("text_completion", "a.gguf")
    assert body["id"].startswith("cmpl-") and body["system_fingerprint"].startswith("fp_")
    choice = {"text": "once upon ", "index": 0, "logprobs": None, "finish_reason": "stop"}
    assert body["choices"] == [choice]
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 2
    assert body["timings"]["predicted_n"] == 2


@pytest.mark.parametrize("path", PATHS)
def test_a_streamed_completion(live: Live, path: str) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = events(live.post(path, {"prompt": "once upon", **options}).text)
    assert chunks.pop() == "[DONE]"
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 2
    told = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert [choice["text"] for choice in told] == ["once ", "upon ", ""]
    assert [choice["finish_reason"] for choice in told] == [None, None, "stop"]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_choices_are_counted_prompt_by_prompt(live: Live) -> None:
    body = complete(live, ["one", "two two"], n=2, seed=5).json()
    texts = [choice["text"] for choice in body["choices"]]
    assert texts == ["one #5", "one #6", "two two #5", "two two #6"]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert body["usage"]["prompt_tokens"] == len("one") + len("two two")
    assert body["usage"]["completion_tokens"] == 2 + 2 + 3 + 3


def test_choices_of_a_stream_are_those_of_the_whole(live: Live) -> None:
    chunks = events(complete(live, ["one", "two"], n=2, seed=5, stream=True).text)[:-1]
    texts = dict.fromkeys(range(4), "")
    ends = []
    for choice in (chunk["choices"][0] for chunk in chunks):
        texts[choice["index"]] += choice["text"]
        ends += [choice["index"]] * (choice["finish_reason"] is not None)
    assert list(texts.values()) == ["one #5", "one #6", "two #5", "two #6"]
    assert sorted(ends) == [0, 1, 2, 3]
    assert ["timings" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_logprobs_in_the_older_shape(live: Live) -> None:
    (choice,) = complete(live, "scores", logprobs=2).json()["choices"]
    expected = {
        "tokens": ["yes", "bytes:\\xff"],
        "token_logprobs": [-0.25, -1.5],
        "top_logprobs": [{"yes": -0.25, "bytes:\\xff": -1.5}] * 2,
        "text_offset": [0, 3],
    }
    assert choice["logprobs"] == expected
    streamed = events(complete(live, "scores", logprobs=2, stream=True).text)[:-1]
    columns = [chunk["choices"][0]["logprobs"] for chunk in streamed]
    for name, values in expected.items():
        assert [value for column in columns for value in column[name]] == values


def test_the_first_token_of_an_echoed_prompt_has_no_probability(live: Live) -> None:
    fields: dict[str, Any] = {"logprobs": 0, "echo": True}
    (choice,) = complete(live, "scores", **fields).json()["choices"]
    assert choice["text"] == "äyes"
    expected = {
        "tokens": ["ä", "yes", "bytes:\\xff"],
        "token_logprobs": [None, -0.25, -1.5],
        "top_logprobs": [None, {"yes": -0.25}, {"bytes:\\xff": -1.5}],
        "text_offset": [0, 1, 4],
    }
    assert choice["logprobs"] == expected
    streamed = events(complete(live, "scores", **fields, stream=True).text)[:-1]
    columns = [c for chunk in streamed if (c := chunk["choices"][0]["logprobs"])]
    assert len(columns) == 3
    for name, values in expected.items():
        assert [value for column in columns for value in column[name]] == values


def test_one_failed_choice_fails_the_answer_and_ends_the_others(live: Live) -> None:
    before = len(live.notes("cancels.log"))
    response = complete(live, ["hang", "fail:as_asked"])
    assert (response.status_code, response.json()["error"]["code"]) == (400, "as_asked")
    assert live.chat("still here").status_code == 200
    assert len(live.notes("cancels.log")) == before + 1


def test_prompts_of_every_kind() -> None:
    assert [r.prompt for r in asked(prompt="a")] == ["a"]
    assert [r.prompt for r in asked(prompt=["a", ""])] == ["a", ""]
    assert [r.prompt for r in asked(prompt=[1, 2])] == [[1, 2]]
    assert [r.prompt for r in asked(prompt=[[1, 2], [3]])] == [[1, 2], [3]]


def test_a_prompt_among_several_is_known_by_its_place() -> None:
    assert [r.place for r in asked(prompt="a", n=2)] == ["prompt", "prompt"]
    assert [r.place for r in asked(prompt=[1, 2])] == ["prompt"]
    assert [r.place for r in asked(prompt=["a"])] == ["prompt[0]"]
    assert [r.place for r in asked(prompt=[[1], [2]], n=2)] == [
        *("prompt[0]", "prompt[0]", "prompt[1]", "prompt[1]")
    ]


def test_defaults_are_openais() -> None:
    (request,) = asked(prompt="x")
    assert (request.sampling.max_tokens, request.sampling.top_logprobs) == (16, None)
    assert (request.echo, request.suffix) == (False, None)
    assert asked(prompt="x", max_tokens=0)[0].sampling.max_tokens == 0
    assert asked(prompt="x", max_tokens=-1)[0].sampling.max_tokens is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt": []}, ("invalid_value", "prompt")),
        ({"prompt": [1, "a"]}, ("invalid_type", "prompt[1]")),
        ({"prompt": [True]}, ("invalid_type", "prompt[0]")),
        ({"prompt": [-1]}, ("invalid_value", "prompt[0]")),
        ({"prompt": [[1], []]}, ("invalid_value", "prompt[1]")),
        ({"prompt": ["a"] * 17}, ("invalid_value", "prompt")),
        ({"prompt": None}, ("invalid_type", "prompt")),
        ({"best_of": 2}, ("unsupported_parameter", "best_of")),
        ({"echo": True, "suffix": "x"}, ("invalid_value", "echo")),
        ({"logprobs": 21}, ("invalid_value", "logprobs")),
        ({"logprobs": True}, ("invalid_type", "logprobs")),
        ({"tools": [1]}, ("unsupported_parameter", "tools")),
        ({"response_format": {}}, ("unsupported_parameter", "response_format")),
        ({"stream_options": {}}, ("invalid_value", "stream_options")),
    ],
)
def test_what_is_wrong_is_refused(fields: dict[str, Any], expected: tuple[str, str]) -> None:
    assert refusal(**fields) == expected


def test_best_of_as_many_as_choices_is_what_it_says() -> None:
    assert len(asked(prompt="x", n=2, best_of=2)) == 2
