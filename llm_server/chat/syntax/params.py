"""Arguments written as parameters one by one: in tags, as bare keys, as a Python call.

They become the text of a JSON object as they arrive. Only a text that is written as it is can be
passed on before its end is known; every other value waits for its end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import product

from llm_server.chat.syntax.alternatives import Alternatives, joined
from llm_server.chat.syntax.format import ParamArgs, Wrapper
from llm_server.chat.syntax.literal import (
    Literal,
    Matcher,
    Slot,
    build,
    fill,
    fits_slot,
    text_of,
    up_to_marker,
)
from llm_server.chat.syntax.reader import Parse, Reader, overlap
from llm_server.chat.syntax.values import JsonValue, kinds_of, read_text, read_value

Emit = Callable[[str], None]
MAX_KEY = 256
_BRACKETS = {"{": 1, "[": 1, "(": 1, "}": -1, "]": -1, ")": -1}


class ParamParser:
    """Reads the parameters of one call, up to and with what follows them.

    `tails` are the literals that may follow the last parameter; `schema` is the tool's
    `parameters`.
    """

    def __init__(
        self,
        reader: Reader,
        args: ParamArgs,
        tails: Sequence[Literal],
        schema: JsonValue,
        emit: Emit,
    ) -> None:
        self._reader = reader
        self._args = args
        self._tails = tails
        self._schema = schema if isinstance(schema, dict) else {}
        self._members = joined(Alternatives(self._schema, "").members())
        self._emit = emit
        self._next = build(*args.separator, *args.pre)
        self._ends = [build(up_to_marker(text_of(tail))) for tail in tails]
        self._mids = _mids(args)
        self._missing = [] if "null" in args.wrappers else self._nullable()

    def parse(self) -> Parse[tuple[int, Matcher] | None]:
        """Which tail came, as `Reader.match` tells; None if something else did."""
        first = True
        while True:
            opening = self._args.pre if first else self._next
            options = [*self._tails, *([opening] if opening else [])]
            found = yield from self._reader.match(options)
            if found is not None and found[0] < len(self._tails):
                members = [f"{json.dumps(key, ensure_ascii=False)}: null" for key in self._missing]
                self._emit(("{" if first else ", " if members else "") + ", ".join(members) + "}")
                return found
            if found is None and opening:
                return None
            if not (yield from self._parameter(first)):
                return None
            first = False

    def _nullable(self) -> list[str]:
        """The required parameters that may be null."""
        properties, required = self._members.properties, self._members.required
        return [
            key
            for key, part in properties.items()
            if key in required and "null" in kinds_of(part, self._schema)
        ]

    def _parameter(self, first: bool) -> Parse[bool]:
        key = yield from self._key()
        if key is None:
            return False
        wrapper = yield from self._mid()
        if wrapper is None:
            return False
        self._missing = [name for name in self._missing if name != key]
        self._emit(f"{'{' if first else ', '}{json.dumps(key, ensure_ascii=False)}: ")
        schema = self._members.properties.get(key)
        kinds = kinds_of(schema, self._schema) & wrapper[1] or wrapper[1]
        post = fill(wrapper[0].post, {Slot.KEY: key})
        if not post:
            raw = yield from self._bare()
        elif kinds == {"string"} and self._args.escape == "raw":
            return (yield from self._text(text_of(post)))
        else:
            raw = yield from self._until(text_of(post))
        if raw is None:
            return False
        self._emit(_as_json(self._read(raw, kinds, schema)))
        return True

    def _read(self, raw: str, kinds: frozenset[str], schema: JsonValue) -> JsonValue:
        if kinds == {"string"} and not self._args.quoted:
            return read_text(raw, self._args)
        value = read_value(raw, self._args, schema, self._schema)
        if "string" in kinds and not kinds_of({"const": value}) <= kinds:
            return read_text(raw, self._args)
        return value

    def _key(self) -> Parse[str | None]:
        """The parameter's name: what comes before any of the texts that may follow it."""
        if not text_of(self._args.pre).strip():  # on a line of its own: blanks do not tell
            while (yield from self._reader.need(1)) and self._reader.text[
                self._reader.pos
            ].isspace():
                self._reader.take(1)
        firsts = {text_of(mid)[0] for mid, _, _ in self._mids}
        n = 0
        while (yield from self._reader.need(n + 1)):
            char = self._reader.text[self._reader.pos + n]
            if char in firsts and n:
                return self._reader.take(n).strip()
            if char == "\n" or n > MAX_KEY:
                return None
            n += 1
        return None

    def _mid(self) -> Parse[tuple[Wrapper, frozenset[str]] | None]:
        """What stands between name and value: it may tell the kind of value."""
        yield from self._reader.need(max(len(text_of(mid)) for mid, _, _ in self._mids))
        for mid, wrapper, kinds in self._mids:
            text = text_of(mid)
            if self._reader.text.startswith(text, self._reader.pos):
                self._reader.take(len(text))
                return wrapper, kinds
        return None

    # ---- values --------------------------------------------------------------------------------

    def _text(self, post: str) -> Parse[bool]:
        self._emit('"')
        ended = yield from self._find(post, lambda t: self._emit(_escaped(t)))
        if ended:
            self._emit('"')
        return ended

    def _until(self, post: str) -> Parse[str | None]:
        parts: list[str] = []
        ended = yield from self._find(post, parts.append)
        return "".join(parts) if ended else None

    def _find(self, post: str, pass_on: Emit) -> Parse[bool]:
        """Pass text on up to `post`, and read that; False at the end of the text.

        A `post` counts only if the next parameter or a tail follows: a value may hold its text.
        The blanks at its ends may be missing.
        """
        reader, core = self._reader, post.strip()
        lead = post[: len(post) - len(post.lstrip())]
        scan = 0
        while True:
            at = reader.text.find(core, reader.pos + scan)
            if at < 0:
                held = overlap(reader.text[reader.pos :], core)
                keep = held + _blanks(reader.text[reader.pos : len(reader.text) - held], lead)
                pass_on(reader.take(len(reader.text) - reader.pos - keep))
                scan = 0
                if reader.closed:
                    reader.take(keep)  # the beginning of `post`, cut
                    return False
                yield
                continue
            offset = at - reader.pos
            if (yield from reader.peek(self._followers(), offset + len(core))):
                value = reader.take(offset)
                pass_on(value.removesuffix(lead))
                reader.take(len(core))
                return True
            scan = offset + 1

    def _followers(self) -> list[Literal]:
        if any(isinstance(p, str) and any(map(str.isalpha, p)) for p in self._args.pre):
            return [self._next, *self._ends]
        # A lone comma says little: the next name must follow it as well.
        names: list[str | Slot] = [Slot.KEY]
        names += (key for key in self._members.properties if not fits_slot(Slot.KEY, key))
        named = product(names, self._mids)
        return [*(build(*self._next, name, *mid) for name, (mid, _, _) in named), *self._ends]

    def _bare(self) -> Parse[str | None]:
        """A value without a closing tag: up to a sign on its own level."""
        stops = {text_of(tail).lstrip()[:1] for tail in self._tails}
        stops = (stops | {text_of(self._next)[:1]}) - {""}
        quotes = [self._args.quote] if self._args.quote else [('"', '"'), ("'", "'")]
        reader, depth, n = self._reader, 0, 0
        while (yield from reader.need(n + 1)):
            char = reader.text[reader.pos + n]
            if depth == 0 and char in stops:
                return reader.take(n)
            depth += _BRACKETS.get(char, 0)
            opened = None
            for quote in quotes:
                if char == quote[0][0] and (yield from reader.need(n + len(quote[0]))):
                    if reader.text.startswith(quote[0], reader.pos + n):
                        opened = quote
            start, n = n, (yield from self._quoted(n, opened)) if opened else n + 1
            if opened and start == 0 and self._args.escape == "python":
                # Templates write quotes within as they are: one that nothing follows is no end.
                while not (yield from reader.peek(self._followers(), n)):
                    n = yield from self._quoted(n - len(opened[0]), opened)
        # A value that was cut belongs to its call. Read again, call by call, it would cost the
        # square of its length.
        reader.take(len(reader.text) - reader.pos)
        return None

    def _quoted(self, n: int, quote: tuple[str, str]) -> Parse[int]:
        """Where the text ends that is opened `n` characters ahead."""
        reader, n = self._reader, n + len(quote[0])
        while (yield from reader.need(n + len(quote[1]))):
            if reader.text.startswith(quote[1], reader.pos + n):
                return n + len(quote[1])
            escape = len(quote[1]) == 1 and reader.text[reader.pos + n] == "\\"
            n += 2 if escape else 1
        return n


def _mids(args: ParamArgs) -> list[tuple[Literal, Wrapper, frozenset[str]]]:
    """What may follow a parameter's name, the longest first, and the kinds it stands for.

    The blanks at the end may be missing.
    """
    kinds: dict[tuple[Literal, Literal], frozenset[str]] = {}
    for kind, wrapper in args.wrappers.items():
        key = (wrapper.mid, wrapper.post)
        kinds[key] = kinds.get(key, frozenset()) | {kind}
    out = [(mid, Wrapper(mid, post), found) for (mid, post), found in kinds.items()]
    for mid, wrapper, found in list(out):
        short = build(text_of(mid).rstrip())
        if short != mid:
            out.append((short, wrapper, found))
    return sorted(out, key=lambda entry: -len(text_of(entry[0])))


def _blanks(text: str, lead: str) -> int:
    """How much of the end of `text` could be the blanks before a closing tag."""
    return len(lead) if lead and text.endswith(lead) else overlap(text, lead)


def _as_json(value: JsonValue) -> str:
    """JSON with its letters as they are, but for halves of them, which no UTF-8 can say."""
    text = json.dumps(value, ensure_ascii=False)
    halves = any("\ud800" <= char <= "\udfff" for char in text)
    return json.dumps(value) if halves else text


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
