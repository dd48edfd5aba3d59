"""What was measured of a template: how the model opens, writes and closes calls and reasoning.

Plain facts, no behaviour but the reading of their own fields. `measure` fills them in, `stream`
and `plan` use them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal as OneOf
from typing import TypeAlias

from llm_server.chat.syntax.headers import bare_header, other_headers, short_end
from llm_server.chat.syntax.literal import Literal, Slot, build, fill

Kind: TypeAlias = OneOf["string", "number", "boolean", "null", "array", "object"]
KINDS: tuple[Kind, ...] = ("string", "number", "boolean", "null", "array", "object")


@dataclass(frozen=True, slots=True)
class JsonArgs:
    """The arguments are one JSON object. `spaced`: blanks behind its commas and colons."""

    spaced: bool = True


@dataclass(frozen=True, slots=True)
class Wrapper:
    """What stands around the value of one kind: behind the parameter's name, behind the value."""

    mid: Literal
    post: Literal


@dataclass(frozen=True, slots=True)
class ParamArgs:
    """The arguments are parameters one by one, each with its name.

    `pre` opens a parameter, `separator` stands between two of them (blank or a comma).
    `escape` is how text is written: as it is, with XML entities, in a CDATA section where
    needed, as JSON, or between quotes as Python's literals: the model escapes what is in them,
    though the template may not. `quote` opens and closes texts inside arrays and objects of a
    dialect without JSON's quotes; `item` and `member` wrap values there when they are elements.
    `words` are the spellings of true, false and null. `wrappers` lacks "null" where the model is
    shown calls without the parameters that are null: then a missing one stands for null. `sorts`:
    it is shown parameters and members in alphabetical order, whatever the schema's.
    """

    pre: Literal
    separator: Literal
    wrappers: dict[Kind, Wrapper]
    escape: OneOf["raw", "xml", "cdata", "json", "python"] = "raw"
    quote: tuple[str, str] | None = None
    item: Wrapper | None = None
    member: Wrapper | None = None
    words: tuple[str, str, str] = ("true", "false", "null")
    sorts: bool = False

    @property
    def quoted(self) -> bool:
        """Whether a text stands between quotes, as in JSON and Python: a value like others."""
        return self.escape in ("json", "python")

    @property
    def bare(self) -> bool:
        """Whether values other than texts end at the next sign instead of a closing tag."""
        return not self.wrappers["number"].post


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How calls are written, from the first marker to the last.

    `begin` leads from the answer's text through the name to the first call's arguments, `again`
    from one call's arguments to the next one's (None: one call only), `end` follows the last.
    `start` replaces `begin` where the answer starts with the call, if that differs.
    `first_index` is the running number of the first call, in each message or, where it `counts_on`,
    in a conversation. `trigger` is the text in an answer that
    announces calls; it is empty when a call starts with the name itself. `anchored`: calls come
    only where the answer starts, having no marker of their own. `channels` are those of thoughts,
    where a header names its channel: models call in them as well. `turn_end` is what the turn ends
    with behind `end`; its last marker ends the generation.
    """

    begin: Literal
    end: Literal
    args: JsonArgs | ParamArgs
    again: Literal | None = None
    start: Literal | None = None
    first_index: int = 0
    counts_on: bool = False
    trigger: str = ""
    anchored: bool = False
    channels: tuple[str, ...] = ()
    turn_end: str = ""

    def others(self, header: Literal) -> list[Literal]:
        """What a call may begin with instead of one of this format's headers."""
        return other_headers(header, self.channels)

    @property
    def bare(self) -> Literal | None:
        """What a call may begin with in a text although nothing has opened calls."""
        return None if self.anchored else bare_header(self.begin, self.trigger)

    def tails(self, name: str) -> tuple[list[Literal], list[Literal]]:
        """What may follow the arguments of a call of `name`: ends, and what leads to another call.

        The marker that ends all calls may be missing, and so may the one that opens them.
        """
        short, bare = short_end(self.end), self.bare
        ends = [self.end, *([short] if short else [])]
        others = [self.again] if self.again else []
        others += [build(*end, "\n", *bare) for end in ends if bare]
        last = {Slot.LAST: name}
        return [fill(end, last) for end in ends], [fill(other, last) for other in others]

    def texts(self) -> list[str]:
        """All fixed texts in which markers may stand."""
        literals = [self.begin, self.end, self.again or (), self.start or ()]
        literals += [*self.others(self.begin), *self.others(self.start or ())]
        if isinstance(self.args, ParamArgs):
            literals += [self.args.pre, build(*(self.args.quote or ()))]
            literals += [part for w in self.args.wrappers.values() for part in (w.mid, w.post)]
        return [part for literal in literals for part in literal if isinstance(part, str)]


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """How thinking is fenced. An empty `open` means that the prompt has opened it."""

    open: str
    close: str


@dataclass(frozen=True, slots=True)
class Syntax:
    """All that is known of a model's answers.

    `content_open` and `content_close` fence plain text where the model does so. `native` is
    whether the template itself shows tools and calls; otherwise the calls of `HERMES` are used,
    explained in a system message. `switch` ends one message and begins the next, where an answer
    may hold several.
    """

    calls: CallFormat
    native: bool = True
    reasoning: ReasoningFormat | None = None
    content_open: str = ""
    content_close: str = ""
    switch: str = ""

    @property
    def fences(self) -> list[str]:
        """What opens and closes plain text and thoughts; empty where nothing does."""
        thought = [self.reasoning.open, self.reasoning.close] if self.reasoning else []
        return [self.content_open, self.content_close, *thought]


HERMES = CallFormat(
    begin=build('<tool_call>\n{"name": "', Slot.NAME, '", "arguments": '),
    end=build("}\n</tool_call>"),
    again=build('}\n</tool_call>\n<tool_call>\n{"name": "', Slot.NAME, '", "arguments": '),
    args=JsonArgs(),
    trigger="<tool_call>",
)
"""The syntax for models whose template has none: many models have seen it."""
