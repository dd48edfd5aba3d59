"""Headers of calls that models write beside the one their template shows.

Plain functions on literals: what follows from a header's shape. They know no model by name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llm_server.chat.syntax.literal import Literal, Slot, build, is_marker, pieces, text_of

_NAMED_OBJECT = re.compile(r'\{\s*"\w+":\s*"')
"""The beginning of an object whose first member is the name of a function."""

_TAG = re.compile(r"<[|｜]?\w")


def other_headers(literal: Literal, channels: Sequence[str] = ()) -> list[Literal]:
    """Other headers for the same call. `channels` are those that messages may come in beside the
    header's own."""
    return _with_type(literal) or _in_channels(literal, channels)


def bare_header(begin: Literal, trigger: str) -> Literal | None:
    """A header without the marker that opens all calls, where the call itself opens with a tag:
    models forget the outer one. None where there is no such tag."""
    first, rest = text_of(begin)[: len(trigger)], text_of(begin)[len(trigger) :].lstrip()
    if first != trigger or not is_marker(trigger) or not _TAG.match(rest):
        return None
    return build(rest, *begin[1:])


def short_end(end: Literal) -> Literal | None:
    """What ends a call alone, of what ends the last one and all of them; None if that is one."""
    parts = pieces(text_of(end))
    if len(end) != 1 or sum(map(is_marker, parts)) < 2 or not is_marker(parts[-1]):
        return None
    return build("".join(parts[:-1]).rstrip())


def message_types(marker: str) -> list[Literal]:
    """How a message in a channel tells the type of its text before `marker`: not at all, as a word
    or behind a marker of its own (OpenAI's harmony format)."""
    return [
        build(marker),
        build(" ", Slot.TYPE, marker),
        build(" <|constrain|>", Slot.TYPE, marker),
    ]


def _with_type(literal: Literal) -> list[Literal]:
    """Tools are shown with their type first, so models write it first in a bare call as well."""
    before = literal[0] if len(literal) == 3 and literal[1] is Slot.NAME else None
    if not isinstance(before, str) or not _NAMED_OBJECT.fullmatch(before):
        return []
    return [build('{"type": "function", ', before[1:].lstrip(), *literal[1:])]


def _in_channels(literal: Literal, channels: Sequence[str]) -> list[Literal]:
    """Other orders of a header that names a recipient and a channel.

    `to=f<|channel|>commentary json<|message|>` may also come with the channel first, with another
    type of the arguments or none, and in the channel of thoughts.
    """
    if len(literal) != 3 or literal[1] is not Slot.NAME:
        return []
    before, after = str(literal[0]), pieces(str(literal[2]))
    markers = [piece for piece in after if is_marker(piece)]
    at = before.rfind("to=")
    if at < 0 or len(markers) != 2 or after[0] != markers[0] or after[-1] != markers[1]:
        return []
    words = "".join(after[1:-1]).split()
    if not words:
        return []
    headers = []
    for word in dict.fromkeys([words[0], *channels]):
        channel, recipient = f"{markers[0]}{word}", before[at:]
        for rest in message_types(markers[1]):
            headers.append(build(before[:at], channel, " ", recipient, Slot.NAME, *rest))
            headers.append(build(before, Slot.NAME, channel, *rest))
    return [header for header in headers if header != literal]
