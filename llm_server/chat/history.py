"""Messages as a chat template reads them, in the style that was measured of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from llm_server.chat.syntax.values import finite
from llm_server.worker.messages import FunctionCall, JsonObject, Message

RESULTS = "tool_responses"
"""Where a template has what tools answered inside the message that called them."""

Ids: TypeAlias = Literal["given", "short", "named", "renamed"]
IDS: tuple[Ids, ...] = ("given", "short", "named", "renamed")
"""Of calls: the client's; cut short; or of name and number, as Kimi K2 has them, which counts
through the conversation or anew in each message."""


@dataclass(frozen=True, slots=True)
class Style:
    """What a template wants in an assistant message with tool calls.

    `empty` is what stands for no content: an empty text, None, or no such key. `several` and
    `beside`: whether it shows a second call, and calls beside text, in one message. `results`: what
    the tools answered comes as messages of theirs or, as Gemma 4 has it, inside that message.
    """

    arguments: Literal["object", "text"] = "object"
    empty: Literal["text", "none", "absent"] = "text"
    ids: Ids = "given"
    results: Literal["inside", "messages"] = "messages"
    several: bool = True
    beside: bool = True


def dicts(
    messages: Sequence[Message], style: Style, reasoning_keys: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The messages as a template reads them; thoughts go by all of `reasoning_keys`."""
    calls: dict[str, str] = {}  # names by id
    ids: dict[str, str] = {}  # as the template has them, by id
    n_calls = 0
    results: list[JsonObject] | None = None  # where those behind the last calls belong
    for message in messages:
        if message.role == "tool" and results is not None:
            name = message.name or calls.get(message.tool_call_id or "", "")
            results.append({"name": name, "response": as_object(message.content or "")})
            continue
        entry = _head(message, style)
        if message.reasoning_content is not None:
            entry |= dict.fromkeys(reasoning_keys, message.reasoning_content)
        if message.tool_calls:
            first = n_calls if style.ids == "named" else 0
            entry["tool_calls"] = [
                _call(call, number, style) for number, call in enumerate(message.tool_calls, first)
            ]
            n_calls += len(message.tool_calls)
            for call, shown in zip(message.tool_calls, entry["tool_calls"], strict=True):
                calls[call.id], ids[call.id] = call.name, shown["id"]
        results = None
        if message.tool_calls and style.results == "inside":
            entry[RESULTS] = results = []
        if (call_id := message.tool_call_id) is not None:
            entry["tool_call_id"] = ids.get(call_id) or _short(call_id, style)
        yield entry


def _head(message: Message, style: Style) -> dict[str, Any]:
    """What every kind of message has."""
    entry: dict[str, Any] = {"role": message.role}
    if message.content or not message.tool_calls or style.empty == "text":
        entry["content"] = message.content or ""
    elif style.empty == "none":
        entry["content"] = None
    if message.name is not None:
        entry["name"] = message.name
    return entry


def _call(call: FunctionCall, number: int, style: Style) -> dict[str, Any]:
    arguments = call.arguments
    named = style.ids in ("named", "renamed")
    return {
        "id": f"functions.{call.name}:{number}" if named else _short(call.id, style),
        "type": "function",
        "function": {
            "name": call.name,
            "arguments": as_object(arguments) if style.arguments == "object" else arguments,
        },
    }


def _short(call_id: str, style: Style) -> str:
    """Some templates refuse ids other than nine letters and digits."""
    if style.ids != "short" or (len(call_id) == 9 and call_id.isalnum()):
        return call_id
    return hashlib.sha256(call_id.encode("utf-8", "replace")).hexdigest()[:9]


def as_object(arguments: str) -> JsonObject | str:
    """Arguments that are no JSON object stay text: the history is what it is."""
    try:
        value = json.loads(arguments or "{}", parse_float=finite)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments
