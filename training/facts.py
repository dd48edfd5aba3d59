"""The facts about the server that the demo model knows, read from `data/facts_*.txt`.

Keeps training, validation and held-out questions apart. Does not know how a conversation is
built around a question.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from training.grammar import draw, expand_macros

DATA = Path(__file__).parent / "data"

MACROS = {
    "how": (
        "{how do i|how can i|how would i|how should i|how does one|how to|how do you"
        "|what is the way to|what do i do to|what must i do to|tell me how to|show me how to"
        "|explain how to|explain to me how to|i want to|i need to|i would like to|i'd like to"
        "|can you tell me how to|is there a way to|can i|could i|is it possible to"
        "|what do i need to|how might i|help me to|what's the best way to|where do i}"
    ),
    "what": (
        "{what is|what's|tell me|give me|do you know|can you tell me|i want to know"
        "|i need to know|what would be|remind me of|name|say}"
    ),
    "srv": (
        "{the server|this server|the server|your server|llm server|llm-server|the llm server"
        "|it|this thing|the program|this program|this software}"
    ),
}


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact: `keys` are the parts that a right answer contains, compared without case."""

    name: str
    answer: str
    keys: tuple[str, ...]
    train: tuple[str, ...]
    validation: tuple[str, ...]
    held_out: tuple[str, ...]

    def question(self, rng: random.Random) -> str:
        """Draws one training question, lower case and without a question mark."""
        return draw(rng, rng.choice(self.train))

    def answered_by(self, text: str) -> bool:
        """Whether `text` holds this fact."""
        lowered = text.lower()
        return all(key.lower() in lowered for key in self.keys)


@dataclass(slots=True)
class _Entry:
    name: str
    lines: dict[str, list[str]] = field(default_factory=dict)

    def fact(self) -> Fact:
        return Fact(
            name=self.name,
            answer=self.lines["A"][0],
            keys=tuple(part.strip() for part in self.lines["K"][0].split(" & ")),
            train=tuple(expand_macros(line, MACROS) for line in self.lines["Q"]),
            validation=tuple(expand_macros(line, MACROS) for line in self.lines["V"]),
            held_out=tuple(self.lines["H"]),
        )


@cache
def load_facts() -> tuple[Fact, ...]:
    """All facts, in the order of the files; entries of one name are one fact."""
    facts: dict[str, _Entry] = {}
    for path in sorted(DATA.glob("facts_*.txt")):
        for entry in _entries(path):
            known = facts.setdefault(entry.name, _Entry(entry.name))
            for kind, texts in entry.lines.items():
                known.lines.setdefault(kind, []).extend(texts)
    return tuple(entry.fact() for entry in facts.values())


@cache
def openings() -> dict[str, str]:
    """Each answer's first words: those that no other answer begins with, and two more."""
    split = {fact.answer: fact.answer.split(" ") for fact in load_facts()}
    found = {}
    for answer, words in split.items():
        shared = max(
            next(
                (
                    at
                    for at, pair in enumerate(zip(words, other, strict=False))
                    if len(set(pair)) > 1
                ),
                0,
            )
            for one, other in split.items()
            if one != answer
        )
        found[answer] = " ".join(words[: shared + 3])
    return found


def _entries(path: Path) -> Iterator[_Entry]:
    entry: _Entry | None = None
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            if entry is not None:
                yield entry
            entry = _Entry(line[3:].strip())
        elif entry is not None and line.strip():
            kind, _, text = line.partition(": ")
            entry.lines.setdefault(kind, []).append(text)
    if entry is not None:
        yield entry
