"""How a worker is told to load a model, and the defaults behind what is left open.

What crosses the pipe with `messages.Load`; the API process plans and compares by the same values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

KvType: TypeAlias = Literal["f16", "q8_0", "q4_0"]
"""What keys or values may be kept in."""

FlashAttention: TypeAlias = Literal["auto", "on", "off"]
"""Whether attention keeps no matrix of scores; `auto`: wherever llama.cpp can."""

Pooling: TypeAlias = Literal["mean", "cls", "last", "rank"]
"""How the vectors of a text's tokens become one, or with `rank` its score: llama.cpp's names,
without `none`."""

RopeScaling: TypeAlias = Literal["auto", "none", "linear", "yarn", "longrope"]
"""How positions beyond those of the training are made: llama.cpp's names."""


MAX_PARALLEL = 126
"""Most requests that can run at once: llama.cpp tells 256 sequences apart, and of a model with a
sliding window each takes two, one is for copies and one for what is kept (`llama/context.py`)."""
PARALLEL = 32
"""Requests that may run at once unless told otherwise; with one unified memory they cost little."""
PARALLEL_WHOLE_STATE = 4
"""The same for recurrent models, where every sequence id costs a whole state."""
TEXT_N_CTX = 2048
"""Longest text of an embedding model unless told otherwise: the memory for computing grows with its
square."""
TEXTS = 64
"""Texts that may share a batch of such a model unless told otherwise."""
TEXTS_BYTES = 512 * 1024
"""Most bytes of vectors in a batch: they travel in one frame, and may lie unread together."""


class Adapter(msgspec.Struct, frozen=True, order=True):
    """A LoRA adapter, by the name of its file below the models folder, and how much of it."""

    name: str
    scale: float = 1.0


class LoadConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to load a model. Equal values have equal effect: the pool compares them.

    `n_ctx` is the number of KV cells that all running requests share and the longest one request
    may use; 0 is what the model was trained for, as far as it fits, and more than that there is
    not where a model has learnt its positions. `n_threads` 0 is one
    for each fast physical core, `n_gpu_layers` -1 all, "auto" what fits. `parallel` 0 lets the
    worker choose how many requests may run at once. `type_k` and `type_v` are what keys and values
    are kept in.
    `draft_max` is how many tokens may be guessed and computed in one step; 0 turns it off.
    `pooling` makes it an embedding model, or with "rank" a reranker, which "auto" leaves to the
    file. For those `n_ctx` is the longest text, 0 at most 2048 tokens, `n_ubatch` is how many
    tokens short texts share a batch up to, and `parallel` how many texts.
    `rope_*` and `yarn_*` are llama.cpp's, and where they are 0, -1 or "auto" the file's. `lora` are
    adapters that change the weights, `chat_template` is a file that replaces the model's own.
    """

    n_ctx: int = 0
    n_batch: int = 2048
    n_ubatch: int = 512
    n_threads: int = 0
    n_gpu_layers: int | Literal["auto"] = -1
    parallel: int = 0
    type_k: KvType = "f16"
    type_v: KvType = "f16"
    flash_attn: FlashAttention = "auto"
    draft_max: int = 16
    pooling: Literal["auto"] | Pooling = "auto"
    rope_scaling_type: RopeScaling = "auto"
    rope_freq_base: float = 0.0
    rope_freq_scale: float = 0.0
    yarn_ext_factor: float = -1.0
    yarn_attn_factor: float = -1.0
    yarn_beta_fast: float = -1.0
    yarn_beta_slow: float = -1.0
    yarn_orig_ctx: int = 0
    lora: tuple[Adapter, ...] = ()
    chat_template: str = ""


ROPE_FIELDS = tuple(name for name in LoadConfig.__struct_fields__ if name[:4] in ("rope", "yarn"))
"""The fields of `LoadConfig` that change where tokens seem to stand."""


class CacheConfig(msgspec.Struct, frozen=True):
    """The prompt cache on disk: its folder, its budget for all models, and what is written.

    `write`: everything ("all"), what is worth it ("auto"), or nothing ("off"; it is still read).
    `model` is the model's name, written beside its chunks for people to read.
    """

    folder: Path
    size_bytes: int
    write: Literal["all", "auto", "off"] = "auto"
    model: str = ""
