"""How many prompt tokens fit into a step without anybody noticing: learnt from the steps so far.

Pure arithmetic over durations that the engine measures; it knows no sequences.
"""

from __future__ import annotations

TILE = 4
"""Rows that llama.cpp's CPU kernels compute together: 13 cost as much as 16."""

_BASE_ROWS = 10
"""What a step costs before its first row, in rows (measured: of full prompt speed 16 rows a step
keep 70 %, 32 keep 77, 40 keep 83, 64 keep 90)."""

_LEAST = 4  # rows that are nearly free beside a decoding one, however slow the machine
_SMOOTHING = 0.3  # weight of the newest step in the running means
_FASTEST_S = 1e-6  # a coarse clock may measure nothing at all
_MEMORY = 500
"""Steps after which a cost that was not seen again is forgotten: texts grow, machines get busy."""


class Pace:
    """Limits of prompt tokens per step, from the measured cost of a row of a large batch.

    `busy_s` is how long a step may take while others decode (it is their gap between tokens, and
    small chunks cost the prompt up to twice its time), `alone_s` while nobody does (it is how long
    a new request waits to be noticed).
    """

    def __init__(self, n_batch: int, *, busy_s: float = 0.22, alone_s: float = 0.5) -> None:
        self._n_batch = n_batch
        self._busy_s = busy_s
        self._alone_s = alone_s
        self._row_s: float | None = None
        self._rows_s: dict[int, float] = {}
        self._seen: dict[int, int] = {}
        self._n_steps = 0

    def prompt_budget(self, n_decoding: int) -> int:
        """Prompt tokens the next step may compute beside `n_decoding` rows of other sequences."""
        room = self._n_batch - n_decoding
        if self._row_s is None:
            return min(room, 4 * TILE if n_decoding else 32 * TILE)
        seconds = self._busy_s if n_decoding else self._alone_s
        n = max(_LEAST, int(seconds / self._row_s) - _BASE_ROWS - n_decoding)
        whole_tiles = (n + n_decoding) // TILE * TILE - n_decoding
        return max(1, min(room, whole_tiles if whole_tiles >= _LEAST else n))

    def learn(self, n_decoding: int, n_prompt: int, seconds: float, n_draft: int = 0) -> None:
        """A step of so many rows took `seconds`."""
        if n_prompt == 0:
            self._learn_rows(_whole(n_decoding + n_draft), max(seconds, _FASTEST_S))
        if n_prompt >= 2 * TILE:
            n_rows = _BASE_ROWS + n_decoding + n_draft + n_prompt
            self._row_s = _mean(self._row_s, max(seconds / n_rows, _FASTEST_S))

    def prompt_seconds(self, n: int) -> float:
        """Expected time to compute `n` prompt tokens; 0 before anything was learnt."""
        return n * (self._row_s or 0.0)

    def decode_seconds(self, n_rows: int) -> float:
        """Expected time of a step of `n_rows` rows without prompts; only ratios mean something."""
        size = _whole(n_rows)
        if size in self._rows_s or not self._rows_s:
            return self._rows_s.get(size, _row_cost(size))
        nearest = min(self._rows_s, key=lambda known: abs(known - size))
        return self._rows_s[nearest] * _row_cost(size) / _row_cost(nearest)

    def _learn_rows(self, size: int, seconds: float) -> None:
        self._n_steps += 1
        self._rows_s[size] = _mean(self._rows_s.get(size), seconds)
        self._seen[size] = self._n_steps
        for known in [s for s, n in self._seen.items() if n + _MEMORY < self._n_steps]:
            del self._rows_s[known], self._seen[known]


def _whole(n_rows: int) -> int:
    """Rows that cost as much: kernels compute them by tiles, but for one and two."""
    return n_rows if n_rows < 3 else -(-n_rows // TILE) * TILE


def _row_cost(size: int) -> float:
    """Cost of a step against one of one row, before it was seen: CPU kernels with quantized weights
    and a logit for every token of 152,000 (Qwen2.5-0.5B's shape, 2 cores)."""
    return size if size < 3 else 1.3 + 0.3 * size


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + _SMOOTHING * (new - old)
