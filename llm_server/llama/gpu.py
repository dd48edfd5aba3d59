"""Graphics cards as llama.cpp sees them, and how much of a model they hold."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Sequence
from dataclasses import dataclass

from llm_server.llama.lib import lib

MARGIN = 1 << 30
"""Bytes left free on each card, as llama.cpp's own `--fit-target` does: displays need some, and
drivers take some for each process."""

_GPU, _INTEGRATED = 1, 2
"""enum ggml_backend_dev_type."""


@dataclass(frozen=True, slots=True)
class Device:
    """A card: bytes that are free, and whether it shares the machine's memory."""

    free: int
    integrated: bool


def devices() -> list[Device]:
    """The cards that llama.cpp would use; none where it was built without."""
    if not lib.llama_supports_gpu_offload():
        return []
    ggml = importlib.import_module("llama_cpp._ggml").libggml
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    ggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    size = ctypes.POINTER(ctypes.c_size_t)
    ggml.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, size, size]
    found = []
    for i in range(ggml.ggml_backend_dev_count()):
        device = ggml.ggml_backend_dev_get(i)
        kind = ggml.ggml_backend_dev_type(device)
        if kind in (_GPU, _INTEGRATED):
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            ggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
            found.append(Device(free.value, kind == _INTEGRATED))
    # llama.cpp takes integrated ones only where there is no other.
    return [d for d in found if not d.integrated] or found


def layers_that_fit(layer_bytes: Sequence[int], reserve: int, cards: Sequence[Device]) -> int:
    """How many layers the cards hold, counted from the last one, as llama.cpp puts them there.

    `layer_bytes` is what each takes with its cells, the output layer last; `reserve` what
    computing takes on each card.
    """
    room = sum(max(0, card.free - MARGIN - reserve) for card in cards)
    n = 0
    for size in reversed(layer_bytes):
        room -= size
        if room < 0:
            break
        n += 1
    return n
