"""Request bodies: from bytes to plain JSON values that nothing downstream can choke on.

Size, depth and number of values are bounded, keys are unique, numbers finite and within 64 bits,
text is valid Unicode. Which fields there are is the wire models' business.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import TypeAlias, TypeVar

from starlette.requests import Request

from llm_server.errors import InvalidRequest, UnsupportedMediaType

Json: TypeAlias = "None | bool | int | float | str | list[Json] | dict[str, Json]"

MAX_DEPTH = 64
MAX_VALUES = 100_000
MAX_NUMBERS = 2048 * 512
"""Numbers in arrays: they cost little, and token ids of many texts are many."""

T = TypeVar("T")

_BRACKETS = {ord("{"): 1, ord("["): 1, ord("}"): -1, ord("]"): -1}
_NO_BRACKETS = bytes(set(range(256)) - set(_BRACKETS))
_DIGITS = b"0123456789"
_AS_ZERO = bytes.maketrans(_DIGITS, b"0" * 10)
_NO_NUMBERS = bytes(set(range(256)) - set(_BRACKETS) - set(_DIGITS + b",:"))
_MAX_DIGITS = 64
_MAX_PATH = 128
_AT_ONCE_BYTES = 64 * 1024  # What is longer is read by a thread: streams must not wait for it.

# One thread: several would share Python's lock with the event loop, whose turn would come later.
_reading = ThreadPoolExecutor(1, thread_name_prefix="long-bodies")


async def read_body(request: Request, parse: Callable[[dict[str, Json]], T]) -> T:
    """What `parse` makes of the body of a POST, which is a JSON object.

    Raises UnsupportedMediaType, InvalidRequest, RequestTooLarge (from the outermost layer), and
    what `parse` raises.
    """
    return await parse_body(await receive_body(request), parse)


async def receive_body(request: Request) -> bytes:
    """The bytes of a body that is declared as JSON. Raises as `read_body`."""
    check_media_type(request.headers.get("content-type"), request.headers.get("content-encoding"))
    return await request.body()


async def parse_body(body: bytes, parse: Callable[[dict[str, Json]], T]) -> T:
    """What `parse` makes of the JSON object in `body`. Raises InvalidRequest, and as `parse`."""
    if len(body) <= _AT_ONCE_BYTES:
        return parse(parse_json_object(body))
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_reading, lambda: parse(parse_json_object(body)))


def check_media_type(content_type: str | None, content_encoding: str | None) -> None:
    """Raises UnsupportedMediaType for anything that is not plain, declared JSON.

    A web page may send `text/plain` anywhere without asking, and this server runs on desktops.
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (
        kind.startswith("application/") and kind.endswith("+json")
    ):
        raise UnsupportedMediaType(
            "The request must have the header 'Content-Type: application/json'."
        )
    if (content_encoding or "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("Compressed request bodies are not supported.")


def parse_json_object(body: bytes) -> dict[str, Json]:
    """`body` as a JSON object within all bounds. Raises InvalidRequest."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _invalid("The request body is not valid UTF-8.") from None
    _check_structure(body)
    try:
        value: Json = json.loads(
            text, object_pairs_hook=_unique, parse_int=_bounded_int, parse_float=_bounded_float
        )
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _invalid(f"The request body is not valid JSON ({where}).") from None
    if not isinstance(value, dict):
        raise _invalid("The request body must be a JSON object.")
    _check(value, "")
    return value


def _check_structure(body: bytes) -> None:
    """Refuse too many values and too deep nesting before anything is made of them.

    Exact for JSON, but that an empty array or object is counted twice; of other bytes it may let
    pass what the parser refuses. Each step is one quick
    pass, because all of them hold Python's lock.
    """
    plain = body
    if b"\\" in body:
        plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # Now each quote begins or ends.
    # Every string is a key or a value, and every key has a value.
    if plain.count(b'"') > 4 * (MAX_VALUES + 1):
        raise _too_many()
    outside = b"".join(plain.split(b'"')[::2])
    numbers = outside.translate(_AS_ZERO, _NO_NUMBERS)
    n_numbers = numbers.count(b",0") + numbers.count(b"[0")
    if n_numbers > MAX_NUMBERS:
        raise _too_many(f"{MAX_NUMBERS} numbers")
    n_values = outside.count(b",") + outside.count(b"{") + outside.count(b"[")
    if n_values - n_numbers > MAX_VALUES:
        raise _too_many()
    brackets = outside.translate(None, _NO_BRACKETS)
    if max(accumulate(map(_BRACKETS.__getitem__, brackets)), default=0) > MAX_DEPTH:
        raise _too_deep()


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) < len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise InvalidRequest(
            "A key occurs twice in one object of the request body.",
            param=printable(key),
            code="duplicate_key",
        )
    return result


def _bounded_int(digits: str) -> int | float:
    # Python takes quadratic time for long ones; infinity is refused with the field's name.
    return int(digits) if len(digits) <= _MAX_DIGITS else math.inf


def _bounded_float(digits: str) -> float:
    return float(digits) if len(digits) <= _MAX_DIGITS else math.inf


def _check(value: list[Json] | dict[str, Json], path: str) -> None:
    """Refuse what JSON text can say and the rest of the server cannot hold."""
    path = path[:_MAX_PATH]  # Copied for each value: a key may be as long as the body.
    if isinstance(value, list):
        for i, item in enumerate(value):
            if not _harmless(item):
                _check_item(item, f"{path}[{i}]")
        return
    for key, item in value.items():
        if not key.isascii():
            _check_text(key, path)
        if not _harmless(item):
            _check_item(item, f"{path}.{key}" if path else key)


def _harmless(item: Json) -> bool:
    """Whether a value needs no closer look. Most do not, and there may be many."""
    if type(item) is str:
        return item.isascii()
    return item is None or type(item) is bool or (type(item) is int and abs(item) < 1 << 53)


def _check_item(item: Json, path: str) -> None:
    if isinstance(item, dict | list):
        _check(item, path)
    elif isinstance(item, str):
        _check_text(item, path)
    elif isinstance(item, float) and not math.isfinite(item):
        raise InvalidRequest(
            "A number is not finite, or has too many digits.", param=printable(path)
        )
    elif isinstance(item, int) and not -(1 << 63) <= item < 1 << 64:
        raise InvalidRequest("A number is out of range.", param=printable(path))


def _check_text(text: str, path: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(
            "A string holds half of a surrogate pair, which is not valid Unicode.",
            param=printable(path) or None,
            code="invalid_unicode",
        ) from None


def printable(path: str) -> str:
    """A path of the client's own keys, fit to be shown: bounded, one line, valid Unicode."""
    return "".join(c if c.isprintable() else "?" for c in path[:_MAX_PATH])


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_json")


def _too_deep() -> InvalidRequest:
    return InvalidRequest(
        f"The request body is nested deeper than {MAX_DEPTH} levels.", code="json_too_deep"
    )


def _too_many(what: str = f"{MAX_VALUES} values") -> InvalidRequest:
    return InvalidRequest(f"The request body holds more than {what}.", code="too_many_items")
