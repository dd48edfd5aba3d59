"""Tools made of random words, so that nothing about them can be known but what their text says.

Builds the same `Skill` as a family does. Does not know any real tool.
"""

import random
from dataclasses import dataclass

from training.tools import Parameter, Skill
from training.words import any_word, made_up, pick


@dataclass(frozen=True, slots=True)
class _Role:
    """A kind of parameter: its usual names, and the words that bring it into a sentence."""

    names: tuple[str, ...]
    kind: str
    pool: str
    phrases: tuple[str, ...]


_ROLES = (
    _Role(("city", "location", "place"), "string", "city", ("in [x]", "at [x]", "near [x]")),
    _Role(("room", "area", "zone"), "string", "room", ("in the [x]", "of the [x]")),
    _Role(
        ("person", "recipient", "owner", "user", "customer"),
        "string",
        "person",
        ("for [x]", "to [x]", "from [x]", "with [x]"),
    ),
    _Role(("name", "full_name", "author"), "string", "fullname", ("by [x]", "for [x]", "of [x]")),
    _Role(("date", "day", "due_date"), "string", "date", ("on [x]", "for [x]", "by [x]")),
    _Role(("time", "start_time", "when"), "string", "time", ("at [x]", "from [x]")),
    _Role(
        ("title", "label", "topic", "subject"),
        "string",
        "title",
        ("called [x]", "named [x]", "titled [x]", "about [x]"),
    ),
    _Role(("count", "times", "repeat"), "integer", "int(1,60)", ("[x] times",)),
    _Role(("minutes", "duration"), "integer", "int(1,120)", ("for [x] minutes",)),
    _Role(("seconds", "delay"), "integer", "int(1,90)", ("after [x] seconds", "in [x] seconds")),
    _Role(
        ("amount", "price", "budget", "max_price"),
        "number",
        "num(1,900)",
        ("for [x]", "at most [x]", "up to [x]"),
    ),
    _Role(
        ("percent", "level", "position"),
        "integer",
        "int(0,100)",
        ("to [x] percent", "to [x]", "at [x] percent"),
    ),
    _Role(("color", "shade"), "string", "adjective", ("in [x]", "to [x]")),
    _Role(("style", "genre", "kind"), "string", "adjective", ("[x] style", "in [x] style")),
    _Role(("language", "target_language"), "string", "language", ("in [x]", "into [x]")),
    _Role(("id", "code", "key", "serial"), "string", "code", ("with id [x]", "number [x]", "[x]")),
    _Role(("path", "file", "source"), "string", "path", ("from [x]", "in [x]", "of [x]")),
    _Role(("target", "output", "destination"), "string", "path", ("to [x]", "into [x]")),
    _Role(("url", "link"), "string", "url", ("at [x]", "from [x]")),
    _Role(
        ("note", "text", "comment", "reason"),
        "string",
        "task",
        ("saying [x]", "with the text [x]", ": [x]"),
    ),
    _Role(("unit", "units"), "string", "unit", ("in [x]",)),
    _Role(("items", "names", "tags"), "array", "list(word)", ("with [x]", ": [x]", "for [x]")),
    _Role(("item", "product"), "string", "product", ("[x]", "for [x]", "with [x]")),
)
_NAMED = (
    "with {n} [x]",
    "{n} [x]",
    "with [x] as {n}",
    "{n} set to [x]",
    "using {n} [x]",
    "with a {n} of [x]",
    "and {n} [x]",
    "where {n} is [x]",
)
_FLAGS = ("force", "fast", "silent", "verbose", "backup", "preview", "gift", "express", "notify")
_MODES = ("mode", "size", "format", "type", "priority", "style", "quality", "level", "status")
_OPENINGS = (
    "{v} the {n}",
    "{v} the {n}",
    "{v} {n}",
    "{v} a {n}",
    "{v} my {n}",
    "{v} this {n}",
    "please {v} the {n}",
    "can you {v} the {n}",
    "could you {v} a {n}",
    "i want to {v} the {n}",
    "i need to {v} a {n}",
    "i'd like you to {v} the {n}",
    "i want you to {v} my {n}",
    "go and {v} the {n}",
    "let's {v} the {n}",
)


def made_up_skill(rng: random.Random, like: Skill | None = None) -> Skill:
    """A tool of a random verb and noun; `like` lends one of its two words, to be confusable."""
    verb = pick(rng, "verb") if rng.random() < 0.6 else any_word(rng)
    noun = any_word(rng)
    if rng.random() < 0.2:
        noun = f"{pick(rng, 'adjective')} {noun}"
    if like is not None and like.family.startswith("made-up "):
        other_verb, other_noun = like.family.removeprefix("made-up ").split("/")
        verb, noun = (other_verb, noun) if rng.random() < 0.5 else (verb, other_noun)
    parameters, phrases = _parameters(rng)
    openings = rng.sample(_OPENINGS, 3)
    utterances = tuple(
        " ".join([opening.format(v=verb, n=noun), *_order(rng, parameters, phrases)])
        for opening in openings
    )
    return Skill(
        family=f"made-up {verb}/{noun}",
        name=_name(rng, verb, noun),
        description=_description(rng, verb, noun),
        parameters=tuple(parameters),
        utterances=utterances,
    )


def _name(rng: random.Random, verb: str, noun: str) -> str:
    words = [verb, *noun.split()]
    if rng.random() < 0.15:
        words = [*words[1:], words[0]]
    if rng.random() < 0.15:
        return words[0] + "".join(word.capitalize() for word in words[1:])
    return rng.choices(("_", "-", "."), (20, 1, 1))[0].join(words)


def _description(rng: random.Random, verb: str, noun: str) -> str | None:
    form = rng.choice(
        (
            "{V} the {n}.",
            "{V} a {n}.",
            "{V} {n}",
            "Use this to {v} a {n}.",
            "{V}s a {n}.",
            "Tool to {v} the {n}.",
            "{V} one {n} of the user.",
            None,
        )
    )
    return form.format(v=verb, V=verb.capitalize(), n=noun) if form is not None else None


def _order(rng: random.Random, parameters: list[Parameter], phrases: list[str]) -> list[str]:
    chosen = [
        phrase
        for item, phrase in zip(parameters, phrases, strict=True)
        if item.required or rng.random() < 0.5
    ]
    rng.shuffle(chosen)
    return chosen


def _parameters(rng: random.Random) -> tuple[list[Parameter], list[str]]:
    parameters: list[Parameter] = []
    phrases: list[str] = []
    count = rng.choices((0, 1, 2, 3, 4), (1, 4, 5, 3, 1))[0]
    for role in rng.sample(_ROLES, count):
        name = rng.choice(role.names) if rng.random() < 0.8 else made_up(rng)
        kind, pool, enum = role.kind, role.pool, None
        phrase = rng.choice(role.phrases)
        special = rng.random()
        if special < 0.12:
            name, kind, pool = rng.choice((rng.choice(_FLAGS), made_up(rng))), "boolean", "bool"
            phrase = rng.choice(("[x:with/without] {n}", "[x:with/with no] {n}", "{n} [x:on/off]"))
        elif special < 0.3:
            name, kind, pool = rng.choice(_MODES), "string", "enum"
            enum = tuple(dict.fromkeys(any_word(rng) for _ in range(rng.randint(2, 6))))
            phrase = rng.choice((*_NAMED, "in [x] {n}", "[x]"))
        elif rng.random() < 0.35:
            phrase = rng.choice(_NAMED)
        if any(item.name == name for item in parameters):
            continue
        slot = "abcdef"[len(parameters)]
        phrases.append(phrase.replace("{n}", name.replace("_", " ")).replace("[x", f"[{slot}"))
        described = _role_text(rng, name) if rng.random() < 0.7 else None
        parameters.append(Parameter(slot, name, kind, pool, described, rng.random() < 0.75, enum))
    return parameters, phrases


def _role_text(rng: random.Random, name: str) -> str:
    form = rng.choice(("The {n}", "{N}", "Which {n}", "{N} to use", "The {n} of it", "{N} wanted"))
    plain = name.replace("_", " ")
    return form.format(n=plain, N=plain.capitalize())
