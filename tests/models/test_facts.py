"""Facts from headers: what people ask for, what memory follows from, what is refused."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest

from llm_server.errors import ModelLoadFailed
from llm_server.gguf.header import InvalidGguf, read_header
from llm_server.models.facts import Facts, facts_of
from llm_server.models.registry import Registry
from tests.gguf_bytes import TINY, Metadata, TensorEntry, gguf
from tests.tiny_models import CHATML, HEAD, N_CTX_TRAIN, N_EMBD

F32 = 0


def facts(path: Path) -> Facts:
    return facts_of([read_header(path)])


def of_bytes(folder: Path, metadata: Metadata, tensors: list[TensorEntry] | None = None) -> Facts:
    entries = tensors or []
    sizes = [4 * math.prod(entry[1]) for entry in entries]
    path = folder / "model.gguf"
    path.write_bytes(gguf(TINY | metadata, entries, sizes=sizes))
    return facts(path)


def test_what_a_header_says(attention_gguf: Path) -> None:
    told = facts(attention_gguf)
    assert (told.architecture, told.name) == ("qwen2", "attention")
    assert (told.quantization, told.n_ctx_train) == ("F32", N_CTX_TRAIN)
    assert told.template_sha256 == hashlib.sha256(CHATML.encode()).hexdigest()
    assert told.pooling is None
    assert told.tensor_bytes == 4 * told.n_params
    assert told.shape.k_elements == told.shape.v_elements == 2 * HEAD
    assert told.shape.state_elements == 0
    assert len(told.shape.layer_bytes) == 2


def test_layers_with_a_state_have_no_cells(hybrid_gguf: Path, recurrent_gguf: Path) -> None:
    hybrid, recurrent = facts(hybrid_gguf).shape, facts(recurrent_gguf).shape
    assert (hybrid.k_elements, hybrid.v_elements) == (HEAD, HEAD)  # One of three layers attends.
    assert hybrid.state_elements == 2 * N_EMBD * 2  # l_cache - 1 rows in each of the others.
    assert (recurrent.k_elements, recurrent.v_elements) == (0, 0)
    assert (hybrid.key_lengths, recurrent.key_lengths) == ((HEAD, HEAD), (0, 0))
    d_inner, d_state, d_conv = 2 * N_EMBD, 16, 4
    assert recurrent.state_elements == 2 * ((d_conv - 1) * d_inner + d_state * d_inner)


def test_layers_with_a_state_may_have_tensors_named_as_those_of_attention(delta_gguf: Path) -> None:
    shape = facts(delta_gguf).shape
    assert (shape.k_elements, shape.v_elements) == (HEAD, HEAD)  # One of four layers attends.
    d_state, d_inner, n_group, d_conv = 16, 64, 2, 4
    each = (d_conv - 1) * (d_inner + 2 * n_group * d_state) + d_state * d_inner
    assert shape.state_elements == 3 * each


@pytest.mark.parametrize(
    ("architecture", "layers", "heads", "n_attend", "n_state"),
    [
        ("falcon-h1", ["attn_norm attn_q attn_k ssm_in", "attn_qkv ssm_in"], 1, 2, 2),
        ("nemotron_h", ["attn_norm ssm_in", "attn_norm ffn_up", "attn_norm attn_q"], 1, 1, 1),
        ("kimi-linear", ["attn_q attn_k ssm_conv1d_q", "attn_q attn_kv_a_mqa"], [0, 1], 1, 1),
        ("qwen3next", ["attn_norm ssm_in", "attn_qkv attn_gate ssm_out", "attn_q"], 1, 1, 2),
        ("granitehybrid", ["attn_norm ssm_in ffn_up", "attn_q ffn_up"], [0, 1], 1, 1),
        ("lfm2", ["attn_norm shortconv.conv", "attn_q"], [0, 1], 1, 1),
        ("rwkv7", ["attn_norm attn_norm_2 time_mix_w0"] * 2, 0, 0, 2),
        ("qwen2", ["attn_norm attn_q", "attn_norm attn_qkv"], 1, 2, 0),
    ],
)
def test_tensors_tell_which_layers_attend_and_which_have_a_state(
    tmp_path: Path,
    architecture: str,
    layers: list[str],
    heads: int | list[int],
    n_attend: int,
    n_state: int,
) -> None:
    told: Metadata = {
        "general.architecture": architecture,
        f"{architecture}.block_count": len(layers),
        f"{architecture}.attention.head_count": 2,
        f"{architecture}.attention.head_count_kv": heads,
        f"{architecture}.attention.key_length": 8,
        f"{architecture}.ssm.conv_kernel": 1,
        f"{architecture}.ssm.inner_size": 4,
        f"{architecture}.ssm.state_size": 4,
    }
    tensors: list[TensorEntry] = [
        (f"blk.{i}.{name}.weight", (8,), F32)
        for i, names in enumerate(layers)
        for name in names.split()
    ]
    shape = of_bytes(tmp_path, told, tensors).shape
    assert (shape.k_elements, shape.state_elements) == (8 * n_attend, 16 * n_state)


def test_latent_attention_keeps_one_vector(tmp_path: Path) -> None:
    layers: list[TensorEntry] = [("blk.0.attn_kv_a_mqa.weight", (8,), F32)]
    mla = {
        "llama.attention.head_count_kv": 1,
        "llama.attention.key_length": 576,
        "llama.attention.value_length": 512,
        "llama.attention.key_length_mla": 192,
    }
    shape = of_bytes(tmp_path, mla, layers).shape
    assert (shape.k_elements, shape.v_elements) == (576, 0)
    assert (shape.key_lengths, shape.value_lengths) == ((576, 576), (512, 512))


def test_layers_with_a_sliding_window_may_have_heads_of_another_length(tmp_path: Path) -> None:
    layers: list[TensorEntry] = [(f"blk.{i}.attn_k.weight", (8,), F32) for i in range(3)]
    told = {
        "llama.block_count": 3,
        "llama.attention.head_count_kv": [4, 4, 1],
        "llama.attention.key_length": 64,
        "llama.attention.key_length_swa": 24,
        "llama.attention.value_length_swa": 16,
    }
    listed = {"llama.attention.sliding_window_pattern": [True, True, False]}
    shape = of_bytes(tmp_path, told | listed, layers).shape
    assert (shape.k_elements, shape.v_elements) == (8 * 24 + 64, 8 * 16 + 32)
    assert (shape.key_lengths, shape.value_lengths) == ((64, 24), (32, 16))
    # A number instead of a list means other layers in other architectures.
    shape = of_bytes(tmp_path, told | {"llama.attention.sliding_window_pattern": 3}, layers).shape
    assert (shape.k_elements, shape.v_elements) == (9 * 64, 9 * 32)


def test_shared_layers_have_no_cells_of_their_own(tmp_path: Path) -> None:
    layers: list[TensorEntry] = [(f"blk.{i}.attn_k.weight", (8,), F32) for i in range(4)]
    shared = {"llama.block_count": 4, "llama.attention.shared_kv_layers": 3}
    assert of_bytes(tmp_path, shared, layers).shape.k_elements == 64
    assert of_bytes(tmp_path, {"llama.block_count": 4}, layers).shape.k_elements == 256


def test_the_file_type_names_the_quantization_else_the_tensors_do(tmp_path: Path) -> None:
    tensors: list[TensorEntry] = [("token_embd.weight", (8,), F32)]
    assert of_bytes(tmp_path, {"general.file_type": 15}, tensors).quantization == "Q4_K_M"
    assert of_bytes(tmp_path, {"general.file_type": 9999}, tensors).quantization == "F32"
    assert of_bytes(tmp_path, {}).quantization == "none"


@pytest.mark.parametrize(
    ("labels", "shapes", "classifies"),
    [
        (0, {}, False),
        (0, {"cls.weight": (64, 64)}, False),
        (0, {"cls.weight": (64, 1)}, True),
        (0, {"cls.weight": (64,)}, True),
        (0, {"cls.weight": (64, 64), "cls.output.weight": (64, 1)}, True),
        (2, {"cls.output.weight": (64, 2)}, True),
        (2, {"cls.output.weight": (64, 1)}, False),
        (1, {"cls.output.weight": (64, 2)}, False),
    ],
)
def test_what_ends_in_a_classifier(
    tmp_path: Path, labels: int, shapes: dict[str, tuple[int, ...]], classifies: bool
) -> None:
    metadata: Metadata = {"llama.classifier.output_labels": ["x"] * labels} if labels else {}
    tensors: list[TensorEntry] = [(name, shape, F32) for name, shape in shapes.items()]
    assert of_bytes(tmp_path, metadata, tensors).classifies is classifies


@pytest.mark.parametrize(
    "claim",
    [
        {"general.architecture": 7},
        {"general.architecture": "a\nb"},
        {"llama.block_count": 100_000},
        {"llama.block_count": "many"},
        {"llama.context_length": 1 << 31},
        {"llama.embedding_length": 1.5},
        {"llama.attention.head_count_kv": ["x"]},
        {"llama.block_count": 3, "llama.attention.head_count_kv": [1, 1]},
        {"split.tensors.count": 5},
    ],
)
def test_claims_that_no_model_makes(tmp_path: Path, claim: Metadata) -> None:
    with pytest.raises(InvalidGguf):
        of_bytes(tmp_path, claim)


def test_facts_are_read_once_for_each_state_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    registry = Registry(tmp_path)
    path.write_bytes(gguf(TINY | {"general.name": "one"}))
    registry.scan()
    first = registry.facts(registry.find("a"))
    assert first.name == "one"
    assert registry.facts(registry.find("a")) is first
    path.write_bytes(gguf(TINY | {"general.name": "other"}))
    registry.scan()
    assert registry.facts(registry.find("a")).name == "other"


def test_a_damaged_file_is_listed_and_says_why_it_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(gguf()[:100])
    registry = Registry(tmp_path)
    registry.scan()
    with pytest.raises(ModelLoadFailed, match="loaded: the file ends") as caught:
        registry.facts(registry.find("a"))
    assert caught.value.info.status == 400


def test_parts_count_as_one_model_and_must_belong_together(tmp_path: Path) -> None:
    def part(i: int, name: str) -> None:
        content = gguf(TINY | {"split.tensors.count": 2}, [(name, (8,), F32)], sizes=[32])
        (tmp_path / f"big-0000{i}-of-00002.gguf").write_bytes(content)

    registry = Registry(tmp_path)
    part(1, "blk.0.attn_k.weight")
    part(2, "blk.0.attn_v.weight")
    registry.scan()
    assert registry.facts(registry.find("big")).n_params == 16
    part(2, "blk.0.attn_k.weight")
    registry.scan()
    with pytest.raises(ModelLoadFailed, match="belong together"):
        registry.facts(registry.find("big"))
