"""From what a request demands of its answer to the constraint that makes it so.

OpenAI's `tool_choice`, `parallel_tool_calls`, `response_format` and a reasoning budget, over one
model's syntax. It knows no messages and no template.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from llguidance import LLMatcher

from llm_server.chat.closing import WayOut
from llm_server.chat.constraint import Constraint, Plan, Trigger
from llm_server.chat.grammar import Grammars, Lark, Spelling
from llm_server.chat.stream import Where
from llm_server.chat.syntax.call_grammar import CallGrammar, Choice
from llm_server.chat.syntax.format import ParamArgs, Syntax
from llm_server.chat.syntax.literal import Literal, build, is_marker, pieces, text_of
from llm_server.worker.messages import ChatRequest, JsonObject, ResponseFormat


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

        Raises InvalidRequest with code `invalid_json_schema` for a schema that cannot be forced.
        """
        if demand.is_free:
            return None
        reasoning = self._syntax.reasoning
        first = self._first(demand)
        triggers = self._triggers(demand) if demand.tools else []
        plan = Plan(
            first,
            triggers,
            thought=reasoning.open.encode() if reasoning and demand.may_think else b"",
            close=reasoning.close.encode() if reasoning else b"",
            close_tokens=self._close_tokens,
            budget=demand.request.reasoning_budget,
            once=first is not None or not demand.request.parallel_tool_calls,
        )
        if first is None and not triggers and plan.budget is None:
            return None
        return Constraint(
            plan,
            self.grammars.spellings,
            self._way_out,
            thinking=demand.where == "reasoning" and reasoning is not None,
        )

    @cached_property
    def _way_out(self) -> WayOut:
        closers = []
        args = self._syntax.calls.args
        if isinstance(args, ParamArgs):
            closers = sorted({text_of(w.post) for w in args.wrappers.values()} - {""})
        return WayOut(self.grammars.tokenizer, closers)

    @cached_property
    def _close_tokens(self) -> list[int]:
        if self._syntax.reasoning is None:
            return []
        return self._vocabulary.tokenize(self._syntax.reasoning.close, parse_special=True)

    # ---- grammars ------------------------------------------------------------------------------

    def _first(self, demand: Demand) -> _Source | None:
        """The grammar of an answer that is constrained from its beginning."""
        lark = Lark(self.grammars.markers)
        request, calls = demand.request, self._syntax.calls
        options: list[str] = []
        if not demand.must_call and request.response_format.type == "text":
            return None
        if not demand.must_call:
            opening = lark.text(self._syntax.content_open)
            options.append(f"{opening} {_answer(lark, request.response_format)}".strip())
        if demand.tools:
            options.append(self._calls(lark, demand).section(calls.start or calls.begin))
        reasoning = self._syntax.reasoning
        thinks = reasoning is not None and (demand.may_think or demand.where == "reasoning")
        blanks = "/\\n{0,2}/ " if thinks else ""
        body = f"{blanks}( {' | '.join(options)} )"
        if demand.may_think and reasoning is not None and reasoning.open:
            body = f"{lark.text(reasoning.open)} | {body}"
        return self._compiled(lark.source(body), request)

    def _triggers(self, demand: Demand) -> list[Trigger]:
        calls = self._syntax.calls
        found = []
        if calls.trigger:
            found.append(self._trigger(demand, calls.trigger, calls.begin, calls.anchored))
        opening = text_of(calls.start).strip() if calls.start else ""
        if calls.start and opening:
            found.append(self._trigger(demand, opening, calls.start, True))
        return found

    def _trigger(self, demand: Demand, text: str, opening: Literal, anchored: bool) -> Trigger:
        lark = Lark(self.grammars.markers)
        calls = self._calls(lark, demand)
        token = self.grammars.markers.get(text, -1)
        if lark.starts_with_marker(text):
            body = calls.section(opening)
        else:
            rest = text_of(opening).lstrip().removeprefix(text)
            head = lark.any_text_until(text)
            body = f"{head} {calls.section(build(rest, *opening[1:]))}"
        matcher = self._compiled(lark.source(body), demand.request)
        return Trigger(text.encode(), token, matcher, anchored)

    def _calls(self, lark: Lark, demand: Demand) -> CallGrammar:
        choice = Choice(demand.tools, demand.request.parallel_tool_calls)
        return CallGrammar(lark, self._syntax.calls, choice, self._endings)

    def _compiled(self, source: str, request: ChatRequest) -> _Source:
        by_tools = request.response_format.type != "json_schema"
        param = "tools" if by_tools else request.response_format.param
        self.grammars.compile(source, param)
        return _Source(self.grammars, source, param)


@dataclass(frozen=True, slots=True)
class _Source:
    """Makes matchers of one grammar."""

    grammars: Grammars
    source: str
    param: str

    def __call__(self) -> LLMatcher:
        return self.grammars.compile(self.source, self.param)


def _answer(lark: Lark, wanted: ResponseFormat) -> str:
    """An expression for an answer in the wanted format."""
    if wanted.type == "json_object" or wanted.schema is None:
        return lark.json({"type": "object"}, spaced=False, lenient=False)
    return lark.json(wanted.schema, spaced=False, lenient=False)


def _markers(syntax: Syntax) -> set[str]:
    """The markers of a syntax: in a vocabulary they may be tokens of their own."""
    texts = [syntax.content_open, syntax.content_close, *syntax.calls.texts()]
    if syntax.reasoning is not None:
        texts += [syntax.reasoning.open, syntax.reasoning.close]
    return {piece for text in texts for piece in pieces(text) if is_marker(piece)}
