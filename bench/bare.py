"""The yardstick: a bare `llama_decode` loop with greedy sampling, nothing of the server in it.

It calls llama.cpp's C API directly, with the settings the server uses (one unified KV memory,
the same batch sizes and threads), and decodes any number of streams in one batch a step. As a
program, `python -m bench.bare MODEL N_CTX N_STREAMS N_THREADS`, it loads the model, says how long
that took, and ends.
"""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_server.llama.context import FLASH_ATTENTION
from llm_server.llama.lib import lib
from llm_server.llama.model import may_reorder
from llm_server.worker.config import FlashAttention


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _quiet(_level: int, _text: bytes, _data: object) -> None:
    """Drops llama.cpp's log, which would tear the tables."""


class BareLoop:
    """A loaded model and a context for `n_streams` sequences."""

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int,
        n_streams: int,
        n_threads: int,
        flash_attn: FlashAttention = "auto",
    ) -> None:
        lib.llama_log_set(_quiet, None)
        lib.llama_backend_init()
        model_params = lib.llama_model_default_params()
        model_params.use_extra_bufts = may_reorder()
        self._model = lib.llama_model_load_from_file(bytes(path), model_params)
        self._vocab = lib.llama_model_get_vocab(self._model)
        params = lib.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = 2048
        params.n_ubatch = 512
        params.n_seq_max = n_streams
        params.n_threads = params.n_threads_batch = n_threads
        params.flash_attn_type = FLASH_ATTENTION[flash_attn]
        params.kv_unified = True
        params.no_perf = True
        self._context = lib.llama_init_from_model(self._model, params)
        self._sampler = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        lib.llama_sampler_chain_add(self._sampler, lib.llama_sampler_init_greedy())
        self._batch = lib.llama_batch_init(params.n_batch, 0, 1)

    def tokenize(self, text: str) -> list[int]:
        """Token ids; control tokens in the text are recognised."""
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 8))()
        n = lib.llama_tokenize(self._vocab, data, len(data), ids, len(ids), True, True)
        return ids[:n]

    def decode(self, prompts: list[str], n_tokens: int) -> float:
        """Tokens a second over all streams while each decodes `n_tokens`; prompts not counted."""
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        tokens, n_past = [], []
        for stream, prompt in enumerate(prompts):
            ids = self.tokenize(prompt)
            self._compute([(id, pos, stream, pos == len(ids) - 1) for pos, id in enumerate(ids)])
            tokens.append(self._sample(len(ids) - 1))
            n_past.append(len(ids))
        start = time.perf_counter()
        for step in range(n_tokens):
            self._compute(
                [(id, n_past[i] + step, i, True) for i, id in enumerate(tokens)],
            )
            tokens = [self._sample(row) for row in range(len(prompts))]
        return n_tokens * len(prompts) / (time.perf_counter() - start)

    def step_seconds(self, depth: int, sizes: Sequence[int]) -> list[float]:
        """Seconds of a step for each number of rows: one decodes, the others are a prompt's behind
        `depth` tokens."""
        memory = self._fill(depth)
        self._compute([(1, 0, 1, True)])
        seconds = []
        for size in sizes:
            prompt = [(pos, pos, 0, False) for pos in range(depth, depth + size - 1)]
            start_s = time.perf_counter()
            self._compute([(1, 1, 1, True), *prompt])
            seconds.append(time.perf_counter() - start_s)
            lib.llama_memory_seq_rm(memory, 0, depth, -1)
            lib.llama_memory_seq_rm(memory, 1, 1, -1)
        return seconds

    def streams_seconds(self, n_streams: int, depth: int, n_steps: int = 5) -> float:
        """Seconds of a step in which `n_streams` decode, each behind `depth` tokens of its own."""
        memory = self._fill(depth)
        size = lib.llama_state_seq_get_size(self._context, 0)
        state = (ctypes.c_uint8 * size)()
        lib.llama_state_seq_get_data(self._context, state, size, 0)
        for stream in range(1, n_streams):
            lib.llama_state_seq_set_data(self._context, state, size, stream)
        seconds = []
        for _ in range(n_steps):
            start_s = time.perf_counter()
            self._compute([(1, depth, stream, True) for stream in range(n_streams)])
            seconds.append(time.perf_counter() - start_s)
            for stream in range(n_streams):
                lib.llama_memory_seq_rm(memory, stream, depth, -1)
        return statistics.median(seconds)

    def _fill(self, depth: int) -> Any:
        """`depth` tokens in the first sequence, and nothing else; the memory of the context."""
        memory = lib.llama_get_memory(self._context)
        lib.llama_memory_clear(memory, True)
        for start in range(0, depth, 512):
            stop = min(start + 512, depth)
            self._compute([(pos, pos, 0, False) for pos in range(start, stop)])
        return memory

    def _sample(self, row: int) -> int:
        token: int = lib.llama_sampler_sample(self._sampler, self._context, row)
        return token

    def _compute(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Decode rows of (token, position, sequence, whether logits are wanted)."""
        batch: Any = self._batch
        for i, (token, position, sequence, logits) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = logits
        batch.n_tokens = len(rows)
        status = lib.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")

    def close(self) -> None:
        """Free everything."""
        lib.llama_batch_free(self._batch)
        lib.llama_sampler_free(self._sampler)
        lib.llama_free(self._context)
        lib.llama_model_free(self._model)


def main() -> None:
    """Load as `BareLoop` does, and print the seconds that llama.cpp took, timed inside."""
    path, (n_ctx, n_streams, n_threads) = Path(sys.argv[1]), map(int, sys.argv[2:5])
    start = time.perf_counter()
    BareLoop(path, n_ctx=n_ctx, n_streams=n_streams, n_threads=n_threads)
    print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
