"""Questions about facts in other words, made by replacing words by words that are used alike.

What becomes of a question (the same, another one, none) is for `teacher.py` to say.
"""

import random
import re
from functools import cache

import numpy as np

from training.cases import questions
from training.facts import Fact, load_facts
from training.grammar import draw, normal
from training.meanings import Meanings

COMMON_WORDS = 40_000
"""Of the archive's words, that may stand for others."""
_ALIKE = 0.35  # cosine of two words that may stand for each other
_NEIGHBOURS = 24
KEPT_WORDS = 120
"""Of the commonest: they hold a sentence together."""
_WORD = re.compile(r"(?<![\w/`-])[a-z]{3,}(?![\w/`-])")


class Rewording:
    """Replaces words by others whose vectors are near."""

    def __init__(self, meanings: Meanings, kept: int = KEPT_WORDS) -> None:
        """So many of the commonest words stay."""
        self._words = meanings.words
        self._vectors = meanings.vectors
        self._numbers = {word: number for number, word in enumerate(meanings.words)}
        self._kept = frozenset(meanings.commonest[:kept])
        self._near = cache(self._neighbours)

    def reworded(self, rng: random.Random, text: str) -> str:
        """`text` with up to four of its words replaced, where it has that many: none in a third."""
        spots = [m for m in _WORD.finditer(text) if self._near(m.group())]
        spots = rng.sample(spots, min(len(spots), rng.choice((0, 0, 0, 1, 2, 2, 3, 3, 4))))
        for spot in sorted(spots, key=lambda one: one.start(), reverse=True):
            text = text[: spot.start()] + rng.choice(self._near(spot.group())) + text[spot.end() :]
        return text

    def _neighbours(self, word: str) -> tuple[str, ...]:
        number = self._numbers.get(word)
        if number is None or word in self._kept:
            return ()
        alike = self._vectors @ self._vectors[number]
        count = min(_NEIGHBOURS, len(alike) - 1)
        best = np.argpartition(-alike, count)[: count + 1]
        near = [self._words[at] for at in best if at != number and alike[at] >= _ALIKE]
        return tuple(word for word in near if word.islower())


def draw_asked(rng: random.Random) -> tuple[str, Fact]:
    """A question of the authors', and its fact."""
    fact = rng.choice(load_facts())
    return fact.question(rng), fact


def reworded(rng: random.Random, rewording: Rewording, count: int) -> list[str]:
    """So many of the authors' questions, most of them in other words, no two alike."""
    taken = kept_apart()
    made: list[str] = []
    while len(made) < count:
        text = rewording.reworded(rng, draw_asked(rng)[0])
        if normal(text) not in taken:
            taken.add(normal(text))
            made.append(text)
    return made


def kept_apart() -> set[str]:
    """What is kept for measuring: no question made here may be one of these."""
    rng = random.Random(0)
    return {
        normal(text)
        for fact in load_facts()
        for text in (*fact.held_out, *(draw(rng, line) for line in questions(fact, "validation")))
    }
