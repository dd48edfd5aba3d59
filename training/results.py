"""What tools return, and the sentence the demo model makes of it.

The sentence is built from the result alone, so it works for tools never seen. Does not know
the conversation around it.
"""

import json
import random

from training.tools import Call
from training.words import Json, any_word, code, decimal, joined, phrase, pick, text_value

_STATUS_KEYS = ("status", "ok", "success", "done")
_GOOD = ("ok", "success", "done", "completed", "sent", "saved", True)
_KEYS = (
    "temperature",
    "humidity",
    "price",
    "total",
    "count",
    "name",
    "title",
    "city",
    "time",
    "date",
    "level",
    "state",
    "message",
    "wind_speed",
    "duration",
    "distance",
    "unit",
    "id",
    "description",
    "percent",
    "next_run",
    "eta",
    "rating",
    "stock",
    "address",
    "owner",
)
_ERRORS = (
    "not found",
    "timeout",
    "permission denied",
    "no connection",
    "out of stock",
    "offline",
    "invalid value",
    "too many requests",
    "device busy",
    "not available",
)


def draw_result(rng: random.Random, call: Call) -> str:
    """The content of a tool message after this call."""
    roll = rng.random()
    if roll < 0.2:
        return rng.choice(
            (
                '{"status": "ok"}',
                '{"ok": true}',
                "ok",
                "done",
                '{"success": true}',
                '{"result": "ok"}',
                "success",
                '{"status":"ok"}',
                "OK",
            )
        )
    if roll < 0.28:
        error = (
            rng.choice(_ERRORS) if rng.random() < 0.6 else f"{any_word(rng)} {rng.choice(_ERRORS)}"
        )
        return _dumps(rng, {"error": error})
    if roll < 0.36:
        return rng.choice(
            (
                phrase(rng),
                text_value(rng, "task").said,
                str(rng.randint(0, 9999)),
                f"{decimal(rng, 0, 99).json}",
            )
        )
    if roll < 0.42:
        return _dumps(rng, [any_word(rng) for _ in range(rng.randint(1, 5))])
    return _dumps(rng, _fields(rng, call))


def _fields(rng: random.Random, call: Call) -> dict[str, Json]:
    fields: dict[str, Json] = {}
    if rng.random() < 0.25:
        fields[rng.choice(_STATUS_KEYS[:1])] = rng.choice(_GOOD[:-1])
    if rng.random() < 0.35:
        fields.update({key: value for key, value in call.arguments.items() if rng.random() < 0.6})
    for _ in range(rng.choice((1, 1, 2, 2, 3, 4))):
        key = rng.choice(_KEYS) if rng.random() < 0.6 else any_word(rng)
        if rng.random() < 0.15:
            key = f"{any_word(rng)}_{key}"
        fields[key] = _value(rng)
    return fields


def _value(rng: random.Random) -> Json:
    maker = rng.randrange(7)
    values: tuple[Json, ...] = (
        rng.randint(-20, 9999),
        decimal(rng, 0, 99).json,
        pick(rng, "adjective"),
        phrase(rng),
        text_value(rng, rng.choice(("time", "date", "city", "person"))).json,
        code(rng),
        rng.random() < 0.5,
    )
    return values[maker]


def _dumps(rng: random.Random, value: Json) -> str:
    if rng.random() < 0.3:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return json.dumps(value, ensure_ascii=False)


def report(content: str) -> str:
    """The sentence about a result; text that is no JSON is told as it is."""
    try:
        value: Json = json.loads(content)
    except ValueError:
        value = content
    if value in ("ok", "OK", "done", "success"):
        return "Done."
    if isinstance(value, dict):
        return _report_fields(value)
    if isinstance(value, list):
        return f"The result is: {joined([say(item) for item in value])}."
    return f"The result is: {say(value)}."


def _report_fields(fields: dict[str, Json]) -> str:
    if "error" in fields:
        return f"That did not work: {say(fields['error'])}."
    rest = dict(fields)
    good = [key for key in (*_STATUS_KEYS, "result") if rest.get(key) in _GOOD]
    for key in good:
        del rest[key]
    told = (
        joined([f"{key.replace('_', ' ')} {say(value)}" for key, value in rest.items()])
        if rest
        else ""
    )
    if good:
        return f"Done: {told}." if told else "Done."
    return f"The result is: {told}." if told else "The result is empty."


def say(value: Json) -> str:
    """A JSON value in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return joined([say(item) for item in value]) if value else "nothing"
    if isinstance(value, dict):
        return joined([f"{key.replace('_', ' ')} {say(item)}" for key, item in value.items()])
    return "nothing" if value is None else str(value)
