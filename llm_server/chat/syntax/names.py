"""Which names a dialect of parameters can carry: those that its own reader gives back."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Sequence

from llm_server.chat.syntax.format import Kind, ParamArgs
from llm_server.chat.syntax.literal import Literal, Slot, fill, text_of
from llm_server.chat.syntax.params import ParamParser
from llm_server.chat.syntax.reader import Reader
from llm_server.errors import InvalidSchema, printable
from llm_server.worker.messages import JsonObject

_PLAIN = re.compile(r"[\w.$@-]{1,64}")
"""Names that every dialect carries."""


class Names:
    """The names of one tool's parameters. `tails` are what may follow the last parameter."""

    def __init__(self, args: ParamArgs, tails: Sequence[Literal], param: str) -> None:
        self._args = args
        self._tails = tails
        self._param = param

    def carries(self, name: str, *, required: bool, inside: bool = False) -> bool:
        """Whether a parameter of this name comes back, or a member of an object `inside` one.

        Raises InvalidSchema if it does not, and is `required`.
        """
        if _PLAIN.fullmatch(name) or (self._member(name) if inside else self._parameter(name)):
            return True
        if required:
            raise InvalidSchema(
                f"A parameter named `{printable(name, 100)}` cannot be told in this model's syntax "
                "of calls; rename it.",
                self._param,
            )
        return False

    def _parameter(self, name: str) -> bool:
        """Whether several in a row come back: what follows a value tells where it ends."""
        text = '"x"' if self._args.quoted else "x"
        kinds: list[tuple[Kind, str]] = [("string", text), ("number", "1"), ("string", text)]
        written = [self._written(name, kind, value) for kind, value in kinds]
        spelled = json.dumps(name, ensure_ascii=False)
        expected = ", ".join(f"{spelled}: {value}" for value in ('"x"', "1", '"x"'))
        return self._read(written, {"properties": {name: {}}}).startswith(f"{{{expected}")

    def _member(self, name: str) -> bool:
        if (wrapper := self._args.member) is not None:
            closing = text_of(fill(wrapper.post, {Slot.KEY: name}))
            value = f"{text_of(self._args.pre)}{name}{text_of(wrapper.mid)}1{closing}" * 2
        else:
            value = f"{{{name}:1,{name}:1}}"
        expected = json.dumps({"x": {name: 1}}, ensure_ascii=False)[:-1]
        return self._read([self._written("x", "object", value)], {}).startswith(expected)

    def _written(self, name: str, kind: Kind, value: str) -> str:
        wrapper = self._args.wrappers[kind]
        post = text_of(fill(wrapper.post, {Slot.KEY: name}))
        return f"{text_of(self._args.pre)}{name}{text_of(wrapper.mid)}{value}{post}"

    def _read(self, parameters: Sequence[str], schema: JsonObject) -> str:
        """The arguments that the reader makes of a whole call."""
        reader, read = Reader(), list[str]()
        reader.feed(text_of(self._args.separator).join(parameters) + text_of(self._tails[0]))
        reader.closed = True
        parser = ParamParser(reader, self._args, self._tails, schema, read.append)
        deque(parser.parse(), maxlen=0)
        return "".join(read)
