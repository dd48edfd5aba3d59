"""`load_model_configs` on a real server: what reloads, what comes back, whose cache is whose."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_models
from tests.gguf_bytes import gguf
from tests.live import LiveServer

HEAD = "you may write each word " * 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, attention_gguf: Path) -> Path:
    folder = tmp_path_factory.mktemp("configs") / "models"
    folder.mkdir()
    shutil.copy(attention_gguf, folder / "a.gguf")
    tiny_models.build_lora(folder / "lora.gguf")
    tiny_models.build_lora(folder / "more.gguf", seed=10)
    foreign = {"general.type": "adapter", "general.architecture": "llama"}
    (folder / "foreign.gguf").write_bytes(gguf(foreign))
    (folder / "short.jinja").write_text(
        "{% for m in messages %}{{ m.content }}\n{% endfor %}assistant "
    )
    (folder / "hostile.jinja").write_text("{{ ''.__class__.__mro__ }}{{ messages[0].content }}")
    (folder / "torn.jinja").write_text("{% for m in %}")
    (folder / "binary.jinja").write_bytes(b"\xff\xfe\x00")
    (folder.parent / "outside.jinja").write_text("{{ messages[0].content }}")
    (folder / "link.jinja").symlink_to(folder.parent / "outside.jinja")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[LiveServer]:
    server = LiveServer(folder, ["--n-ctx", "2048", "--cache-write", "all"])
    server.wait_ready()
    yield server
    server.close()


def ask(server: LiveServer, question: str, **configs: Any) -> tuple[str, int, int]:
    """The answer of a model loaded like that, tokens of its prompt, and how many were cached."""
    messages = [{"role": "system", "content": HEAD}, {"role": "user", "content": question}]
    body = {"messages": messages, "temperature": 0, "max_tokens": 6, "load_model_configs": configs}
    response = server.client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    usage = response.json()["usage"]
    content: str = response.json()["choices"][0]["message"]["content"]
    return content, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def worker(server: LiveServer) -> int:
    (process,) = server.workers()
    return process.pid


def refusal(server: LiveServer, **configs: Any) -> dict[str, Any]:
    body = {"model_name": "a", "load_model_configs": configs}
    response = server.client.post("/setModel", json=body)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


PLAIN = {"lora": [], "chat_template": "", "type_k": "f16", "rope_freq_base": 0, "n_threads": 1}


def test_a_change_reloads_and_comes_back_with_its_cache(server: LiveServer) -> None:
    plain, n_prompt, _ = ask(server, "who", **PLAIN)
    before = worker(server)
    other, _, cached = ask(server, "who", n_threads=2)
    assert worker(server) != before
    # All of the prompt but its last token, whose logits are wanted.
    assert (other, cached) == (plain, n_prompt - 1)


@pytest.mark.parametrize(
    "change",
    [
        {"type_k": "q8_0"},
        {"rope_freq_base": 50_000},
        {"lora": [{"name": "lora.gguf"}]},
        {"lora": [{"name": "lora.gguf", "scale": 0.5}]},
        {"lora": [{"name": "more"}, {"name": "lora"}]},
    ],
)
def test_what_changes_the_state_has_a_cache_of_its_own(
    server: LiveServer, change: dict[str, Any]
) -> None:
    plain, n_prompt, _ = ask(server, "what", **PLAIN)
    other, _, cached = ask(server, "what", **change)
    assert cached == 0
    if "type_k" not in change:
        assert other != plain
    # Its own is found again, and the plain one was not touched by it.
    assert ask(server, "what", **PLAIN) == (plain, n_prompt, n_prompt - 1)
    assert ask(server, "what", **change)[2] == n_prompt - 1


def test_the_same_in_effect_is_no_reload(server: LiveServer) -> None:
    ask(server, "how", **PLAIN)
    before = worker(server)
    for same in (
        {"lora": [{"name": "lora.gguf", "scale": 0}]},
        {"rope_scaling_type": "auto", "yarn_ext_factor": -1},
        {"n_gpu_layers": "auto"},
        {"n_gpu_layers": 0},
        {"n_ctx": 2048, "kv_type": "f16"},
        {"flash_attn": "on"},
        {"n_batch": 2048, "n_ubatch": 512},
        {"rope_freq_base": 10_000, "rope_freq_scale": 1, "yarn_orig_ctx": 4096},
    ):
        ask(server, "how", **same)
        assert worker(server) == before, same
    ask(server, "how", lora=[{"name": "lora"}, {"name": "more.gguf", "scale": 2}])
    before = worker(server)
    ask(server, "how", lora=[{"name": "more", "scale": 2}, {"name": "lora.gguf", "scale": 1}])
    assert worker(server) == before


def test_adapters_are_no_models(server: LiveServer) -> None:
    listed = server.client.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["a.gguf"]
    assert server.client.post("/setModel", json={"model_name": "lora"}).status_code == 404


def test_another_chat_template_is_another_prompt_of_the_same_model(server: LiveServer) -> None:
    _, usual, _ = ask(server, "why", **PLAIN)
    _, n_short, first = ask(server, "why", chat_template="short.jinja")
    assert n_short < usual and first == 0
    before = worker(server)
    assert ask(server, "why", chat_template="short")[2] == n_short
    assert worker(server) == before
    # The memory of both prompts is of one kind.
    assert ask(server, "why", **PLAIN)[2] == usual - 1


def test_a_file_of_another_content_is_read_again(server: LiveServer, folder: Path) -> None:
    """Also by a request that says nothing of it."""
    shutil.copy(folder / "short.jinja", folder / "edited.jinja")
    shutil.copy(folder / "lora.gguf", folder / "edited.gguf")
    configs = {"chat_template": "edited.jinja", "lora": [{"name": "edited.gguf"}]}
    n_prompt = ask(server, "why", **configs)[1]
    (folder / "edited.jinja").write_text((folder / "short.jinja").read_text() + "!")
    before = ask(server, "why")
    assert before[1] == n_prompt + 1
    shutil.copy(folder / "more.gguf", folder / "edited.gguf")
    assert ask(server, "why")[0] != before[0]
    reloaded = worker(server)
    (folder / "edited.jinja").unlink()
    assert ask(server, "why")[1] == n_prompt + 1
    assert worker(server) == reloaded


@pytest.mark.parametrize(
    ("configs", "param", "words"),
    [
        ({"lora": [{"name": "nope"}]}, "lora", "no adapter of that name"),
        ({"lora": [{"name": "lora.guf"}]}, "lora", "Did you mean lora.gguf"),
        ({"lora": [{"name": "a.gguf"}]}, "lora", "no adapter of that name"),
        ({"lora": [{"name": "../models/lora.gguf"}]}, "lora", "no adapter of that name"),
        ({"lora": [{"name": "lora"}, {"name": "lora.gguf"}]}, "lora", "named twice"),
        ({"lora": [{"name": "lora", "scale": 1e9}]}, "lora[0].scale", ""),
        ({"lora": [{"name": "lora", "path": "/x"}]}, "lora[0].path", "not supported"),
        ({"lora": [{"name": "foreign"}]}, "lora", "another architecture than qwen2"),
        ({"chat_template": "nope"}, "chat_template", "no chat template of that name"),
        ({"chat_template": "../outside.jinja"}, "chat_template", "no chat template"),
        ({"chat_template": "/etc/passwd"}, "chat_template", "no chat template"),
        ({"chat_template": "link.jinja"}, "chat_template", "no chat template"),
        ({"chat_template": "binary.jinja"}, "chat_template", "is no text"),
        ({"rope_freq_scale": -1}, "rope_freq_scale", ""),
        ({"rope_scaling_type": "magic"}, "rope_scaling_type", ""),
        ({"n_gpu_layers": "all"}, "n_gpu_layers", ""),
        ({"rope_base": 3}, "rope_base", "not supported"),
    ],
)
def test_what_is_refused(
    server: LiveServer, configs: dict[str, Any], param: str, words: str
) -> None:
    error = refusal(server, **configs)
    assert error["param"] == f"load_model_configs.{param}"
    assert words in error["message"]


def test_an_adapter_of_another_architecture_does_not_fit(server: LiveServer) -> None:
    configs = {"lora": [{"name": "foreign"}]}
    fit = server.client.post("/models/fit", json={"model": "a", "load_model_configs": configs})
    assert fit.status_code == 400, fit.text
    assert fit.json()["error"] == refusal(server, **configs)


def test_a_template_that_is_wrong_or_hostile_harms_nobody(server: LiveServer) -> None:
    assert refusal(server, chat_template="torn")["code"] == "template_error"
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    configs = {"chat_template": "hostile"}
    response = server.client.post(
        "/v1/chat/completions", json={**body, "load_model_configs": configs}
    )
    assert response.status_code == 400, response.text
    ask(server, "again", **PLAIN)


def test_no_context_is_longer_than_the_positions_that_a_model_has_learnt(
    server: LiveServer, folder: Path
) -> None:
    tiny_models.build_learnt_positions(folder / "learnt.gguf", 300)
    told = {"model": "learnt.gguf", "load_model_configs": {"n_ctx": 1024}}
    fit = server.client.post("/models/fit", json=told).json()
    assert (fit["n_ctx"], fit["largest_n_ctx"]) == (300, 300)
    body = {**told, "prompt": "hello", "max_tokens": 400, "logit_bias": {"40": 100}}
    answer = server.client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["total_tokens"] == 300
    (folder / "learnt.gguf").unlink()
