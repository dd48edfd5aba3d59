"""LoRA adapters: loaded for one model, and applied to a context of it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

from llm_server.llama.lib import lib
from llm_server.llama.model import LoadError, Model


class LoadedAdapter:
    """An adapter in memory. The model frees it.

    To be loaded before the contexts that use it: they are given room for its part of the graph.
    """

    def __init__(self, model: Model, path: Path, scale: float) -> None:
        """Read the file at `path`.

        Raises:
            LoadError: it is no adapter of this model.
        """
        self.handle = lib.llama_adapter_lora_init(model.handle, os.fsencode(path))
        if not self.handle:
            raise LoadError.of("this adapter", path)
        if lib.llama_adapter_get_alora_n_invocation_tokens(self.handle):
            raise LoadError("an adapter that is switched on by tokens is not supported")
        self.scale = scale


def apply(context: int, adapters: Sequence[LoadedAdapter]) -> None:
    """Let a `llama_context *` compute with these adapters, each times its scale.

    Raises:
        LoadError: llama.cpp refused them.
    """
    n = len(adapters)
    handles = (lib.llama_adapter_lora_p_ctypes * n)(*(adapter.handle for adapter in adapters))
    scales = (ctypes.c_float * n)(*(adapter.scale for adapter in adapters))
    if lib.llama_set_adapters_lora(context, handles, n, scales) != 0:
        raise LoadError("llama.cpp could not apply the adapters")
