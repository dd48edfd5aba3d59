"""Tools drawn at random, with requests that call for them: from families, and from nothing.

Knows definitions, utterances and the arguments they hold. Does not know conversations. The
families come from a file, so held-out families are read from another one by the same code.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from training.grammar import draw
from training.words import (
    Json,
    Value,
    any_pool,
    any_word,
    decimal,
    joined,
    made_up,
    text_value,
    whole_number,
)

# The families of `data/frames.txt`: all their words are drawn, so one frame makes many tools.
FRAMES = frozenset(f"f{number}" for number in range(1, 31))
_SLOT = re.compile(r"\[([a-z_]+)(?::([^/\]]*)/([^\]]*))?\]")
_BLANK_WORDS = {"xa", "xb", "xc", "xn"}
_RANGE = re.compile(r"(int|num)\((-?\d+),(-?\d+)\)")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: `slot` is its name in utterances, `name` its name in the definition."""

    slot: str
    name: str
    kind: str
    pool: str
    description: str | None
    required: bool
    enum: tuple[str, ...] | None = None

    def schema(self) -> dict[str, Json]:
        """Its JSON schema."""
        schema: dict[str, Json] = {"type": self.kind}
        if self.kind == "array":
            schema["items"] = {"type": "string"}
        if self.description is not None:
            schema["description"] = self.description
        if self.enum is not None:
            schema["enum"] = list(self.enum)
        return schema

    def value(self, rng: random.Random) -> Value:
        """Draws a value; not for booleans, whose words stand in the utterance."""
        if self.enum is not None:
            item = rng.choice(self.enum)
            return Value(item.replace("_", " "), item)
        if match := _RANGE.fullmatch(self.pool):
            low, high = int(match.group(2)), int(match.group(3))
            maker = whole_number if match.group(1) == "int" else decimal
            return maker(rng, low, high)
        if self.pool.startswith("list("):
            values = [text_value(rng, self.pool[5:-1]).said for _ in range(rng.randint(1, 4))]
            return Value(joined(values), list(values))
        return text_value(rng, self.pool)


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call: what the model is to write."""

    name: str
    arguments: dict[str, Json]


@dataclass(frozen=True, slots=True)
class Request:
    """What a user says, and the call it asks for."""

    text: str
    call: Call


@dataclass(frozen=True, slots=True)
class Skill:
    """A tool and the utterances that ask for it."""

    family: str
    name: str
    description: str | None
    parameters: tuple[Parameter, ...]
    utterances: tuple[str, ...]

    def definition(self, rng: random.Random) -> dict[str, Json]:
        """The OpenAI tool definition, in one of the shapes that clients send."""
        properties: dict[str, Json] = {item.name: item.schema() for item in self.parameters}
        schema: dict[str, Json] = {"type": "object", "properties": properties}
        required: list[Json] = [item.name for item in self.parameters if item.required]
        if required or rng.random() < 0.5:
            schema["required"] = required
        function: dict[str, Json] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = schema
        if rng.random() < 0.05:
            schema["additionalProperties"] = False
            function["strict"] = True
        return {"type": "function", "function": function}

    def ask(self, rng: random.Random, *, lower: bool = False) -> Request:
        """Draws an utterance with its arguments, in the order of the definition."""
        pattern = draw(rng, rng.choice(self.utterances))
        by_slot = {item.slot: item for item in self.parameters}
        arguments: dict[str, Json] = {}
        text, end = "", 0
        for match in _SLOT.finditer(pattern):
            item = by_slot[match.group(1)]
            value = _slot_value(rng, item, match)
            if lower and item.enum is None and isinstance(value.json, str):
                value = Value(value.said.lower(), value.json.lower())
            arguments[item.name] = value.json
            text += pattern[end : match.start()] + value.said
            end = match.end()
        text += pattern[end:]
        ordered = {
            item.name: arguments[item.name] for item in self.parameters if item.name in arguments
        }
        return Request(text, Call(self.name, ordered))


def _slot_value(rng: random.Random, item: Parameter, match: re.Match[str]) -> Value:
    if match.group(2) is None:
        return item.value(rng)
    yes = rng.random() < 0.5
    return Value(match.group(2) if yes else match.group(3), yes)


@dataclass(slots=True)
class Family:
    """A family as the file has it, before anything is drawn."""

    name: str
    names: list[str] = field(default_factory=list)
    descriptions: list[str] = field(default_factory=list)
    swappable: list[str] = field(default_factory=list)
    parameters: list[tuple[bool, str]] = field(default_factory=list)
    utterances: list[str] = field(default_factory=list)

    def skill(self, rng: random.Random, *, vary: bool = True) -> Skill:
        """Draws one tool; without `vary` it is the first name and description of each list."""
        swap: dict[str, str] = {}
        if self.name in FRAMES:
            swap = {word: any_word(rng) for word in self.swappable}
        elif vary and rng.random() < 0.5:
            swap = dict.fromkeys(self.swappable, any_word(rng))
        name = rng.choice(self.names) if vary else self.names[0]
        if vary and rng.random() < 0.15:
            name = _camel(name)
        description: str | None = rng.choice(self.descriptions) if vary else self.descriptions[0]
        if vary and rng.random() < 0.05:
            description = None
        parameters = tuple(
            _parameter(rng, text, required=required, vary=vary, swap=swap)
            for required, text in self.parameters
        )
        return Skill(
            family="/".join((self.name, *swap.values())) if self.name in FRAMES else self.name,
            name=_swap(name, swap),
            description=_swap(description, swap) if description is not None else None,
            parameters=parameters,
            utterances=tuple(_swap(text, swap) for text in self.utterances),
        )


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


def _swap(text: str, swap: dict[str, str]) -> str:
    for old, new in swap.items():
        text = re.sub(rf"(?<![a-z\[]){old}(?![a-z\]:])", new, text)
        text = re.sub(rf"(?<![A-Z]){old.capitalize()}(?![a-z])", new.capitalize(), text)
    return text


def _parameter(
    rng: random.Random, text: str, *, required: bool, vary: bool, swap: dict[str, str]
) -> Parameter:
    head, _, described = text.partition(" : ")
    names, kind, pool = head.split(" ", 2)
    choices = names.split("/")
    name = _swap(rng.choice(choices) if vary and rng.random() < 0.6 else choices[0], swap)
    if name in _BLANK_WORDS:
        name = any_word(rng)
    if pool == "any":
        pool = any_pool(rng)
    description: str | None = None
    if described and not (vary and rng.random() < 0.15):
        options = described.split(" | ")
        description = _swap(rng.choice(options) if vary else options[0], swap)
    enum: tuple[str, ...] | None = None
    if pool.startswith("enum("):
        enum = tuple(pool[5:-1].split(","))
        if vary and rng.random() < 0.4:
            enum = tuple(dict.fromkeys(any_word(rng) for _ in range(rng.randint(2, 6))))
    if vary and rng.random() < 0.06:
        name = made_up(rng)
    return Parameter(choices[0], name, kind, pool, description, required, enum)


@cache
def load_families(path: Path) -> tuple[Family, ...]:
    """Reads a family file; see the head of `data/families.txt` for its form."""
    return tuple(_families(path.read_text(encoding="utf-8").splitlines()))


def _families(lines: Sequence[str]) -> Iterator[Family]:
    family: Family | None = None
    for line in lines:
        if line.startswith("## "):
            if family is not None:
                yield family
            family = Family(line[3:].strip())
        elif family is not None and line.strip():
            kind, _, text = line.partition(": ")
            _add(family, kind, text)
    if family is not None:
        yield family


def _add(family: Family, kind: str, text: str) -> None:
    if kind == "N":
        family.names += text.split(" | ")
    elif kind == "D":
        family.descriptions += text.split(" | ")
    elif kind == "W":
        family.swappable += text.split()
    elif kind in ("P", "O"):
        family.parameters.append((kind == "P", text))
    elif kind == "U":
        family.utterances.append(text)
    else:
        raise ValueError(f"unknown line {kind!r} in family {family.name}")
