"""A llama.cpp context with one KV memory that all sequences share. No policy: see `cache/prefix`.

Two kinds of memory: attention models keep a cell for every token and can share or drop any range;
recurrent and hybrid models keep one state a sequence, which can be shared whole but not cut.
Sliding-window models are given full-size caches (`swa_full`) and so belong to the first kind.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from llm_server.llama.batch import Batch
from llm_server.llama.lib import lib
from llm_server.llama.model import Model
from llm_server.worker.messages import LoadConfig

MAX_SEQUENCES = 256
"""LLAMA_MAX_SEQ: sequence ids that a unified memory can tell apart."""


class ContextError(Exception):
    """llama.cpp could not create the context; usually memory. The reason is in its log."""


class DecodeError(Exception):
    """`llama_decode` failed; the memory of the sequences in the batch cannot be trusted."""


class Context:
    """Computes batches over sequences; one per loaded model.

    Sequences in a batch have ids below `parallel`; ids from there to `n_seq` may hold cached
    prefixes. `whole_state` says of which kind the memory is (see the module).
    `batch` is what `decode` computes.
    """

    def __init__(self, model: Model, config: LoadConfig, n_ctx: int, parallel: int) -> None:
        """Allocate the memory for `n_ctx` cells and `parallel` running sequences.

        Raises:
            ContextError: the memory could not be had.
        """
        self.whole_state = model.keeps_whole_state
        self.parallel = parallel
        # A recurrent state is allocated for every id; a cell only remembers whose it is.
        self.n_seq = 2 * parallel if self.whole_state else MAX_SEQUENCES
        params = lib.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = min(config.n_batch, n_ctx)
        params.n_ubatch = min(config.n_ubatch, params.n_batch)
        params.n_seq_max = self.n_seq if self.whole_state else parallel
        params.n_outputs_max = max(params.n_seq_max, min(64, params.n_batch))
        params.n_threads = params.n_threads_batch = config.n_threads
        params.kv_unified = True
        params.swa_full = True
        params.no_perf = True
        self._context = lib.llama_init_from_model(model.handle, params)
        if not self._context:
            raise ContextError("llama.cpp could not create a context")
        self.model = model
        self.n_ctx: int = lib.llama_n_ctx(self._context)
        self.n_batch: int = lib.llama_n_batch(self._context)
        self.n_ubatch: int = lib.llama_n_ubatch(self._context)
        self.max_outputs: int = params.n_outputs_max
        self.batch = Batch(self.n_batch)
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
        status = lib.llama_decode(self._context, self.batch.struct)
        if status == 1:
            return "no_cells"
        if status != 0:
            raise DecodeError(f"llama_decode returned {status}")
        return "done"

    def logits(self, row: int) -> npt.NDArray[np.float32]:
        """The logits of a row that asked for them: a view, [n_vocab], valid until `decode`."""
        pointer = lib.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(pointer, (self.model.vocab.n_tokens,))

    def share(self, source: int, target: int, n: int) -> None:
        """Let `target` have the first `n` positions of `source` too, at no cost.

        `target` must be empty or hold a prefix of the same positions. A whole state is shared
        as it is: `n` must then be all that `source` holds.
        """
        end = -1 if self.whole_state else n
        start = -1 if self.whole_state else 0
        lib.llama_memory_seq_cp(self._memory, source, target, start, end)

    def drop(self, sequence: int) -> None:
        """Forget all of a sequence; cells that no other sequence has become free."""
        lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def clear(self) -> None:
        """Forget everything and zero the buffers, so that no NaN can linger in them."""
        lib.llama_memory_clear(self._memory, True)

    def warm_up(self) -> None:
        """Run one token through the weights so that the first request finds them in memory."""
        vocab = self.model.vocab
        self.batch.clear()
        self.batch.add(0, 0, [max(vocab.bos, 0)], logits=True)
        self.decode()
        self.clear()

    def close(self) -> None:
        """Free the context. Safe to call twice."""
        if self._context:
            lib.llama_free(self._context)
            self._context = None
