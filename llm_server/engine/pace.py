"""How many prompt tokens fit into a step without anybody noticing: learnt from the steps so far.

Pure arithmetic over durations that the engine measures; it knows no sequences.
"""

from __future__ import annotations

TILE = 16
"""Rows that llama.cpp's CPU kernels compute together: sizes just above a multiple are poor
(measured: 16 prompt tokens a step keep 84 % of full prompt speed, 64 keep 95 %)."""

_LEAST = 4  # rows that are nearly free beside a decoding one, however slow the machine
_SMOOTHING = 0.3  # weight of the newest step in the running means
_FASTEST_S = 1e-6  # a coarse clock may measure nothing at all


class Pace:
    """Limits of prompt tokens per step, from the measured cost of a prompt token.

    `busy_s` is how long a step may take while others decode (it is their gap between tokens),
    `alone_s` while nobody does (it is how long a new request waits to be noticed).
    """

    def __init__(self, n_batch: int, *, busy_s: float = 0.15, alone_s: float = 0.5) -> None:
        self._n_batch = n_batch
        self._busy_s = busy_s
        self._alone_s = alone_s
        self._token_s: float | None = None
        self._decode_s = 0.0

    def prompt_budget(self, n_decoding: int) -> int:
        """Prompt tokens the next step may compute beside `n_decoding` rows of other sequences."""
        room = self._n_batch - n_decoding
        if self._token_s is None:
            return min(room, TILE if n_decoding else 8 * TILE)
        seconds = self._busy_s - self._decode_s if n_decoding else self._alone_s
        n = max(_LEAST, int(seconds / self._token_s))
        whole_tiles = (n + n_decoding) // TILE * TILE - n_decoding
        return max(1, min(room, whole_tiles if whole_tiles >= _LEAST else n))

    def learn(self, n_decoding: int, n_prompt: int, seconds: float) -> None:
        """A step of so many rows took `seconds`."""
        if n_prompt == 0:
            self._decode_s = _mean(self._decode_s or None, seconds)
        elif n_prompt >= TILE // 2:
            own = max(seconds - (self._decode_s if n_decoding else 0.0), seconds / 4)
            self._token_s = _mean(self._token_s, max(own / n_prompt, _FASTEST_S))

    def prompt_seconds(self, n: int) -> float:
        """Expected time to compute `n` prompt tokens; 0 before anything was learnt."""
        return n * (self._token_s or 0.0)


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + _SMOOTHING * (new - old)
