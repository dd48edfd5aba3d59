"""A loaded GGUF model: its weights, its metadata, its vocabulary. Nothing of contexts."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from llm_server.errors import printable
from llm_server.llama import log
from llm_server.llama.gpu import devices, rooms
from llm_server.llama.lib import lib
from llm_server.llama.vocab import Vocab

_AMX = b"AMX_INT8 = 1"
"""How llama.cpp says that it would keep weights for tiles of AMX (Intel's servers since 2023)."""

_MAX_REASON = 300
"""Characters of llama.cpp's reasons that are passed on: some are of the file's own making."""


def may_reorder() -> bool:
    """Whether llama.cpp may keep weights in the order that the processor's kernels want.

    Not where that would be tiles of AMX: GCC leaves out most of their configuration, which ends the
    process with SIGILL in the first batch of two tokens (ggml-org/llama.cpp#26954, open at 0.3.36).
    The switch is one for all orders: it costs a 0.5B model at Q4_K_M 3 to 5 % of its speed.
    """
    return _AMX not in lib.llama_print_system_info()


class LoadError(Exception):
    """llama.cpp refused the file."""

    @classmethod
    def of(cls, what: str, path: Path) -> LoadError:
        """It refused `what`, the file at `path`; with the reason it gave, without our folders."""
        reason = log.refusal().replace(f"{path.parent}/", "")
        shown = printable(reason, _MAX_REASON, "?").rstrip(" .")
        return cls(f"llama.cpp cannot load {what}" + (f": {shown}" if shown else ""))


class Model:
    """Weights in memory. Free it with `close`, after every context of it."""

    def __init__(
        self,
        path: Path,
        *,
        n_gpu_layers: int = -1,
        on_progress: Callable[[float], None] = lambda fraction: None,
    ) -> None:
        """Read the file at `path` (the first one of a split model).

        Raises:
            LoadError: it is not a model that this build can load.
        """
        params = lib.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        params.use_extra_bufts = may_reorder()
        # llama.cpp would split by all that is free, and give a full card a layer too much.
        params.tensor_split = (ctypes.c_float * lib.llama_max_devices())(*rooms(devices()))

        def report(fraction: float, _user_data: object) -> bool:
            on_progress(fraction)
            return True

        callback = lib.llama_progress_callback(report)
        params.progress_callback = callback
        self._model = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise LoadError.of("this model", path)
        self.vocab = Vocab(self._model)
        self.n_ctx_train: int = lib.llama_model_n_ctx_train(self._model)
        self.n_layer: int = lib.llama_model_n_layer(self._model)
        self.n_embd: int = lib.llama_model_n_embd(self._model)
        self.n_embd_out: int = lib.llama_model_n_embd_out(self._model)
        self.n_cls_out: int = lib.llama_model_n_cls_out(self._model)
        self.n_swa: int = lib.llama_model_n_swa(self._model)
        self.size_bytes: int = lib.llama_model_size(self._model)

    @property
    def handle(self) -> int:
        """The `llama_model *`, for contexts."""
        handle: int = self._model
        return handle

    @property
    def keeps_whole_state(self) -> bool:
        """Whether its memory (recurrent, hybrid) cannot be cut at an earlier position."""
        return bool(
            lib.llama_model_is_recurrent(self._model) or lib.llama_model_is_hybrid(self._model)
        )

    @property
    def description(self) -> str:
        """Architecture, size and quantization in a few words, as llama.cpp puts it.

        It knows the sizes of published models; those of others are counted.
        """
        buffer = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self._model, buffer, len(buffer))
        described = buffer.value.decode("utf-8", "replace")
        return described.replace("?B", _size_text(lib.llama_model_n_params(self._model)), 1)

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the default chat template in the file, if it has one."""
        source = lib.llama_model_chat_template(self._model, None)
        return source.decode("utf-8", "replace") if source else None

    @property
    def rerank_template(self) -> str | None:
        """What a reranker is asked, with `{query}` and `{document}` in it, if the file has that."""
        source = lib.llama_model_chat_template(self._model, b"rerank")
        return source.decode("utf-8", "replace") if source else None

    def metadata(self, key: str) -> str | None:
        """A metadata value as text, or None."""
        buffer = ctypes.create_string_buffer(1024)
        n = lib.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if n >= 0 else None

    def kv_bytes_per_token(self) -> int:
        """Bytes one KV cell takes at F16 over all layers; 0 for a model without attention.

        Formula: layers x KV heads x (key + value length) x 2 bytes, as in llama.cpp's
        llama-kv-cache. Models that vary the heads by layer are counted at their largest.
        """
        arch = self.metadata("general.architecture") or ""
        n_head = max(1, lib.llama_model_n_head(self._model))
        n_embd = lib.llama_model_n_embd(self._model)
        head = n_embd // n_head
        key = int(self.metadata(f"{arch}.attention.key_length") or head)
        value = int(self.metadata(f"{arch}.attention.value_length") or head)
        n_head_kv: int = lib.llama_model_n_head_kv(self._model)
        return self.n_layer * n_head_kv * (key + value) * 2

    def close(self) -> None:
        """Free the weights. Safe to call twice."""
        if self._model:
            lib.llama_model_free(self._model)
            self._model = None


def _size_text(n_params: int) -> str:
    """A number of weights as the names of models have it: 1.5B, 13M."""
    for unit, name in ((10**9, "B"), (10**6, "M")):
        if n_params >= unit:
            return f"{n_params / unit:.3g}{name}"
    return f"{n_params / 1000:.3g}K"
