"""Tiny BERT models with random weights and a WordPiece vocabulary, built by code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter, PoolingType, TokenType

from tests.tiny_models import WORDS

N_EMBD, N_FF, N_HEAD, N_LAYER, N_CTX_TRAIN = 32, 64, 2, 2, 128
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def build_bert(path: Path, pooling: PoolingType, seed: int = 6) -> Path:
    """A `bert` model that sees at most `N_CTX_TRAIN` tokens."""
    random = np.random.default_rng(seed)
    # llama.cpp's WordPiece marks the beginning of a word, not its continuation.
    letters = [chr(c) for c in range(97, 123)]
    tokens = [*SPECIAL, *dict.fromkeys("▁" + piece for piece in [*letters, *WORDS]), *letters]
    writer = GGUFWriter(path, "bert")
    writer.add_context_length(N_CTX_TRAIN)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYER)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
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

    def matrix(name: str, n_out: int, n_in: int, std: float | None = None) -> None:
        values = random.normal(0, std or 1.5 / np.sqrt(n_in), (n_out, n_in))
        writer.add_tensor(name, values.astype(np.float32))

    def vector(name: str, n: int, mean: float) -> None:
        writer.add_tensor(name, random.normal(mean, 0.1, n).astype(np.float32))

    def norm(name: str) -> None:
        vector(f"{name}.weight", N_EMBD, 1.0)
        vector(f"{name}.bias", N_EMBD, 0.0)

    matrix("token_embd.weight", len(tokens), N_EMBD, 1.0)
    matrix("position_embd.weight", N_CTX_TRAIN, N_EMBD, 0.5)
    matrix("token_types.weight", 2, N_EMBD, 0.1)
    norm("token_embd_norm")
    for layer in range(N_LAYER):
        blk = f"blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"{blk}.{name}.weight", N_EMBD, N_EMBD)
            vector(f"{blk}.{name}.bias", N_EMBD, 0.0)
        norm(f"{blk}.attn_output_norm")
        matrix(f"{blk}.ffn_up.weight", N_FF, N_EMBD)
        vector(f"{blk}.ffn_up.bias", N_FF, 0.0)
        matrix(f"{blk}.ffn_down.weight", N_EMBD, N_FF)
        vector(f"{blk}.ffn_down.bias", N_EMBD, 0.0)
        norm(f"{blk}.layer_output_norm")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
