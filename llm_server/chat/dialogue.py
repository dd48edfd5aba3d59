"""A model's side of a conversation: from a request to a prompt, a parser and a constraint.

The one door of `chat/` for the worker. It knows the template, the syntax measured from it and the
vocabulary's spellings; it computes nothing with the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import msgspec

from llm_server.cache.tree import common_prefix
from llm_server.chat.constraint import Constraint
from llm_server.chat.fallback import without_tools
from llm_server.chat.grammar import Spelling
from llm_server.chat.plan import Demand, Planner
from llm_server.chat.recognise import measure_syntax
from llm_server.chat.segments import Segment
from llm_server.chat.stream import AnswerParser, PlainText, Where
from llm_server.chat.syntax.format import Syntax
from llm_server.chat.syntax.literal import is_marker, pieces
from llm_server.chat.template import ChatTemplate
from llm_server.errors import InvalidRequest, TemplateError
from llm_server.worker.messages import ChatRequest, JsonObject, Message

_NO_THOUGHT = {"enable_thinking": False, "thinking": False}
"""The switches of published templates; a model that has none is cut short instead."""
_THOUGHT = dict.fromkeys(_NO_THOUGHT, True)
_EFFORTS = ("low", "medium", "high", "xhigh", "max")

N_TURNS = 4
"""How many of the last user turns get a boundary."""


class Vocabulary(Spelling, Protocol):
    """What a dialogue needs of a vocabulary (`llama.vocab.Vocab`)."""

    def text(self, token: int) -> str: ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request made ready.

    `segments` are to be tokenized one by one. `visible` are control tokens that the parser must
    see as text. `banned` are tokens that must not come. `constraint` None: any text will do.
    """

    segments: list[Segment]
    parser: AnswerParser | PlainText
    constraint: Constraint | None = None
    visible: frozenset[int] = frozenset()
    banned: frozenset[int] = frozenset()


class Dialogue:
    """Built once for a model; `prepare` may be called from several threads.

    `source` is the model's chat template, None if it has none. Raises TemplateError when that is
    no template.
    """

    def __init__(self, source: str | None, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.template = ChatTemplate(
            source,
            bos_token=_text(vocabulary, vocabulary.bos),
            eos_token=_text(vocabulary, vocabulary.eos),
            specials=[vocabulary.text(token) for token in vocabulary.control],
            stubborn=_stubborn(source or "", vocabulary),
        )

    @cached_property
    def syntax(self) -> Syntax:
        """How this model writes calls and thoughts."""
        return measure_syntax(self.template)

    @cached_property
    def _planner(self) -> Planner:
        return Planner(self._vocabulary, self.syntax)

    def warm(self) -> None:
        """Build what the first request with tools or a schema would wait for: half a second for
        150,000 tokens, most of it with the interpreter's lock held."""
        self._planner.warm()

    def prepare(self, id: int, request: ChatRequest) -> Prepared:
        """Everything the engine needs to answer a request.

        Raises:
            TemplateError: the template refused the messages.
            InvalidRequest: the tool choice does not fit the tools, or a schema cannot be forced.
        """
        check_choice(request)
        segments = self.render(request)
        tools = [] if request.tool_choice == "none" else request.tools
        where, may_think = self._where(segments)
        parser = self._parser(id, tools, where)
        return Prepared(
            segments,
            parser,
            self._planner.constraint(Demand(request, where, may_think)),
            visible=self._visible(bool(tools)) if isinstance(parser, AnswerParser) else frozenset(),
            banned=self._call_markers() if request.tool_choice == "none" else frozenset(),
        )

    def render(self, request: ChatRequest, *, generate: bool = True) -> list[Segment]:
        """The prompt of a request."""
        messages = [self._split_thought(m) for m in request.messages]
        tools = request.tools
        has_calls = any(m.tool_calls or m.role == "tool" for m in messages)
        if (tools or has_calls) and not self.syntax.native:
            messages, tools = without_tools(messages, tools), []
        kwargs = request.template_kwargs
        if request.reasoning_budget == 0:
            kwargs = {**_NO_THOUGHT, **kwargs}
        elif kwargs.get("reasoning_effort") in _EFFORTS:
            kwargs = {**_THOUGHT, **kwargs}
        try:
            return self.template.render(messages, tools, generate, kwargs)
        except TemplateError:
            if not tools:
                raise
            return self.template.render(messages, _completed(tools), generate, kwargs)

    def boundaries(self, request: ChatRequest, n_turns: int = N_TURNS) -> list[int]:
        """Where the prompt of `request` has stable ends, in characters from its start, ascending:
        behind system messages and tools, and behind each of the last `n_turns` user turns.

        Of a prompt that is to be stored, of which any turn may be the last, also behind that one.
        """
        text = _joined(self.render(request))
        users = [i for i, m in enumerate(request.messages) if m.role == "user"]
        first = users[0] if users else len(request.messages)
        shortened = [[*request.messages[:first], Message("user", "\0")]]
        shortened += [request.messages[: i + 1] for i in users[max(0, len(users) - n_turns) :]]
        if request.persist and n_turns:
            shortened.append(request.messages)
        found = set()
        for messages in shortened:
            part = msgspec.structs.replace(request, messages=messages)
            try:
                shorter = _joined(self.render(part, generate=False))
                found.add(common_prefix(text, 0, shorter, 0))
            except TemplateError:
                continue
        return sorted(found - {0})

    # ---- parts ---------------------------------------------------------------------------------

    def _parser(self, id: int, tools: list[JsonObject], where: Where) -> AnswerParser | PlainText:
        syntax = self.syntax
        if not tools and syntax.reasoning is None and not syntax.content_open:
            return PlainText(id)
        return AnswerParser(id, syntax, tools, where)

    def _where(self, segments: list[Segment]) -> tuple[Where, bool]:
        """Whether the prompt ends inside a thought, and whether one may come if not."""
        reasoning = self.syntax.reasoning
        end = _joined(segments).rstrip()[-256:]
        if self.syntax.content_open and end.endswith(self.syntax.content_open.rstrip()):
            return "content", False
        if reasoning is None:
            return "start", False
        if end.endswith(reasoning.close):
            # Where messages follow one another, every prompt ends like the end of a thought.
            return "start", bool(self.syntax.switch)
        if end.endswith(reasoning.open):
            return "reasoning", False
        return "start", True

    def _visible(self, with_calls: bool) -> frozenset[int]:
        syntax = self.syntax
        spelled = [*syntax.fences, *(syntax.calls.texts() if with_calls else ())]
        return frozenset(
            token
            for token, text in self._control_texts
            if token not in self._vocabulary.eog and any(text in s for s in spelled)
        )

    @cached_property
    def _control_texts(self) -> list[tuple[int, str]]:
        texts = ((t, self._vocabulary.text(t)) for t in self._vocabulary.control)
        return [(token, text) for token, text in texts if text]

    def _call_markers(self) -> frozenset[int]:
        """The token that would begin a call, where it is a marker that stands nowhere else."""
        syntax = self.syntax
        others = [*syntax.fences, syntax.switch]
        for marker in pieces(syntax.calls.trigger):
            if is_marker(marker) and not any(marker in other for other in others):
                tokens = self._vocabulary.tokenize(marker, parse_special=True)
                one = tokens if len(tokens) == 1 else ()
                return frozenset(one).difference(self._vocabulary.eog)
        return frozenset()

    def _split_thought(self, message: Message) -> Message:
        """A client may send an answer back with its thought in the text."""
        reasoning, content = self.syntax.reasoning, message.content
        if message.role != "assistant" or reasoning is None or not content or not reasoning.open:
            return message
        before, opened, rest = content.partition(reasoning.open)
        thought, closed, answer = rest.partition(reasoning.close)
        if before.strip() or not opened or not closed:
            return message
        return msgspec.structs.replace(
            message,
            content=answer.strip(),
            reasoning_content=message.reasoning_content or thought.strip(),
        )


def check_choice(request: ChatRequest) -> None:
    """Refuse a tool choice that no tool can satisfy. Raises InvalidRequest."""
    names = [tool["function"]["name"] for tool in request.tools]
    if request.tool_name is not None and request.tool_name not in names:
        raise InvalidRequest("tool_choice names a tool that is not in tools.", param="tool_choice")
    if request.tool_choice == "required" and not names:
        raise InvalidRequest(
            "tool_choice is required, but there are no tools.", param="tool_choice"
        )


def _completed(tools: list[JsonObject]) -> list[JsonObject]:
    """Tools with the parts that careless templates take for granted."""
    return [{**tool, "function": _completed_function(tool["function"])} for tool in tools]


def _completed_function(function: JsonObject) -> JsonObject:
    parameters = _completed_schema(function.get("parameters") or {"type": "object"})
    return {"description": "", **function, "parameters": {"properties": {}, **parameters}}


def _completed_schema(schema: JsonObject, depth: int = 0) -> JsonObject:
    out: JsonObject = {"description": "", **schema}
    if schema.get("type") == "object":
        out.setdefault("additionalProperties", {})
        out.setdefault("required", [])
    if schema.get("type") == "array":
        out.setdefault("items", {"type": "string"})
    if depth < 64:
        for key in ("items", "additionalProperties"):
            if isinstance(out.get(key), dict) and out[key]:
                out[key] = _completed_schema(out[key], depth + 1)
        if isinstance(schema.get("properties"), dict):
            out["properties"] = {
                name: _completed_schema(part, depth + 1) if isinstance(part, dict) else part
                for name, part in schema["properties"].items()
            }
    return out


def _stubborn(source: str, vocabulary: Vocabulary) -> list[str]:
    """Markers of the template that are tokens, but not control tokens: plain text makes them."""
    markers = {piece for piece in pieces(source) if is_marker(piece)}
    found = []
    for marker in markers:
        tokens = vocabulary.tokenize(marker, parse_special=True)
        if len(tokens) == 1 and tokens[0] not in vocabulary.control:
            found.append(marker)
    return found


def _text(vocabulary: Vocabulary, token: int) -> str:
    return vocabulary.text(token) if token >= 0 else ""


def _joined(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)
