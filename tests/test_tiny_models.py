"""The tiny models load, decode, remember their prompt and do not run into the end of a turn.

They are what exactness tests stand on: a model that ignored its first tokens would pass any test
of a broken cache.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from llm_server.llama.lib import lib
from tests import tiny_models

KINDS = ("attention", "spm", "sliding", "recurrent", "hybrid", "delta")
Build = Callable[..., Path]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def gguf_path(kind: str, request: pytest.FixtureRequest) -> Path:
    path = request.getfixturevalue(f"{kind}_gguf")
    assert isinstance(path, Path)
    return path


@contextmanager
def loaded(path: Path) -> Iterator[int]:
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    assert model, "llama.cpp refused the file"
    try:
        yield model
    finally:
        lib.llama_model_free(model)


def tokenize(model: int, text: str) -> list[int]:
    data = text.encode()
    ids = (ctypes.c_int32 * (len(data) + 8))()
    vocab = lib.llama_model_get_vocab(model)
    return ids[: lib.llama_tokenize(vocab, data, len(data), ids, len(ids), True, True)]


def greedy(model: int, prompt: list[int], n: int) -> tuple[list[int], np.ndarray]:
    """`n` greedy tokens after `prompt`, and the logits that chose the first of them."""
    params = lib.llama_context_default_params()
    params.n_ctx = 512
    params.n_threads = params.n_threads_batch = 1
    context = lib.llama_init_from_model(model, params)
    n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    batch, answer, rows = prompt, [], []
    for _ in range(n):
        ids = (ctypes.c_int32 * len(batch))(*batch)
        assert lib.llama_decode(context, lib.llama_batch_get_one(ids, len(batch))) == 0
        logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (n_vocab,))
        rows.append(logits.copy())
        batch = [int(logits.argmax())]
        answer += batch
    lib.llama_free(context)
    return answer, rows[0]


def test_small_and_reproducible(kind: str, gguf_path: Path, tmp_path: Path) -> None:
    build: Build = getattr(tiny_models, f"build_{kind}")
    assert gguf_path.stat().st_size < 2_000_000
    again = build(tmp_path / gguf_path.name)
    assert again.read_bytes() == gguf_path.read_bytes()
    assert build(tmp_path / "other.gguf", seed=99).read_bytes() != gguf_path.read_bytes()


def test_answers_vary_and_go_on(gguf_path: Path) -> None:
    prompts = ("hello world", "<|im_start|>user\nhi<|im_end|>\n", "What is the number? 世界")
    with loaded(gguf_path) as model:
        vocab = lib.llama_model_get_vocab(model)
        answers = [greedy(model, tokenize(model, text), 64)[0] for text in prompts]
        assert not any(lib.llama_vocab_is_eog(vocab, t) for answer in answers for t in answer)
    assert len({tuple(answer) for answer in answers}) == len(prompts)
    assert all(len(set(answer)) >= 16 for answer in answers)


def test_the_first_word_still_matters_far_behind_it(gguf_path: Path) -> None:
    rest = " of the people in this word" * 8
    with loaded(gguf_path) as model:
        prompts = [tokenize(model, first + rest) for first in ("a", "b")]
        (_, one), (_, other) = (greedy(model, prompt, 1) for prompt in prompts)
    assert len(prompts[0]) == len(prompts[1]) > tiny_models.WINDOW
    assert float(np.abs(one - other).max()) > 1e-2


def test_text_goes_through_the_vocabulary_unchanged(gguf_path: Path) -> None:
    text = "hello world, \n\t the people: é ü 世界 🙂 \x00\x7f"
    with loaded(gguf_path) as model:
        ids = tokenize(model, text + "<|im_end|>")
        vocab = lib.llama_model_get_vocab(model)
        assert ids[-1] == lib.llama_vocab_eos(vocab)
        buffer = ctypes.create_string_buffer(256)
        data = (ctypes.c_int32 * len(ids))(*ids)
        n = lib.llama_detokenize(vocab, data, len(ids), buffer, len(buffer), True, False)
        # SentencePiece puts a blank before the text and llama.cpp takes it off after BOS only.
        assert buffer.raw[:n].decode().removeprefix(" ") == text


def test_kinds_of_memory(tiny_folder: Path, request: pytest.FixtureRequest) -> None:
    facts = {}
    for name in KINDS:
        with loaded(request.getfixturevalue(f"{name}_gguf")) as model:
            facts[name] = (
                lib.llama_model_is_recurrent(model),
                lib.llama_model_is_hybrid(model),
                lib.llama_model_n_swa(model),
            )
    assert facts == {
        "attention": (False, False, 0),
        "spm": (False, False, 0),
        "sliding": (False, False, tiny_models.WINDOW),
        "recurrent": (True, False, 0),
        "hybrid": (False, True, 0),
        "delta": (False, True, 0),
    }
