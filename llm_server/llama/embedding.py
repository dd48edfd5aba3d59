"""A llama.cpp context that pools texts into vectors or scores. Keeps nothing between batches.

Encoders have no memory of tokens and see a whole text at once, so that a batch is one ubatch;
decoders are computed the same way, and their cells are dropped after each batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llm_server.llama import adapter, rope
from llm_server.llama.batch import Batch
from llm_server.llama.context import FLASH_ATTENTION, ContextError, DecodeError
from llm_server.llama.lib import lib
from llm_server.llama.model import Model
from llm_server.worker.config import LoadConfig, Pooling

POOLING: dict[Pooling, int] = {
    "mean": lib.LLAMA_POOLING_TYPE_MEAN,
    "cls": lib.LLAMA_POOLING_TYPE_CLS,
    "last": lib.LLAMA_POOLING_TYPE_LAST,
    "rank": lib.LLAMA_POOLING_TYPE_RANK,
}
"""enum llama_pooling_type, as far as it makes one vector of one text, or its scores."""


class EmbeddingContext:
    """Computes batches of whole texts: at most `n_batch` tokens of at most `max_texts` texts.

    `n_batch` is the longest text, and no more than the model was trained for: its position
    embeddings end there. `n_shared` is up to how many tokens texts should share a batch.
    """

    def __init__(
        self,
        model: Model,
        pooling: Pooling,
        *,
        n_batch: int,
        n_shared: int,
        max_texts: int,
        config: LoadConfig,
        adapters: Sequence[adapter.LoadedAdapter] = (),
    ) -> None:
        """Allocate the memory for one batch.

        Raises:
            ContextError: the memory could not be had.
        """
        params = lib.llama_context_default_params()
        # llama.cpp's graph for the mean has as many rows for each text, or ends the process.
        rows = -(-n_batch // max_texts) * max_texts
        params.n_ctx = params.n_batch = params.n_ubatch = rows
        params.n_seq_max = max_texts
        params.n_threads = params.n_threads_batch = config.n_threads
        params.embeddings = True
        params.pooling_type = POOLING[pooling]
        params.flash_attn_type = FLASH_ATTENTION[config.flash_attn]
        rope.configure(params, config)
        params.kv_unified = True
        params.no_perf = True
        self._context = lib.llama_init_from_model(model.handle, params)
        if not self._context:
            raise ContextError
        if adapters:
            adapter.apply(self._context, adapters)
        self.model = model
        self.n_batch = n_batch
        self.n_shared = min(n_shared, n_batch)
        self.max_texts = max_texts
        self._width = model.n_cls_out if pooling == "rank" else model.n_embd_out
        self._batch = Batch(n_batch)
        self._memory = lib.llama_get_memory(self._context)

    def embed(self, texts: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """The pooled vectors of `texts`, [len(texts), n_embd_out], as long as they come out.

        Of a reranker its outputs, [len(texts), n_cls_out], of which the first is the score.

        Raises:
            DecodeError: the computation failed.
        """
        self._batch.clear()
        for i, tokens in enumerate(texts):
            self._batch.add(i, 0, tokens, logits=len(tokens))
        compute = lib.llama_decode if self._memory else lib.llama_encode
        try:
            status = compute(self._context, self._batch.struct)
            if status != 0:
                raise DecodeError(f"llama.cpp returned {status} for a batch of texts")
            vectors = np.stack([self._pooled(i) for i in range(len(texts))])
        finally:
            if self._memory:
                lib.llama_memory_clear(self._memory, False)
        if not np.isfinite(vectors).all():
            raise DecodeError("a vector has elements that are no numbers")
        return vectors

    def _pooled(self, text: int) -> npt.NDArray[np.float32]:
        pointer = lib.llama_get_embeddings_seq(self._context, text)
        if not pointer:
            raise DecodeError(f"llama.cpp has no vector for text {text} of the batch")
        return np.ctypeslib.as_array(pointer, (self._width,)).copy()

    def close(self) -> None:
        """Free the context. Safe to call twice."""
        if self._context:
            lib.llama_free(self._context)
            self._context = None
