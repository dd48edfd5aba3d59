"""What one request says: from logits to tokens, from tokens to deltas, and when it is over.

Knows nothing of the memory and of other requests.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llm_server.engine.logprobs import Scores
from llm_server.engine.stops import StopStrings
from llm_server.worker.messages import Delta, FinishReason, Logprobs

Mask = npt.NDArray[np.int32]
"""Allowed tokens as bits, 32 to a word, the lowest first."""


class TokenSampler(Protocol):
    """Picks tokens for one sequence (`llama.sampler.Sampler`; a fake in tests)."""

    def sample(self, row: int, mask: Mask | None) -> int: ...

    def accept(self, token: int) -> None: ...

    def close(self) -> None: ...


class TextParser(Protocol):
    """Turns an answer's text into deltas (`chat/stream`). `n_calls` is how many calls it saw.

    `answering`: whether the text that comes is for the user, not a thought or a call. `thinking`:
    whether it is a thought. `skipping`: whether blanks that come now will not be shown.
    """

    n_calls: int

    @property
    def answering(self) -> bool: ...

    @property
    def thinking(self) -> bool: ...

    @property
    def skipping(self) -> bool: ...

    def feed(self, text: str) -> Sequence[Delta]: ...

    def close(self) -> Sequence[Delta]: ...


class TokenConstraint(Protocol):
    """What may come next (`chat/constraint`).

    `cut`: the answer would have gone on, and was brought to an end that fits its grammar.
    """

    finished: bool
    cut: bool

    @property
    def calling(self) -> bool: ...

    def mask(self) -> Mask | None: ...

    def refuses(self, token: int) -> bool: ...

    def forced(self, remaining: int) -> list[int]: ...

    def instead_of_end(self) -> list[int]: ...

    def accept(self, token: int) -> None: ...


class Vocabulary(Protocol):
    """What decoding needs of a vocabulary (`llama.vocab.Vocab`; a fake in tests)."""

    @property
    def eog(self) -> frozenset[int]: ...

    def piece(self, token: int, *, special: bool) -> bytes: ...


class Answer:
    """The tokens and the text of one answer of at most `limit` tokens.

    `visible` are control tokens that the parser needs to see as text. With `scores` each token is
    told with its probability. `told` is text that comes before its own; its last character may be
    one that the answer completes. `reason` is set once it is over.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        make_sampler: Callable[[], TokenSampler],
        parser: TextParser,
        constraint: TokenConstraint | None,
        stop: Sequence[str],
        visible: frozenset[int],
        limit: int,
        scores: Scores | None = None,
        told: bytes = b"",
    ) -> None:
        self.reason: FinishReason | None = None
        self.n_tokens = 0
        self.n_reasoning = 0
        """How many of them were thoughts, to the token that shows that one has begun or ended."""
        self._vocabulary = vocabulary
        self._make_sampler = make_sampler
        self._sampler: TokenSampler | None = None
        self._parser = parser
        self._constraint = constraint
        # Bytes in, whole characters out: one that is split over tokens waits for its last byte.
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = StopStrings(stop)
        self._visible = visible
        self._limit = limit
        self._scores = scores
        self._told = told
        self._pending: list[int] = []
        self._tokens: list[int] = []
        self._deltas: list[Delta | Logprobs] = []

    @property
    def stop_text(self) -> str | None:
        """The stop string that ended it, if one has."""
        return self._stops.found

    @property
    def n_left(self) -> int:
        """The most tokens that may still come."""
        return self._limit - self.n_tokens

    def next(self, row: int) -> tuple[list[int], list[Delta | Logprobs]]:
        """The tokens that come after the ones computed, whose logits are those of `row`.

        Usually one; more where a grammar leaves no choice, none if the answer is over without. With
        them the deltas that they make visible.
        """
        self._tokens, self._deltas = [], []
        if text := self._characters.decode(self._told):
            self._deltas.extend(self._parser.feed(text))
        self._told = b""
        if self._limit <= 0:
            self._end("length")
            return [], self._deltas
        if self._sampler is None:
            self._sampler = self._make_sampler()
        if self._scores:
            self._scores.look(row)
        if self.n_tokens == 0:
            self._force()
        if self._pending:
            self._take_forced([self._pending.pop(0)])
        elif not self._tokens and self.reason is None:
            self._sample(self._sampler, row)
        self._force()
        return self._tokens, self._deltas

    def open_echo(self, piece: bytes) -> list[Delta | Logprobs]:
        """The prompt is told before the answer: its first token, which nothing comes before."""
        assert self._scores is not None, "a prompt is echoed with its scores"
        text = self._characters.decode(piece)
        return [self._scores.opened(piece, len(text)), *self._parser.feed(text)]

    def echo(
        self, tokens: Sequence[int], pieces: Sequence[bytes], row: int
    ) -> list[Delta | Logprobs]:
        """The next tokens of the prompt, which are told as `pieces`, scored by the logits of as
        many rows from `row` on."""
        assert self._scores is not None, "a prompt is echoed with its scores"
        text = ""
        for at, (token, piece) in enumerate(zip(tokens, pieces, strict=True), start=row):
            self._scores.look(at)
            decoded = self._characters.decode(piece)
            self._scores.took(token, len(decoded))
            text += decoded
        return [*self._scores.shown(len(text)), *self._parser.feed(text)]

    def close(self) -> None:
        """Free the sampler. Safe to call twice."""
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None

    def _sample(self, sampler: TokenSampler, row: int) -> None:
        token = sampler.sample(row, self._constraint.mask() if self._constraint else None)
        while self._constraint and self._constraint.refuses(token):
            token = sampler.sample(row, self._constraint.mask())
        if token not in self._vocabulary.eog or token in self._visible:
            self._take(token)
            return
        instead = self._constraint.instead_of_end() if self._constraint else []
        if self._scores:
            instead, self._pending = instead[:1], instead[1:]
        self._take_forced(instead)
        if not self._tokens:
            self._end("stop")

    def _force(self) -> None:
        """Take what must come now or, where each is scored by logits of its own, set it aside."""
        while self._constraint and self.reason is None and not self._pending:
            forced = self._constraint.forced(self._limit - self.n_tokens)
            if not forced:
                return
            if self._scores:
                self._pending = list(forced)
            else:
                self._take_forced(forced)

    def _take_forced(self, tokens: Sequence[int]) -> None:
        assert self._sampler is not None
        for token in tokens:
            if self.reason is not None:
                return
            self._sampler.accept(token)
            if token in self._vocabulary.eog and token not in self._visible:
                self._end("stop")
            else:
                self._take(token)

    def _take(self, token: int) -> None:
        """One more token, sampled or forced."""
        self._tokens.append(token)
        self.n_tokens += 1
        if self._constraint:
            self._constraint.accept(token)
        piece = self._vocabulary.piece(token, special=token in self._visible)
        decoded = self._characters.decode(piece)
        text, stopped = self._until_stop(decoded)
        if self._scores:
            self._scores.took(token, len(decoded))
            self._deltas += self._scores.shown(len(text), cut=stopped)
        if text:
            self._deltas.extend(self._parser.feed(text))
        self.n_reasoning += self._parser.thinking
        if stopped or (self._constraint and self._constraint.finished):
            self._end("stop")
        elif self.n_tokens >= self._limit:
            self._end("length")

    def _until_stop(self, text: str) -> tuple[str, bool]:
        """Text to show, and whether a stop string ends the answer.

        Stop strings are for the text that users see: they end neither a thought, behind which the
        answer is still to come, nor a call, whose arguments would be no JSON. Nor does anybody see
        the blanks between these and the answer.
        """
        calling = self._constraint is not None and self._constraint.calling
        if not self._parser.answering or calling:
            return self._stops.flush() + text, False
        unseen = ""
        if self._parser.skipping and not self._stops.holding:
            unseen = text[: len(text) - len(text.lstrip())]
        shown, stopped = self._stops.feed(text[len(unseen) :])
        return unseen + shown, stopped

    def _end(self, reason: FinishReason) -> None:
        held = self._stops.flush()
        if self._scores:
            self._deltas += self._scores.shown(len(held))
        if held:
            self._deltas.extend(self._parser.feed(held))
        self._deltas.extend(self._parser.close())
        if self._constraint and self._constraint.cut:
            reason = "length"
        calls = reason == "stop" and self._parser.n_calls > 0
        self.reason = "tool_calls" if calls else reason
