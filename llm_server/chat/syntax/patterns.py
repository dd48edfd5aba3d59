"""JSON Schema's `pattern`, which is searched for, as an expression that matches whole texts.

JSON Schema takes its regular expressions from ECMA 262; grammars take Rust's, without anchors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llm_server.errors import InvalidSchema, printable

_ANY = "(?s:.*)"
_CLASSES = {"d": "0-9", "w": "a-zA-Z0-9_"}
"""ECMA 262 means ASCII; Rust's own classes hold more."""

_DOT = r"[^\n\r\x{2028}\x{2029}]"
_SET_SIGNS = frozenset("[&~")
_PLAIN_GROUPS = ("(?:", "(?<")


def search_regex(pattern: str, param: str) -> str:
    """A regular expression, ready to stand between slashes, for texts in which `pattern` is found.

    Raises InvalidSchema for `param` for what cannot be said so: looking around, references to
    groups, word boundaries, and anchors other than at the two ends of a whole alternative.
    """
    try:
        return _converted(pattern)
    except _Unsupported:
        raise InvalidSchema(
            f"The pattern `{printable(pattern, 100)}` cannot be forced in this model's syntax of "
            "calls: it may not look around or refer to groups, and `^` and `$` may only begin and "
            "end it.",
            param,
        ) from None


class _Unsupported(Exception):
    """The pattern holds what grammars cannot say."""


def escaped(text: str) -> str:
    """An expression for this text alone, ready to stand between slashes."""
    return re.escape(text).replace("/", "\\/").replace("\\\n", "\\n")


def _converted(pattern: str) -> str:
    branches = [_Branch()]
    depth = at = 0
    while at < len(pattern):
        char = pattern[at]
        branch = branches[-1]
        if branch.ends and (char != "|" or depth):
            raise _Unsupported
        size = 1
        if char == "\\":
            size = 2
            branch.text += _escape(pattern, at)
        elif char == "[":
            text, size = _set(pattern, at)
            branch.text += text
        elif char == "^" and depth == 0 and not branch.text and not branch.starts:
            branch.starts = True
        elif char == "$" and depth == 0:
            branch.ends = True
        elif char in "^$" or (char == "(" and not _is_plain_group(pattern, at)):
            raise _Unsupported
        elif char == "|" and depth == 0:
            branches.append(_Branch())
        else:
            depth += (char == "(") - (char == ")")
            branch.text += {".": _DOT, "/": "\\/", "\n": "\\n", "\r": "\\r"}.get(char, char)
        at += size
    return "|".join(branch.whole() for branch in branches)


@dataclass(slots=True)
class _Branch:
    """One alternative of a pattern; whether it starts and ends with an anchor."""

    text: str = ""
    starts: bool = False
    ends: bool = False

    def whole(self) -> str:
        before, after = "" if self.starts else _ANY, "" if self.ends else _ANY
        return f"{before}(?:{self.text}){after}"


def _is_plain_group(pattern: str, at: int) -> bool:
    if not pattern.startswith("(?", at):
        return True
    return pattern.startswith(_PLAIN_GROUPS, at) and pattern[at + 3 : at + 4] not in ("=", "!")


def _escape(pattern: str, at: int) -> str:
    """An escape outside a set."""
    name = pattern[at + 1 : at + 2]
    if not name or name in "bBkAzZG123456789":
        raise _Unsupported
    return f"[{_CLASSES[name]}]" if name in _CLASSES else pattern[at : at + 2]


def _set(pattern: str, at: int) -> tuple[str, int]:
    """A set of characters, and its length in the pattern."""
    out, i = "[", at + 1
    while i < len(pattern) and pattern[i] != "]":
        char = pattern[i]
        if char == "\\":
            name = pattern[i + 1 : i + 2]
            out += "\\x08" if name == "b" else _CLASSES.get(name, pattern[i : i + 2])
            i += 2
            continue
        out += {"/": "\\/", "\n": "\\n"}.get(char, f"\\{char}" if char in _SET_SIGNS else char)
        i += 1
    if i >= len(pattern):
        raise _Unsupported
    return out + "]", i + 1 - at
