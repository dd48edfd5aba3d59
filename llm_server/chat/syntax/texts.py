"""The texts that a schema allows, as regular expressions between slashes."""

from __future__ import annotations

from llm_server.chat.schemas import is_irregular
from llm_server.chat.syntax.alternatives import parts_of
from llm_server.chat.syntax.formats import FORMATS
from llm_server.chat.syntax.patterns import search_regex
from llm_server.errors import InvalidRequest
from llm_server.worker.messages import JsonObject


def bounds_of(schema: JsonObject, *, strict: bool, param: str) -> list[str]:
    """Expressions that all match the texts that a schema allows, but for its values.

    Raises InvalidSchema for `param` for a pattern that cannot be said, if `strict`.
    """
    bounds = []
    for part in parts_of(schema):
        if isinstance(pattern := part.get("pattern"), str):
            bounds += _found(pattern, strict, param)
        if part.get("format") in FORMATS:
            bounds.append(f"/{FORMATS[part['format']]}/")
        low, high = part.get("minLength"), part.get("maxLength")
        if isinstance(low, int) or isinstance(high, int):
            bounds.append(f"/(?s:.){{{low or 0},{high if isinstance(high, int) else ''}}}/")
    return bounds


def _found(pattern: str, strict: bool, param: str) -> list[str]:
    """An expression for texts in which `pattern` is found; none where it is ignored."""
    if not strict and is_irregular(pattern):
        return []
    try:
        return [f"/{search_regex(pattern, param)}/"]
    except InvalidRequest:
        if strict:
            raise
        return []  # an anchor inside a group: llguidance's own patterns may have it
