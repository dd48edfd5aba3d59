"""What may come next in an answer: free text, a thought, a call, JSON by a schema.

A constraint is a row of phases. Free phases cost nothing: they only watch for the text that ends
them. In a grammar phase llguidance says which tokens are allowed and which are certain. It knows
tokens, not requests; `plan` builds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from llm_server.chat.edges import Edge, Tail
from llm_server.chat.numbers import MAX_DIGITS, Numbers, digits_behind
from llm_server.chat.phases import Opening, Plan, Trigger
from llm_server.chat.room import MARGIN, RESERVE, Room
from llm_server.errors import ServerError


class GrammarTooComplex(ServerError):
    """The grammar ran out of its budget in the middle of an answer. Repeating cannot help."""

    code = "grammar_too_complex"
    retry = False


class Constraint:
    """The constraint of one answer; the engine owns it.

    `accept` each token, sampled or forced. Before the first one and after each, unless `finished`,
    append all of `forced`, if any, or sample with `mask`, again if it `refuses` the token. If the
    model samples an end of generation, append all of `instead_of_end`, if any. `spelled` tells the
    bytes of one of the `n_tokens` tokens, `tokenize` makes tokens of text in the middle of an
    answer, `room` knows how it may end, `numbers` where one has digits enough, `ends` are the
    tokens that end a generation.
    """

    def __init__(
        self,
        plan: Plan,
        n_tokens: int,
        spelled: Callable[[int], bytes],
        tokenize: Callable[[bytes], list[int]],
        room: Room,
        numbers: Callable[[], Numbers],
        ends: Sequence[int],
        *,
        thinking: bool,
    ) -> None:
        self._plan = plan
        self._n_tokens = n_tokens
        self._spelled = spelled
        self._tokenize = tokenize
        self._room = room
        self._numbers = numbers
        self._mask: NDArray[np.int32] = np.zeros((n_tokens + 31) // 32, dtype=np.int32)
        self._matcher: LLMatcher | None = None
        self._ends = ends
        self._thinking = thinking
        self._in_head = False
        self._in_call = False
        self._said: bytes | None = b""  # of `first`, until it shows whether that is a call
        self._opening: Opening | None = None  # of what may become the header of a call
        self._opened: list[int] | None = None  # its tokens
        self._tail = Tail()
        self._refused: list[int] = []  # what was sampled in this place, and may not come
        self._n_thought = 0
        self._n_digits = 0  # in a row, at the end of what came of a grammar
        self._remaining = RESERVE + 1
        self.finished = False
        self.cut = False
        if not thinking:
            self._begin(plan.head)

    @property
    def calling(self) -> bool:
        """Whether what comes is part of a call: nothing else may end it."""
        return self._matcher is not None and (self._in_call or self._plan.must_call)

    def mask(self) -> NDArray[np.int32] | None:
        """Allowed tokens as bits, 32 to a word, the lowest first; None where all are allowed.

        The array is reused by the next call. Raises GrammarTooComplex.
        """
        if self.finished:
            return self._only(self._ends)
        if self._room.leaving:
            return self._only(self._room.path[:1])
        if self._matcher is None:
            return self._without_misfits()
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._check()
        if self._n_digits >= MAX_DIGITS:
            self._numbers().end(self._mask)
        return self._mask

    def refuses(self, token: int) -> bool:
        """Whether a sampled token may not come, though `mask` allowed it; from then on it does not.

        In free text that is one that ends it and goes on as what follows must not. There are few
        of them, which are seldom sampled: looking for all of them beforehand would take longer.
        In a grammar it is one behind which there is no good end with the tokens that are left.
        The sampler's penalties remember it as if it had come.
        """
        if self.finished:
            return False
        if self._matcher is not None:
            if self._room.takes(self._matcher, token, self._remaining):
                return False
            self._leave(cut=True)
            return True
        spelled = self._spelled(token)
        if not any(self._tail.misfit(edge, spelled) for edge in self._edges()):
            return False
        self._refused.append(token)
        return True

    def forced(self, remaining: int) -> list[int]:
        """The tokens that must come now, with `remaining` tokens left for the answer."""
        self._remaining = remaining
        if self._thinking:
            return self._end_of_thought(remaining)
        if self._matcher is None or self.finished:
            return []
        tokens: list[int] = self._matcher.compute_ff_tokens()
        self._check()
        if tokens or self._in_head or not self._room.over(self._matcher, remaining):
            return tokens
        self._leave(cut=bool(self._room.path))
        return self._room.path

    def instead_of_end(self) -> list[int]:
        """What comes where the model wants to end the answer; nothing: it may."""
        if self._thinking and self._plan.first is not None:
            return list(self._plan.close_tokens)
        return []

    def accept(self, token: int) -> None:
        """`token` has become part of the answer. Raises GrammarTooComplex."""
        self._refused.clear()
        self._take(token)

    def _take(self, token: int) -> None:
        if self._thinking:
            self._think(token)
        elif self._matcher is not None:
            self._advance(token)
        else:
            self._watch(token)

    def _without_misfits(self) -> NDArray[np.int32] | None:
        """Free text without what was refused, and without tokens that end a header and go on as a
        call must not. None where any token may come."""
        opening = self._opening if self._opened is not None else None
        if not self._refused and opening is None:
            return None
        bad = np.zeros_like(self._mask)
        for token in self._refused:
            bad.view(np.uint32)[token // 32] |= np.uint32(1 << token % 32)
        if opening is not None and self._opened is not None:
            bad |= self._misfits(opening.matcher(), opening.announced(), self._opened)
        if not bad.any():
            return None
        return np.invert(bad, out=self._mask)

    def _edges(self) -> Iterator[Edge]:
        """Where free text may end."""
        yield from (trigger.edge for trigger in self._plan.triggers)
        if self._thinking:
            yield self._plan.close
        if self._plan.opening is not None:
            yield self._plan.switch

    def _misfits(
        self, call: LLMatcher, announced: LLMatcher, tokens: list[int]
    ) -> NDArray[np.int32]:
        """The tokens that may follow `tokens` in a header, but not in the call, as bits."""
        bad, fits = np.zeros_like(self._mask), np.zeros_like(self._mask)
        for matcher, mask in ((announced, bad), (call, fits)):
            if matcher.validate_tokens(tokens) == len(tokens):
                matcher.consume_tokens(tokens)
                matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            if matcher.is_error() or not mask.any():
                return np.zeros_like(bad)
        bad &= ~fits
        # Of what is certain to come a mask has one spelling, though others are as good.
        for token in np.flatnonzero(np.unpackbits(bad.view(np.uint8), bitorder="little")).tolist():
            if token >= self._n_tokens or call.validate_tokens([token]):
                bad.view(np.uint32)[token // 32] &= ~np.uint32(1 << token % 32)
        return bad

    # ---- phases --------------------------------------------------------------------------------

    def _begin(self, head: Callable[[], LLMatcher] | None = None) -> None:
        """The answer proper starts here, or with `head` a thought may."""
        self._thinking = False
        self._tail = Tail()
        source = head or self._plan.first
        if source is not None:
            self._matcher = source()
            self._room.enter()
            self._in_head = head is not None
        elif self._plan.opening is not None:
            self._opening, self._opened = self._plan.opening, []

    def _think(self, token: int) -> None:
        self._n_thought += 1
        self._watch(token)
        if self._matcher is not None:
            self._thinking = False  # it calls without an end to its thought
        elif (rest := self._tail.behind(self._plan.close)) is not None:
            self._begin()
            self._retake(rest)

    def _retake(self, rest: bytes) -> None:
        """What the last token holds behind the end of a phase belongs to the next one."""
        for token in self._tokenize(rest) if rest else ():
            self._take(token)

    def _end_of_thought(self, remaining: int) -> list[int]:
        """Close a thought that used up its budget, or the answer's."""
        over = self._plan.budget is not None and self._n_thought >= self._plan.budget
        if self._plan.first is not None and remaining <= RESERVE and not over:
            over = remaining <= 2 * self._n_least + len(self._plan.close_tokens) + MARGIN
        return list(self._plan.close_tokens) if over else []

    @cached_property
    def _n_least(self) -> int:
        """How many tokens the shortest answer takes, whichever tool it calls."""
        if self._plan.first is not None:
            fresh = self._plan.first()
        elif self._plan.triggers:
            fresh = self._plan.triggers[0].matcher()
        else:
            return 0
        return self._room.shortest(fresh)

    def _advance(self, token: int) -> None:
        assert self._matcher is not None
        if not self._matcher.consume_token(token):
            self._check()
        self._room.accept(token)
        self._n_digits = digits_behind(self._spelled(token), self._n_digits)
        if self._said is not None and self._plan.heads:
            self._look_for_call(self._said + self._spelled(token))
        if self._in_head:
            self._tail.add(self._spelled(token))
            text = self._tail.text.strip()
            if text == self._plan.thought.text:
                self._matcher, self._thinking, self._n_thought = None, True, 0
                self._tail.clear()
                self._said, self._in_call = b"", False
                return
            self._in_head = self._plan.thought.text.startswith(text)
        if self._matcher.is_stopped():
            self._check()
            self._matcher, self._in_call = None, False
            self._tail.clear()
            self.finished = self._plan.once
        self.finished = self.finished or self._room.left

    def _look_for_call(self, said: bytes) -> None:
        """Whether an answer that may be a call or another thing begins as a call does."""
        text = said.strip()
        self._in_call = any(
            head.startswith(text) or text.startswith(head) for head in self._plan.heads if text
        )
        begun = any(text.startswith(head) for head in self._plan.heads)
        self._said = said if not text or (self._in_call and not begun) else None

    def _watch(self, token: int) -> None:
        """Free text: look for what ends it."""
        plan = self._plan
        if self._opened is not None:
            self._opened.append(token)
            if self._opens():
                return
        self._tail.add(self._spelled(token))
        for trigger in plan.triggers:
            if self._completed(trigger):
                return
        if self._thinking:
            return
        rest = self._tail.behind(plan.thought)
        if rest is not None:
            self._thinking, self._n_thought, self._opened = True, 0, None
            self._tail.clear()
            self._retake(rest)
        elif plan.opening and self._tail.behind(plan.switch) is not None:
            self._opening, self._opened = plan.opening, []
        elif (rest := self._tail.behind(plan.bare_edge)) is not None:
            self._opening, self._opened = plan.bare, [*plan.bare_tokens, *self._tokenize(rest)]
            self._opens()

    def _opens(self) -> bool:
        """Whether what `_opened` holds is the header of a call, and a grammar begins."""
        opening, opened = self._opening, self._opened
        assert opening is not None and opened is not None
        text = b"".join(self._spelled(t) for t in opened).decode("utf-8", "replace")
        complete = opening.complete(text)
        if complete is None:
            return False
        self._opened = None
        return complete and self._enter(opening.matcher(), opened)

    def _completed(self, trigger: Trigger) -> bool:
        """Whether the last token completed the text of a trigger, and a grammar begins with it."""
        rest = self._tail.behind(trigger.edge)
        return rest is not None and self._enter(trigger.matcher(), self._tokenize(rest))

    def _enter(self, matcher: LLMatcher, tokens: list[int]) -> bool:
        if matcher.validate_tokens(tokens) < len(tokens):
            return False  # it went on in another way: no call that we know
        matcher.consume_tokens(tokens)
        self._room.enter(tokens)
        self._matcher, self._in_head, self._in_call = matcher, False, True
        self._tail.clear()
        self._opened, self._said = None, None
        return True

    # ---- the end -------------------------------------------------------------------------------

    def _leave(self, cut: bool) -> None:
        """Nothing but the way out comes any more; `cut`: the answer would have gone on."""
        self.finished = not self._room.path
        self.cut = self.cut or cut

    def _only(self, tokens: Sequence[int]) -> NDArray[np.int32]:
        """The mask of these tokens."""
        self._mask[:] = 0
        bits = self._mask.view(np.uint32)
        for token in tokens:
            bits[token // 32] |= np.uint32(1 << token % 32)
        return self._mask

    def _check(self) -> None:
        if self._matcher is not None and self._matcher.is_error():
            raise GrammarTooComplex("The grammar of this request is too complex to go on.")
