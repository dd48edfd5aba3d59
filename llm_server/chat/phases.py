"""The phases of an answer, and what ends one and begins the next: what a constraint is built of.

Facts without behaviour. `plan` fills them in, `constraint` goes through them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llguidance import LLMatcher

from llm_server.chat.edges import NOWHERE, Edge


@dataclass(frozen=True, slots=True)
class Trigger:
    """A text that ends a free phase and begins a grammar.

    `matcher` makes a fresh matcher of what follows the text.
    """

    edge: Edge
    matcher: Callable[[], LLMatcher]


@dataclass(frozen=True, slots=True)
class Opening:
    """Calls that are announced by their whole header instead of a trigger.

    `complete` tells of a message's beginning whether it is the header of a call, or None while it
    may become one. `matcher` makes a fresh matcher that begins with the header, `announced` one of
    the header and anything behind it.
    """

    complete: Callable[[str], bool | None]
    matcher: Callable[[], LLMatcher]
    announced: Callable[[], LLMatcher]


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a constraint does.

    `first` is the grammar of the answer's beginning, None if that is free; `head` is that or the
    opening of a thought, where one may come. `triggers` begin calls in free text. `thought` opens
    a thought and `close` ends it; after a thought comes `first`. `once`: the answer ends
    with its grammar. `opening` begins calls at the start of the answer and behind `switch`, which
    ends one message of it, `bare` such as `bare_edge` begins in free text, whose tokens are
    `bare_tokens`. `must_call`: `first` holds nothing but calls; else `heads` are what
    begins calls in it.
    """

    first: Callable[[], LLMatcher] | None
    head: Callable[[], LLMatcher] | None = None
    triggers: Sequence[Trigger] = ()
    thought: Edge = NOWHERE
    close: Edge = NOWHERE
    close_tokens: Sequence[int] = ()
    budget: int | None = None
    once: bool = True
    opening: Opening | None = None
    switch: Edge = NOWHERE
    bare: Opening | None = None
    bare_edge: Edge = NOWHERE
    bare_tokens: Sequence[int] = ()
    must_call: bool = False
    heads: Sequence[bytes] = ()
