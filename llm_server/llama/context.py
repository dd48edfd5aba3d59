"""A llama.cpp context with one KV memory that all sequences share. No policy: see `cache/prefix`.

Two kinds of memory: attention models keep a cell for every token and can share or drop any range;
recurrent and hybrid models keep one state a sequence, which can be shared whole but not cut.
Sliding-window models are given full-size caches (`swa_full`) and so belong to the first kind. All
the same llama.cpp takes a cell outside its sequence's window, and all before it, for others, even
if there are empty ones (llama_kv_cache::find_slot); but only a cell with a single owner. So each
sequence of such models has two ids that own its cells.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llm_server.llama import adapter, log, pages, rope
from llm_server.llama.batch import Batch
from llm_server.llama.dry import DrySamplers
from llm_server.llama.lib import lib
from llm_server.llama.model import Model
from llm_server.worker.config import LoadConfig

MAX_SEQUENCES = 256
"""LLAMA_MAX_SEQ: sequence ids that a unified memory can tell apart."""


KV_TYPES = {"f16": lib.GGML_TYPE_F16, "q8_0": lib.GGML_TYPE_Q8_0, "q4_0": lib.GGML_TYPE_Q4_0}
"""enum ggml_type of what a cell may be kept in."""
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
"""enum llama_flash_attn_type."""


class ContextError(Exception):
    """llama.cpp could not create the context. `reason` is its own, "" where memory fell short."""

    def __init__(self) -> None:
        super().__init__("llama.cpp could not create a context")
        told = log.refusal()
        # "failed to allocate ...", std::bad_alloc, Vulkan's ErrorOutOfDeviceMemory
        self.reason = "" if re.search("alloc|memory", told, re.IGNORECASE) else told


class StateError(Exception):
    """llama.cpp did not take a saved state; the memory cannot be trusted any more."""


class DecodeError(Exception):
    """`llama_decode` failed; the memory of the sequences in the batch cannot be trusted."""


class Context:
    """Computes batches over sequences; one per loaded model.

    Sequences in a batch have ids of `running`; those of `idle` may hold cached prefixes.
    `whole_state` says of which kind the memory is (see the module).
    `batch` is what `decode` computes, `dry` has the samplers of that name.
    """

    def __init__(
        self,
        model: Model,
        config: LoadConfig,
        n_ctx: int,
        parallel: int,
        adapters: Sequence[adapter.LoadedAdapter] = (),
        *,
        n_idle: int = 0,
    ) -> None:
        """Allocate the memory for `n_ctx` cells and `parallel` running sequences.

        A memory of whole states also holds `n_idle` idle ones, 0 for as many as may run.

        Raises:
            ContextError: the memory could not be had, or llama.cpp refuses the settings.
        """
        self.whole_state = model.keeps_whole_state
        self._n_owners = 2 if model.n_swa and not self.whole_state else 1
        self.running = range(parallel)
        if self.whole_state:
            # A state is allocated for every id.
            n_seq_max = parallel + (n_idle or parallel)
            self.idle = range(parallel, n_seq_max)
        else:
            # A cell only remembers whose it is, so all ids may be used, but only those below
            # n_seq_max can be computed or saved. `_transit` is the stop-over of ranges.
            step = self._n_owners
            self.running = range(0, step * parallel, step)
            self._transit = step * parallel
            self.idle = range(self._transit + step, MAX_SEQUENCES, step)
            n_seq_max = self._transit + step
        params = _params(config, n_ctx, n_seq_max)
        before = pages.mapped()
        self._context = lib.llama_init_from_model(model.handle, params)
        if not self._context:
            raise ContextError
        if adapters:
            adapter.apply(self._context, adapters)
        self._fresh = pages.mapped_since(before)
        self.model = model
        # llama.cpp rounds up; a model with learnt positions may have none for what is added.
        self.n_ctx: int = min(n_ctx, lib.llama_n_ctx(self._context))
        self.dry = DrySamplers(model.vocab, self.n_ctx)
        self.n_batch: int = lib.llama_n_batch(self._context)
        self.max_outputs: int = params.n_outputs_max
        self.batch = Batch(self.n_batch, self._n_owners)
        self._put_back: list[npt.NDArray[np.float32]] = []
        self._memory = lib.llama_get_memory(self._context)

    @property
    def handle(self) -> int:
        """The `llama_context *`, for sampler chains."""
        handle: int = self._context
        return handle

    def decode(self) -> Literal["done", "no_cells"]:
        """Compute all rows of `batch`. "no_cells": nothing was computed for lack of room.

        Raises:
            DecodeError: the computation failed.
        """
        self._put_back.clear()
        status = lib.llama_decode(self._context, self.batch.struct)
        if status == 1:
            return "no_cells"
        if status != 0:
            raise DecodeError(f"llama_decode returned {status}")
        return "done"

    def logits(self, row: int) -> npt.NDArray[np.float32]:
        """The logits of a row that asked for them: a view, [n_vocab], valid until `decode`."""
        if row < 0:
            return self._put_back[~row]
        pointer = lib.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(pointer, (self.model.vocab.n_tokens,))

    def put_back(self, logits: npt.NDArray[np.float32]) -> int:
        """Have a copy of earlier logits [n_vocab] until `decode`; returns their row, below 0."""
        self._put_back.append(logits.copy())
        return -len(self._put_back)

    def share(self, source: int, target: int, start: int, stop: int) -> None:
        """Let `target` have the positions [start, stop) of `source` too, at no cost.

        `target` must hold exactly what comes before `start`. A whole state is shared as it is:
        the range must then be all that `source` holds.
        """
        if self.whole_state:
            start = stop = -1
        for owner in self._owners(target):
            lib.llama_memory_seq_cp(self._memory, source, owner, start, stop)

    def size(self, sequence: int) -> int:
        """Bytes that all of a sequence takes when it is saved."""
        n_bytes: int = lib.llama_state_seq_get_size(self._context, sequence)
        return n_bytes

    def save(self, source: int, start: int, stop: int) -> memoryview:
        """A copy of the positions [start, stop) of `source`, or of its whole state.

        With a sliding window the range must not be longer than it: llama.cpp leaves out what the
        window of the range's end does not reach.
        """
        if not self.whole_state:
            self.share(source, self._transit, start, stop)
            source = self._transit
        size = lib.llama_state_seq_get_size(self._context, source)
        buffer = np.empty(size, np.uint8)
        written = lib.llama_state_seq_get_data(self._context, _bytes_of(buffer), size, source)
        if not self.whole_state:
            self.drop(self._transit)
        return buffer.data[:written]

    def load(self, payload: memoryview, target: int, start: int, stop: int) -> None:
        """Give `target` the positions [start, stop) of what `save` returned, or its whole state.

        The caller vouches for `payload`: llama.cpp believes what it reads. `target` must hold
        exactly what comes before `start`.

        Raises:
            StateError: the payload was not taken whole.
        """
        into = target if self.whole_state else self._transit
        data = np.frombuffer(payload, np.uint8)
        taken = lib.llama_state_seq_set_data(self._context, _bytes_of(data), len(data), into)
        if taken != len(data):
            raise StateError(f"llama.cpp took {taken} of {len(data)} bytes")
        if not self.whole_state:
            self.share(self._transit, target, start, stop)
            self.drop(self._transit)

    def cut(self, sequence: int, start: int) -> None:
        """Forget the positions from `start` on. Not of a whole state."""
        for owner in self._owners(sequence):
            lib.llama_memory_seq_rm(self._memory, owner, start, -1)

    def drop(self, sequence: int) -> None:
        """Forget all of a sequence; cells that no other sequence has become free."""
        for owner in self._owners(sequence):
            lib.llama_memory_seq_rm(self._memory, owner, -1, -1)

    def _owners(self, sequence: int) -> range:
        """The ids that a sequence's cells belong to."""
        return range(sequence, sequence + self._n_owners)

    def clear(self) -> None:
        """Forget everything and zero the buffers, so that no NaN can linger in them."""
        lib.llama_memory_clear(self._memory, True)

    def give_back_zeros(self) -> None:
        """Give back what llama.cpp zeroed, until it is used.

        No other thread may be at work meanwhile (see `pages`).
        """
        pages.give_back_zeros(self._fresh)
        self._fresh = []

    def warm_up(self) -> None:
        """Run one token through the weights so that the first request finds them in memory."""
        vocab = self.model.vocab
        self.batch.clear()
        self.batch.add(0, 0, [max(vocab.bos, 0)], logits=True)
        self.decode()
        self.drop(0)

    def close(self) -> None:
        """Free the context. Safe to call twice."""
        self.dry.close()
        if self._context:
            lib.llama_free(self._context)
            self._context = None


def _params(config: LoadConfig, n_ctx: int, n_seq_max: int) -> Any:
    """struct llama_context_params."""
    params = lib.llama_context_default_params()
    params.n_ctx = n_ctx
    params.n_batch = min(config.n_batch, n_ctx)
    params.n_ubatch = min(config.n_ubatch, params.n_batch)
    params.n_seq_max = n_seq_max
    params.n_outputs_max = max(params.n_seq_max, min(64, params.n_batch))
    params.n_threads = params.n_threads_batch = config.n_threads
    params.type_k, params.type_v = KV_TYPES[config.type_k], KV_TYPES[config.type_v]
    params.flash_attn_type = FLASH_ATTENTION[config.flash_attn]
    rope.configure(params, config)
    params.kv_unified = True
    params.swa_full = True
    params.no_perf = True
    return params


def _bytes_of(array: npt.NDArray[np.uint8]) -> ctypes._Pointer[ctypes.c_uint8]:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
