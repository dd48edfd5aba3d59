"""Request bodies: what is JSON, what is too much of it, and how the client is told."""

from __future__ import annotations

import json
import time

import pytest

from llm_server.api.body import MAX_DEPTH, MAX_VALUES, check_media_type, parse_json_object
from llm_server.errors import InvalidRequest, UnsupportedMediaType


def refusal(body: bytes) -> tuple[str | None, str | None]:
    with pytest.raises(InvalidRequest) as caught:
        parse_json_object(body)
    assert caught.value.info.status == 400
    return caught.value.info.code, caught.value.info.param


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"null",
        b"{} {}",
        b'{"a": 1,}',
        b"{'a': 1}",
        b"\xff\xfe{\x00}\x00",
        b'{"a": "\xff"}',
        b'{"a": "\n"}',
    ],
)
def test_what_is_no_json_object_is_invalid_json(body: bytes) -> None:
    assert refusal(body) == ("invalid_json", None)


def test_a_byte_order_mark_is_skipped() -> None:
    assert parse_json_object(b'\xef\xbb\xbf{"a": -0}') == {"a": 0}


def test_depth_is_bounded() -> None:
    fits = b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    assert parse_json_object(fits)
    assert refusal(fits.replace(b"[]", b"[[]]")) == ("json_too_deep", None)
    assert refusal(b'{"a":' * 100_000)[0] in ("json_too_deep", "too_many_items")
    assert refusal(b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}") == ("json_too_deep", None)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": [' + b"1," * 2_000_000 + b"1]}",
        b'{"a": {' + b",".join(b'"%d":1' % i for i in range(200_000)) + b"}}",
        b'{"a": "' + b'\\",' * 1_000_000,  # A string without end, full of quotes and commas.
    ],
)
def test_too_many_values_are_refused_in_linear_time(body: bytes) -> None:
    started = time.process_time()
    assert refusal(body)[0] in ("too_many_items", "invalid_json")
    assert time.process_time() - started < 1.0  # Milliseconds; quadratic would take minutes.


def test_commas_in_text_are_no_values() -> None:
    text = ",{[" * MAX_VALUES
    assert parse_json_object(json.dumps({"a": text}).encode()) == {"a": text}


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, str(2**64)]
)
def test_numbers_that_are_none_name_their_place(number: str) -> None:
    assert refusal(f'{{"a": {{"b": [1, {number}]}}}}'.encode()) == ("invalid_value", "a.b[1]")


def test_integers_of_64_bits_are_numbers() -> None:
    assert parse_json_object(b'{"a": [18446744073709551615, -9223372036854775808]}')


def test_half_a_surrogate_pair_is_refused_and_a_whole_one_is_a_character() -> None:
    assert refusal(rb'{"a": ["\ud800"]}') == ("invalid_unicode", "a[0]")
    assert refusal(rb'{"\udfff": 1}') == ("invalid_unicode", None)
    assert parse_json_object(rb'{"a": "\ud83d\ude00"}') == {"a": "\U0001f600"}


def test_strange_but_valid_text_is_kept() -> None:
    text = "\0\uffff‮" + "‍" * 1000
    assert parse_json_object(json.dumps({"a": text}).encode()) == {"a": text}


def test_a_key_that_occurs_twice_is_refused() -> None:
    assert refusal(b'{"model": "a", "model": "b"}') == ("duplicate_key", "model")
    assert refusal(b'{"a": {"b": 1, "c": 2, "b": 3}}') == ("duplicate_key", "b")


@pytest.mark.parametrize(
    ("content_type", "encoding"),
    [
        (None, None),
        ("text/plain", None),
        ("application/x-www-form-urlencoded", None),
        ("application/json", "gzip"),
    ],
)
def test_anything_but_plain_declared_json_is_an_unsupported_media_type(
    content_type: str | None, encoding: str | None
) -> None:
    with pytest.raises(UnsupportedMediaType):
        check_media_type(content_type, encoding)


def test_json_media_types() -> None:
    for kind in ("application/json", "application/json; charset=utf-8", "Application/JSON"):
        check_media_type(kind, None)
    check_media_type("application/vnd.api+json", "identity")
