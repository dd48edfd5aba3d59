"""One running request: its tokens, its place in the memory, its answer and its times.

It changes only in `engine.step`; it knows nothing of other sequences.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import KW_ONLY, dataclass, field

import msgspec

from llm_server.cache.prefix import Lease
from llm_server.cache.reading import Fetch
from llm_server.cache.tree import common_prefix
from llm_server.engine.answer import (
    Answer,
    TextParser,
    TokenConstraint,
    TokenSampler,
    Vocabulary,
)
from llm_server.engine.draft import Lookup
from llm_server.engine.logprobs import Logits, Scores
from llm_server.worker.messages import (
    Cancelled,
    Delta,
    Finished,
    Logprobs,
    Progress,
    RequestEvent,
    Timings,
    Usage,
)


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt that is told before its answer, token by token with their probabilities.

    It begins with the token at `start`; `pieces` are the bytes of that one and of all behind it,
    without the blanks that some tokenizers put before every text, and behind markers in it.
    """

    start: int
    pieces: SequenceOf[bytes]


@dataclass(slots=True, eq=False)
class Prompt:
    """A prepared request: everything the engine needs to run it, and no more.

    `visible` are control tokens that the parser needs to see as text. The first `head` tokens
    are system prompt and tools, `boundaries` are positions where a later prompt may leave this
    one; `persist` asks for all of the prompt to be stored. `told` is text that comes before the
    answer's; `echo`, together with `scores`, asks for the prompt's tokens to be told instead.
    """

    id: int
    tokens: list[int]
    _: KW_ONLY
    make_sampler: Callable[[], TokenSampler]
    parser: TextParser
    constraint: TokenConstraint | None = None
    scores: Scores | None = None
    max_tokens: int | None = None
    stop: SequenceOf[str] = ()
    namespace: str = ""
    visible: frozenset[int] = frozenset()
    head: int = 0
    boundaries: SequenceOf[int] = ()
    persist: bool = False
    told: bytes = b""
    echo: Echo | None = None
    arrived: float = field(default_factory=time.monotonic)


class Sequence:
    """A request in the engine. `tokens` beyond `n_computed` have no cells yet.

    `owner` is whose it is, for taking turns.
    `boundaries` are positions where a step must end because the state there is wanted;
    `shared_with` remembers how many first tokens it has in common with other sequences, by id.
    `told` is when something was last told of it, by the engine's clock.
    `end` are the logits behind the prompt, if they are known before it is computed.
    After a preemption it has no lease and nothing computed, but all its tokens, its sampler and
    its text stay: it goes on where it was.
    """

    def __init__(self, prompt: Prompt, vocabulary: Vocabulary, n_ctx: int, owner: str = "") -> None:
        self.id = prompt.id
        self.owner = owner
        self.tokens = list(prompt.tokens)
        self.n_prompt = len(prompt.tokens)
        self.namespace = prompt.namespace
        self.arrived = prompt.arrived
        self.head = prompt.head
        self.persist = prompt.persist
        self.fetch: Fetch | None = None
        self.lease: Lease | None = None
        self.n_computed = 0
        self.n_cached: int | None = None
        self.n_restored = 0
        self.state_bytes = 0
        self.told = prompt.arrived
        self.end: Logits | None = None
        self.boundaries: set[int] = set()
        self.shared_with: dict[int, int] = {}
        room = n_ctx - self.n_prompt
        self._answer = Answer(
            vocabulary,
            prompt.make_sampler,
            prompt.parser,
            prompt.constraint,
            prompt.stop,
            prompt.visible,
            room if prompt.max_tokens is None else min(prompt.max_tokens, room),
            prompt.scores,
            prompt.told,
        )
        self._admitted: float | None = None
        self._was_preempted = False
        self._first_token: float | None = None
        self._cache_s = 0.0
        self._lookup: Lookup | None = None
        self._n_draft = self._n_right = 0
        self._echo = prompt.echo
        self._n_echoed = self.n_prompt if prompt.echo is None else prompt.echo.start

    @property
    def n_wanted(self) -> int:
        """Tokens that have no cells yet."""
        return len(self.tokens) - self.n_computed

    @property
    def n_to_boundary(self) -> int:
        """Tokens wanted up to the next boundary, or all of them."""
        ahead = [b - self.n_computed for b in self.boundaries if b > self.n_computed]
        return min([*ahead, self.n_wanted])

    @property
    def is_persisted(self) -> bool:
        """Whether exactly its prompt is computed, which is to be stored."""
        return self.persist and self.is_prefilling and not self.n_wanted

    @property
    def stored_ends(self) -> list[int]:
        """How many first tokens are stored of a prompt that is to be.

        A whole state is of no use to the same prompt where the logits behind it are forgotten, so
        the one at the last boundary is stored, too.
        """
        before = max((b for b in self.boundaries if b < self.n_prompt), default=0)
        return [before, self.n_prompt] if before else [self.n_prompt]

    @property
    def is_echoing(self) -> bool:
        """Whether tokens of the prompt are still to be told with their probabilities."""
        return self._n_echoed < self.n_prompt

    @property
    def reusable(self) -> list[int]:
        """The first tokens, which need not be computed if somebody has: those before the first
        whose logits are wanted, and not known."""
        return self.tokens if self.end is not None else self.tokens[: self._first_output]

    def n_outputs(self, n: int) -> int:
        """Of the next `n` tokens, the logits of so many last ones are wanted."""
        return max(0, n + self.n_computed - max(self.n_computed, self._first_output))

    @property
    def _first_output(self) -> int:
        """The first position whose logits are wanted."""
        if self._echo is None or not self.is_echoing:
            return len(self.tokens) - 1
        return max(self._echo.start, self._n_echoed - 1)

    @property
    def n_left(self) -> int:
        """The most tokens the answer may still have."""
        return self._answer.n_left

    @property
    def is_over(self) -> bool:
        """Whether the last token has been sampled."""
        return self._answer.reason is not None

    @property
    def is_prefilling(self) -> bool:
        """Whether it has not produced a token yet."""
        return self._first_token is None

    def admit(self, lease: Lease) -> None:
        """It has a place in the memory now, with the first tokens computed by others."""
        self.lease = lease
        self.fetch = None
        self.n_computed = lease.n_reused
        if self.n_cached is None:
            self.n_cached = lease.n_reused
            self._admitted = time.monotonic()

    @property
    def is_restoring(self) -> bool:
        """Whether tokens from the disk are still to be attached before it computes any."""
        return self._attached is not None and not self._attached.is_over

    @property
    def can_restore(self) -> bool:
        """Whether some of them have been read."""
        return self._attached is not None and bool(self._attached.pieces)

    @property
    def _attached(self) -> Fetch | None:
        return self.lease.fetch if self.lease else None

    @property
    def is_reading(self) -> bool:
        """Whether what the disk knows of it is still being read."""
        fetch = self.fetch or self._attached
        return fetch is not None and (not fetch.done or bool(fetch.left))

    @property
    def read_so_far(self) -> Progress:
        """How much of the prompt that is."""
        fetch = self.fetch or self._attached
        n_read = fetch.pieces[-1].stop if fetch and fetch.pieces else self.n_computed
        return Progress(self.id, self.n_prompt, min(n_read, self.n_prompt), self.n_found)

    @property
    def progress(self) -> Progress:
        """How much of the prompt is computed."""
        n_done = min(self.n_computed, self.n_prompt)
        return Progress(self.id, self.n_prompt, n_done, self.n_found)

    @property
    def n_found(self) -> int:
        """Tokens at the beginning of the prompt that were in cells or on disk."""
        return (self.n_cached or 0) + self.n_restored

    def restored(self, n: int, seconds: float) -> None:
        """`n` more tokens came from the disk, which took so long.

        What comes back after a preemption was found, or computed, before: it counts once.
        """
        self.n_computed += n
        if not self._was_preempted:
            self.n_restored += n
            self._cache_s += seconds

    def preempt(self) -> Lease:
        """Give up the place in the memory; returns the lease to release."""
        assert self.lease is not None
        lease, self.lease, self.n_computed = self.lease, None, 0
        self._was_preempted = True
        return lease

    @property
    def lookup(self) -> Lookup:
        """What it may copy from itself."""
        if self._lookup is None:
            self._lookup = Lookup(self.tokens)
        return self._lookup

    def advance(self, row: int, draft: SequenceOf[int] = ()) -> list[RequestEvent]:
        """More is computed, the last of it as `row`. Returns what that makes visible, how far the
        prompt is up to its first token, and `Finished` behind the last.

        With nothing left to compute it goes on from the logits of `row`, and of as many behind it
        as `draft` has: as long as what is sampled agrees with the draft, that is computed too.
        """
        events: list[RequestEvent] = [*self._tell_prompt(row)]
        if self.n_wanted:
            return [*events, self.progress]
        self.end = None
        if self._first_token is None:
            self._first_token = time.monotonic()
            events.insert(0, self.progress)
        n_before, n_right = len(self.tokens), 0
        while True:
            tokens, visible = self._answer.next(row + n_right)
            self.tokens += tokens
            events += visible
            n = common_prefix(tokens, 0, draft, n_right)
            n_right += n
            if self.is_over or n == 0 or n < len(tokens):
                break
        self.n_computed += n_right
        self._n_draft += len(draft)
        self._n_right += n_right
        if self._lookup is not None:
            self._lookup.extend(self.tokens[n_before:])
        if self._answer.reason is not None:
            reason, stop_text = self._answer.reason, self._answer.stop_text
            events.append(Finished(self.id, reason, self.usage(), self._timings(), stop_text))
        return events

    def _tell_prompt(self, row: int) -> list[Delta | Logprobs]:
        """The tokens of an echoed prompt that the logits up to those of `row` say something of."""
        start, end = self._n_echoed, min(self.n_computed + 1, self.n_prompt)
        if self._echo is None or start >= end:
            return []
        self._n_echoed = end
        deltas = list[Delta | Logprobs]()
        if start == self._echo.start:
            deltas += self._answer.open_echo(self._echo.pieces[0])
            start += 1
        if start < end:
            # The logits of a token are those of the row before it.
            first = row - (self.n_computed - start)
            pieces = self._echo.pieces[start - self._echo.start : end - self._echo.start]
            deltas += self._answer.echo(self.tokens[start:end], pieces, first)
        return deltas

    def close(self) -> None:
        """Free what it holds outside the memory. Safe to call twice."""
        if self.fetch is not None:
            self.fetch.drop()
        self._answer.close()

    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(
            prompt_tokens=self.n_prompt,
            completion_tokens=self._answer.n_tokens,
            cached_tokens=self.n_found,
            disk_tokens=self.n_restored,
            state_bytes=self.state_bytes,
            reasoning_tokens=self._answer.n_reasoning,
        )

    def cancelled(self) -> Cancelled:
        """What it took so far."""
        usage = self.usage()
        if self.is_prefilling:
            n = max(self.n_computed, self.n_found)
            usage = msgspec.structs.replace(usage, prompt_tokens=n)
        return Cancelled(self.id, usage, self._timings())

    def _timings(self) -> Timings:
        now = time.monotonic()
        admitted = self._admitted or now
        first = self._first_token or now
        return Timings(
            queue_ms=1000 * (admitted - self.arrived),
            cache_ms=1000 * self._cache_s,
            prompt_ms=1000 * (first - admitted - self._cache_s),
            predicted_ms=1000 * (now - first),
            draft_n=self._n_draft,
            draft_n_accepted=self._n_right,
        )
