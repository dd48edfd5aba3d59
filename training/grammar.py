"""Small phrase grammars: `{a|b}` is a choice, choices nest, and `%name` is a macro.

Knows how to draw one phrase, and whether a given text is a phrase of a grammar. Does not know
what the phrases are about.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

Node: TypeAlias = "str | Choice"

_MACRO = re.compile(r"%([a-z]+)")
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several sequences of nodes."""

    options: tuple[tuple[Node, ...], ...]


def expand_macros(text: str, macros: Mapping[str, str]) -> str:
    """Replaces every `%name`; raises KeyError for a name that `macros` lacks."""
    while match := _MACRO.search(text):
        text = text[: match.start()] + macros[match.group(1)] + text[match.end() :]
    return text


@cache
def parse(text: str) -> tuple[Node, ...]:
    """Parses a grammar line without macros; raises ValueError for unbalanced braces."""
    options, end = _parse_options(text, 0, nested=False)
    if end != len(text):
        raise ValueError(f"unbalanced braces in {text!r}")
    return options[0]


def _parse_options(text: str, start: int, *, nested: bool) -> tuple[list[tuple[Node, ...]], int]:
    options: list[tuple[Node, ...]] = []
    nodes: list[Node] = []
    literal = start
    at = start
    while at < len(text):
        sign = text[at]
        if sign == "{":
            nodes.append(text[literal:at])
            inner, at = _parse_options(text, at + 1, nested=True)
            if at == len(text):
                raise ValueError(f"unbalanced braces in {text!r}")
            nodes.append(Choice(tuple(inner)))
            literal = at + 1
        elif nested and sign == "|":
            options.append((*nodes, text[literal:at]))
            nodes, literal = [], at + 1
        elif sign == "}":
            break
        at += 1
    options.append((*nodes, text[literal:at]))
    return options, at


def draw(rng: random.Random, text: str) -> str:
    """Draws one phrase, with runs of blanks made one."""
    return tidy("".join(_draw_nodes(rng, parse(text))))


def _draw_nodes(rng: random.Random, nodes: tuple[Node, ...]) -> list[str]:
    parts: list[str] = []
    for node in nodes:
        if isinstance(node, Choice):
            parts += _draw_nodes(rng, rng.choice(node.options))
        else:
            parts.append(node)
    return parts


def tidy(text: str) -> str:
    """Makes runs of blanks one, and strips the ends."""
    return _SPACES.sub(" ", text).strip()


def normal(text: str) -> str:
    """A text as overlap is judged: lower case words, no punctuation."""
    return " ".join(re.findall(r"[\w']+", text.lower()))


def pattern(text: str) -> re.Pattern[str]:
    """A regular expression that matches `normal` of every phrase of the grammar."""
    return re.compile(_regex(parse(text)))


def _regex(nodes: tuple[Node, ...]) -> str:
    parts: list[str] = []
    for node in nodes:
        if isinstance(node, Choice):
            parts.append("(?:" + "|".join(_regex(option) for option in node.options) + ")")
        else:
            parts += [re.escape(word) + r"\s*" for word in normal(node).split()]
    return "".join(parts)


@cache
def _kinds(path: Path) -> dict[str, tuple[str, ...]]:
    kinds: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            kind, _, text = line.partition(": ")
            kinds.setdefault(kind, []).append(text)
    return {kind: tuple(texts) for kind, texts in kinds.items()}


def draw_kind(rng: random.Random, path: Path, kind: str) -> str:
    """Draws a phrase from the lines `kind: grammar` of a file."""
    return draw(rng, rng.choice(_kinds(path)[kind]))
