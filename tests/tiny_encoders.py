"""Tiny BERT models with random weights and a WordPiece vocabulary, built by code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter, PoolingType, TokenType

from tests.tiny_models import WORDS

N_EMBD, N_CTX_TRAIN = 32, 128
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a `bert` model. The vocabulary has at least `n_vocab` words, most of no use."""

    n_embd: int = N_EMBD
    n_ff: int = 64
    n_head: int = 2
    n_layer: int = 2
    n_ctx_train: int = N_CTX_TRAIN
    n_vocab: int = 0
    matrices: type[np.floating[Any]] = np.float32


def vocabulary(n_at_least: int = 0) -> list[str]:
    """Words and letters, filled up."""
    # llama.cpp's WordPiece marks the beginning of a word, not its continuation.
    letters = [chr(c) for c in range(97, 123)]
    tokens = [*SPECIAL, *dict.fromkeys("▁" + piece for piece in [*letters, *WORDS]), *letters]
    tokens += [f"▁{i}" for i in range(len(tokens), n_at_least)]
    return tokens


def _add_tokenizer(writer: GGUFWriter, tokens: list[str]) -> None:
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("jina-v2-en")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [TokenType.CONTROL] * len(SPECIAL) + [TokenType.NORMAL] * (len(tokens) - len(SPECIAL))
    )
    writer.add_token_type_count(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(3)
    writer.add_sep_token_id(3)
    writer.add_mask_token_id(4)


def build_bert(
    path: Path, pooling: PoolingType, seed: int = 6, shape: Shape = Shape(), n_labels: int = 0
) -> Path:
    """A `bert` model of that shape, behind which a classifier has `n_labels` outputs, if any."""
    random = np.random.default_rng(seed)
    n_embd = shape.n_embd
    tokens = vocabulary(shape.n_vocab)
    writer = GGUFWriter(path, "bert")
    writer.add_context_length(shape.n_ctx_train)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    if n_labels:  # As it is converted where the tokenizer says how pairs look.
        writer.add_add_eos_token(True)
        writer.add_add_sep_token(False)
    if n_labels > 1:
        writer.add_classifier_output_labels([f"label {i}" for i in range(n_labels)])
    _add_tokenizer(writer, tokens)

    def matrix(
        name: str, n_out: int, n_in: int, std: float | None = None, *, added: bool = False
    ) -> None:
        values = random.normal(0, std or 1.5 / np.sqrt(n_in), (n_out, n_in))
        writer.add_tensor(name, values.astype(np.float32 if added else shape.matrices))

    def vector(name: str, n: int, mean: float) -> None:
        writer.add_tensor(name, random.normal(mean, 0.1, n).astype(np.float32))

    def norm(name: str) -> None:
        vector(f"{name}.weight", n_embd, 1.0)
        vector(f"{name}.bias", n_embd, 0.0)

    matrix("token_embd.weight", len(tokens), n_embd, 1.0)
    matrix("position_embd.weight", shape.n_ctx_train, n_embd, 0.5, added=True)
    matrix("token_types.weight", 2, n_embd, 0.1, added=True)
    norm("token_embd_norm")
    for layer in range(shape.n_layer):
        blk = f"blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"{blk}.{name}.weight", n_embd, n_embd)
            vector(f"{blk}.{name}.bias", n_embd, 0.0)
        norm(f"{blk}.attn_output_norm")
        matrix(f"{blk}.ffn_up.weight", shape.n_ff, n_embd)
        vector(f"{blk}.ffn_up.bias", shape.n_ff, 0.0)
        matrix(f"{blk}.ffn_down.weight", n_embd, shape.n_ff)
        vector(f"{blk}.ffn_down.bias", n_embd, 0.0)
        norm(f"{blk}.layer_output_norm")
    if n_labels:
        matrix("cls.weight", n_embd, n_embd)
        vector("cls.bias", n_embd, 0.0)
        matrix("cls.output.weight", n_labels, n_embd, added=True)
        vector("cls.output.bias", n_labels, 0.5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
