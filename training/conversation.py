"""Whole conversations: chats, tool loops and mixtures of both, as messages and tools.

Decides which turns follow each other. Does not know tokens or the template.
"""

import random
from dataclasses import dataclass, field
from functools import cache

from training import chat
from training.chat import NO_TOOL, Talk
from training.facts import DATA, load_facts
from training.lessons import Lessons
from training.madeup import made_up_skill
from training.noise import story
from training.persona import Persona, draw_persona
from training.results import draw_result, report
from training.tools import Call, Family, Request, Skill, load_families
from training.words import Json

LESSONS = 0.65
"""Share of the single questions that the teacher made, where there are some."""
_CALLING = ("please", "hey,", "ok,", "now", "can you", "could you please", "hi,")
# Families so close that a request for one could be answered by the other.
_CLOSE = (
    {"calc", "sum"},
    {"search", "wiki", "news", "define", "author-books", "book"},
    {"order", "refund", "parcel"},
    {"todo", "shopping", "note", "reminder", "ticket"},
    {"read-file", "fetch", "list-files"},
    {"message", "email"},
    {"route", "taxi"},
    {"event", "get-events", "appointment"},
    {"order", "product", "shopping"},
)


@dataclass(slots=True)
class Conversation:
    """Messages in OpenAI's form, with the tools on offer, and the number of the lesson that the
    last question is, -1 for none; a lesson may lack its answer."""

    messages: list[dict[str, Json]] = field(default_factory=list)
    tools: list[Json] = field(default_factory=list)
    lesson: int = -1

    def add(self, role: str, content: Json, **more: Json) -> None:
        """Appends one message."""
        self.messages.append({"role": role, "content": content, **more})


@cache
def training_families() -> tuple[Family, ...]:
    """The families of the training set; held-out ones live in other files."""
    paths = sorted(DATA.glob("families*.txt"))
    return tuple(family for path in paths for family in load_families(path))


@cache
def frames() -> tuple[Family, ...]:
    """The families whose words are all drawn."""
    return load_families(DATA / "frames.txt")


@cache
def reserved_names() -> frozenset[str]:
    """Names of tools kept for measuring; no drawn tool may have one by chance."""
    kept = [family for path in sorted(DATA.glob("tools_*.txt")) for family in load_families(path)]
    return frozenset(name for family in kept for name in family.names)


def draw_conversation(rng: random.Random) -> Conversation:
    """Draws one training conversation."""
    return _tool_conversation(rng) if rng.random() < 0.58 else _chat_conversation(rng)


def draw_question(rng: random.Random, lessons: Lessons | None = None) -> Conversation:
    """One question about a fact with its answer, at times under a system prompt."""
    persona = draw_persona(rng) if rng.random() < 0.25 else Persona()
    conversation = Conversation()
    if persona.system is not None:
        conversation.add("system", persona.system)
    if lessons is None or rng.random() >= LESSONS:
        _add_turn(conversation, chat.fact(rng, Talk(persona)))
        return conversation
    lesson = lessons.draw(rng)
    conversation.lesson = lesson.number
    turn = chat.about(rng, Talk(persona), lesson.text, lesson.fact or load_facts()[0])
    if lesson.fact is None:
        conversation.add("user", turn.said)
    else:
        _add_turn(conversation, turn)
    return conversation


def _chat_conversation(rng: random.Random) -> Conversation:
    persona = draw_persona(rng) if rng.random() < 0.5 else Persona()
    talk = Talk(persona)
    conversation = Conversation()
    if persona.system is not None:
        conversation.add("system", persona.system)
    count = rng.choices((1, 2, 3, 5, 8, 20), (40, 22, 16, 14, 6, 1))[0]
    for _ in range(count):
        _say(conversation, rng, talk)
    return conversation


def _say(conversation: Conversation, rng: random.Random, talk: Talk) -> None:
    _add_turn(conversation, chat.turn(rng, talk))


def _add_turn(conversation: Conversation, turn: chat.Turn) -> None:
    conversation.add("user", turn.said)
    conversation.add("assistant", turn.answer)


def _tool_conversation(rng: random.Random) -> Conversation:
    persona = draw_persona(rng, tools=True) if rng.random() < 0.45 else Persona()
    talk = Talk(persona)
    skills = draw_skills(rng)
    conversation = Conversation(tools=[skill.definition(rng) for skill in skills])
    if persona.system is not None:
        conversation.add("system", persona.system)
    count = rng.choices((1, 2, 3, 5, 8, 14), (50, 25, 13, 8, 3, 1))[0]
    for _ in range(count):
        roll = rng.random()
        if roll < 0.59:
            _use_tools(conversation, rng, skills)
        elif roll < 0.83:
            _ask_in_vain(conversation, rng, skills)
        else:
            _say(conversation, rng, talk)
    return conversation


def draw_skills(rng: random.Random) -> list[Skill]:
    """Draws the tools of a conversation; their names and families differ."""
    count = rng.choices((1, 2, 3, 4, 6, 8, 12, 20), (16, 20, 20, 18, 14, 9, 3, 1))[0]
    skills: list[Skill] = []
    while len(skills) < count:
        skill = _draw_skill(rng, skills)
        if not any(_clash(skill, other) for other in skills):
            skills.append(skill)
    rng.shuffle(skills)
    return skills


def _draw_skill(rng: random.Random, others: list[Skill]) -> Skill:
    roll = rng.random()
    if roll < 0.45:
        skill = rng.choice(training_families()).skill(rng)
    elif roll < 0.72:
        skill = rng.choice(frames()).skill(rng)
    else:
        skill = made_up_skill(rng, rng.choice(others) if others and rng.random() < 0.4 else None)
    return skill if skill.name not in reserved_names() else _draw_skill(rng, others)


def _clash(one: Skill, other: Skill) -> bool:
    if one.name == other.name or one.family == other.family:
        return True
    return any(one.family in group and other.family in group for group in _CLOSE)


def _use_tools(conversation: Conversation, rng: random.Random, skills: list[Skill]) -> None:
    count = rng.choices((1, 2, 3), (56, 37, 7))[0]
    requests: list[Request] = []
    for _ in range(count):
        skill = rng.choice(skills)
        requests.append(skill.ask(rng, lower=rng.random() < 0.1))
    conversation.add("user", _combined(rng, requests))
    calls: list[Json] = [_tool_call(request.call) for request in requests]
    conversation.add("assistant", None, tool_calls=calls)
    results = [draw_result(rng, request.call) for request in requests]
    for result in results:
        conversation.add("tool", result)
    conversation.add("assistant", " ".join(report(result) for result in results))


def _tool_call(call: Call) -> dict[str, Json]:
    return {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}


def _combined(rng: random.Random, requests: list[Request]) -> str:
    joint = rng.choice(
        (
            *(" and ", " and then ", ", then ", ". ", ". Also ", ", and also ", " and also ", "; "),
            *(". Next, ", ". After that ", ". And then ", ". Then please ", " plus ", ", also "),
            *(", next ", " and afterwards ", " and please ", ", and when that is done ", ".\n"),
        )
    )
    text = requests[0].text
    for request in requests[1:]:
        more = request.text
        text = text.rstrip("?.! ") + joint
        text += _capital(request, more) if joint in (". ", ".\n") else more
    if rng.random() < 0.2:
        text = f"{rng.choice(_CALLING)} {text}"
    elif rng.random() < 0.5:
        text = _capital(requests[0], text)
    if rng.random() < 0.08:
        text = f"{story(rng)}. {text}"
    return text + rng.choices(("", ".", "?", "!", " please", ", thanks"), (10, 5, 2, 1, 1, 0.5))[0]


def _capital(request: Request, text: str) -> str:
    """A capital first letter, unless the sentence begins with a value."""
    first = text.split(" ")[0]
    if any(
        isinstance(value, str) and value.startswith(first)
        for value in request.call.arguments.values()
    ):
        return text
    return text[:1].upper() + text[1:]


def _ask_in_vain(conversation: Conversation, rng: random.Random, skills: list[Skill]) -> None:
    """A request for which none of the tools fits."""
    if rng.random() < 0.25:
        conversation.add("user", chat.unable(rng, Talk(Persona())).said)
    else:
        conversation.add("user", _combined(rng, [_absent(rng, skills).ask(rng)]))
    conversation.add("assistant", NO_TOOL)


def _absent(rng: random.Random, skills: list[Skill]) -> Skill:
    while True:
        skill = _draw_skill(rng, skills)
        if not any(_clash(skill, other) for other in skills):
            return skill
