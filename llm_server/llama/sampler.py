"""llama.cpp's sampler chain, built from a request's `Sampling`. One per sequence."""

from __future__ import annotations

import ctypes
import secrets
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llm_server.llama.context import Context
from llm_server.llama.dry import within
from llm_server.llama.lib import lib
from llm_server.worker.messages import Sampling

_MIN_KEEP = 1
_MIROSTAT_M = 100  # llama.cpp's own constant in common/sampling.cpp

_GREEDY = 1e-6
"""A temperature below this is 0: logits divided by less than some 1e-37 are infinite."""

_LEAST = 1e-30
"""Of the best token's probability: what has less cannot come, and still has a logarithm."""

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""struct llama_token_data."""


class Sampler:
    """Picks the next token of one sequence. Order of the chain: llama.cpp's default.

    The order is penalties, DRY, top-k, typical, top-p, min-p, XTC, temperature
    (`common/common.h`), behind the logit bias.
    """

    def __init__(self, context: Context, sampling: Sampling, history: Sequence[int]) -> None:
        """`history` are the prompt's tokens: penalties count them too, as in llama.cpp."""
        self._context = context
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        seed = sampling.seed if sampling.seed is not None else secrets.randbits(32)
        # llama.cpp takes the largest of its seeds for the wish to have one drawn.
        self.seed = seed if seed != lib.LLAMA_DEFAULT_SEED else 0
        self._add_bias(sampling)
        if sampling.temperature < _GREEDY:
            self._add_penalties(sampling)
            self._add(lib.llama_sampler_init_greedy())
        elif sampling.mirostat:
            self._add_mirostat(sampling)
        else:
            self._add_penalties(sampling)
            self._add_truncation(sampling)
            self._add(lib.llama_sampler_init_dist(self.seed))
        reach = self._reach(sampling)
        for token in history[-reach:] if reach else ():
            lib.llama_sampler_accept(self._chain, token)

    def sample(self, row: int, mask: npt.NDArray[np.int32] | None = None) -> int:
        """The next token from the logits of `row` (`Context.logits`); remembered by penalties.

        `mask` holds a bit for each token that is allowed, 32 to a word, the lowest first.
        """
        if mask is not None:
            logits = self._context.logits(row)
            allowed = np.unpackbits(mask.view(np.uint8), count=len(logits), bitorder="little")
            logits[allowed == 0] = -np.inf
        if row < 0:
            return self._sample_put_back(row)
        token: int = lib.llama_sampler_sample(self._chain, self._context.handle, row)
        return token

    def accept(self, token: int) -> None:
        """Remember a token that was not sampled."""
        lib.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        """Free the chain. Safe to call twice."""
        if self._chain:
            lib.llama_sampler_free(self._chain)
            self._chain = None

    def _sample_put_back(self, row: int) -> int:
        """As `llama_sampler_sample` does it, from logits that llama.cpp does not have any more."""
        logits = self._context.logits(row)
        candidates = np.zeros(len(logits), _CANDIDATE)
        candidates["id"] = np.arange(len(logits))
        candidates["logit"] = logits
        data = ctypes.cast(candidates.ctypes.data, lib.llama_token_data_p)
        chosen = lib.llama_token_data_array(data, len(logits), -1, False)
        lib.llama_sampler_apply(self._chain, ctypes.byref(chosen))
        token: int = chosen.data[chosen.selected].id
        self.accept(token)
        return token

    def _add(self, sampler: int) -> None:
        lib.llama_sampler_chain_add(self._chain, sampler)

    def _reach(self, sampling: Sampling) -> int:
        """How many tokens back any sampler of the chain looks; 0 if none does."""
        penalties = (
            sampling.repeat_penalty != 1.0
            or sampling.frequency_penalty != 0.0
            or sampling.presence_penalty != 0.0
        )
        reaches = [
            sampling.repeat_last_n if penalties else 0,
            sampling.dry_penalty_last_n if sampling.dry_multiplier else 0,
        ]
        return max(within(n, self._context.n_ctx) for n in reaches)

    def _add_bias(self, sampling: Sampling) -> None:
        n_vocab = self._context.model.vocab.n_tokens
        biases = dict(sampling.logit_bias)
        biases.update(dict.fromkeys(self._context.model.vocab.suppressed, float("-inf")))
        if biases:
            array = (lib.llama_logit_bias * len(biases))(*biases.items())
            self._add(lib.llama_sampler_init_logit_bias(n_vocab, len(biases), array))

    def _add_penalties(self, sampling: Sampling) -> None:
        n_vocab = self._context.model.vocab.n_tokens
        if self._reach(sampling) == 0:
            return
        self._add(
            lib.llama_sampler_init_penalties(
                n_vocab,
                within(sampling.repeat_last_n, self._context.n_ctx),
                sampling.repeat_penalty,
                sampling.frequency_penalty,
                sampling.presence_penalty,
            )
        )
        if sampling.dry_multiplier:
            self._add(self._context.dry.copy(sampling))

    def _add_truncation(self, sampling: Sampling) -> None:
        if sampling.top_k > 0:
            self._add(lib.llama_sampler_init_top_k(sampling.top_k))
        if sampling.typical_p < 1.0:
            self._drop_impossible()
            self._add(lib.llama_sampler_init_typical(sampling.typical_p, _MIN_KEEP))
        if sampling.top_p < 1.0:
            self._add(lib.llama_sampler_init_top_p(sampling.top_p, _MIN_KEEP))
        if sampling.min_p > 0.0:
            self._add(lib.llama_sampler_init_min_p(sampling.min_p, _MIN_KEEP))
        if sampling.xtc_probability > 0.0:
            self._add(
                lib.llama_sampler_init_xtc(
                    sampling.xtc_probability, sampling.xtc_threshold, _MIN_KEEP, self.seed
                )
            )
        self._add(lib.llama_sampler_init_temp(sampling.temperature))

    def _add_mirostat(self, sampling: Sampling) -> None:
        tau, eta = sampling.mirostat_tau, sampling.mirostat_eta
        self._add_penalties(sampling)
        self._add(lib.llama_sampler_init_temp(sampling.temperature))
        if sampling.mirostat == 1:
            self._drop_impossible()
            n_vocab = self._context.model.vocab.n_tokens
            self._add(lib.llama_sampler_init_mirostat(n_vocab, self.seed, tau, eta, _MIROSTAT_M))
        else:
            self._add(lib.llama_sampler_init_mirostat_v2(self.seed, tau, eta))

    def _drop_impossible(self) -> None:
        """Leave out what a grammar or a ban forbids.

        Samplers that take the logarithm of each probability would choose by NaN.
        """
        self._add(lib.llama_sampler_init_min_p(_LEAST, _MIN_KEEP))
