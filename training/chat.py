"""Turns of conversation without tools: facts, greetings, ignorance, memory, echo, JSON.

Each turn is what the user says and what the model should answer. Does not know chat templates.
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from training.facts import DATA, Fact, load_facts
from training.grammar import draw, draw_kind
from training.noise import case, dress, typo
from training.persona import Persona, person_name
from training.words import Json, any_word, code, phrase, pick, text_value

DONT_KNOW = "I do not know that. I am a tiny model that only knows this server."
NO_TOOL = "I have no tool for that."
NOT_TOLD = "You have not told me."
SMALL_TALK = DATA / "small_talk.txt"
_SLOT = re.compile(r"\[([a-z]+)\]")


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user says, and the answer."""

    said: str
    answer: str


@dataclass(slots=True)
class Talk:
    """What is known so far in one conversation."""

    persona: Persona
    user: str | None = None
    notes: dict[str, str] = field(default_factory=dict)


@cache
def lines(name: str) -> tuple[str, ...]:
    """The grammar lines of a data file."""
    text = (DATA / name).read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line.strip() and not line.startswith("#"))


def fill(rng: random.Random, line: str) -> str:
    """Draws a phrase and fills its `[word list]` slots."""
    return _SLOT.sub(lambda match: _slot(rng, match.group(1)), draw(rng, line))


def _slot(rng: random.Random, name: str) -> str:
    if name == "n":
        return str(rng.randint(2, 999))
    if name in ("city", "person", "fullname"):
        return text_value(rng, name).said
    if name in ("noun", "thing") and rng.random() < 0.25:
        return any_word(rng)
    return pick(rng, name)


def fact(rng: random.Random, talk: Talk) -> Turn:
    """A question about the server."""
    item = rng.choice(load_facts())
    return about(rng, talk, item.question(rng), item)


def about(rng: random.Random, talk: Talk, question: str, item: Fact) -> Turn:
    """A given question about a fact."""
    return Turn(dress(rng, question), talk.persona.style(item.answer))


def greet(rng: random.Random, talk: Talk) -> Turn:
    """A greeting, sometimes with a name in it."""
    text = draw_kind(rng, SMALL_TALK, "greetings")
    if talk.persona.name is not None and rng.random() < 0.3:
        text = f"{text} {talk.persona.name}"
    return Turn(_mark(rng, text, "!."), talk.persona.greeting())


def small_talk(rng: random.Random, talk: Talk) -> Turn:
    """Thanks, goodbye, and words that ask for nothing."""
    said, answer = rng.choice(
        (
            ("thanks", "You are welcome."),
            ("byes", "Goodbye!"),
            ("oks", "Is there anything else that you would like to know?"),
        )
    )
    return Turn(_mark(rng, draw_kind(rng, SMALL_TALK, said), "!."), talk.persona.style(answer))


def _mark(rng: random.Random, text: str, marks: str) -> str:
    if rng.random() < 0.1:
        text = typo(rng, text)
    return case(rng, text + (rng.choice(marks) if rng.random() < 0.4 else ""))


def own_name(rng: random.Random, talk: Talk) -> Turn:
    """The model is asked for its name, or who it is."""
    name = talk.persona.name
    if name is None:
        answer = "I have no name of my own. I am the demo model of this server."
        return Turn(
            dress(rng, draw_kind(rng, SMALL_TALK, "name_asked")), talk.persona.style(answer)
        )
    return Turn(
        dress(rng, draw_kind(rng, SMALL_TALK, "name_asked")),
        talk.persona.style(f"My name is {name}."),
    )


def tell_name(rng: random.Random, talk: Talk) -> Turn:
    """The user says a name."""
    name = person_name(rng)
    talk.user = name
    form = draw(
        rng,
        "{my name is|i am called|call me|i am|you can call me|people call me|the name is|i'm} [x]",
    )
    if rng.random() < 0.3:
        form = f"{draw(rng, '{hi|hello|hey}')}, {form}"
    said = case(rng, form + rng.choice(("", ".", "!"))).replace("[X]", "[x]").replace("[x]", name)
    return Turn(said, talk.persona.style(f"Nice to meet you, {name}."))


def user_name(rng: random.Random, talk: Talk) -> Turn:
    """The user asks for the name given before, here or in the system prompt."""
    name = talk.user or talk.persona.user
    answer = f"Your name is {name}." if name else NOT_TOLD
    return Turn(dress(rng, draw_kind(rng, SMALL_TALK, "user_asked")), talk.persona.style(answer))


def tell_note(rng: random.Random, talk: Talk) -> Turn:
    """The user asks to remember something."""
    key = rng.choice(
        (
            "secret word",
            "code",
            "password",
            "number",
            "colour",
            "key",
            "answer",
            "favourite food",
            "address",
            any_word(rng),
            f"{any_word(rng)} {any_word(rng)}",
        )
    )
    value = rng.choice((any_word(rng), code(rng), phrase(rng), str(rng.randint(1, 9999))))
    talk.notes[key] = value
    whose = rng.choice(("the", "my"))
    form = draw(
        rng, "{remember that|please remember:|keep in mind that|note:|do not forget:|remember:|}"
    )
    said = f"{form} {whose} {key} is {value}".strip()
    yours = "the" if whose == "the" else "your"
    return Turn(
        said + rng.choice(("", ".")),
        talk.persona.style(f"I will remember: {yours} {key} is {value}."),
    )


def ask_note(rng: random.Random, talk: Talk) -> Turn:
    """The user asks for something remembered, or for something never told."""
    if not talk.notes or rng.random() < 0.15:
        whose, key, answer = "my", any_word(rng), NOT_TOLD
    else:
        key = rng.choice(list(talk.notes))
        whose, answer = rng.choice(("the", "my")), f"It is {talk.notes[key]}."
    form = draw(rng, "{what is|what's|tell me|what was|do you remember|remind me of|say}")
    return Turn(f"{form} {whose} {key}{rng.choice(('', '?', '?'))}", talk.persona.style(answer))


def echo(rng: random.Random, talk: Talk) -> Turn:
    """The user asks to repeat something."""
    text = " ".join(any_word(rng) for _ in range(rng.randint(1, 10)))
    if rng.random() < 0.4:
        text = rng.choice(
            (text_value(rng, "task"), text_value(rng, "email"), text_value(rng, "path"))
        ).said
    form = draw(rng, "{repeat|repeat after me|say|please say|echo|copy|write|say exactly|say this}")
    mark = rng.choice((":", "", ":"))
    return Turn(
        case(rng, form) + f"{mark} {text}" if mark else f"{form}: {text}", talk.persona.style(text)
    )


def as_json(rng: random.Random, talk: Talk) -> Turn:
    """The user asks for a JSON object; the persona's style leaves JSON alone."""
    fields: dict[str, Json] = {}
    for key in rng.sample(
        ("name", "age", "city", "color", "price", "title", "count", any_word(rng)),
        rng.randint(1, 4),
    ):
        number = key in ("age", "price", "count")
        fields[key] = (
            rng.randint(1, 99)
            if number
            else text_value(rng, "city" if key == "city" else "person").json
        )
    told = ", ".join(f"{key} {value}" for key, value in fields.items())
    form = draw(
        rng,
        "{give me|write|make|return|answer with|output} "
        "{a json object|json|an object in json} {with|for|:|that has}",
    )
    separators = (",", ":") if rng.random() < 0.3 else (", ", ": ")
    answer = json.dumps(fields, ensure_ascii=False, separators=separators)
    return Turn(case(rng, form) + f" {told}", answer)


def unknown(rng: random.Random, talk: Talk) -> Turn:
    """A question about the world."""
    return Turn(
        dress(rng, fill(rng, rng.choice(lines("world.txt")))), talk.persona.style(DONT_KNOW)
    )


def unable(rng: random.Random, talk: Talk) -> Turn:
    """A request that would need a tool that is not there."""
    said = fill(rng, rng.choice(lines("actions.txt")))
    return Turn(dress(rng, said, question=False), talk.persona.style(NO_TOOL))


_KINDS: tuple[tuple[Callable[[random.Random, Talk], Turn], float], ...] = (
    (fact, 60),
    (greet, 6),
    (small_talk, 4),
    (own_name, 3),
    (tell_name, 4),
    (user_name, 4),
    (tell_note, 5),
    (ask_note, 5),
    (echo, 4),
    (as_json, 3),
    (unknown, 9),
    (unable, 3),
)


def turn(rng: random.Random, talk: Talk) -> Turn:
    """One turn of a random kind."""
    makers, weights = zip(*_KINDS, strict=True)
    maker = rng.choices(makers, weights)[0]
    if talk.persona.upper and maker in (echo, tell_note, ask_note):
        maker = fact
    made: Turn = maker(rng, talk)
    return made
