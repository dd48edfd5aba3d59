"""A model's chat template: messages and tools in, prompt segments out.

It measures, by rendering probes, what the template wants where published ones differ (arguments
as object or text, what an absent content is, which call ids), and adapts the messages to that. It
knows nothing of tokens, and nothing of what the model writes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from itertools import product
from typing import Any

from jinja2 import TemplateError as JinjaError
from jinja2 import meta, nodes

from llm_server.chat.history import IDS, RESULTS, Style, dicts
from llm_server.chat.normalise import REPAIRS, head_system, split_calls, split_content
from llm_server.chat.sandbox import (
    MAX_CHARS,
    RENDER_SECONDS,
    ChatEnvironment,
    LimitExceeded,
    Refused,
)
from llm_server.chat.segments import MARKS, Lookalikes, Segment
from llm_server.chat.syntax.probes import probe_tool
from llm_server.errors import TemplateError, printable
from llm_server.worker.messages import FunctionCall, JsonObject, Message

MAX_SOURCE_BYTES = 256 * 1024
"""Longest template accepted; the longest published ones have a tenth of that."""

PROBE_SECONDS = 0.5
"""Processor time of one measuring render. Published templates take 0.2 ms, the slowest 4; at 0.2 s
one was given up on a machine that was busy with three other things."""

CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
"""
"""For a model that brings no template."""

RENDER_ERRORS = (
    JinjaError,
    RecursionError,
    ValueError,
    ArithmeticError,
    TypeError,
    LookupError,
    AttributeError,
)
"""What running a template may raise: it can do to its values whatever Python can."""

_NO_MARKS = str.maketrans("", "", MARKS)

_PROBE_TOOL = probe_tool("probe_function", ["probe_key"])
_QUESTION = Message("user", "Probe question.")


def _system(word: str) -> Message:
    return Message("system", f"Probe system {word}.")


Scalar = str | int | float | bool
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


class ChatTemplate:
    """A compiled template; safe to use from several threads, one render at a time.

    `source` None is ChatML. `specials` are the spellings that only the template itself may
    produce, those of the vocabulary's control tokens; `stubborn` are such that a tokenizer
    recognises in plain text too. Raises TemplateError when the
    source is too long or is not a template.
    """

    def __init__(
        self,
        source: str | None,
        bos_token: str,
        eos_token: str,
        specials: Iterable[str] = (),
        stubborn: Iterable[str] = (),
    ) -> None:
        self.source = CHATML if source is None else source
        if len(self.source.encode("utf-8", "replace")) > MAX_SOURCE_BYTES:
            raise TemplateError("The model's chat template is longer than 256 KiB.")
        self._lookalikes = Lookalikes(specials, stubborn)
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._env = ChatEnvironment()
        self._lock = threading.Lock()
        try:
            tree = self._env.parse(self.source)
            self._template = self._env.from_string(tree)
            self.variables = frozenset(meta.find_undeclared_variables(tree))
        except RENDER_ERRORS as error:
            raise TemplateError(
                f"The model's chat template is malformed: {_words(error)}"
            ) from None
        keys = {n.attr for n in tree.find_all(nodes.Getattr)}
        keys |= {n.value for n in tree.find_all(nodes.Const) if isinstance(n.value, str)}
        self._reasoning_keys = [key for key in _REASONING_KEYS if key in keys]
        self._takes_results = RESULTS in keys

    def render(
        self,
        messages: list[Message],
        tools: list[JsonObject] | None = None,
        add_generation_prompt: bool = True,
        kwargs: Mapping[str, Scalar] | None = None,
    ) -> list[Segment]:
        """The prompt of a conversation, as segments to be tokenized one after the other.

        The text usually begins with `bos_token`: the tokenizer must not add a second one. A
        conversation that the template refuses is tried again in shapes that every template takes
        (a system message in the first user turn, one call a message, equal neighbours joined).
        Raises TemplateError with the template's own words when none is accepted, or when the
        render takes over two seconds or 16 million characters.
        """
        first: Exception | None = None
        if self._omits_system(messages):
            messages = head_system(messages)
        for repaired in _attempts(messages):
            try:
                return self._render(repaired, tools or [], add_generation_prompt, kwargs or {})
            except RENDER_ERRORS as error:
                first = first or error
                if isinstance(error, LimitExceeded):
                    break
        assert first is not None
        raise TemplateError(_words(first), param="messages") from None

    def probe(
        self,
        messages: list[Message],
        tools: list[JsonObject],
        add_generation_prompt: bool,
        kwargs: Mapping[str, Scalar],
    ) -> str:
        """A measuring render: of these messages or, by TemplateError, not at all."""
        try:
            history = self._dicts(messages, self.style)
            return self._run(history, tools, add_generation_prompt, kwargs)
        except RENDER_ERRORS as error:
            raise TemplateError(_words(error)) from None

    @cached_property
    def style(self) -> Style:
        """The first style in which a call and its result come out whole, with an id that both show
        if results show one; measured once."""
        styles = (
            Style(arguments, empty, ids, results)  # type: ignore[arg-type]
            for results, empty, arguments, ids in product(
                ("inside", "messages") if self._takes_results else ("messages",),
                ("text", "none", "absent"),
                ("object", "text"),
                IDS,
            )
        )
        style = next(filter(self._style_works, styles), None)
        if style is None:
            return Style()
        if not self._ids_agree(style):
            others = (replace(style, ids=ids) for ids in IDS)
            agreeing = (s for s in others if self._ids_agree(s) and self._style_works(s))
            style = next(agreeing, style)
        return replace(
            style,
            several=self._shows(style, None, 2),
            beside=self._shows(style, "Probe text.", 1),
        )

    @cached_property
    def _no_tools(self) -> list[JsonObject] | None:
        """None as HF has it, but a template made for tools only may want a list."""
        try:
            self._run([{"role": "user", "content": "Probe."}], None, True, {})
        except RENDER_ERRORS:
            return []
        return None

    # ---- one render ----------------------------------------------------------------------------

    def _render(
        self,
        messages: list[Message],
        tools: list[JsonObject],
        add_generation_prompt: bool,
        kwargs: Mapping[str, Scalar],
    ) -> list[Segment]:
        calls = any(m.tool_calls or m.role == "tool" for m in messages)
        style = self.style if calls else Style()
        if not style.beside:
            messages = split_content(messages)
        if not style.several:
            messages = split_calls(messages)
        history = self._dicts(messages, style)
        extra = dict(kwargs)
        marks = self._lookalikes.marker(_strings([history, tools, extra]))
        return marks.split(
            self._run(
                marks.add(history),
                marks.add(tools or self._no_tools),
                add_generation_prompt,
                marks.add(extra),
                RENDER_SECONDS,
            )
        )

    def _dicts(self, messages: list[Message], style: Style) -> list[dict[str, Any]]:
        return list(dicts(messages, style, self._reasoning_keys))

    def _run(
        self,
        messages: list[dict[str, Any]],
        tools: list[JsonObject] | None,
        add_generation_prompt: bool,
        kwargs: Mapping[str, Any],
        seconds: float = PROBE_SECONDS,
    ) -> str:
        variables: dict[str, Any] = {
            **kwargs,
            **self._tokens,
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        if "tools" not in self.variables:
            # An older convention (Firefunction): the tools as text, and the date.
            variables["functions"] = json.dumps(tools, ensure_ascii=False, indent=4)
            variables["datetime"] = datetime.now().strftime("%Y-%m-%d")
        with self._lock:
            self._env.start(seconds)
            pieces, size = [], 0
            for piece in self._template.generate(variables):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_CHARS:
                    raise LimitExceeded("the chat template makes too much text")
        return "".join(pieces)

    # ---- measuring -----------------------------------------------------------------------------

    def _omits_system(self, messages: list[Message]) -> bool:
        """Whether the template would leave out a system message, without a word."""
        n = sum(message.role == "system" for message in messages)
        at_start = all(message.role == "system" for message in messages[:n])
        return (n > 1 and self._omits_second) or (not at_start and self._omits_later)

    @cached_property
    def _omits_second(self) -> bool:
        return self._omits([_system("one"), _system("two"), _QUESTION])

    @cached_property
    def _omits_later(self) -> bool:
        answer = Message("assistant", "Probe answer.")
        return self._omits([_system("one"), _QUESTION, answer, _system("two"), _QUESTION])

    def _omits(self, messages: list[Message]) -> bool:
        """Whether something of the messages is missing. What is refused can be repaired."""
        try:
            text = self._run(self._dicts(messages, Style()), self._no_tools, True, {})
        except RENDER_ERRORS:
            return False
        return not all((message.content or "") in text for message in messages)

    def _style_works(self, style: Style) -> bool:
        """Whether a call and its result come out whole and once."""
        before = self._probe_calls(style, None, 0)
        after = self._probe_calls(style, None, 1)
        words = ("probe_function", "probe_key", "probe_value", "probe result")
        broken = ("None", "null", "{'", '\\"')
        return all(after.count(word) > before.count(word) for word in words) and all(
            after.count(word) == before.count(word) for word in broken
        )

    def _ids_agree(self, style: Style) -> bool:
        """Whether calls show their ids as they are, in each message, where results do."""
        history = [_QUESTION]
        for i in range(2):
            call = FunctionCall(f"call_012345678{i}", "probe_function", '{"probe_key": "x"}')
            result = Message("tool", "probe result", name=call.name, tool_call_id=call.id)
            history += [Message("assistant", None, tool_calls=[call]), result]
        entries = self._dicts(history, style)
        foreign = "probeid00"
        for entry in entries:
            entry |= {"tool_call_id": foreign} if "tool_call_id" in entry else {}
        try:
            text = self._run(entries, [_PROBE_TOOL], False, {})
        except RENDER_ERRORS:
            return True
        calls = [call for entry in entries for call in entry.get("tool_calls", ())]
        return foreign not in text or all(call["id"] in text for call in calls)

    def _shows(self, style: Style, content: str | None, n_calls: int) -> bool:
        """Whether all of `n_calls` calls come out in one message with `content`."""
        one = self._probe_calls(style, None, 1).count("probe_value")
        before = self._probe_calls(style, None, 0).count("probe_value")
        shown = self._probe_calls(style, content, n_calls).count("probe_value")
        return shown - before == n_calls * (one - before)

    def _probe_calls(self, style: Style, content: str | None, n_calls: int) -> str:
        """A question, an answer with calls, and their results; empty if that is refused."""
        calls = [
            FunctionCall(f"call_012345678{i}", "probe_function", '{"probe_key": "probe_value"}')
            for i in range(n_calls)
        ]
        history = [_QUESTION]
        if calls:
            history.append(Message("assistant", content, tool_calls=calls))
        history += [
            Message("tool", "probe result", name=call.name, tool_call_id=call.id) for call in calls
        ]
        try:
            return self._run(self._dicts(history, style), [_PROBE_TOOL], False, {})
        except RENDER_ERRORS:
            return ""


def _attempts(messages: list[Message]) -> Iterator[list[Message]]:
    yield messages
    seen = [messages]
    for repair in REPAIRS:
        repaired = repair(messages)
        if repaired not in seen:
            seen.append(repaired)
            yield repaired


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _words(error: Exception) -> str:
    """What to tell the client: the template's own words, or the kind of failure, never more.

    The marks of look-alikes are left out.
    """
    if isinstance(error, Refused | LimitExceeded):
        text = str(error.message)
    elif isinstance(error, JinjaError):
        text = error.message or type(error).__name__
    else:
        text = f"the chat template failed ({type(error).__name__})"
    return printable(text.translate(_NO_MARKS), 300)
