"""The whole system as its users meet it: real processes, real tiny models, real HTTP."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.fake_live import until
from tests.live import LiveServer

CHAT = {"messages": [{"role": "user", "content": "hello world"}], "temperature": 0}
LONG = {**CHAT, "max_tokens": 3000, "stream": True, "logit_bias": {"1": -100, "2": -100}}


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory, attention_gguf: Path, recurrent_gguf: Path
) -> Path:
    folder = tmp_path_factory.mktemp("live")
    shutil.copy(attention_gguf, folder / "a.gguf")
    shutil.copy(recurrent_gguf, folder / "r.gguf")
    (folder / "broken.gguf").write_bytes(b"GGUF" + bytes(64))
    return folder


@pytest.fixture(scope="module")
def shared(models: Path) -> Iterator[LiveServer]:
    server = LiveServer(models, ["--model-name", "a.gguf", "--n-ctx", "4096"])
    server.wait_ready()
    yield server
    server.close()


@pytest.fixture
def server(shared: LiveServer) -> LiveServer:
    shared.client.post("/setModel", json={"model_name": "a.gguf"}).raise_for_status()
    return shared


@pytest.fixture
def own(models: Path) -> Iterator[LiveServer]:
    """A server that the test may end."""
    server = LiveServer(models, ["--model-name", "a.gguf"])
    server.wait_ready()
    yield server
    server.close()


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def text_of(response: httpx.Response) -> str:
    response.raise_for_status()
    content: str = response.json()["choices"][0]["message"]["content"]
    return content


def test_the_openai_client_chats_and_streams(server: LiveServer) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    messages: Any = CHAT["messages"]
    whole = client.chat.completions.create(
        model="a.gguf", messages=messages, temperature=0, max_tokens=12
    )
    stream = client.chat.completions.create(
        model="a.gguf",
        messages=messages,
        temperature=0,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content != ""
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 12
    assert {m.id for m in client.models.list()} >= {"a.gguf", "r.gguf"}


def test_a_warmed_prompt_is_reused(server: LiveServer) -> None:
    messages = [{"role": "system", "content": "you may write each word " * 20}]
    warmed = server.client.post("/restore_cache", json={"messages": messages}).json()
    assert warmed["status"] == "ok" and warmed["cached_tokens"] < 10
    again = server.client.post("/restore_cache", json={"messages": messages}).json()
    assert again["cached_tokens"] == again["prompt_tokens"]
    chat = {"messages": [*messages, {"role": "user", "content": "name"}], "max_tokens": 1}
    usage = server.client.post("/chat/completions", json=chat).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > warmed["prompt_tokens"] * 0.9


def test_the_prompt_comes_from_the_models_template(server: LiveServer) -> None:
    """Tools, earlier calls and results are part of it: each makes it longer."""

    def prompt_tokens(**body: Any) -> int:
        answer = server.client.post("/restore_cache", json=body).json()
        assert answer["status"] == "ok", answer
        return int(answer["prompt_tokens"])

    user = {"role": "user", "content": "hello"}
    tool = {"type": "function", "function": {"name": "get_time", "parameters": {}}}
    call = {"id": "1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
    plain = prompt_tokens(messages=[user])
    assert prompt_tokens(messages=[user], tools=[tool]) > plain
    history = [user, {"role": "assistant", "content": None, "tool_calls": [call]}]
    called = prompt_tokens(messages=history)
    assert called > plain
    result = {"role": "tool", "tool_call_id": "1", "content": "noon"}
    assert prompt_tokens(messages=[*history, result]) > called


def test_switching_models_and_back(server: LiveServer) -> None:
    first = text_of(server.client.post("/chat/completions", json={**CHAT, "max_tokens": 8}))
    switched = server.client.post(
        "/setModel", json={"model_name": "r.gguf", "load_model_configs": {"n_ctx": 1024}}
    )
    assert switched.json()["model"] == "r.gguf" and switched.json()["n_ctx"] == 1024
    other = text_of(server.client.post("/chat/completions", json={**CHAT, "max_tokens": 8}))
    assert other != first
    body = {**CHAT, "model": "a.gguf", "max_tokens": 8}
    assert text_of(server.client.post("/chat/completions", json=body)) == first
    assert server.client.get("/").json()["model"] == "a.gguf"


def test_a_model_that_fails_to_load_leaves_the_old_one_serving(server: LiveServer) -> None:
    failed = server.client.post("/setModel", json={"model_name": "broken.gguf"})
    assert failed.status_code == 400
    assert failed.json()["error"]["code"] == "model_load_failed"
    assert server.client.get("/health").status_code == 200
    text_of(server.client.post("/chat/completions", json={**CHAT, "max_tokens": 2}))


def test_an_over_long_prompt_is_a_plain_400_even_when_streamed(server: LiveServer) -> None:
    body = {"messages": [{"role": "user", "content": "water " * 5000}], "stream": True}
    refused = server.client.post("/v1/chat/completions", json=body)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


def test_thirty_two_streams_at_once(server: LiveServer) -> None:
    def ask(i: int) -> list[dict[str, Any]]:
        question = {"messages": [{"role": "user", "content": f"name {i % 4}"}]}
        body = {**CHAT, **question, "max_tokens": 20, "logprobs": True, "top_logprobs": 2}
        answer = server.client.post("/chat/completions", json=body).json()
        tokens: list[dict[str, Any]] = answer["choices"][0]["logprobs"]["content"]
        return tokens

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(32)))
    assert all(agree(answers[i], answers[i % 4]) for i in range(32))
    assert server.client.get("/").json()["running"] == 0


def agree(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    """Whether answers are the same up to where two tokens were as likely as each other.

    In batches of another size llama.cpp rounds differently: attention by tiles keeps 32 bits where
    it goes row by row in 16.
    """
    for a, b in zip(one, other, strict=True):
        if a["token"] != b["token"]:
            first, second = (likely["logprob"] for likely in a["top_logprobs"])
            return bool(first - second < 0.02)
    return True


def test_a_disconnect_frees_the_worker(server: LiveServer) -> None:
    with server.client.stream("POST", "/chat/completions", json=LONG) as response:
        next(events(response.iter_lines()))
    # With one sequence busy for thousands of tokens this would wait; cancelled, it need not.
    text_of(server.client.post("/chat/completions", json={**CHAT, "max_tokens": 2}))
    until(lambda: server.client.get("/").json()["running"] == 0)


def test_a_killed_worker_is_one_clear_error_and_the_next_request_works(
    own: LiveServer,
) -> None:
    expected = text_of(own.client.post("/chat/completions", json={**CHAT, "max_tokens": 8}))
    (worker,) = own.workers()
    errors = []
    with own.client.stream("POST", "/chat/completions", json=LONG) as response:
        lines = response.iter_lines()
        seen = events(lines)
        next(seen)
        worker.send_signal(signal.SIGKILL)
        errors = [e["error"] for e in seen if "error" in e]
    assert [e["code"] for e in errors] == ["worker_crashed"]
    again = text_of(own.client.post("/chat/completions", json={**CHAT, "max_tokens": 8}))
    assert again == expected


def test_a_worker_killed_while_it_computes_fails_a_plain_request(own: LiveServer) -> None:
    (worker,) = own.workers()
    worker.suspend()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(own.client.post, "/v1/chat/completions", json=CHAT)
        until(lambda: own.client.get("/").json()["waiting"] == 1)  # it begins with nothing
        worker.send_signal(signal.SIGKILL)
        failed = answer.result()
    assert failed.status_code == 500
    assert failed.json()["error"]["code"] == "worker_crashed"
    assert failed.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_drains_and_leaves_nothing_behind(own: LiveServer, signum: int) -> None:
    workers = own.workers()
    body = {**LONG, "max_tokens": 200}
    with own.client.stream("POST", "/chat/completions", json=body) as response:
        lines = response.iter_lines()
        next(events(lines))
        own.process.send_signal(signum)
        assert "data: [DONE]" in list(lines), "a running answer was cut off"
    assert own.process.wait(30) == 0
    assert not any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers)


def test_no_orphan_outlives_a_killed_server(own: LiveServer) -> None:
    workers = own.workers()
    assert workers
    own.process.kill()
    gone, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive


def test_health_is_503_while_loading_and_the_server_answers_at_once(models: Path) -> None:
    """A worker that cannot start its load keeps /health at 503; the status says why."""
    server = LiveServer(models, ["--model-name", "broken.gguf"])
    try:
        assert server.client.get("/health").status_code == 503
        assert server.client.get("/").status_code == 200
    finally:
        server.close()


def test_many_clients_that_leave_early_do_no_harm(server: LiveServer) -> None:
    expected = text_of(server.client.post("/chat/completions", json={**CHAT, "max_tokens": 8}))

    def leave(i: int) -> None:
        with server.client.stream("POST", "/chat/completions", json=LONG) as response:
            seen = events(response.iter_lines())
            for _ in range(i % 5):
                next(seen)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(leave, range(24)))
    again = text_of(server.client.post("/chat/completions", json={**CHAT, "max_tokens": 8}))
    assert again == expected


# ---- plain prompts, choices, probabilities ------------------------------------------------------


def test_the_openai_client_completes_text_and_tokens(server: LiveServer) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    fixed: Any = {"model": "a.gguf", "temperature": 0, "max_tokens": 6}
    whole = client.completions.create(prompt="hello world", **fixed, logprobs=2)
    (choice,) = whole.choices
    assert choice.logprobs is not None and choice.logprobs.tokens is not None
    assert whole.usage is not None
    assert len(choice.logprobs.tokens) == whole.usage.completion_tokens == 6
    for token, at in zip(choice.logprobs.tokens, choice.logprobs.text_offset or [], strict=True):
        assert choice.text[at:].startswith(token) or token.startswith("bytes:")
    stream = client.completions.create(prompt="hello world", **fixed, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == choice.text
    echoed = client.completions.create(prompt="hello world", **fixed, echo=True)
    assert echoed.choices[0].text == "hello world" + choice.text
    only_echoed = client.completions.create(
        prompt="hello world", **(fixed | {"max_tokens": 0}), echo=True
    )
    assert only_echoed.choices[0].text == "hello world"
    both = client.completions.create(prompt=["hello world", "one two"], **fixed, n=2)
    assert [c.text == choice.text for c in both.choices][:2] == [True, True]
    assert [c.index for c in both.choices] == [0, 1, 2, 3]


def test_a_prompt_is_scored_as_evaluation_harnesses_ask(server: LiveServer) -> None:
    """The requests of lm-eval-harness's `local-completions`, and of others with max_tokens 0."""
    tokens = server.client.post("/tokenize", json={"content": "hello world " * 40}).json()["tokens"]
    body = {"prompt": [tokens, tokens[:9]], "temperature": 0, "logprobs": 1, "seed": 1234}
    answers = {
        n: server.client.post("/v1/completions", json=body | {"echo": True, "max_tokens": n}).json()
        for n in (0, 1)
    }
    for choice, only, prompt in zip(
        answers[1]["choices"], answers[0]["choices"], body["prompt"], strict=True
    ):
        scored = choice["logprobs"]
        assert {len(column) for column in scored.values()} == {len(prompt) + 1}
        assert scored["token_logprobs"][0] is scored["top_logprobs"][0] is None
        assert all(
            logprob <= max(top.values()) <= 0
            for logprob, top in zip(scored["token_logprobs"], scored["top_logprobs"], strict=True)
            if logprob is not None
        )
        assert "".join(scored["tokens"]) == choice["text"]
        assert choice["text"].startswith(only["text"])
        assert only["logprobs"]["tokens"] == scored["tokens"][:-1]
        assert only["finish_reason"] == "length"
    stream = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none").completions.create(
        model="a.gguf",
        prompt=tokens,
        max_tokens=1,
        temperature=0,
        logprobs=1,
        echo=True,
        stream=True,
    )
    columns = [c for chunk in stream if chunk.choices and (c := chunk.choices[0].logprobs)]
    assert len(columns) > 2
    streamed = [token for c in columns for token in c.tokens or []]
    assert streamed == answers[1]["choices"][0]["logprobs"]["tokens"]


def test_an_echoed_prompt_is_the_same_text_with_and_without_its_probabilities(
    server: LiveServer,
) -> None:
    """It ends inside a character, which the answer completes."""
    asked = {"content": "hello \N{GRINNING FACE}"}
    *prompt, last = server.client.post("/tokenize", json=asked).json()["tokens"]
    body = {"prompt": prompt, "max_tokens": 1, "echo": True, "logit_bias": {str(last): 100}}
    texts = [
        server.client.post("/v1/completions", json=body | fields).json()["choices"][0]["text"]
        for fields in ({}, {"logprobs": 0})
    ]
    assert texts == [asked["content"]] * 2


def test_a_marker_in_an_answer_moves_no_token_in_its_text(server: LiveServer) -> None:
    asked = {"content": "<|im_start|>"}
    (marker,) = server.client.post("/tokenize", json=asked).json()["tokens"]
    body = {"prompt": "hello", "max_tokens": 3, "logprobs": 0, "logit_bias": {str(marker): 100}}
    (choice,) = server.client.post("/v1/completions", json=body).json()["choices"]
    assert (choice["text"], choice["logprobs"]["tokens"]) == ("", ["<|im_start|>"] * 3)
    assert choice["logprobs"]["text_offset"] == [0, 0, 0]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [1, 1_000_000]}, "prompt"),
        ({"prompt": [[1], [2**31 - 1]]}, "prompt[1]"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "logit_bias": {"1000000": 1}}, "logit_bias"),
        ({"prompt": "word " * 50_000}, "prompt"),
        ({"prompt": [1] * 5000}, "prompt"),
    ],
)
def test_prompts_that_do_not_fit_the_model_are_refused(
    server: LiveServer, fields: dict[str, Any], param: str
) -> None:
    response = server.client.post("/v1/completions", json=fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_choices_are_reproducible_share_their_prompt_and_differ(server: LiveServer) -> None:
    body = {
        "messages": [{"role": "user", "content": "tell me more about " + "water and oil " * 40}],
        "max_tokens": 8,
        "temperature": 1.5,
        "n": 4,
        "seed": 7,
    }
    answers = [server.client.post("/v1/chat/completions", json=body).json() for _ in range(2)]
    texts = [[c["message"]["content"] for c in answer["choices"]] for answer in answers]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 1
    assert answers[0]["usage"]["completion_tokens"] > 8


def test_logprobs_of_an_answer_under_a_grammar_are_the_models_own(server: LiveServer) -> None:
    body = {
        "messages": [{"role": "user", "content": "name"}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "schema": {
                    "type": "object",
                    "properties": {"x": {"const": "you"}},
                    "required": ["x"],
                }
            },
        },
        "logprobs": True,
        "top_logprobs": 3,
        "temperature": 0,
    }
    (choice,) = server.client.post("/v1/chat/completions", json=body).json()["choices"]
    tokens = choice["logprobs"]["content"]
    spelled = bytes(byte for token in tokens for byte in token["bytes"]).decode()
    assert spelled == choice["message"]["content"]
    # A random model would not say this by itself: what the grammar makes certain is not so by it.
    assert sum(token["logprob"] for token in tokens) < -len(tokens)
    assert all(len(token["top_logprobs"]) == 3 for token in tokens)


# ---- questions about tokens ---------------------------------------------------------------------


def test_tokens_there_and_back(server: LiveServer) -> None:
    def ask(path: str, **body: Any) -> Any:
        response = server.client.post(path, json=body)
        response.raise_for_status()
        return response.json()

    text = "<|im_start|>user\nhello wörld \U0001f600<|im_end|>"
    tokens = ask("/tokenize", content=text)["tokens"]
    assert ask("/detokenize", tokens=tokens)["content"] == text
    plain = ask("/tokenize", content=text, parse_special=False)["tokens"]
    assert len(plain) > len(tokens)
    pieces = ask("/tokenize", content=text, with_pieces=True)["tokens"]
    spelled = b"".join(
        bytes(p["piece"]) if isinstance(p["piece"], list) else p["piece"].encode() for p in pieces
    )
    assert spelled.decode() == text
    assert [piece["id"] for piece in pieces] == tokens


def test_a_chats_prompt_is_what_is_counted_and_computed(server: LiveServer) -> None:
    prompt = server.client.post("/apply-template", json=CHAT).json()["prompt"]
    assert prompt.startswith("<|im_start|>") and prompt.endswith("<|im_start|>assistant\n")
    tokens = server.client.post("/tokenize", json={"content": prompt}).json()["tokens"]
    counted = server.client.post("/v1/chat/completions/input_tokens", json=CHAT).json()
    usage = server.client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 1}).json()[
        "usage"
    ]
    assert counted["input_tokens"] == usage["prompt_tokens"] == len(tokens)
    long = {"messages": [{"role": "user", "content": "hello world " * 5000}]}
    assert server.client.post("/v1/chat/completions", json=long).status_code == 400
    counted = server.client.post("/v1/chat/completions/input_tokens", json=long).json()
    assert counted["input_tokens"] > 4096


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/detokenize", {"tokens": [1_000_000]}),
        ("/detokenize", {"tokens": [2**31 - 1]}),
        ("/tokenize", {"content": "x" * (512 * 1024 + 1)}),
    ],
)
def test_questions_that_would_hurt_are_refused(
    server: LiveServer, path: str, body: dict[str, Any]
) -> None:
    response = server.client.post(path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] in ("tokens", "content")
