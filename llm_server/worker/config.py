"""How a worker is told to load a model, and the defaults behind what is left open.

What crosses the pipe with `messages.Load`; the API process plans and compares by the same values.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

KvType: TypeAlias = Literal["f16", "q8_0", "q4_0"]
"""What keys or values may be kept in."""

Pooling: TypeAlias = Literal["mean", "cls", "last"]
"""How the vectors of a text's tokens become one: llama.cpp's names, without `none` and `rank`."""


PARALLEL = 32
"""Requests that may run at once unless told otherwise; with one unified memory they cost little."""
PARALLEL_WHOLE_STATE = 4
"""The same for recurrent models, where every sequence id costs a whole state."""
TEXT_N_CTX = 2048
"""Longest text of an embedding model unless told otherwise: the memory for computing grows with its
square."""
TEXTS = 64
"""Texts that may share a batch of one unless told otherwise, """
TEXTS_BYTES = 512 * 1024
"""and the most bytes of their vectors: they travel in one frame, and may lie unread together."""


class LoadConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to load a model. Equal values have equal effect: the pool compares them.

    `n_ctx` is the number of KV cells that all running requests share and the longest one request
    may use; 0 is what the model was trained for, as far as it fits. `n_threads` 0 is the
    number of physical cores, `n_gpu_layers` -1 all layers. `parallel` 0 lets the worker choose
    how many requests may run at once. `type_k` and `type_v` are what keys and values are kept in.
    `draft_max` is how many tokens may be guessed and computed in one step; 0 turns it off.
    `pooling` makes it an embedding model, which "auto" leaves to the file. For those `n_ctx` is
    the longest text, 0 at most 2048 tokens, `n_ubatch` is how many tokens short texts share a
    batch up to, and `parallel` how many texts.
    """

    n_ctx: int = 0
    n_batch: int = 2048
    n_ubatch: int = 512
    n_threads: int = 0
    n_gpu_layers: int = -1
    parallel: int = 0
    type_k: KvType = "f16"
    type_v: KvType = "f16"
    flash_attn: Literal["auto", "on", "off"] = "auto"
    draft_max: int = 16
    pooling: Literal["auto"] | Pooling = "auto"


class CacheConfig(msgspec.Struct, frozen=True):
    """The prompt cache on disk: its folder, its budget for all models, and what is written.

    `write`: everything ("all"), what is worth it ("auto"), or nothing ("off"; it is still read).
    """

    folder: str
    size_bytes: int
    write: Literal["all", "auto", "off"] = "auto"
