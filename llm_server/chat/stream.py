"""From an answer's text to the deltas a client sees: content, reasoning, tool calls.

Text comes in pieces of any size; what may be shown is shown at once, and only what could still
become a marker is held back. Text that turns out to be no call is content. It knows no tokens.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Literal as OneOf
from typing import TypeAlias

from llm_server.chat.syntax import json_args
from llm_server.chat.syntax.format import JsonArgs, Syntax
from llm_server.chat.syntax.headers import message_types
from llm_server.chat.syntax.literal import (
    Literal,
    Matcher,
    Slot,
    build,
    has_marker,
    header_complete,
    is_marker,
    pieces,
    text_of,
)
from llm_server.chat.syntax.params import ParamParser
from llm_server.chat.syntax.reader import EndOfText, Parse, Reader, overlap
from llm_server.worker.messages import Content, Delta, JsonObject, Reasoning, ToolCall

Where: TypeAlias = OneOf["start", "reasoning", "content"]
"""What an answer's text continues: a new turn, an opened thought, plain text."""

MAX_BLANKS = 64
"""Most blanks held back before a marker that may come."""


class PlainText:
    """An answer without tools or reasoning: all of it is content."""

    n_calls = 0
    answering = True
    thinking = False
    skipping = False

    def __init__(self, id: int) -> None:
        self._id = id

    def feed(self, text: str) -> list[Delta]:
        """The deltas that `text` makes visible."""
        return [Content(self._id, text)]

    def close(self) -> list[Delta]:
        """What was held back, once no more text comes: nothing."""
        return []


class AnswerParser:
    """Reads one answer in a model's own syntax.

    `tools` are those the model may call; without any, what looks like a call is content. `id` is
    the request's. `n_calls` is how many calls have begun.
    """

    def __init__(
        self,
        id: int,
        syntax: Syntax,
        tools: Sequence[JsonObject],
        where: Where = "start",
    ) -> None:
        self._id = id
        self._syntax = syntax
        self._schemas = {t["function"]["name"]: t["function"].get("parameters") for t in tools}
        self._where: Where = where
        self._reader = Reader()
        self._deltas: list[Delta] = []
        self.n_calls = 0
        self._calling = False
        self._spoke = False  # content has been shown
        self._apart = False  # and a call since: what comes now is another paragraph
        self._skipping = syntax.reasoning is not None
        self._running = self._answer()
        next(self._running)

    @property
    def answering(self) -> bool:
        """Whether the text that comes is for the user, not a thought or a call."""
        return self._where != "reasoning" and not self._calling

    @property
    def thinking(self) -> bool:
        """Whether the text that comes is a thought."""
        return self._where == "reasoning" and not self._calling and not self._opened

    @property
    def skipping(self) -> bool:
        """Whether blanks that come now are nobody's: they follow a thought or a call."""
        return self._skipping

    def feed(self, text: str) -> list[Delta]:
        """The deltas that `text` makes visible."""
        self._reader.feed(text)
        next(self._running)
        return self._take()

    def close(self) -> list[Delta]:
        """What was held back, once no more text comes. Nothing may be fed after that."""
        self._reader.closed = True
        next(self._running, None)
        return self._take()

    def _take(self) -> list[Delta]:
        deltas, self._deltas = self._deltas, []
        return deltas

    # ---- the parts of an answer ----------------------------------------------------------------

    def _answer(self) -> Parse[None]:
        try:
            while True:
                if self._where == "reasoning":
                    yield from self._reasoning()
                elif self._where == "start":
                    yield from self._start()
                else:
                    yield from self._content()
        except EndOfText:
            rest = self._reader.take(len(self._reader.text))
            if self._where == "reasoning":
                if not self._closes_thought(rest.strip()):
                    self._think(rest)
            elif not self._closes(rest.strip()):
                self._say(rest)

    def _closes_thought(self, rest: str) -> bool:
        """Whether `rest` is the beginning of what closes a thought, which was cut there."""
        reasoning = self._syntax.reasoning
        return bool(rest) and reasoning is not None and reasoning.close.startswith(rest)

    def _closes(self, rest: str) -> bool:
        """Whether `rest` is the beginning of what closes plain text: its end is not text."""
        begins = any(closing.startswith(rest) for closing in self._closings())
        return begins and has_marker(rest)

    def _closings(self) -> list[str]:
        """What closes plain text: behind calls also what ends their turn."""
        syntax = self._syntax
        closings = [syntax.content_close, syntax.calls.turn_end if self.n_calls else ""]
        return [text for text in closings if text]

    def _start(self) -> Parse[None]:
        """What kind of message comes: its opening is read, if it has one."""
        openings = self._openings()
        calls = self._headers(self._syntax.calls.start, self._syntax.calls.begin)
        self._where = "content"
        if not openings and not calls:
            return
        self._reader.mark()
        found = yield from self._reader.match([*(o for o, _ in openings), *calls])
        if found is not None and found[0] >= len(openings):
            yield from self._calls(found[1])
            return
        self._reader.unmark()
        if found is not None:
            self._where = openings[found[0]][1]
            self._skipping = True

    def _openings(self) -> list[tuple[Literal, Where]]:
        """What a message other than a call may begin with, and what it is then."""
        syntax = self._syntax
        openings: list[tuple[Literal, Where]] = []
        if syntax.reasoning is not None:
            if syntax.reasoning.open:
                openings.append((build(syntax.reasoning.open), "reasoning"))
            openings.append((build(syntax.reasoning.close), "start"))
        if syntax.content_open:
            openings.append((build(syntax.content_open), "content"))
            parts = pieces(syntax.content_open)
            if syntax.switch and len(parts) == 3 and is_marker(parts[0]) and is_marker(parts[2]):
                # A channel of another name is for the user as well.
                for rest in message_types(parts[2]):
                    openings.append((build(parts[0], Slot.NAME, *rest), "content"))
        return openings

    def _headers(self, *literals: Literal | None) -> list[Literal]:
        """What a call may begin with."""
        if not self._schemas:
            return []
        headers = [literal for literal in literals if literal is not None]
        return headers + [o for header in headers for o in self._syntax.calls.others(header)]

    def _reasoning(self) -> Parse[None]:
        assert self._syntax.reasoning is not None
        self._skipping = True
        yield from self._text([self._syntax.reasoning.close], self._think)
        self._skipping = True
        if self._where == "reasoning":
            self._where = "start"

    def _content(self) -> Parse[None]:
        syntax = self._syntax
        while self._where == "content":
            closings = [*self._closings(), *([syntax.switch] if syntax.switch else [])]
            closed = yield from self._text(closings, self._say)
            if closed and closed == syntax.switch:
                self._where, self._skipping = "start", True

    def _text(self, closings: list[str], show: Callable[[str], None]) -> Parse[str]:
        """Show text up to one of `closings`, and read that, or up to calls, and read these.

        Its value is the closing that came. Calls are read inside a thought as well: models forget
        to close it, though not without the marker that opens calls: they may speak of some.
        """
        reader, calls = self._reader, self._syntax.calls
        options, markers = [build(text) for text in closings], list(closings)
        if self._schemas and calls.trigger and not calls.anchored:
            options += self._headers(calls.begin)
            markers.append(calls.trigger)
            if calls.bare is not None and self._where == "content":
                options.append(calls.bare)
                markers.append(text_of(calls.bare))
        while True:
            yield from self._until(markers, show)
            reader.mark()
            found = yield from reader.match(options)
            if found is not None and found[0] < len(closings):
                reader.unmark()
                return closings[found[0]]
            n_calls = self.n_calls
            if found is not None:
                yield from self._calls(found[1])
            if self.n_calls > n_calls:
                self._where = "content"
                return ""
            if reader.closed and self._is_cut_call():
                reader.take(len(reader.text))
            blanks = len(reader.text) - reader.pos - len(reader.text[reader.pos :].lstrip())
            show(reader.take(blanks + 1))
            reader.unmark()

    def _until(self, markers: Sequence[str], show: Callable[[str], None]) -> Parse[None]:
        """Show text up to the blanks before the first of `markers`."""
        reader = self._reader
        while True:
            found = [at for m in markers if (at := reader.text.find(m, reader.pos)) >= 0]
            if found:
                text = reader.text[reader.pos : min(found)]
                show(reader.take(len(text.rstrip())))
                return
            text = reader.text[reader.pos :]
            if markers:
                text = text[: len(text) - max(overlap(text, m) for m in markers)]
                body = text.rstrip()
                text = body if len(text) - len(body) <= MAX_BLANKS else text
            show(reader.take(len(text)))
            yield from reader.more()

    # ---- calls ---------------------------------------------------------------------------------

    @property
    def _opened(self) -> str:
        """What is held back because it may be the header of a call."""
        text = self._reader.text[self._reader.pos :].lstrip()
        trigger = self._syntax.calls.trigger
        return text if self._schemas and trigger and text.startswith(trigger) else ""

    def _is_cut_call(self) -> bool:
        """Whether what is left is a call that was cut before its arguments, or behind the sign
        that opens them: nobody's text."""
        calls = self._syntax.calls
        headers = self._headers(calls.start, calls.begin)
        opened = self._opened.rstrip(" \n{")
        return bool(opened) and header_complete(headers, self._schemas, opened) is None

    def _calls(self, header: Matcher) -> Parse[None]:
        """Read calls from behind the first one's header on. The reader is marked before it, and
        goes back to its mark when what follows is no call."""
        self._calling = True
        yield from self._calls_from(header)
        self._calling = False

    def _calls_from(self, header: Matcher) -> Parse[None]:
        calls, reader = self._syntax.calls, self._reader
        while True:
            name = header.values[Slot.NAME]
            if name not in self._schemas:
                return reader.go_back()
            ends, others = calls.tails(name)
            tails = ends + others
            call = _Call(self, name)
            if isinstance(calls.args, JsonArgs):
                if not (yield from json_args.parse(reader, call.emit)):
                    return self._no_call()
                reader.mark()
                found = yield from reader.match(tails)
            else:
                parser = ParamParser(reader, calls.args, tails, self._schemas[name], call.emit)
                found = yield from parser.parse()
                if not call.begun:
                    return self._no_call()
            if found is None or found[0] < len(ends):
                if reader.closed:  # and was waited for: what is left goes on with the call, cut
                    reader.take(len(reader.text))
                return
            header = found[1]

    def _no_call(self) -> None:
        """What follows a header is text; nobody's, if it was cut."""
        if self._reader.closed and (self.n_calls or self._syntax.calls.trigger):
            self._reader.take(len(self._reader.text))
        else:
            self._reader.go_back()

    # ---- deltas --------------------------------------------------------------------------------

    def begin_call(self, name: str) -> int:
        """A call has begun: its index."""
        self._reader.unmark()
        index, self.n_calls = self.n_calls, self.n_calls + 1
        call_id = f"call_{secrets.token_hex(12)}"
        self._deltas.append(ToolCall(self._id, index, call_id=call_id, name=name))
        self._skipping, self._apart = True, self._spoke
        return index

    def add_arguments(self, index: int, text: str) -> None:
        """More of a call's arguments."""
        self._deltas.append(ToolCall(self._id, index, arguments=text))

    def _say(self, text: str) -> None:
        text = self._skip(text)
        if text:
            self._deltas.append(Content(self._id, "\n\n" + text if self._apart else text))
            self._spoke, self._apart = self._spoke or not text.isspace(), False

    def _think(self, text: str) -> None:
        text = self._skip(text)
        if text:
            self._deltas.append(Reasoning(self._id, text))

    def _skip(self, text: str) -> str:
        """`text` without the blanks that follow a thought or a call."""
        if self._skipping:
            text = text.lstrip()
            self._skipping = not text
        return text


class _Call:
    """One call while it is read: announced with its first arguments."""

    def __init__(self, parser: AnswerParser, name: str) -> None:
        self._parser = parser
        self._name = name
        self._index: int | None = None

    @property
    def begun(self) -> bool:
        return self._index is not None

    def emit(self, text: str) -> None:
        if self._index is None:
            self._index = self._parser.begin_call(self._name)
        if text:
            self._parser.add_arguments(self._index, text)
