"""Who computes how many tokens in the next step: a pure function of what everybody still wants.

There are no phases. A sequence wants the tokens it has and has not computed; decoding is wanting
one, or a few that a grammar forces. It knows no cells and no llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_OVERSHOOT = 1.1  # finish a prompt a little over budget rather than leave a poor small rest


@dataclass(frozen=True, slots=True)
class Want:
    """What one sequence wants: `n` tokens, of which `n_first` may go in one step.

    `n_first` is below `n` where a step must end at a boundary (a state worth keeping).
    `seconds` is the expected time for all `n`, `waited` how long it has been waiting for them.
    `is_decode`: they continue an answer that somebody is reading.
    """

    n: int
    n_first: int
    seconds: float
    waited: float
    is_decode: bool = False

    @property
    def urgency(self) -> float:
        """Shortest remaining prompt first; a second waited outweighs a second of work."""
        return self.seconds - self.waited


def plan(wants: Sequence[Want], budget: int, n_batch: int) -> Iterator[tuple[int, int]]:
    """Yield (index of a want, tokens to compute) in the order in which cells should be given out.

    Everybody who decodes gets what they want; `budget` prompt tokens, or a few more to finish
    one, go to the most urgent prompts. Never more than `n_batch` rows in all.
    """
    room = n_batch
    for i, want in enumerate(wants):
        n = min(want.n_first, room)
        if want.is_decode and n:
            yield i, n
            room -= n
    prompts = [i for i, want in enumerate(wants) if not want.is_decode and want.n > 0]
    for i in sorted(prompts, key=lambda i: wants[i].urgency):
        budget = min(budget, room)
        if budget <= 0:
            return
        want = wants[i]
        fits = want.n_first <= min(budget * _OVERSHOOT, room)
        n = want.n_first if fits else budget
        yield i, n
        budget, room = budget - n, room - n
