"""Questions that no author wrote, with what the teacher made of each.

`teacher.py` makes them. The model learns to answer those of which the teacher is sure, and of all
of them to hold the teacher's vector where its answer begins. Does not know the model.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.facts import Fact, load_facts

SURE = 0.7
"""The teacher's probability from which its fact is the answer: of questions in new words it is so
sure of two thirds, and right about 95 % of these."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A question by its `number`, with the fact that it asks about; None where nobody is sure."""

    number: int
    text: str
    fact: Fact | None


def centred(vectors: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """The vectors without what all share, of length 1 again."""
    rest = vectors - vectors.mean(0, dtype=np.float32)
    unit: npt.NDArray[np.float32] = rest / np.linalg.norm(rest, axis=1, keepdims=True)
    return unit.astype(np.float32)


class Lessons:
    """Many questions, with the teacher's `vectors` of them, [questions, width], of length 1."""

    def __init__(
        self,
        texts: Sequence[str],
        facts: Sequence[str],
        sure: npt.NDArray[np.float16],
        vectors: npt.NDArray[np.float16],
    ) -> None:
        """`facts` by name, and how `sure` the teacher is of each, 0 to 1.

        Raises KeyError for a fact that is not known.
        """
        known = {fact.name: fact for fact in load_facts()}
        self._texts = texts
        self._facts = [known[name] for name in facts]
        self._sure = sure
        self.vectors = vectors

    @classmethod
    def read(cls, path: Path) -> "Lessons":
        """A file of `write`. Raises OSError, or KeyError where it is something else."""
        with np.load(path) as file:
            texts, facts = (
                file[name].tobytes().decode().split("\n") for name in ("texts", "facts")
            )
            return cls(texts, facts, file["sure"], file["vectors"])

    def write(self, path: Path) -> None:
        """A numpy file; 800 bytes a question."""
        texts = np.frombuffer("\n".join(self._texts).encode(), np.uint8)
        facts = np.frombuffer("\n".join(fact.name for fact in self._facts).encode(), np.uint8)
        np.savez(path, texts=texts, facts=facts, sure=self._sure, vectors=self.vectors)

    def draw(self, rng: random.Random) -> Lesson:
        """Any of them."""
        number = rng.randrange(len(self._texts))
        sure = float(self._sure[number]) >= SURE
        return Lesson(number, self._texts[number], self._facts[number] if sure else None)
