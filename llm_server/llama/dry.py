"""DRY samplers (`llama_sampler_init_dry`): what looks for sequences that repeat.

A new one reads the whole vocabulary for each of its breakers, some 70 ms for 150,000 tokens and the
four breakers of the default, so each kind is built once and copied.
"""

from __future__ import annotations

import ctypes
import threading
from collections import OrderedDict

from llm_server.llama.lib import lib
from llm_server.llama.vocab import Vocab
from llm_server.worker.messages import Sampling

_KEPT = 8
"""Kinds that are kept: one takes a megabyte or so."""

_Kind = tuple[float, float, int, int, tuple[str, ...]]


class DrySamplers:
    """The kinds of one vocabulary. Threads may share it; who builds one holds nobody up."""

    def __init__(self, vocab: Vocab, n_ctx: int) -> None:
        self._vocab = vocab
        self._n_ctx = n_ctx
        self._lock = threading.Lock()
        self._kept: OrderedDict[_Kind, int] = OrderedDict()

    def build(self, sampling: Sampling) -> None:
        """Have the kind that `sampling` asks for, if it asks for any, before it is needed."""
        if sampling.dry_multiplier:
            lib.llama_sampler_free(self.copy(sampling))

    def copy(self, sampling: Sampling) -> int:
        """A sampler that has seen nothing yet; its owner frees it."""
        kind = self._kind(sampling)
        with self._lock:
            if kind in self._kept:
                self._kept.move_to_end(kind)
                return self._copied(kind)
        built = self._built(*kind)
        with self._lock:
            if kind in self._kept:  # another thread was faster
                lib.llama_sampler_free(built)
            else:
                self._kept[kind] = built
            copied = self._copied(kind)
            while len(self._kept) > _KEPT:
                lib.llama_sampler_free(self._kept.popitem(last=False)[1])
        return copied

    def close(self) -> None:
        """Free what is kept. Safe to call twice."""
        with self._lock:
            while self._kept:
                lib.llama_sampler_free(self._kept.popitem()[1])

    def _copied(self, kind: _Kind) -> int:
        copied: int = lib.llama_sampler_clone(self._kept[kind])
        return copied

    def _kind(self, sampling: Sampling) -> _Kind:
        return (
            sampling.dry_multiplier,
            sampling.dry_base,
            sampling.dry_allowed_length,
            within(sampling.dry_penalty_last_n, self._n_ctx),
            tuple(sampling.dry_sequence_breakers),
        )

    def _built(
        self, multiplier: float, base: float, allowed: int, last_n: int, words: tuple[str, ...]
    ) -> int:
        breakers = [word.encode() for word in words]
        built: int = lib.llama_sampler_init_dry(
            self._vocab.handle,
            multiplier,
            base,
            allowed,
            last_n,
            (ctypes.c_char_p * len(breakers))(*breakers),
            len(breakers),
        )
        return built


def within(last_n: int, n_ctx: int) -> int:
    """How many tokens back a penalty looks: -1 is the whole context, and there is no more.

    llama.cpp takes memory for as many as it is told.
    """
    return n_ctx if last_n == -1 else min(last_n, n_ctx)
