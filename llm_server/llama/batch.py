"""The rows of one `llama_decode`: numpy views over a `llama_batch`, filled without Python loops."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from llm_server.llama.lib import lib


class Batch:
    """Rows of (token, position, sequence, wants logits), at most `n_batch` of them.

    Each row belongs to one sequence, and with `n_owners` to the ids behind it, too. Reused for
    every step: `clear`, then `add`.
    """

    def __init__(self, n_batch: int, n_owners: int = 1) -> None:
        self.n_batch = n_batch
        self._n_owners = n_owners
        self.n_rows = 0
        self._token = np.zeros(n_batch, np.int32)
        self._pos = np.zeros(n_batch, np.int32)
        self._seq = np.zeros((n_batch, n_owners), np.int32)
        self._n_seq = np.full(n_batch, n_owners, np.int32)
        self._logits = np.zeros(n_batch, np.int8)
        # seq_id[i] points at the i-th row of _seq, once and for all.
        pointers = self._seq.ctypes.data + 4 * n_owners * np.arange(n_batch, dtype=np.uint64)
        self._seq_pointers = pointers.astype(np.uint64)
        self.struct = lib.llama_batch()
        self.struct.token = _pointer(self._token, ctypes.c_int32)
        self.struct.pos = _pointer(self._pos, ctypes.c_int32)
        self.struct.n_seq_id = _pointer(self._n_seq, ctypes.c_int32)
        self.struct.seq_id = ctypes.cast(
            self._seq_pointers.ctypes.data, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))
        )
        self.struct.logits = _pointer(self._logits, ctypes.c_int8)

    def clear(self) -> None:
        """Forget all rows."""
        self.n_rows = 0
        self.struct.n_tokens = 0

    def add(self, seq_id: int, start: int, tokens: Sequence[int], *, logits: int) -> int:
        """Append `tokens` of one sequence at positions from `start`; `logits` for that many last.

        Returns the row of the last token, for `Context.logits` and samplers.
        """
        first, end = self.n_rows, self.n_rows + len(tokens)
        assert end <= self.n_batch, "the scheduler planned more rows than n_batch"
        self._token[first:end] = tokens
        self._pos[first:end] = np.arange(start, start + len(tokens))
        self._seq[first:end] = np.arange(seq_id, seq_id + self._n_owners)
        self._logits[first:end] = 0
        self._logits[end - logits : end] = 1
        self.n_rows = end
        self.struct.n_tokens = end
        return end - 1


def _pointer(array: np.ndarray, kind: type) -> ctypes._Pointer:  # type: ignore[type-arg]
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))
