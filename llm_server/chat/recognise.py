"""What a template tells of its model's answers, measured and then proven: calls in it come back.

Measuring sees one set of names only; a template may write others in another way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from llm_server.chat.stream import AnswerParser
from llm_server.chat.syntax.format import HERMES, CallFormat, ReasoningFormat, Syntax
from llm_server.chat.syntax.literal import is_marker, pieces, text_of
from llm_server.chat.syntax.measure import answer_of, measure_calls
from llm_server.chat.syntax.measure_reasoning import (
    measure_content,
    measure_reasoning,
    measure_switch,
)
from llm_server.chat.syntax.probes import Probes, probe_tool
from llm_server.chat.template import ChatTemplate
from llm_server.worker.messages import JsonObject, ToolCall

_NAMES = ("look_up_qc", "send-qd")
_CALLS: tuple[JsonObject, ...] = ({"qkey": "Some words.", "qother_key": "7 x"}, {"qkey": "y"})
"""Other names, keys and values than the probes have, of other lengths and numbers."""
_AWKWARD: JsonObject = {
    "qkey": 'It\'s "b"\n<c> & \\d',
    "qlist": ["x, y", "]"],
    "qobject": {"qa": {"qb": 'x "y"'}},
    "qflag": True,
}
"""Values that have to be escaped, and of other kinds."""
_SCHEMAS: dict[str, JsonObject] = {
    "qlist": {"type": "array", "description": "Texts.", "items": {"type": "string"}},
    "qobject": {
        "type": "object",
        "description": "An object.",
        "properties": {},
        "additionalProperties": {},
        "required": [],
    },
    "qflag": {"type": "boolean", "description": "A flag."},
}


def measure_syntax(template: ChatTemplate) -> Syntax:
    """All that the template tells of a model's answers; Hermes calls if it shows none, or none
    that can be read back."""
    syntax = _measured(template, measure_calls(Probes(template)))
    return syntax if syntax.native and reads_back(template, syntax) else _measured(template, None)


def reads_back(template: ChatTemplate, syntax: Syntax) -> bool:
    """Whether calls that the template writes, one and two, are read as they are."""
    tools = [probe_tool(name, [*_CALLS[0], *_AWKWARD], _SCHEMAS) for name in _NAMES]
    probes = Probes(template, tools=tools)
    several = syntax.calls.again is not None
    return all(
        _comes_back(probes, syntax, calls)
        for calls in ([_CALLS[0]], [_AWKWARD], list(_CALLS) if several else [_CALLS[1]])
    )


def _comes_back(probes: Probes, syntax: Syntax, calls: Sequence[JsonObject]) -> bool:
    written = probes.calls(*calls)
    if written is None:
        return False
    parser = AnswerParser(0, syntax, probes.tools)
    answer = answer_of(written, probes.text(), probes.prompt())
    found: dict[int, list[str]] = {}
    for delta in [*parser.feed(answer), *parser.close()]:
        if isinstance(delta, ToolCall):
            call = found.setdefault(delta.index, [delta.name or "", ""])
            call[1] += delta.arguments
    return [(name, _value(text)) for name, text in found.values()] == [
        (_NAMES[i], arguments) for i, arguments in enumerate(calls)
    ]


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _measured(template: ChatTemplate, calls: CallFormat | None) -> Syntax:
    """The syntax with these calls; those of Hermes if there are none."""
    probes = Probes(template)
    reasoning = measure_reasoning(probes)
    content_open, content_close = measure_content(probes, reasoning)
    syntax = Syntax(
        calls=_with_channels(calls or HERMES, reasoning),
        native=calls is not None,
        reasoning=reasoning,
        content_open=content_open,
        content_close=content_close,
        switch=measure_switch(probes, reasoning),
    )
    return replace(syntax, calls=_with_own_trigger(syntax.calls, syntax.fences))


def _with_own_trigger(calls: CallFormat, others: list[str]) -> CallFormat:
    """`calls` with a trigger that begins none of `others`; empty if they differ too late."""
    trigger = calls.trigger
    rest = pieces(text_of(calls.begin).lstrip()[len(trigger) :])
    while trigger and any(other.startswith(trigger) for other in others):
        while rest and rest[0].isspace():
            trigger += rest.pop(0)
        trigger = trigger + rest.pop(0) if rest else ""
    return replace(calls, trigger=trigger, anchored=calls.anchored or not trigger)


def _with_channels(calls: CallFormat, reasoning: ReasoningFormat | None) -> CallFormat:
    """`calls` with the channel of thoughts, where a header of theirs names its own channel."""
    header = [piece for part in calls.begin if isinstance(part, str) for piece in pieces(part)]
    markers = [piece for piece in header if is_marker(piece)]
    thought = pieces(reasoning.open) if reasoning is not None else []
    named = len(thought) == 3 and [thought[0], thought[2]] == markers[-2:]
    return replace(calls, channels=(thought[1],)) if named else calls
