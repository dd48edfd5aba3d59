"""How many prompt tokens fit into a step without anybody noticing: learnt from the steps so far.

Pure arithmetic over durations that the engine measures; it knows no sequences.
"""

from __future__ import annotations

import math

TILE = 4
"""Rows that llama.cpp's CPU kernels compute together: 13 cost as much as 16."""

WIDE = 64
"""Rows from which llama.cpp's CPU attention goes by tiles (GGML_FA_TILE_Q). Of fewer, each looks at
every cell by itself: behind 1,536 cells 63 rows take 604 ms where 64 take 412, and 20 take 215."""

_ROUNDS = 12  # halvings, to a thousandth
_WIDE_TILE = 16  # above that: 65 rows cost as much as 72, 80 no more a row than 64
_BASE_ROWS = 10
"""What a step costs before its first row, in rows (measured: of full prompt speed 16 rows a step
keep 70 %, 32 keep 77, 40 keep 83, 64 keep 90)."""

_LEAST = 12
"""However slow the machine: with four rows a step a prompt took 3.3 times its time."""
_LEAST_ALONE = 32
"""However slow the machine: smaller steps compute a prompt at a third of its speed, and who comes
meanwhile waits no longer than some three times what a dozen rows of their own will take."""
_SLACK = 7 / 6  # a wide step may be so much longer than one should be
_TO_THE_END = 1.5
"""How much longer than it should a step may take where nobody decodes, if all prompts end by it:
of 136 rows behind 700, 97 and then 39 took 0.81 s, all together take 0.65."""
_REST = WIDE + 2 * TILE  # left for a last step: the one before may take a little more than told
_WORTH = 1.25  # how much faster a prompt must become to be worth a longer gap
_SMOOTHING = 0.3  # weight of the newest step in the running means
_FASTEST_S = 1e-6  # a coarse clock may measure nothing at all
_LINE_STEPS = 50  # over how many steps the cost of a row is put on a line
_MEMORY = 500
"""Steps after which a cost that was not seen again is forgotten: texts grow, machines get busy."""


class Pace:
    """Limits of prompt tokens per step, from the measured cost of a row in batches of either kind.

    `busy_s` is how long a step may take while others decode (it is their gap between tokens),
    `alone_s` while nobody does (it is how long a new request waits to be noticed), or fewer do than
    wait with short prompts; where it makes the step wide, a sixth more. A wide step that takes
    longer is taken all the same, up to twice `alone_s`, if nobody decodes, or if narrow ones would
    add a quarter to a prompt's time; and beyond that where a prompt would gain more by it than a
    stream would lose.
    """

    def __init__(self, n_batch: int, *, busy_s: float = 0.22, alone_s: float = 0.5) -> None:
        self._n_batch = n_batch
        self._busy_s = busy_s
        self._alone_s = alone_s
        self._narrow = _RowCost()
        self._wide = _RowCost()
        self._rows_s: dict[int, float] = {}
        self._seen: dict[int, int] = {}
        self._n_steps = 0

    def prompt_budget(
        self, n_decoding: int, depth: int, n_short: int = 0, n_wanted: float = math.inf
    ) -> int:
        """Prompt tokens the next step may compute beside `n_decoding` rows of other sequences.

        `n_wanted` are those of all prompts: the last step should not be a narrow one.
        """
        budget = self._budget(n_decoding, depth, n_short)
        if n_decoding or budget <= WIDE or not budget < n_wanted < budget + _REST:
            return budget
        if n_wanted <= min(_TO_THE_END * budget, self._n_batch):
            return int(n_wanted)
        return max(WIDE, int(n_wanted) - _REST)

    def _budget(self, n_decoding: int, depth: int, n_short: int) -> int:
        """What the time and the batch leave, whatever is wanted.

        `depth` is how many tokens are before them, `n_short` how many of the prompts are short
        (`is_short`). Where more wait for their first token by a short prompt than have one, a step
        may take as long as if nobody decoded: those who do would lose more by many narrow steps.
        """
        room = self._n_batch - n_decoding
        wide_s, narrow_s = self._row_seconds(depth)
        if wide_s == 0:
            return min(room, 4 * TILE if n_decoding else 32 * TILE)
        busy = n_decoding >= max(1, n_short)
        seconds = self._busy_s if busy else self._alone_s
        least = _LEAST if busy else _LEAST_ALONE
        n_wide = WIDE - n_decoding
        if _step_seconds(WIDE, wide_s) <= seconds * _SLACK:
            if self._wide.at(depth):  # a guess is tried with the fewest rows that tell
                n_wide = max(WIDE, self._wide_rows(seconds, depth)) - n_decoding
            return max(1, min(room, max(least, n_wide)))
        n_narrow = max(least, min(WIDE, _rows_in(seconds, narrow_s, TILE)) - n_decoding)
        wide_step_s = _step_seconds(WIDE, wide_s)
        narrow_step_s = _step_seconds(n_narrow + n_decoding, narrow_s)
        longest = 2 * self._alone_s
        if busy:
            gain = n_wide / wide_step_s / (n_narrow / narrow_step_s)
            longest = max(longest, gain * narrow_step_s) if gain > _WORTH else 0.0
        return max(1, min(room, n_wide if wide_step_s <= longest else n_narrow))

    def learn(
        self, n_decoding: int, n_prompt: int, seconds: float, n_draft: int = 0, depth: float = 0.0
    ) -> None:
        """A step of so many rows took `seconds`; prompt tokens were `depth` deep in the mean."""
        self._n_steps += 1
        n_rows = n_decoding + n_draft + n_prompt
        if n_prompt == 0:
            self._learn_rows(_whole(n_rows), max(seconds, _FASTEST_S))
        if n_prompt >= 2 * TILE:
            cost = self._wide if n_rows >= WIDE else self._narrow
            cost.learn(depth, max(seconds / (n_rows + _BASE_ROWS), _FASTEST_S), self._n_steps)
            if self._n_steps > self._wide.seen + _MEMORY:
                self._wide = _RowCost()  # it may have been measured while the machine was busy

    def is_short(self, n: int) -> bool:
        """Whether a prompt of `n` tokens is computed in one step, if it need not wait."""
        return self.prompt_seconds(n) <= self._alone_s

    def prompt_seconds(self, n: int) -> float:
        """Expected time to compute `n` prompt tokens; 0 before anything was learnt."""
        return n * self._row_seconds(n / 2)[0]

    def _wide_rows(self, seconds: float, depth: int) -> int:
        """How many rows fit a step of so many seconds behind `depth` cells. Each is behind those
        before it, too: of a small model several hundred fit, and the last costs twice the first."""
        rows = 0.0
        for _ in range(_ROUNDS):
            fitting = seconds / self._wide.at(depth + rows / 2) - _BASE_ROWS
            rows = (rows + max(0.0, fitting)) / 2
        return int(rows) // _WIDE_TILE * _WIDE_TILE

    def _row_seconds(self, depth: float) -> tuple[float, float]:
        """What a row costs in wide and in narrow steps; as in the other, before one was seen.

        What cells cost narrow steps is no guess for wide ones: these are tried before it is.
        """
        wide, narrow = self._wide.at(depth), self._narrow.at(depth)
        return wide or self._narrow.at(0), narrow or wide

    def decode_seconds(self, n_rows: int) -> float:
        """Expected time of a step of `n_rows` rows without prompts; only ratios mean something."""
        size = _whole(n_rows)
        if size in self._rows_s or not self._rows_s:
            return self._rows_s.get(size, _row_cost(size))
        nearest = min(self._rows_s, key=lambda known: abs(known - size))
        return self._rows_s[nearest] * _row_cost(size) / _row_cost(nearest)

    def _learn_rows(self, size: int, seconds: float) -> None:
        self._rows_s[size] = _mean(self._rows_s.get(size), seconds)
        self._seen[size] = self._n_steps
        for known in [s for s, n in self._seen.items() if n + _MEMORY < self._n_steps]:
            del self._rows_s[known], self._seen[known]


class _RowCost:
    """The seconds a row takes, as a line over the cells before it.

    The line is a regression over many steps. It is scaled by how the last few compare with it, as
    what else a machine has to do changes sooner than what a model costs. `seen` is the last step.
    """

    def __init__(self) -> None:
        self.seen = 0
        self._n = 0
        self._depth = self._seconds = self._variance = self._covariance = 0.0
        self._load = 1.0

    def at(self, depth: float) -> float:
        """What to expect behind `depth` cells; 0 if nothing is known."""
        slope = max(0.0, self._covariance / self._variance) if self._variance else 0.0
        line = self._seconds + slope * (depth - self._depth)
        return self._load * max(line, self._seconds / 4)

    def learn(self, depth: float, seconds: float, step: int) -> None:
        """A row took `seconds` behind `depth` cells, in the step of that number."""
        self.seen = step
        if self._n:
            self._load = _mean(self._load, self._load * seconds / self.at(depth))
        self._n = min(self._n + 1, _LINE_STEPS)
        share = 1 / self._n
        off, more = depth - self._depth, seconds - self._seconds
        self._depth += share * off
        self._seconds += share * more
        self._variance = (1 - share) * (self._variance + share * off * off)
        self._covariance = (1 - share) * (self._covariance + share * off * more)


def _step_seconds(n_rows: int, row_s: float) -> float:
    """Expected time of a step of `n_rows` rows at `row_s` each."""
    return (n_rows + _BASE_ROWS) * row_s


def _rows_in(seconds: float, row_s: float, tile: int) -> int:
    """How many rows at `row_s` fit a step of so many seconds, in whole tiles."""
    return (int(seconds / row_s) - _BASE_ROWS) // tile * tile


def _whole(n_rows: int) -> int:
    """Rows that cost as much: kernels compute them by tiles, but for one and two."""
    return n_rows if n_rows < 3 else -(-n_rows // TILE) * TILE


def _row_cost(size: int) -> float:
    """Cost of a step against one of one row, before it was seen: CPU kernels with quantized weights
    and a logit for every token of 152,000 (Qwen2.5-0.5B's shape, 2 cores)."""
    return size if size < 3 else 1.3 + 0.3 * size


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + _SMOOTHING * (new - old)
