"""Finding a model's call syntax in what its template makes of probe conversations.

One call and two, with and without text, parameters of each kind: the differences are the
markers. It knows no model by name.
"""

from __future__ import annotations

import json
from typing import Any

from llm_server.chat.syntax.format import CallFormat, JsonArgs, ParamArgs
from llm_server.chat.syntax.literal import (
    Literal,
    Matcher,
    Slot,
    build,
    common_prefix,
    common_suffix,
    is_marker,
    pieces,
    text_of,
)
from llm_server.chat.syntax.measure_params import measure_params
from llm_server.chat.syntax.probes import CONTENT, IDS, NAMES, STRINGS, Probes

MIN_TRIGGER = 3
"""Shortest text that announces calls: a slash or a bracket comes in any text."""


def measure_calls(probes: Probes) -> CallFormat | None:
    """How this template writes calls; None when it does not, or in no shape known here."""
    one, text = probes.calls(STRINGS), probes.text()
    if one is None:
        return None
    body = answer_of(one, text, probes.prompt())
    found = _find_arguments(body, probes)
    if found is None or NAMES[0] not in found[2]:
        return None
    args, region, before, after = found
    start = _lstrip(_with_slots(before, 0))
    turn_end = _turn_end(after, text)
    # A template may go on after the end of the turn; only the first one counts.
    own = after[: after.find(turn_end)] if turn_end else after
    end = _rstrip(_with_slots(own, 1))
    after_text = _after_text(probes, region)
    begin = after_text or start
    again = _between(probes, region)
    first = 0
    if again is not None:
        start, _, first = _number(start, again)
        begin, again, first = _number(begin, again)
    trigger = _trigger(begin, text)
    return CallFormat(
        begin=begin,
        end=end,
        args=args,
        again=again,
        start=None if _equal(start, begin) else start,
        first_index=first,
        counts_on=_counts_on(probes, begin, first),
        trigger=trigger,
        anchored=not trigger or (after_text is None and not is_marker(pieces(trigger)[0])),
        turn_end=turn_end,
    )


def _trigger(begin: Literal, text: str) -> str:
    """The beginning of `begin` that tells it from the end of an answer without calls."""
    opening = text_of(begin)
    ending = text[text.rfind(CONTENT) + len(CONTENT) :] if CONTENT in text else ""
    trigger = common_prefix(opening, ending.lstrip())
    for piece in pieces(opening[len(trigger) :]):
        # A word alone is not enough: it may come in any text.
        if piece.isspace() and any(sign in trigger for sign in "<>[{|"):
            break
        trigger += piece
        if is_marker(piece):
            break
    trigger = trigger.strip()
    return trigger if len(trigger) >= MIN_TRIGGER else ""


def answer_of(one: str, text: str, prompt: str) -> str:
    """An answer with calls without what leads into it: that is shared with an answer without
    calls, or in the prompt."""
    led = common_prefix(one, prompt)
    parts = pieces(common_prefix(one, text))
    # Where messages are addressed, the address begins alike: it belongs to the call.
    while (
        parts and len("".join(parts)) > len(led) and not (is_marker(parts[-1]) or parts[-1] == "\n")
    ):
        parts.pop()
    return one[max(len(led), len("".join(parts))) :]


def _find_arguments(body: str, probes: Probes) -> tuple[JsonArgs | ParamArgs, str, str, str] | None:
    """The kind of arguments, their text, and what stands before and after it."""
    span = find_object(body, STRINGS)
    if span is None:
        return measure_params(body, probes.calls)
    region = body[span[0] : span[1]]
    args = JsonArgs(spaced=": " in region)
    return args, region, body[: span[0]], body[span[1] :]


def find_object(text: str, value: Any) -> tuple[int, int] | None:
    """Where `value` stands in `text` as JSON, whatever its blanks."""
    decoder = json.JSONDecoder()
    at = text.find("{")
    while at >= 0:
        try:
            found, end = decoder.raw_decode(text, at)
        except ValueError:
            found, end = None, at
        if found == value:
            return at, end
        at = text.find("{", at + 1)
    return None


def _turn_end(after: str, text: str) -> str:
    """What ends the turn behind a call's arguments, as it does behind a text; empty if nothing."""
    if CONTENT not in text:
        return ""
    return common_suffix(after, text[text.rfind(CONTENT) + len(CONTENT) :]).strip()


def _after_text(probes: Probes, region: str) -> Literal | None:
    """What leads from an answer's text to the first call; None if no text comes before it."""
    body = probes.calls(STRINGS, content=CONTENT)
    if body is None or region not in body:
        return None
    before = body[: body.index(region)]
    if CONTENT not in before:
        return None
    literal = _with_slots(before[before.rindex(CONTENT) + len(CONTENT) :], 0)
    return _lstrip(literal) if Slot.NAME in literal else None


def _between(probes: Probes, region: str) -> Literal | None:
    """What leads from one call's arguments to the next one's."""
    parts = (probes.calls(STRINGS, STRINGS) or "").split(region)
    if len(parts) != 3 or NAMES[1] not in parts[1]:
        return None
    return _with_slots(parts[1], 1)


def _number(first: Literal, second: Literal) -> tuple[Literal, Literal, int]:
    """Both literals with a hole where the second has the next higher number, and the number."""
    a, b, number = _flat(first), _flat(second), 0
    for i in range(1, min(len(a), len(b)) + 1):
        x, y = a[-i], b[-i]
        if x == y:
            continue
        if not (isinstance(x, str) and isinstance(y, str) and x.isdigit() and y.isdigit()):
            break
        if int(y) != int(x) + 1:
            break
        number = int(x)
        a[-i] = b[-i] = Slot.INDEX
    return build(*a), build(*b), number


def _counts_on(probes: Probes, begin: Literal, first: int) -> bool:
    """Whether the number of a call goes on from those of earlier messages."""
    if Slot.INDEX not in begin:
        return False
    text = probes.later_call(STRINGS) or ""
    matcher = Matcher(begin)
    for char in text[max(text.find(text_of(begin)), 0) :]:
        if matcher.done or not matcher.alive:
            break
        matcher.push(char)
    return matcher.done and matcher.values[Slot.INDEX] == str(first + 1)


def _flat(literal: Literal) -> list[str | Slot]:
    out: list[str | Slot] = []
    for part in literal:
        out += [part] if isinstance(part, Slot) else pieces(part)
    return out


def _with_slots(text: str, index: int) -> Literal:
    """A literal with holes for the ids, the name of probe `index` and that of the other one."""
    parts: list[str | Slot] = [text]
    words = {NAMES[index]: Slot.NAME, NAMES[index - 1]: Slot.LAST}
    for word, slot in {**words, IDS[0]: Slot.ID, IDS[1]: Slot.ID}.items():
        out: list[str | Slot] = []
        for part in parts:
            if isinstance(part, Slot):
                out.append(part)
                continue
            for i, piece in enumerate(part.split(word)):
                out += [slot, piece] if i else [piece]
        parts = out
    return build(*parts)


def _lstrip(literal: Literal) -> Literal:
    if literal and isinstance(literal[0], str):
        return build(literal[0].lstrip(), *literal[1:])
    return literal


def _rstrip(literal: Literal) -> Literal:
    if literal and isinstance(literal[-1], str):
        return build(*literal[:-1], literal[-1].rstrip())
    return literal


def _equal(a: Literal, b: Literal) -> bool:
    return [p for p in _flat(a) if p != " " and p != "\n"] == [
        p for p in _flat(b) if p != " " and p != "\n"
    ]
