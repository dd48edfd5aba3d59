"""The grammar of calls: the format that the parser reads, with the tools' schemas filled in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from llm_server.chat.grammar import ANYTHING, Lark
from llm_server.chat.schemas import parameters_of
from llm_server.chat.syntax.format import CallFormat, JsonArgs
from llm_server.chat.syntax.literal import BLANKS, Literal, Slot, build, fill
from llm_server.chat.syntax.param_grammar import ParamGrammar
from llm_server.worker.messages import JsonObject

BEHIND_SLOT = r"/[^\w.:-](?s:.*)/"
"""An expression for what no name, id or number goes on with, and any text."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which calls may come: of these tools, one or several.

    `params` are the places of the tools' schemas in the request. `later`: the conversation holds
    calls already.
    """

    tools: Sequence[JsonObject]
    params: Sequence[str]
    several: bool = True
    later: bool = False


class CallGrammar:
    """Writes calls of one format into a grammar. `endings` are spellings that end an answer."""

    def __init__(
        self, lark: Lark, calls: CallFormat, choice: Choice, endings: Sequence[str] = ()
    ) -> None:
        self._lark = lark
        self._calls = calls
        self._tools = [tool["function"] for tool in choice.tools]
        self._again = calls.again if choice.several else None
        self._counted = calls.counts_on and choice.later
        self._end = calls.end
        while self._end and isinstance(self._end[-1], str):
            ending = next((e for e in endings if self._end[-1].endswith(e)), None)
            if ending is None:
                break
            self._end = fill((*self._end[:-1], self._end[-1].removesuffix(ending)), {})
        self._arguments = [
            self._arguments_of(function, param)
            for function, param in zip(self._tools, choice.params, strict=True)
        ]
        self._rests: dict[str | None, str] = {}

    def section(self, opening: Literal) -> str:
        """An expression for one call or several, from `opening` on to the end."""
        return self._lark.rule(self._alternatives(opening, None))

    def section_behind(self, headers: Sequence[Literal]) -> str:
        """As `section`, from any of `headers` on, with the blanks that the parser allows there."""
        parts = []
        for function, arguments in zip(self._tools, self._arguments, strict=True):
            name = function["name"]
            parts.append(f"{self._heads(headers, name)} {arguments} {self._rest(name)}")
        return self._lark.rule(" | ".join(parts))

    def headers(self, headers: Sequence[Literal]) -> str:
        """An expression for the same headers with any text behind them, where the parser takes them
        for headers (`literal.header_complete`)."""
        parts = []
        for function, header in product(self._tools, headers):
            *before, last = header
            head, behind = header, BEHIND_SLOT
            if isinstance(last, str):
                head = build(*before, last.rstrip())
                blanks = self._lark.text(last[len(last.rstrip()) :])
                behind = f"( {blanks} | /{BLANKS}\\{{/ ) {ANYTHING}" if blanks else ANYTHING
            parts.append(f"{self._heads([head], function['name'])} {behind}")
        return self._lark.rule(" | ".join(parts))

    def _heads(self, headers: Sequence[Literal], name: str) -> str:
        heads = [self.literal(header, name, None, loose=True) for header in headers]
        return f"/{BLANKS}/ ( {' | '.join(heads)} )"

    def _alternatives(self, opening: Literal, last: str | None) -> str:
        parts = []
        for function, arguments in zip(self._tools, self._arguments, strict=True):
            name = function["name"]
            head = self.literal(opening, name, last)
            parts.append(" ".join(p for p in (head, arguments, self._rest(name)) if p))
        return " | ".join(parts)

    def _rest(self, name: str) -> str:
        """What follows the arguments of a call of `name`: the end, or the next call.

        Where another may come, blanks behind the end are no promise of it: some models end their
        turn on a line of its own.
        """
        depends = any(Slot.LAST in lit for lit in (self._end, self._again) if lit is not None)
        key = name if depends else None
        if key not in self._rests:
            self._rests[key] = rule = self._lark.name()
            end = self.literal(self._end, name, name)
            if self._again is None:
                self._lark.define(rule, end or '""')
            else:
                ended = f"{end} /[ \\n]{{0,4}}/" if end else '""'
                self._lark.define(rule, f"{ended} | {self._alternatives(self._again, name)}")
        return self._rests[key]

    def literal(self, literal: Literal, name: str, last: str | None, *, loose: bool = False) -> str:
        """An expression for a literal with its names filled in."""
        text = self._lark.loose_text if loose else self._lark.text
        names = {Slot.NAME: name, Slot.LAST: last or name}
        if last is None and not self._counted:
            names[Slot.INDEX] = str(self._calls.first_index)
        parts = []
        for part in fill(literal, names):
            if part is Slot.INDEX:
                parts.append("/[0-9]{1,3}/")
            elif part is Slot.ID:
                parts.append("/[a-zA-Z0-9]{9}/")
            elif part is Slot.TYPE:
                parts.append("/[a-zA-Z0-9_-]{1,32}/")
            elif isinstance(part, str):
                parts.append(text(part))
        return " ".join(p for p in parts if p)

    def _arguments_of(self, function: JsonObject, param: str) -> str:
        schema = parameters_of(function)
        strict = bool(function.get("strict"))
        args = self._calls.args
        if isinstance(args, JsonArgs):
            return self._lark.json(schema, spaced=args.spaced, lenient=not strict)
        ends, others = self._calls.tails(function["name"])
        tails = [*ends, *others]
        grammar = ParamGrammar(self._lark, args, schema, tails, strict=strict, param=param)
        return grammar.parameters()
