"""Examples match their patterns, and a text can be completed by the end of one."""

from __future__ import annotations

import re
from typing import Any

import pytest

from llm_server.chat.examples import LONGEST, endings


@pytest.mark.parametrize(
    "pattern",
    [
        r"ab+c",
        r"^\S+@\S+\.\S+$",
        r"^(?:[a-zA-Z0-9._%+-]+)@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}$",
        r"^(?P<year>\d{4})-\d\d?(-[^\d\s]*?)?$",
        r"^[]\[&~|-]\x41\u00e9{2}.{3,4}$",
        r"^[^\w]\(\/\)[日-月]$",
        r'^"\\"$',
        r"",
    ],
)
def test_an_example_matches_its_pattern(pattern: str) -> None:
    found = endings({"anyOf": [{"items": {"pattern": pattern}}, True]})
    assert not pattern or any(re.search(pattern, text) for text in found)
    assert "" not in found and found == sorted(found, key=len)


def test_what_python_takes_for_operations_on_sets_is_no_warning() -> None:
    assert "x" in endings({"pattern": "^[[a&&b--c||d~~e]x$"})


def test_each_alternative_has_one() -> None:
    found = endings({"patternProperties": {r"^(https?://.+\.pdf|ftp://.+\.txt)$": {}}})
    assert {"http://a.pdf", ".pdf", "ftp://a.txt", ".txt"} <= set(found)


def test_as_a_json_string_has_it_too() -> None:
    assert {'"\n', r"\"\n", r"\n"} <= set(endings({"pattern": '^"\\n$'}))


@pytest.mark.parametrize(
    "schema",
    [
        {"pattern": "(" * 1000},
        {"pattern": "(a{9999}){9999}{9999}"},
        {"pattern": "[(*\\"},
        {"pattern": 5, "format": ["email"], "patternProperties": 7},
        {"properties": {"pattern": {"type": "string"}, "format": {"format": "byte"}}},
        [{"pattern": f"a{i}b"} for i in range(10_000)],
        None,
    ],
)
def test_whatever_a_schema_says_there_are_few(schema: Any) -> None:
    found = endings(schema)
    assert len(found) <= LONGEST and all(len(text) <= 2 * LONGEST for text in found)
