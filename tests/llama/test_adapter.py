"""LoRA adapters: what they change, what they do not, and which are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from llm_server.llama.adapter import LoadedAdapter
from llm_server.llama.context import Context
from llm_server.llama.model import LoadError, Model
from llm_server.worker.config import LoadConfig
from tests import tiny_models

CONFIG = LoadConfig(n_threads=1)


@pytest.fixture(scope="module")
def lora_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_lora(tmp_path_factory.mktemp("lora") / "lora.gguf")


def logits(path: Path, adapters: Sequence[tuple[Path, float]], config: LoadConfig = CONFIG) -> str:
    """Those behind a prompt, byte by byte."""
    model = Model(path)
    loaded = [LoadedAdapter(model, file, scale) for file, scale in adapters]
    context = Context(model, config, 256, 1, loaded)
    tokens = model.vocab.tokenize("the name of the word is", parse_special=False)
    context.batch.clear()
    context.batch.add(0, 0, tokens, logits=1)
    context.decode()
    row = np.array(context.logits(len(tokens) - 1))
    assert np.isfinite(row).all()
    context.close()
    model.close()
    return row.tobytes().hex()


def test_a_scale_of_zero_is_no_adapter_and_one_changes_the_answer(
    attention_gguf: Path, lora_gguf: Path
) -> None:
    plain = logits(attention_gguf, [])
    assert logits(attention_gguf, [(lora_gguf, 0.0)]) == plain
    whole = logits(attention_gguf, [(lora_gguf, 1.0)])
    assert whole != plain
    assert logits(attention_gguf, [(lora_gguf, 0.5)]) not in (plain, whole)


def test_an_adapter_of_another_model_is_refused(spm_gguf: Path, lora_gguf: Path) -> None:
    model = Model(spm_gguf)
    for file in (lora_gguf, spm_gguf):
        with pytest.raises(LoadError):
            LoadedAdapter(model, file, 1.0)
    model.close()


@pytest.mark.parametrize(
    "config",
    [
        LoadConfig(n_threads=1, rope_freq_base=1e6),
        LoadConfig(n_threads=1, rope_freq_scale=0.5),
        LoadConfig(n_threads=1, rope_scaling_type="yarn", rope_freq_scale=0.5, yarn_orig_ctx=128),
    ],
)
def test_rope_overrides_move_tokens(attention_gguf: Path, config: LoadConfig) -> None:
    assert logits(attention_gguf, [], config) != logits(attention_gguf, [])
