"""From what a request demands of its answer to the constraint that makes it so.

OpenAI's `tool_choice`, `parallel_tool_calls`, `response_format` and a reasoning budget, over one
model's syntax. It knows no messages and no template.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from llguidance import LLMatcher

from llm_server.chat.closing import WayOut
from llm_server.chat.constraint import Constraint
from llm_server.chat.edges import NOWHERE, Edge, anything, blank
from llm_server.chat.examples import endings
from llm_server.chat.grammar import Grammars, Lark, Spelling, check_schema
from llm_server.chat.numbers import Numbers
from llm_server.chat.phases import Opening, Plan, Trigger
from llm_server.chat.room import Room
from llm_server.chat.schemas import subschemas
from llm_server.chat.shortest import LONGEST, shortest, shortest_members
from llm_server.chat.stream import Where
from llm_server.chat.syntax.call_grammar import CallGrammar, Choice
from llm_server.chat.syntax.format import ParamArgs, ReasoningFormat, Syntax
from llm_server.chat.syntax.literal import (
    Literal,
    Slot,
    build,
    common_prefix,
    fill,
    has_marker,
    header_complete,
    is_marker,
    pieces,
    text_of,
)
from llm_server.errors import InvalidSchema
from llm_server.worker.messages import ChatRequest, JsonObject, ResponseFormat

COMPILE_SECONDS = 5.0
"""After so long no further schema of a request is compiled; one takes about a second at most."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request wants, seen from the end of its prompt.

    `may_think`: the model may open a thought although the prompt has not.
    """

    request: ChatRequest
    where: Where
    may_think: bool

    @property
    def tools(self) -> list[JsonObject]:
        """The tools that may be called."""
        name = self.request.tool_name
        if name is not None:
            return [t for t in self.request.tools if t["function"]["name"] == name]
        return [] if self.request.tool_choice == "none" else self.request.tools

    @property
    def names(self) -> list[str]:
        """What these tools are called."""
        return [tool["function"]["name"] for tool in self.tools]

    @property
    def params(self) -> list[str]:
        """Where the schemas of these tools stand in the request."""
        tools = self.tools
        return [
            f"tools[{i}].function.parameters"
            for i, tool in enumerate(self.request.tools)
            if tool in tools
        ]

    @property
    def must_call(self) -> bool:
        return self.request.tool_choice == "required" or self.request.tool_name is not None

    @property
    def is_free(self) -> bool:
        """Whether any text will do."""
        request = self.request
        no_format = request.response_format.type == "text"
        return not self.tools and no_format and request.reasoning_budget is None


class Planner:
    """Builds constraints for one model. Threads may share it."""

    def __init__(self, vocabulary: Spelling, syntax: Syntax) -> None:
        self._vocabulary = vocabulary
        self._syntax = syntax
        self._endings = [
            vocabulary.piece(token, special=True).decode("utf-8", "replace")
            for token in vocabulary.eog
        ]
        self.grammars = Grammars(vocabulary, _markers(syntax))

    def constraint(self, demand: Demand) -> Constraint | None:
        """The constraint of one answer, None if there is none.

        Raises InvalidSchema for a schema that cannot be forced.
        """
        if demand.is_free:
            return None
        self._check_schemas(demand)
        plan = self._plan(demand)
        if not (plan.first or plan.triggers or plan.opening) and plan.budget is None:
            return None
        if plan.opening is not None:
            self.warm()  # the beginning of an answer is masked
        spelled = partial(self._vocabulary.piece, special=True)
        return Constraint(
            plan,
            self._vocabulary.n_tokens,
            spelled,
            self.grammars.tokenize,
            Room(partial(self._way_out, demand), spelled, [name.encode() for name in demand.names]),
            lambda: self._numbers,
            sorted(self._vocabulary.eog),
            thinking=demand.where == "reasoning" and self._syntax.reasoning is not None,
        )

    def _plan(self, demand: Demand) -> Plan:
        request, reasoning = demand.request, self._syntax.reasoning
        first, head = self._first(demand)
        triggers = self._triggers(demand) if demand.tools else []
        opening = self._call_opening(demand) if demand.tools and first is None else None
        bare, begins = self._bare(demand)
        thought, close, budget = NOWHERE, NOWHERE, None
        if reasoning is not None:
            anchored = opening is not None or any(trigger.edge.anchored for trigger in triggers)
            close = self._close(reasoning, first, anchored)
            budget = request.reasoning_budget
            if demand.may_think:
                thought = Edge(reasoning.open.encode(), anchored=True)
        return Plan(
            first,
            head,
            triggers,
            thought=thought,
            close=close,
            close_tokens=self._close_tokens,
            budget=budget,
            once=first is not None or not request.parallel_tool_calls,
            opening=opening,
            switch=Edge(self._syntax.switch.encode(), blank) if opening else NOWHERE,
            bare=bare,
            bare_edge=Edge(begins.encode()),
            bare_tokens=self.grammars.tokens(begins),
            must_call=demand.must_call,
            heads=self._heads(demand) if first is not None else (),
        )

    def _check_schemas(self, demand: Demand) -> None:
        """Refuse the schemas that cannot be forced, each by its own place in the request."""
        wanted = demand.request.response_format
        deadline = time.monotonic() + COMPILE_SECONDS
        if wanted.schema is not None:
            check_schema(self.grammars, wanted.schema, lenient=False, param=wanted.param)
        for tool, param in zip(demand.tools, demand.params, strict=True):
            function = tool["function"]
            if function.get("parameters"):
                lenient = not function.get("strict")
                if time.monotonic() > deadline:
                    raise InvalidSchema(
                        f"Compiling the tools' schemas takes longer than {COMPILE_SECONDS:g} s.",
                        param,
                    )
                check_schema(self.grammars, function["parameters"], lenient=lenient, param=param)

    def _way_out(self, demand: Demand) -> WayOut:
        tools = demand.tools
        args = self._syntax.calls.args
        posts: set[str] = set()
        if isinstance(args, ParamArgs):
            keys = {key for tool in tools for key in _names(tool["function"].get("parameters"))}
            around = [*args.wrappers.values(), args.member, args.item]
            ends = [wrapper.post for wrapper in around if wrapper is not None]
            for key in sorted(keys)[:256] or [""]:
                posts.update(text_of(fill(post, {Slot.KEY: key})) for post in ends)
        end = "".join(part for part in self._syntax.calls.end if isinstance(part, str))
        functions = [tool["function"] for tool in tools]
        return WayOut(
            self.grammars.tokenizer,
            self.grammars.tokens,
            sorted(posts - {""}, key=len),
            endings([demand.request.response_format.schema, tools]),
            [end[i:] for i in range(len(end))] if tools else [],
            {function["name"]: self._n_call(function) for function in functions},
        )

    def warm(self) -> None:
        """Build the tables that grammars need: half a second for 150,000 tokens, most of it with
        the interpreter's lock held."""
        _ = self.grammars.tokenizer

    def _close(self, reasoning: ReasoningFormat, first: _Source | None, anchored: bool) -> Edge:
        """How a thought ends. `anchored`: a call may come where the answer starts, only there."""
        fits = blank if anchored else anything
        return Edge(reasoning.close.encode(), fits if first is None else first.may_begin)

    @cached_property
    def _close_tokens(self) -> list[int]:
        if self._syntax.reasoning is None:
            return []
        return self.grammars.tokens(self._syntax.reasoning.close)

    @cached_property
    def _numbers(self) -> Numbers:
        """Made when the first number is long."""
        return Numbers(self._vocabulary.spellings)

    # ---- grammars ------------------------------------------------------------------------------

    def _first(self, demand: Demand) -> tuple[_Source | None, _Source | None]:
        """The grammar of an answer that is constrained from its beginning, without a thought and
        with one."""
        lark = Lark(self.grammars.markers)
        request, reasoning = demand.request, self._syntax.reasoning
        options: list[str] = []
        if not demand.must_call and request.response_format.type == "text":
            return None, None
        if not demand.must_call:
            opening = "" if demand.where == "content" else lark.text(self._syntax.content_open)
            options.append(f"{opening} {_answer(lark, request.response_format)}".strip())
        if demand.tools:
            options.append(self._calls(lark, demand).section(self._opening(demand)))
        body = f"( {' | '.join(options)} )"
        if reasoning is None or not (demand.may_think or demand.where == "reasoning"):
            return self._compiled(lark.source(body), request), None
        first = self._compiled(lark.source(f"/\\n{{0,2}}/ {body}"), request)
        if not demand.may_think or not reasoning.open:
            return first, None
        return first, self._compiled(lark.source(f"{lark.text(reasoning.open)} | {body}"), request)

    def _opening(self, demand: Demand) -> Literal:
        """What begins calls where an answer starts."""
        syntax, calls = self._syntax, self._syntax.calls
        opening = calls.start or calls.begin
        # Where plain text is fenced, calls may stand behind its fence, even if it holds nothing.
        shared = common_prefix(text_of(opening), syntax.content_close)
        fenced = has_marker(shared)
        opened = "" if demand.where == "content" else syntax.content_open
        return build(opened, *opening) if fenced else opening

    def _heads(self, demand: Demand) -> list[bytes]:
        """The beginnings of calls of these tools where an answer starts."""
        opening = self._opening(demand)
        heads = (text_of(fill(opening, {Slot.NAME: name})).strip() for name in demand.names)
        return [head.encode() for head in heads if head]

    def _n_call(self, function: JsonObject) -> int:
        """About how many tokens the shortest call of a tool takes."""
        calls, name, schema = self._syntax.calls, function["name"], function.get("parameters")
        filled = {Slot.NAME: name, Slot.LAST: name, Slot.ID: "123456789", Slot.INDEX: "0"}
        begin, end = (text_of(fill(literal, filled)) for literal in (calls.begin, calls.end))
        if isinstance(calls.args, ParamArgs):
            pre, text = calls.args.pre, calls.args.wrappers["string"]
            inner = "".join(
                text_of(fill(build(*pre, key, *text.mid, value, *text.post), {Slot.KEY: key}))
                for key, value in shortest_members(schema, 0)
            )
        else:
            inner = shortest(schema)
        return len(self.grammars.tokens(f"{begin}{inner[:LONGEST]}{end}"))

    def _triggers(self, demand: Demand) -> list[Trigger]:
        calls = self._syntax.calls
        found = []
        if calls.trigger and not calls.anchored:
            found.append(self._trigger(demand, calls.trigger, calls.begin, False))
        opening = text_of(calls.start).strip() if calls.start else ""
        if calls.start and opening:
            found.append(self._trigger(demand, opening, calls.start, True))
        return found

    def _call_opening(self, demand: Demand) -> Opening | None:
        """What tells a call by its header, where no trigger announces all that may come."""
        calls = self._syntax.calls
        own = calls.start or calls.begin
        headers = [own, *calls.others(own)]
        if calls.start is None and not calls.anchored and len(headers) == 1:
            return None
        return self._announced_by(demand, headers)

    def _bare(self, demand: Demand) -> tuple[Opening | None, str]:
        """What tells a call that nothing has opened, and what begins it.

        Its grammars are written when it comes: it seldom does, and others hold the same schemas.
        """
        bare = self._syntax.calls.bare
        if bare is None or not demand.tools:
            return None, ""
        parts = pieces(text_of(bare))
        begins = parts[0] if is_marker(parts[0]) else text_of(bare)
        return self._announced_by(demand, [bare], later=True), begins

    def _announced_by(
        self, demand: Demand, headers: Sequence[Literal], *, later: bool = False
    ) -> Opening:
        """Calls that one of these headers tells; `later`: not checked before they come."""
        matcher, announced = (
            self._source(partial(write, demand, headers), demand.request)
            for write in (self._section_behind, self._headers)
        )
        if not later:
            matcher.check()
            announced.check()
        names = frozenset(demand.names)
        return Opening(partial(header_complete, headers, names), matcher, announced)

    def _section_behind(self, demand: Demand, headers: Sequence[Literal]) -> str:
        lark = Lark(self.grammars.markers)
        return lark.source(self._calls(lark, demand).section_behind(headers))

    def _headers(self, demand: Demand, headers: Sequence[Literal]) -> str:
        lark = Lark(self.grammars.markers)
        return lark.source(self._calls(lark, demand).headers(headers))

    def _trigger(self, demand: Demand, text: str, opening: Literal, anchored: bool) -> Trigger:
        lark = Lark(self.grammars.markers)
        rest = text_of(opening).lstrip().removeprefix(text)
        body = self._calls(lark, demand).section(build(rest, *opening[1:]))
        matcher = self._compiled(lark.source(body), demand.request)
        return Trigger(Edge(text.encode(), matcher.may_begin, anchored), matcher)

    def _calls(self, lark: Lark, demand: Demand) -> CallGrammar:
        request = demand.request
        later = any(message.tool_calls for message in request.messages)
        choice = Choice(demand.tools, demand.params, request.parallel_tool_calls, later)
        return CallGrammar(lark, self._syntax.calls, choice, self._endings)

    def _compiled(self, text: str, request: ChatRequest) -> _Source:
        source = self._source(lambda: text, request)
        source.check()
        return source

    def _source(self, write: Callable[[], str], request: ChatRequest) -> _Source:
        param = request.response_format.param if request.response_format.schema else "tools"
        return _Source(self.grammars, write, param)


@dataclass(frozen=True)
class _Source:
    """Makes matchers of one grammar, which `write` writes when it is first wanted."""

    grammars: Grammars
    write: Callable[[], str]
    param: str

    @cached_property
    def text(self) -> str:
        return self.write()

    def check(self) -> None:
        """Raises InvalidSchema if no matcher can be made."""
        self.grammars.check(self.text, self.param)

    def __call__(self) -> LLMatcher:
        return self.grammars.compile(self.text, self.param)

    def may_begin(self, text: bytes) -> bool:
        """Whether `text` may be what comes first."""
        tokens = self.grammars.tokenize(text)
        return bool(self().validate_tokens(tokens) == len(tokens))


def _names(schema: object, depth: int = 0) -> Iterator[str]:
    """All names of properties in a schema."""
    if isinstance(schema, dict) and depth < 16:
        yield from schema.get("properties") or ()
        for _, part in subschemas(schema):
            yield from _names(part, depth + 1)


def _answer(lark: Lark, wanted: ResponseFormat) -> str:
    """An expression for an answer in the wanted format."""
    if wanted.type == "json_object" or wanted.schema is None:
        return lark.json({"type": "object"}, spaced=False, lenient=False)
    return lark.json(wanted.schema, spaced=False, lenient=False)


def _markers(syntax: Syntax) -> set[str]:
    """The markers of a syntax: in a vocabulary they may be tokens of their own."""
    texts = [*syntax.fences, *syntax.calls.texts()]
    return {piece for text in texts for piece in pieces(text) if is_marker(piece)}
