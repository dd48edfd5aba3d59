"""Bytes from clients and workers: bodies, event streams, frames."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from llm_server.api import sse
from llm_server.api.body import parse_json_object
from llm_server.errors import InvalidRequest

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
)
_KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=20,
)


def _plain(value: Any) -> bool:
    """Whether a parsed value is what the rest of the server can hold."""
    if isinstance(value, dict):
        return all(_plain(item) for pair in value.items() for item in pair)
    if isinstance(value, list):
        return all(map(_plain, value))
    if isinstance(value, str):
        return value.encode().decode() == value
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or -(2**63) <= value < 2**64


@given(st.binary(max_size=200))
@example(b'{"a":"\\ud800"}')
@example(b'{"a":1e999}')
@example(b'{"a":-NaN}')
@example(b'{"a":"\\",' + b"[" * 100)
@example(b"\xef\xbb\xbf{}")
def test_any_bytes_are_an_object_or_refused(body: bytes) -> None:
    try:
        value = parse_json_object(body)
    except InvalidRequest:
        return
    assert isinstance(value, dict) and _plain(value)


@given(st.dictionaries(_KEYS, _VALUES, max_size=5), st.booleans())
def test_what_is_valid_comes_through_unchanged(value: dict[str, Any], ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert parse_json_object(body) == value


@given(_VALUES)
@example("\n\ndata: [DONE]\n\n")
@example("\r\n\x0b\x0c\x1c\x85\u2028\u2029")
@example({"\n": "\r"})
def test_an_event_is_one_line_and_says_what_was_said(value: Any) -> None:
    event = sse.data(value)
    assert event.startswith(b"data: ") and event.endswith(b"\n\n")
    line = event[6:-2]
    assert b"\n" not in line and b"\r" not in line
    assert json.loads(line) == value


@given(st.text(st.characters(exclude_categories=["Cs"])))
@example("a\r\ndata: forged\n\n")
def test_a_comment_is_one_line(text: str) -> None:
    event = sse.comment(text)
    assert event.startswith(b": ") and event.endswith(b"\n\n")
    assert b"\n" not in event[:-2] and b"\r" not in event
