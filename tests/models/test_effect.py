"""Which ways to load a model come to the same, and which do not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llm_server.errors import InvalidRequest
from llm_server.models.plan import Plan, Planner
from llm_server.models.registry import Registry
from llm_server.worker.config import Adapter, LoadConfig
from llm_server.worker.messages import Loaded
from tests.gguf_bytes import TINY, Metadata, TensorEntry, gguf

AMPLE = 1 << 40
LOADED = Loaded(n_ctx=4096, parallel=32, description="")
ON_CARDS = msgspec.structs.replace(LOADED, n_gpu_layers=2, max_gpu_layers=2)
YARN: Metadata = {
    "llama.rope.freq_base": 5e5,
    "llama.rope.scaling.type": "yarn",
    "llama.rope.scaling.factor": 4.0,
    "llama.rope.scaling.original_context_length": 1024,
}
ENCODER: Metadata = {"llama.attention.causal": False}


ATTENDS: list[TensorEntry] = [("blk.0.attn_k.weight", (8,), 0)]


def planner(
    folder: Path,
    metadata: Metadata,
    budget: int = AMPLE,
    tensors: Sequence[TensorEntry] = ATTENDS,
) -> Planner:
    (folder / "a.gguf").write_bytes(gguf(TINY | metadata, tensors, sizes=[32] * len(tensors)))
    for name in ("one", "two"):
        adapter: Metadata = {"general.type": "adapter", "general.architecture": "llama"}
        (folder / f"{name}.gguf").write_bytes(gguf(adapter))
    made = Planner(Registry(folder), budget=budget, n_threads=4)
    made.registry.scan()
    return made


def plan(made: Planner, **told: Any) -> Plan:
    model = made.registry.find("a")
    return made.weigh(model, made.asked(model, told))


ONE, TWO = Adapter("one.gguf"), Adapter("two.gguf", 2.0)


@pytest.mark.parametrize(
    ("metadata", "told", "asked"),
    [
        ({}, {}, {"n_threads": 4}),
        ({}, {"n_threads": 4}, {"n_threads": 0}),
        ({}, {}, {"n_ctx": 4096}),
        ({}, {}, {"n_ctx": 0, "n_threads": 4}),
        ({}, {"n_ctx": 4096}, {"n_ctx": 0}),
        ({}, {"n_ctx": 500}, {"n_ctx": 512}),
        ({}, {}, {"parallel": 32}),
        ({}, {"parallel": 32}, {"parallel": 0}),
        ({}, {"n_ctx": 1024}, {"n_batch": 1024}),
        ({}, {"n_ctx": 1024}, {"n_batch": 60_000}),
        ({}, {"n_batch": 256}, {"n_ubatch": 256}),
        ({}, {"n_batch": 256}, {"n_ubatch": 60_000}),
        ({}, {}, {"n_gpu_layers": 0}),
        ({}, {}, {"n_gpu_layers": "auto"}),
        ({}, {"n_gpu_layers": 7}, {"n_gpu_layers": -1}),
        ({}, {}, {"flash_attn": "on"}),
        ({}, {"flash_attn": "on"}, {"flash_attn": "auto"}),
        ({}, {}, {"rope_freq_base": 10_000.0, "rope_freq_scale": 1.0}),
        ({}, {"rope_freq_base": 10_000.0}, {"rope_freq_base": 0.0}),
        ({}, {}, {"rope_scaling_type": "linear", "yarn_orig_ctx": 4096}),
        ({}, {}, {"rope_scaling_type": "none", "rope_freq_scale": 0.5}),
        ({}, {"rope_scaling_type": "none"}, {"rope_scaling_type": "linear"}),
        ({}, {}, {"yarn_ext_factor": 0.0, "yarn_beta_fast": 8.0, "yarn_orig_ctx": 1024}),
        (YARN, {}, {"rope_freq_base": 5e5, "rope_freq_scale": 0.25}),
        (YARN, {}, {"rope_scaling_type": "yarn", "yarn_orig_ctx": 1024}),
        ({}, {"lora": (Adapter("one"),)}, {"lora": (ONE,)}),
        ({}, {"lora": (ONE, TWO)}, {"lora": (TWO, Adapter("one", 1.0))}),
        (ENCODER, {}, {"pooling": "mean"}),
        (ENCODER, {"pooling": "mean"}, {"pooling": "auto"}),
        (ENCODER, {}, {"n_batch": 64, "type_k": "q8_0", "draft_max": 0, "n_ctx": 2048}),
    ],
)
def test_the_same_in_other_words(
    tmp_path: Path, metadata: Metadata, told: dict[str, Any], asked: dict[str, Any]
) -> None:
    made = planner(tmp_path, metadata)
    loaded = plan(made, **told)
    assert made.in_force(loaded, LOADED, made.named(asked))
    # A load in the other words would tell the worker the same, but for what only it can settle.
    again = plan(made, **(told | asked))
    settled = {"flash_attn": "on", "n_gpu_layers": 0}
    assert msgspec.structs.replace(again.effect, **settled) == msgspec.structs.replace(
        loaded.effect, **settled
    )


@pytest.mark.parametrize(
    ("metadata", "told", "asked"),
    [
        ({}, {}, {"n_threads": 3}),
        ({}, {"n_ctx": 512}, {"n_ctx": 0}),
        ({}, {"n_ctx": 512}, {"n_ctx": 513}),
        ({}, {}, {"n_batch": 1024}),
        ({}, {}, {"n_ubatch": 1024}),
        ({}, {}, {"parallel": 31}),
        ({}, {}, {"flash_attn": "off"}),
        ({}, {}, {"type_k": "q8_0"}),
        ({}, {}, {"rope_freq_base": 5e5}),
        ({}, {}, {"rope_freq_scale": 0.5}),
        ({}, {}, {"yarn_ext_factor": 0.5}),
        ({}, {"yarn_ext_factor": 0.5}, {"yarn_orig_ctx": 1024}),
        ({}, {}, {"yarn_attn_factor": 2.0}),
        ({"llama.rope.scaling.yarn_ext_factor": 1.0}, {}, {"yarn_ext_factor": 0.0}),
        ({"llama.rope.scaling.factor": 2.0}, {}, {"rope_scaling_type": "none"}),
        (YARN, {}, {"yarn_beta_fast": 8.0}),
        (YARN, {}, {"rope_freq_base": 10_000.0}),
        (YARN, {}, {"rope_scaling_type": "linear"}),
        (YARN, {}, {"yarn_ext_factor": 0.5}),
        ({"llama.rope.scaling.alpha": 2.0}, {}, {"rope_freq_base": 10_000.0}),
        ({}, {"lora": (ONE,)}, {"lora": ()}),
        ({}, {"lora": (ONE,)}, {"lora": (Adapter("one", 0.5),)}),
        ({}, {}, {"pooling": "mean"}),
        (ENCODER, {}, {"pooling": "cls"}),
    ],
)
def test_a_real_change(
    tmp_path: Path, metadata: Metadata, told: dict[str, Any], asked: dict[str, Any]
) -> None:
    made = planner(tmp_path, metadata)
    assert not made.in_force(plan(made, **told), LOADED, made.named(asked))


def test_without_attention_nothing_is_kept_in_cells(tmp_path: Path) -> None:
    made = planner(tmp_path, {}, tensors=())
    for asked in ({"type_k": "q8_0"}, {"type_v": "q4_0"}, {"flash_attn": "off"}):
        assert made.in_force(plan(made), LOADED, asked)


@pytest.mark.parametrize(
    ("told", "asked", "same"),
    [
        ({}, {"n_gpu_layers": 2}, True),
        ({}, {"n_gpu_layers": 99}, True),
        ({"n_gpu_layers": "auto"}, {"n_gpu_layers": 2}, True),
        ({"n_gpu_layers": "auto"}, {"n_gpu_layers": "auto", "n_threads": 4}, True),
        ({}, {"n_gpu_layers": 1}, False),
        # What would fit now, only a load can tell; and what a card can do.
        ({"n_gpu_layers": 2}, {"n_gpu_layers": "auto"}, False),
        ({"flash_attn": "on"}, {"flash_attn": "auto"}, False),
    ],
)
def test_with_graphics_cards(
    tmp_path: Path, told: dict[str, Any], asked: dict[str, Any], same: bool
) -> None:
    made = planner(tmp_path, {})
    assert made.in_force(plan(made, **told), ON_CARDS, asked) is same


@pytest.mark.parametrize(
    ("told", "asked", "same"),
    [
        ({"n_gpu_layers": 0}, {"n_gpu_layers": -1}, False),
        ({"n_gpu_layers": 0}, {"n_gpu_layers": 2}, False),
        ({"n_gpu_layers": 0}, {"n_gpu_layers": "auto"}, False),
        ({"n_gpu_layers": 0}, {"n_gpu_layers": 0, "n_threads": 4}, True),
        # A load that looked for cards and found none settles it.
        ({}, {"n_gpu_layers": 0}, True),
        ({}, {"n_gpu_layers": 2}, True),
        ({"n_gpu_layers": 2}, {"n_gpu_layers": "auto"}, True),
    ],
)
def test_where_none_was_to_be_used_there_may_be_cards(
    tmp_path: Path, told: dict[str, Any], asked: dict[str, Any], same: bool
) -> None:
    made = planner(tmp_path, {})
    seen_none = msgspec.structs.replace(LOADED, max_gpu_layers=None)
    assert made.in_force(plan(made, **told), seen_none, asked) is same


def test_a_fitted_context_stays_when_less_would_fit_by_now(tmp_path: Path) -> None:
    made = planner(tmp_path, {})
    loaded = plan(made)
    made.learn(loaded, AMPLE)
    assert made.in_force(loaded, LOADED, {"n_ctx": 0, "n_threads": 4})


def test_values_are_not_quantized_without_flash_attention(tmp_path: Path) -> None:
    made = planner(tmp_path, {})
    with pytest.raises(InvalidRequest, match="flash_attn"):
        plan(made, type_v="q8_0", flash_attn="off")
    assert plan(made, type_k="q8_0", flash_attn="off").config == LoadConfig(
        n_ctx=4096, parallel=32, n_threads=4, type_k="q8_0", flash_attn="off"
    )
    assert not made.in_force(plan(made, type_v="q8_0"), LOADED, {"flash_attn": "off"})


@pytest.mark.parametrize("flash_attn", ["auto", "off"])
def test_heads_that_are_no_whole_blocks_are_not_quantized(tmp_path: Path, flash_attn: str) -> None:
    made = planner(tmp_path, {"llama.attention.head_count": 1, "llama.attention.key_length": 80})
    with pytest.raises(InvalidRequest, match="80 numbers long") as caught:
        plan(made, type_k="q8_0", flash_attn=flash_attn)
    assert caught.value.info.param == "load_model_configs.type_k"
    assert plan(made, type_v="q4_0").config.type_v == "q4_0", "its values are 64 long"
    assert not made.in_force(plan(made), LOADED, {"type_k": "q4_0"})
    # What makes vectors keeps nothing that could be quantized.
    assert plan(made, type_k="q8_0", pooling="mean").config.pooling == "mean"


def test_heads_of_layers_with_a_sliding_window_are_whole_blocks_too(tmp_path: Path) -> None:
    told = {"llama.attention.key_length": 64, "llama.attention.key_length_swa": 48}
    made = planner(tmp_path, told)
    with pytest.raises(InvalidRequest, match="48 numbers long") as caught:
        plan(made, type_k="q8_0")
    assert caught.value.info.param == "load_model_configs.type_k"
    assert plan(made, type_v="q8_0").config.type_v == "q8_0"
