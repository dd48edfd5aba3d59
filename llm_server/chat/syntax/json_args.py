"""Arguments that are one JSON object, wherever it stands: in an object with the call's name, in a
list, behind the name.

Reading only finds where the object ends; its text is passed on as the model wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from llm_server.chat.syntax.literal import build
from llm_server.chat.syntax.reader import Parse, Reader

_OUTSIDE = re.compile(r'["{}\[\]]')
_INSIDE = re.compile(r'["\\]')
_EMPTY = build("{}")
_MEMBER = build('{"')
_CLOSER = {"{": "}", "[": "]"}


def parse(reader: Reader, emit: Callable[[str], None]) -> Parse[bool]:
    """Read one JSON object and pass its text on in pieces.

    False, with nothing read or passed on, if none comes next. An object whose brackets do not
    match ends there.
    """
    opening = yield from reader.match([_EMPTY, _MEMBER], consume=False)
    if opening is None:
        return False
    reader.pos = reader.text.index("{", reader.pos)
    closers: list[str] = []
    inside = False
    skip = 0  # characters of an escape that the last piece began
    while True:
        done, inside, skip = _scan(reader, closers, inside, skip, emit)
        if done:
            return True
        yield from reader.more()


def _scan(
    reader: Reader, closers: list[str], inside: bool, skip: int, emit: Callable[[str], None]
) -> tuple[bool, bool, int]:
    """Pass on what is there. Whether the object is complete, whether a text is open, escapes."""
    text, at, end = reader.text, reader.pos + skip, len(reader.text)
    while at < end:
        found = (_INSIDE if inside else _OUTSIDE).search(text, at)
        if found is None:
            at = end
            break
        sign, at = found.group(), found.end()
        if sign == "\\":
            at += 1
        elif sign == '"':
            inside = not inside
        elif sign in _CLOSER:
            closers.append(_CLOSER[sign])
        else:
            if closers.pop() != sign:
                emit(reader.take(found.start() - reader.pos))
                return True, False, 0
            if not closers:
                emit(reader.take(at - reader.pos))
                return True, False, 0
    emit(reader.take(end - reader.pos))
    return False, inside, max(at - end, 0)
