"""Graphics cards as llama.cpp sees them, and how much of a model they hold."""

from __future__ import annotations

import ctypes
import importlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from llm_server.llama.lib import lib

MARGIN = 1 << 30
"""Bytes left free on each card, as llama.cpp's own `--fit-target` does: displays need some, and
drivers take some for each process."""
LEAST_SHARE = 1 / 16
"""What a card has to add to the room of all: computing takes some of it wherever there are layers,
and the first card always gets one."""

_GPU, _INTEGRATED = 1, 2
"""enum ggml_backend_dev_type."""
_WITHOUT_CARDS = {"CPU", "BLAS", "ZenDNN", "zDNN", "RPC"}
"""ggml's names of backends that compute on the processor, or elsewhere."""


@dataclass(frozen=True, slots=True)
class Device:
    """A card: bytes that are free, and whether it shares the machine's memory."""

    free: int
    integrated: bool


def devices() -> list[Device]:
    """The cards that llama.cpp would use; none where it was built without."""
    if not lib.llama_supports_gpu_offload():
        return []
    ggml = _ggml()
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


def built_for_cards() -> bool:
    """Whether llama.cpp was built to use cards, be there any or not."""
    ggml = _ggml()
    names = {
        ggml.ggml_backend_reg_name(ggml.ggml_backend_reg_get(i)).decode()
        for i in range(ggml.ggml_backend_reg_count())
    }
    return not names <= _WITHOUT_CARDS


def _ggml() -> Any:
    """The functions of `ggml-backend.h`, which the bindings do not declare."""
    ggml = importlib.import_module("llama_cpp._ggml").libggml
    for kind in ("dev", "reg"):
        getattr(ggml, f"ggml_backend_{kind}_count").restype = ctypes.c_size_t
        get = getattr(ggml, f"ggml_backend_{kind}_get")
        get.argtypes, get.restype = [ctypes.c_size_t], ctypes.c_void_p
    ggml.ggml_backend_reg_name.argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_reg_name.restype = ctypes.c_char_p
    ggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    size = ctypes.POINTER(ctypes.c_size_t)
    ggml.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, size, size]
    return ggml


def rooms(cards: Sequence[Device]) -> list[int]:
    """Bytes that each card has for a model, by which layers are split; 0 if it is not worth it."""
    room = [max(0, card.free - MARGIN) for card in cards]
    return [size if size >= sum(room) * LEAST_SHARE else 0 for size in room]


def layers_that_fit(layer_bytes: Sequence[int], reserve: int, cards: Sequence[Device]) -> int:
    """How many layers the cards hold, counted from the last one, as llama.cpp puts them there.

    `layer_bytes` is what each takes with its cells, the output layer last; `reserve` what
    computing takes on each card that has any.
    """
    room = rooms(cards)
    if not any(room):
        return 0
    for n in range(len(layer_bytes), 0, -1):
        loads = _loads(layer_bytes[-n:], room)
        if all(not load or load + reserve <= most for load, most in zip(loads, room, strict=True)):
            return n
    return 0


def _loads(sizes: Sequence[int], shares: Sequence[int]) -> list[int]:
    """Bytes of the layers on each card: those of one follow each other, and are counted alone.

    As in llama.cpp's `load_tensors` (llama-model.cpp): sizes do not matter for the split.
    """
    ends = list(accumulate(shares))
    loads = [0] * len(shares)
    for i, size in enumerate(sizes):
        loads[bisect_right(ends, i * ends[-1] / len(sizes))] += size
    return loads
