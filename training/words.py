"""Random words, names, numbers and other values, drawn wide so that a model must copy them.

Knows how a value is written in a sentence and how it stands in JSON. Does not know tools.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

Json: TypeAlias = "str | int | float | bool | None | list[Json] | dict[str, Json]"

_ONSETS = (
    "b c d f g h j k l m n p r s t v w z br ch cr dr fl gl gr kl pl qu sh sl sp st th tr".split()
)
_VOWELS = "a e i o u a e i o u ai ea ee io oa ou".split()
_CODAS = " b d g k l m n p r s t x z ck ld lm nd ng nk nt rk rn rt sh sk ss st".split(" ")
_NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
).split()
_TENS = {30: "thirty", 40: "forty", 45: "forty-five", 50: "fifty", 60: "sixty", 90: "ninety"}


@dataclass(frozen=True, slots=True)
class Value:
    """One value: how a sentence says it, and what it is in JSON."""

    said: str
    json: Json


@cache
def word_lists() -> dict[str, tuple[str, ...]]:
    """The lists of `data/words.txt` by name."""
    lists: dict[str, tuple[str, ...]] = {}
    path = Path(__file__).parent / "data" / "words.txt"
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        name, _, items = line.partition(": ")
        lists[name] = tuple(item.strip() for item in items.split(","))
    return lists


def pick(rng: random.Random, name: str) -> str:
    """One item of a word list."""
    return rng.choice(word_lists()[name])


@cache
def english() -> tuple[str, ...]:
    """Two thousand common words."""
    path = Path(__file__).parent / "data" / "english.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if not line.startswith("#"))


@cache
def known_words() -> tuple[str, ...]:
    """Every word of the data files: each of the tokenizer's words must be copied now and then.

    Files that are newer than the tokenizer are left out: cases to be measured draw from here, and
    would be others with each new file.
    """
    folder = Path(__file__).parent / "data"
    texts = (
        path.read_text(encoding="utf-8")
        for path in sorted(folder.glob("*.txt"))
        if not path.name.startswith(("tools_", "frames", "facts_words_"))
    )
    words = {word for text in texts for word in re.findall(r"[a-z]{2,}", text)}
    return tuple(sorted(words))


def made_up(rng: random.Random) -> str:
    """A made-up word, such as `brelton`, or two halves of real ones, or mere letters."""
    roll = rng.random()
    if roll < 0.3:
        first, second = rng.choice(english()), rng.choice(english())
        return first[: rng.randint(2, 4)] + second[rng.randint(1, 3) :]
    if roll < 0.4:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 7)))
    count = rng.choices((1, 2, 3), (2, 6, 2))[0]
    parts = (rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(count))
    return "".join(parts) + rng.choice(_CODAS)


def any_word(rng: random.Random) -> str:
    """A real or a made-up word, lower case."""
    roll = rng.random()
    if roll < 0.1:
        return pick(rng, "noun")
    if roll < 0.35:
        return rng.choice(known_words())
    return rng.choice(english()) if roll < 0.7 else made_up(rng)


def phrase(rng: random.Random) -> str:
    """One to four words, as a title or a name has them."""
    words = [any_word(rng)]
    if rng.random() < 0.6:
        words.insert(0, pick(rng, "adjective") if rng.random() < 0.7 else any_word(rng))
    if rng.random() < 0.25:
        words = ["the", *words]
    if rng.random() < 0.2:
        words += [rng.choice(("of", "and", "in", "for")), any_word(rng)]
    text = " ".join(words)
    return text.title() if rng.random() < 0.4 else text


def code(rng: random.Random) -> str:
    """An order number or the like: `AX-4821`, `77120`, `k9z-b2`."""
    letters = "".join(rng.choice("ABCDEFGHJKLMNPRSTUVWXYZ") for _ in range(rng.randint(1, 4)))
    digits = "".join(rng.choice("0123456789") for _ in range(rng.randint(2, 7)))
    form = rng.choice(("{d}", "{a}{d}", "{a}-{d}", "{d}-{a}", "{a}_{d}", "#{d}", "{a}{d}{b}"))
    text = form.format(a=letters, d=digits, b=letters[:1])
    return text.lower() if rng.random() < 0.3 else text


def _time(rng: random.Random) -> str:
    hour, minute = rng.randint(0, 23), rng.choice((0, 0, 5, 10, 15, 20, 30, 40, 45, 50, 55))
    forms = (
        f"{hour:02}:{minute:02}",
        f"{hour}:{minute:02}",
        f"{hour % 12 + 1} pm",
        f"{hour % 12 + 1} am",
        f"{hour % 12 + 1}:{minute:02} pm",
        "noon",
        "midnight",
    )
    return rng.choices(forms, (6, 3, 3, 3, 2, 0.5, 0.3))[0]


def _date(rng: random.Random) -> str:
    month, day = rng.randint(1, 12), rng.randint(1, 28)
    name = word_lists()["month"][month - 1]
    forms = (
        f"{rng.randint(2023, 2031)}-{month:02}-{day:02}",
        f"{name} {day}",
        f"{day} {name}",
        f"{day}.{month}.",
        pick(rng, "day"),
    )
    return rng.choices(forms, (5, 3, 2, 1, 4))[0]


def _person(rng: random.Random) -> str:
    return pick(rng, "person") if rng.random() < 0.6 else made_up(rng).capitalize()


def _fullname(rng: random.Random) -> str:
    last = pick(rng, "surname") if rng.random() < 0.6 else made_up(rng).capitalize()
    return f"{_person(rng).split()[-1].capitalize()} {last}" if rng.random() < 0.8 else last


def _city(rng: random.Random) -> str:
    return pick(rng, "city") if rng.random() < 0.6 else made_up(rng).capitalize()


def _path(rng: random.Random) -> str:
    name = any_word(rng)
    if rng.random() < 0.4:
        name += rng.choice("_-") + (
            any_word(rng) if rng.random() < 0.6 else str(rng.randint(1, 99))
        )
    folder = rng.choice(("", "", "", any_word(rng) + "/", "/home/" + any_word(rng) + "/", "/tmp/"))
    return f"{folder}{name}.{pick(rng, 'ending')}"


def _folder(rng: random.Random) -> str:
    parts = "/".join(any_word(rng) for _ in range(rng.randint(1, 3)))
    return rng.choice(("", "/", "~/", "./")) + parts


def _email(rng: random.Random) -> str:
    user = rng.choice(
        (any_word(rng), f"{any_word(rng)}.{any_word(rng)}", f"{any_word(rng)}{rng.randint(1, 99)}")
    )
    return f"{user}@{any_word(rng)}.{pick(rng, 'tld')}"


def _host(rng: random.Random) -> str:
    if rng.random() < 0.3:
        return ".".join(str(rng.randint(1, 254)) for _ in range(4))
    return f"{any_word(rng)}.{pick(rng, 'tld')}"


def _url(rng: random.Random) -> str:
    tail = rng.choice(("", f"/{any_word(rng)}", f"/{any_word(rng)}/{rng.randint(1, 999)}"))
    return f"{rng.choice(('https://', 'http://', ''))}{rng.choice(('', 'www.'))}{_host(rng)}{tail}"


def _task(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return pick(rng, "deed")
    forms = (
        f"{pick(rng, 'verb')} the {any_word(rng)}",
        f"{pick(rng, 'verb')} {phrase(rng)}",
        f"the {any_word(rng)} is {pick(rng, 'adjective')}",
        phrase(rng),
        f"{pick(rng, 'verb')} {rng.randint(2, 30)} {any_word(rng)}s for {_person(rng)}",
    )
    return rng.choice(forms)


def _mixed(rng: random.Random, name: str) -> str:
    roll = rng.random()
    return pick(rng, name) if roll < 0.7 else any_word(rng) if roll < 0.9 else phrase(rng)


_TEXTS: dict[str, Callable[[random.Random], str]] = {
    "person": _person,
    "fullname": _fullname,
    "city": _city,
    "time": _time,
    "date": _date,
    "day": lambda rng: pick(rng, "day") if rng.random() < 0.7 else _date(rng),
    "title": phrase,
    "task": _task,
    "word": lambda rng: any_word(rng).capitalize() if rng.random() < 0.15 else any_word(rng),
    "code": code,
    "path": _path,
    "dir": _folder,
    "email": _email,
    "url": _url,
    "host": _host,
    "address": lambda rng: rng.choice(
        (
            f"{pick(rng, 'street')} {rng.randint(1, 199)}",
            _city(rng),
            phrase(rng),
            f"{rng.randint(1, 199)} {made_up(rng).capitalize()} Street",
            "the airport",
        )
    ),
    "team": lambda rng: (
        f"{_city(rng)} {any_word(rng).capitalize()}s" if rng.random() < 0.6 else _city(rng)
    ),
    "company": lambda rng: (
        f"{any_word(rng).capitalize()} {rng.choice(('Ltd', 'Inc', 'GmbH', 'and Sons', 'Group'))}"
    ),
    "version": lambda rng: (
        f"{rng.choice(('', 'v'))}{rng.randint(0, 9)}.{rng.randint(0, 30)}.{rng.randint(0, 9)}"
    ),
    "device": lambda rng: rng.choice(
        (
            any_word(rng),
            "phone",
            "laptop",
            "watch",
            "tablet",
            f"{any_word(rng)} {rng.randint(1, 9)}",
        )
    ),
    "ticker": lambda rng: pick(rng, "ticker") if rng.random() < 0.5 else made_up(rng)[:4].upper(),
}
TEXT_POOLS = tuple(_TEXTS)


def any_pool(rng: random.Random) -> str:
    """The name of a pool of texts."""
    return rng.choice((*TEXT_POOLS, "room", "product", "language", "adjective", "unit", "noun"))


def text_value(rng: random.Random, pool: str) -> Value:
    """A string value from a named pool, now and then from a foreign one."""
    if rng.random() < 0.06:
        pool = rng.choice(("word", "title", "person", "code"))
    maker = _TEXTS.get(pool)
    text = maker(rng) if maker is not None else _mixed(rng, pool)
    return Value(text, text)


def whole_number(rng: random.Random, low: int, high: int) -> Value:
    """An integer, small ones sometimes written as a word."""
    number = (
        rng.randint(low, high)
        if rng.random() < 0.6
        else min(high, low + rng.choice((1, 2, 3, 5, 10, 20, 30)))
    )
    if rng.random() < 0.15:
        if 0 < number <= 20:
            return Value(_NUMBER_WORDS[number], number)
        if number in _TENS:
            return Value(_TENS[number], number)
    return Value(str(number), number)


def decimal(rng: random.Random, low: int, high: int) -> Value:
    """A number with at most two decimals; whole ones are written without a point."""
    if rng.random() < 0.6:
        return whole_number(rng, low, high)
    number = round(rng.uniform(low, high), rng.choice((1, 1, 2)))
    return (
        Value(str(int(number)), int(number)) if number.is_integer() else Value(str(number), number)
    )


def joined(items: list[str]) -> str:
    """`a, b and c`."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
