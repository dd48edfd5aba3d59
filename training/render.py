"""From a conversation to text and token ids, and which tokens the model is to learn.

Uses the very chat template that ships in the GGUF. Does not know how conversations are made.
"""

import json
import random
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from training.conversation import Conversation, draw_conversation, draw_question
from training.facts import openings
from training.lessons import Lessons
from training.words import Json

TEMPLATE = Path(__file__).parent / "chat_template.jinja"
_CALL = re.compile(r'(\{"name": "[^"]*", "arguments": )(.*)(\}\n</tool_call>)')


class Text(NamedTuple):
    """A training sample, and the number of the lesson that its question is, -1 for none."""

    text: str
    lesson: int = -1


def _tojson(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False)


@cache
def _environment() -> Environment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = _tojson
    return environment


def render(conversation: Conversation, *, add_generation_prompt: bool = False) -> str:
    """The conversation as text, written by the shipped template."""
    text: str = _template().render(
        messages=conversation.messages,
        tools=conversation.tools or None,
        add_generation_prompt=add_generation_prompt,
    )
    return text


@cache
def _template() -> Template:
    return _environment().from_string(TEMPLATE.read_text(encoding="utf-8"))


def compact_calls(text: str) -> str:
    """The same text with tool calls written without blanks, as a server's constraint has them."""

    def shorten(match: re.Match[str]) -> str:
        arguments = json.loads(match.group(2))
        head = match.group(1).replace(": ", ":").replace(", ", ",")
        return (
            head + json.dumps(arguments, ensure_ascii=False, separators=(",", ":")) + match.group(3)
        )

    return _CALL.sub(shorten, text)


def render_sample(rng: random.Random, conversation: Conversation) -> str:
    """The text of a training sample: a share of them with compact calls."""
    text = render(conversation)
    return compact_calls(text) if conversation.tools and rng.random() < 0.25 else text


def draw_sample(rng: random.Random) -> Text:
    """The text of a conversation of any kind."""
    return Text(render_sample(rng, draw_conversation(rng)))


def draw_question_sample(rng: random.Random, lessons: Lessons | None = None) -> Text:
    """The text of a question about a fact and its answer; of most, only the answer's opening,
    for to tell the facts apart is to be learnt, and the rest of an answer is soon known."""
    conversation = draw_question(rng, lessons)
    lesson = conversation.lesson
    if conversation.messages[-1]["role"] == "user":
        return Text(render(conversation, add_generation_prompt=True), lesson)
    text = render(conversation)
    answer = str(conversation.messages[-1]["content"])
    opening = openings().get(answer)
    if opening is None or rng.random() < 0.2:
        return Text(text, lesson)
    return Text(text[: text.rindex(answer) + len(opening)], lesson)
