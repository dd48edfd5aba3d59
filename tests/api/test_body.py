"""Request bodies: what is JSON, what is too much of it, and how the client is told."""

from __future__ import annotations

import asyncio
import json
import threading
import tracemalloc

import pytest
from starlette.requests import Request
from starlette.types import Message

from llm_server.api.body import (
    MAX_DEPTH,
    MAX_NUMBERS,
    MAX_VALUES,
    check_media_type,
    parse_json_object,
    read_body,
)
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


def test_the_number_of_values_is_bounded_exactly() -> None:
    fits = b'{"a":[' + b"null," * (MAX_VALUES - 2) + b"null]}"
    assert len(json.dumps(parse_json_object(fits))) > MAX_VALUES
    assert refusal(fits.replace(b"l]", b"l,null]")) == ("too_many_items", None)
    members = {str(i): i for i in range(MAX_VALUES + 1)}
    assert refusal(json.dumps(members).encode()) == ("too_many_items", None)


def test_numbers_in_arrays_are_bounded_apart() -> None:
    arrays = [[1, -2.5e3, 30, 4] * 128] * 2048
    body = json.dumps({"a": arrays, "b": ["x", None, 5], "c": {"d": 6, "e": "7"}}).encode()
    assert MAX_NUMBERS == 2048 * 512
    assert refusal(body) == ("too_many_items", None)
    fits = body.replace(b"null, 5", b"null")
    assert parse_json_object(fits)["a"] == arrays
    many = json.dumps({"a": arrays[:100], "b": [None] * (MAX_VALUES - 102)}).encode()
    assert parse_json_object(many)
    assert refusal(many.replace(b"null]", b"null, null]")) == ("too_many_items", None)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"a": [' + b"1," * 2_000_000, "too_many_items"),
        (b'{"a": [' + b'"",' * 1_000_000, "too_many_items"),
        (b'{"a": {' + b'"":0,' * 200_000, "too_many_items"),
        (b'{"a": ' + b"[" * 90_000, "json_too_deep"),
        (b'{"a": ' + rb'"\\\"",' * 100_000, "too_many_items"),
        (b'{"a": "' + b'\\",' * 1_000_000, "invalid_json"),  # One string, full of quotes.
    ],
)
def test_too_much_is_refused_before_anything_is_made_of_it(body: bytes, code: str) -> None:
    """None of these is JSON, so whoever names another error has not parsed them."""
    assert refusal(body) == (code, None)


@pytest.mark.parametrize("text", ['"', "\\", '\\"', '\\\\"[', '"[{,', "\\\\", 'a\\",[', "\\u0022["])
def test_brackets_and_quotes_in_text_are_text(text: str) -> None:
    value = {text: [text] * 3, "b": text * MAX_DEPTH}
    assert parse_json_object(json.dumps(value).encode()) == value


def test_a_number_of_many_digits_is_none_before_it_is_computed() -> None:
    assert refusal(b'{"a": 0.' + b"1" * 1_000_000 + b"}") == ("invalid_value", "a")
    assert parse_json_object(b'{"a": 0.1000000000000000055511151231257827}') == {"a": 0.1}


def test_commas_in_text_are_no_values() -> None:
    text = ",{[" * MAX_VALUES
    assert parse_json_object(json.dumps({"a": text}).encode()) == {"a": text}


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, str(2**64)]
)
def test_numbers_that_are_none_name_their_place(number: str) -> None:
    assert refusal(f'{{"a": {{"b": [1, {number}]}}}}'.encode()) == ("invalid_value", "a.b[1]")


def test_a_long_key_is_not_copied_for_each_value_under_it() -> None:
    depth = MAX_DEPTH - 1
    body = b'{"' + b"k" * 1_000_000 + b'":' + b"[" * depth + b"1.5" + b"]" * depth + b"}"
    tracemalloc.start()
    try:
        parse_json_object(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * len(body)


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


def test_long_bodies_are_read_and_understood_by_one_thread_beside_the_loop() -> None:
    async def reader_of(body: bytes) -> threading.Thread:
        async def receive() -> Message:
            return {"type": "http.request", "body": body}

        headers = [(b"content-type", b"application/json")]
        request = Request({"type": "http", "headers": headers}, receive)
        return await read_body(request, lambda value: threading.current_thread())

    async def readers() -> list[threading.Thread]:
        long = json.dumps({"a": "x" * 100_000}).encode()
        return await asyncio.gather(*map(reader_of, [b"{}", long, long, long]))

    short, *others = asyncio.run(readers())
    assert short is threading.main_thread()
    assert len(set(others)) == 1 and short not in others


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
