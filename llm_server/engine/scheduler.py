"""Who computes how many tokens in the next step: a pure function of what everybody still wants.

There are no phases. A sequence wants the tokens it has and has not computed; decoding is wanting
one, or a few that a grammar forces. It knows no cells and no llama.cpp.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

_OVERSHOOT = 1.1  # finish a prompt a little over budget rather than leave a poor small rest


@dataclass(frozen=True, slots=True)
class Want:
    """What one sequence wants: `n` tokens, of which `n_first` may go in one step.

    `n_first` is below `n` where a step must end at a boundary (a state worth keeping).
    `seconds` is the expected time for all `n`, `waited` how long it has been waiting for them.
    `is_decode`: they continue an answer that somebody is reading. `is_short`: the prompt as a
    whole is soon computed, however much of it is left. `owner` is who asked.
    `depth` is how many tokens come before them.
    """

    n: int
    n_first: int
    seconds: float
    waited: float
    is_decode: bool = False
    is_short: bool = False
    owner: str = ""
    depth: int = 0

    @property
    def is_prompt(self) -> bool:
        """Whether a budget limits it."""
        return not self.is_decode and self.n > 0

    @property
    def urgency(self) -> float:
        """Shortest remaining prompt first; a second waited outweighs a second of work."""
        return self.seconds - self.waited


def in_turn(
    wants: Sequence[Want], served: Iterable[str] = (), last: Mapping[str, int] | None = None
) -> list[int]:
    """The order of `wants`, by index: the most urgent first, but owner by owner in turn.

    `served` are the owners who have had turns already, each as often as they had one. Of owners
    with as many, whose number in `last` is the lowest comes first: the later a turn, the higher.
    """
    numbers = last or {}
    turns = Counter(served)
    order = sorted(range(len(wants)), key=lambda i: wants[i].urgency)
    turn = {}
    for i in order:
        turn[i] = turns[wants[i].owner]
        turns[wants[i].owner] += 1
    return sorted(order, key=lambda i: (turn[i], numbers.get(wants[i].owner, -1)))


def next_depth(wants: Sequence[Want]) -> int:
    """How many tokens come before the most urgent prompt; 0 if there is none."""
    prompts = [want for want in wants if want.is_prompt]
    return prompts[in_turn(prompts)[0]].depth if prompts else 0


def plan(wants: Sequence[Want], budget: int, n_batch: int) -> Iterator[tuple[int, int]]:
    """Yield (index of a want, tokens to compute) in the order in which cells should be given out.

    Everybody who decodes gets what they want; `budget` prompt tokens, or a few more to finish
    one, go to the most urgent prompts of each owner in turn. Never more than `n_batch` rows in all.
    """
    room = n_batch
    for i, want in enumerate(wants):
        n = min(want.n_first, room)
        if want.is_decode and n:
            yield i, n
            room -= n
    prompts = [i for i, want in enumerate(wants) if want.is_prompt]
    for at in in_turn([wants[i] for i in prompts]):
        budget = min(budget, room)
        if budget <= 0:
            return
        i = prompts[at]
        want = wants[i]
        fits = want.n_first <= min(budget * _OVERSHOOT, room)
        n = want.n_first if fits else budget
        yield i, n
        budget, room = budget - n, room - n
