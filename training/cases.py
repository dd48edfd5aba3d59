"""What the demo model is measured on, for the held-out split and the validation split.

Questions and tools here never occur in training. Each case says what a right answer is; it
does not know how the answer is obtained.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from training import chat
from training.chat import Talk
from training.facts import DATA, Fact, load_facts
from training.grammar import draw
from training.persona import Persona
from training.tools import Call, Family, Skill, load_families
from training.words import Json

Split: TypeAlias = Literal["held_out", "validation"]
Message: TypeAlias = dict[str, Json]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered: text, tool calls, and why it ended."""

    content: str
    calls: tuple[Call, ...]
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Case:
    """One conversation to be continued, and the judgement of the continuation."""

    group: str
    messages: list[Message]
    right: Callable[[Answer], bool]
    tools: list[Json] = field(default_factory=list)
    wanted: str = ""


def all_cases(split: Split) -> list[Case]:
    """Every case of a split, always the same."""
    rng = random.Random(f"cases {split}")
    return [
        *fact_cases(split), *tool_cases(rng, split), *two_call_cases(rng, split),
        *no_tool_cases(rng, split), *no_need_cases(rng, split), *result_cases(rng, split),
        *persona_cases(rng, split), *memory_cases(rng), *world_cases(split),
        *(unseen_cases(rng) if split == "held_out" else ()),
    ]  # fmt: skip


def user(text: str) -> Message:
    """A user message."""
    return {"role": "user", "content": text}


def questions(fact: Fact, split: Split) -> tuple[str, ...]:
    """The questions about a fact that belong to a split."""
    return (
        fact.held_out
        if split == "held_out"
        else tuple(line.replace("%", "") for line in fact.validation)
    )


def fact_cases(split: Split) -> Iterator[Case]:
    """Questions about the server."""
    rng = random.Random(1)
    for fact in load_facts():
        for line in questions(fact, split):
            said = draw(rng, line)
            yield Case("facts", [user(_sentence(said))], _holds(fact), wanted=fact.answer)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "?"


def _holds(fact: Fact) -> Callable[[Answer], bool]:
    others = {other.answer for other in load_facts() if other is not fact}

    def right(answer: Answer) -> bool:
        said = answer.content.strip()
        return not answer.calls and said not in others and fact.answered_by(said)

    return right


def families(split: Split) -> tuple[Family, ...]:
    """The tool families of a split."""
    return load_families(DATA / f"tools_{split}.txt")


def unseen_cases(rng: random.Random) -> Iterator[Case]:
    """The second set of held-out tools, among those of the first."""
    for family in load_families(DATA / "tools_unseen.txt"):
        for _ in range(10):
            skills = _offer(rng, "held_out", [family], 4)
            request = next(skill for skill in skills if skill.family == family.name).ask(rng)
            yield Case(
                "one call, second set",
                [user(request.text)],
                _calls(request.call),
                _definitions(skills),
                str(request.call),
            )


def _offer(rng: random.Random, split: Split, wanted: list[Family], most: int) -> list[Skill]:
    others = [family for family in families(split) if family not in wanted]
    chosen = wanted + rng.sample(others, min(len(others), rng.randint(0, most)))
    rng.shuffle(chosen)
    return [family.skill(rng, vary=False) for family in chosen]


def _definitions(skills: list[Skill]) -> list[Json]:
    rng = random.Random(2)
    return [skill.definition(rng) for skill in skills]


def _calls(*wanted: Call) -> Callable[[Answer], bool]:
    return lambda answer: answer.calls == wanted


def tool_cases(rng: random.Random, split: Split) -> Iterator[Case]:
    """One request that one of the tools fits."""
    for family in families(split):
        for _ in range(10):
            skills = _offer(rng, split, [family], 5)
            request = next(skill for skill in skills if skill.family == family.name).ask(rng)
            yield Case(
                "one call",
                [user(request.text)],
                _calls(request.call),
                _definitions(skills),
                str(request.call),
            )


def two_call_cases(rng: random.Random, split: Split) -> Iterator[Case]:
    """Two requests in one message, of one tool or of two."""
    for _ in range(80):
        pair = [rng.choice(families(split)), rng.choice(families(split))]
        skills = _offer(rng, split, list({family.name: family for family in pair}.values()), 4)
        by_name = {skill.family: skill for skill in skills}
        first, second = (by_name[family.name].ask(rng) for family in pair)
        joint = rng.choice((" and ", ", and then ", ". Then "))
        yield Case(
            "two calls",
            [user(first.text + joint + second.text)],
            _calls(first.call, second.call),
            _definitions(skills),
            f"{first.call} {second.call}",
        )


def no_tool_cases(rng: random.Random, split: Split) -> Iterator[Case]:
    """A request whose tool is not offered."""
    for family in families(split):
        for _ in range(4):
            others = [item for item in families(split) if item is not family]
            chosen = rng.sample(others, min(len(others), rng.randint(1, 5)))
            skills = [item.skill(rng, vary=False) for item in chosen]
            said = family.skill(rng, vary=False).ask(rng).text
            yield Case(
                "no call: no tool fits",
                [user(said)],
                lambda answer: not answer.calls,
                _definitions(skills),
            )


def no_need_cases(rng: random.Random, split: Split) -> Iterator[Case]:
    """Tools are offered, and the message asks for none: questions, greetings, the world."""
    for fact in load_facts()[::3]:
        said = _sentence(draw(rng, questions(fact, split)[0]))
        skills = _offer(rng, split, [], 5) or _offer(rng, split, [families(split)[0]], 3)
        yield Case(
            "no call: nothing to call",
            [user(said)],
            lambda answer: not answer.calls,
            _definitions(skills),
        )
    for said in ("Hi", "Good evening!", "Thank you.", "Who are you?", "How tall is Mont Blanc?"):
        skills = _offer(rng, split, [families(split)[0]], 5)
        yield Case(
            "no call: nothing to call",
            [user(said)],
            lambda answer: not answer.calls,
            _definitions(skills),
        )


def result_cases(rng: random.Random, split: Split) -> Iterator[Case]:
    """The answer after a tool's result must say what the result holds."""
    results: tuple[tuple[str, tuple[str, ...]], ...] = (
        ('{"temperature": 17, "conditions": "drizzle"}', ("17", "drizzle")),
        ('{"status": "ok", "ends_at": "18:42"}', ("18:42",)),
        ('{"error": "lamp unreachable"}', ("lamp unreachable",)),
        ('{"now_playing": "Blue Harbour", "volume": 35}', ("Blue Harbour", "35")),
        ("3 spaces left on level B", ("3 spaces left on level B",)),
        ('["Fernweh", "Zugvogel", "Nordlicht"]', ("Fernweh", "Zugvogel", "Nordlicht")),
        ('{"reference":"QX-5518","total":249.5}', ("QX-5518", "249.5")),
        ('{"wind": "strong", "gusts_kmh": 88}', ("strong", "88")),
    )
    for family in families(split):
        content, parts = rng.choice(results)
        skills = _offer(rng, split, [family], 3)
        request = next(skill for skill in skills if skill.family == family.name).ask(rng)
        call: Json = {
            "id": "call_1",
            "type": "function",
            "function": {"name": request.call.name, "arguments": dict(request.call.arguments)},
        }
        messages: list[Message] = [
            user(request.text),
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": content},
        ]
        yield Case("uses a tool's result", messages, _says(*parts), _definitions(skills), content)


def _says(*parts: str) -> Callable[[Answer], bool]:
    return lambda answer: not answer.calls and all(part in answer.content for part in parts)


# Who it is, how it greets, and capitals.
_PERSONA_LINES: dict[Split, tuple[str, str, str]] = {
    "held_out": (
        "You answer to the name {}, and you assist visitors of our shop.",
        "Please say your hello in {} to whoever comes in.",
        "Make all of your replies capitals, without exception.",
    ),
    "validation": (
        "From now on you are the assistant {}.",
        "Your first words to the user should be in {}.",
        "Every answer has to be in UPPERCASE.",
    ),
}
_HELLO = {
    "German": "Guten Tag",
    "French": "Bonjour",
    "Spanish": "Hola",
    "Italian": "Ciao",
    "Swedish": "Hej",
    "Polish": "Cześć",
}


def persona_cases(rng: random.Random, split: Split) -> Iterator[Case]:
    """System prompts that were not trained on."""
    named, greeting, capitals = _PERSONA_LINES[split]
    for name in ("Miru", "Bartholomew", "Ada", "Quillon", "Nerys", "Obi"):
        system: Message = {"role": "system", "content": named.format(name)}
        for said in ("What is your name?", "Hello!"):
            yield Case("system prompt", [system, user(said)], _says(name))
    for language, word in _HELLO.items():
        system = {"role": "system", "content": greeting.format(language)}
        yield Case("system prompt", [system, user("Hi there")], _says(word))
    for fact in rng.sample(load_facts(), 12):
        system = {"role": "system", "content": capitals}
        said = _sentence(draw(rng, questions(fact, split)[0]))
        yield Case(
            "system prompt",
            [system, user(said)],
            lambda answer: answer.content == answer.content.upper() != "",
        )


def memory_cases(rng: random.Random) -> Iterator[Case]:
    """What was said earlier in the conversation."""
    for name in ("Ingrid", "Tomasz", "Lucia", "Henk", "Priya", "Aoife"):
        messages: list[Message] = [
            user(f"Hello, my name is {name}."),
            {"role": "assistant", "content": f"Nice to meet you, {name}."},
        ]
        for _ in range(rng.randint(0, 3)):
            turn = chat.fact(rng, Talk(Persona()))
            messages += [user(turn.said), {"role": "assistant", "content": turn.answer}]
        yield Case("memory", [*messages, user("What was my name again?")], _says(name))


def world_cases(split: Split) -> Iterator[Case]:
    """Questions about the world, to be answered with ignorance."""
    held_out = (
        "Who won the world cup in 1998?",
        "How many moons has Jupiter?",
        "What is the boiling point of ethanol?",
        "Can you recommend a novel by Tolstoy?",
        "Is Pluto a planet?",
        "What should I cook tonight?",
        "Write a poem about rain.",
        "Who is the president of Brazil?",
        "How do I train for a marathon?",
        "What is 17 + 25?",
    )
    validation = ("How tall is Mount Fuji?", "What is the largest ocean?", "Tell me about Vikings.")
    for said in held_out if split == "held_out" else validation:
        yield Case("says that it does not know", [user(said)], _says("not know"))
