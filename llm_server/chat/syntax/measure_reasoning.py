"""Finding how a model fences its thinking and its plain text.

First by rendering a thought; if the template shows none (many drop old thoughts), by what it
puts at the end of a prompt or looks for in a history. It knows no model by name.
"""

from __future__ import annotations

import re

from llm_server.chat.syntax.format import ReasoningFormat
from llm_server.chat.syntax.literal import (
    common_prefix,
    common_suffix,
    has_marker,
    is_marker,
    pieces,
    up_to_marker,
)
from llm_server.chat.syntax.probes import CONTENT, NAMES, STRINGS, THOUGHT, Probes

_THINKING = re.compile(r"think|thought|reason|analysis", re.IGNORECASE)
_SEARCHED = re.compile(r"([<\[])/(\w*(?:think|thought|reason)\w*)([>\]])", re.IGNORECASE)


def measure_reasoning(probes: Probes) -> ReasoningFormat | None:
    """How thoughts are fenced; None if this model does not think aloud."""
    thinking = Probes(probes.template, {"enable_thinking": True, "thinking": True})
    for p in (probes, thinking):
        found = _from_history(p)
        if found is not None:
            return found
    for p in (probes, thinking):
        found = _from_prompt(p)
        if found is not None:
            return found
    searched = _SEARCHED.search(probes.template.source)
    if searched is not None:
        return ReasoningFormat("".join(searched.groups()), searched.group())
    return None


def measure_content(probes: Probes, reasoning: ReasoningFormat | None) -> tuple[str, str]:
    """What opens and closes plain text, empty where nothing does."""
    text, prompt = probes.text(), probes.prompt()
    if CONTENT not in text:
        return "", ""
    before, _, after = text.rpartition(CONTENT)
    opening = before[len(common_prefix(text, prompt)) :]
    thought = probes.text(THOUGHT)
    if reasoning is not None:
        if 0 <= thought.find(THOUGHT) < thought.find(CONTENT):
            before = _between(thought, CONTENT) or ""
            opening = before.strip().removeprefix(reasoning.close)
        elif reasoning.close in before:
            opening = before.rpartition(reasoning.close)[2]
    opening = opening.strip()
    if prompt.rstrip().endswith(opening):
        opening = ""
    shared = common_suffix(after, probes.calls(STRINGS) or "")
    closes = after[: len(after) - len(shared)].strip()
    return opening, after.strip() if closes and shared.strip() else closes


def measure_switch(probes: Probes, reasoning: ReasoningFormat | None) -> str:
    """What ends a message and begins the next in one answer; empty if an answer is one message."""
    prompt = pieces(probes.prompt().rstrip())
    if reasoning is None or not prompt or is_marker(prompt[-1]):
        return ""
    turns = ("".join(prompt[-n:]) for n in range(1, len(prompt) + 1))
    switches = any(has_marker(turn) and reasoning.close.endswith(turn) for turn in turns)
    return reasoning.close if switches else ""


def _from_history(probes: Probes) -> ReasoningFormat | None:
    prompt, text = probes.prompt(), probes.text()
    shown = probes.text(THOUGHT)
    called = probes.calls(STRINGS, reasoning=THOUGHT) or ""
    to_text = _between(shown, CONTENT)
    to_call = _between(called, NAMES[0])
    render = shown if to_text is not None else called
    if to_text is None and to_call is None:
        return None
    before = render[: render.index(THOUGHT)]
    head = min(common_prefix(render, prompt), common_prefix(render, text), key=len)
    opening = before[len(_before_thinking(head)) :].strip()
    closing = common_prefix(to_text or to_call or "", to_call or to_text or "")
    if to_text is None or to_call is None:
        closing = up_to_marker(closing)
    closing = _up_to_turn(closing, prompt).strip()
    if not closing or not (has_marker(opening) or opening in prompt):
        return None
    return ReasoningFormat(opening if has_marker(opening) else "", closing)


def _up_to_turn(closing: str, prompt: str) -> str:
    """A thought may end its message: what closes it then goes on as far as a prompt does."""
    parts = pieces(prompt.rstrip())
    for n in range(len(parts), 0, -1):
        turn = "".join(parts[-n:])
        if has_marker(turn) and turn in closing:
            return closing[: closing.index(turn) + len(turn)]
    return closing


def _between(render: str, end: str) -> str | None:
    start = render.find(THOUGHT)
    stop = render.find(end, start) if start >= 0 else -1
    return render[start + len(THOUGHT) : stop] if stop >= 0 else None


def _before_thinking(head: str) -> str:
    """`head` without an opened thought at its end."""
    parts = pieces(head)
    for i, piece in enumerate(parts):
        if not _THINKING.search(piece):
            continue
        if not is_marker(piece):
            while i and not is_marker(parts[i]):
                i -= 1
            if not is_marker(parts[i]):
                continue
        return "".join(parts[:i])
    return head


def _from_prompt(probes: Probes) -> ReasoningFormat | None:
    """A prompt may end with an opened thought, or with one opened and closed."""
    found = [p for p in pieces(probes.prompt()) if is_marker(p) and _THINKING.search(p)]
    if not found:
        return None
    opening = found[0]
    closing = found[1] if len(found) > 1 else _closing_of(opening, probes.template.source)
    return ReasoningFormat(opening, closing) if closing else None


def _closing_of(opening: str, source: str) -> str:
    for closing in (f"</{opening[1:]}", f"[/{opening[1:]}", f"{opening[0]}/{opening[1:]}"):
        if closing in source:
            return closing
    return f"{opening[0]}/{opening[1:]}"
