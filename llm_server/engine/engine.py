"""Continuous batching over one context: what a step computes, and what comes out of it.

One thread owns an engine and calls `step` while it is not idle. It knows tokens and sequences;
templates, text formats and the transport are elsewhere.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from llm_server.cache.disk import DiskTier
from llm_server.cache.idle import Mark
from llm_server.cache.prefix import PrefixCache
from llm_server.engine.admission import Admission
from llm_server.engine.answer import Vocabulary
from llm_server.engine.draft import guesses
from llm_server.engine.ends import PromptEnds
from llm_server.engine.logprobs import Logits
from llm_server.engine.pace import Pace
from llm_server.engine.rows import Decoder, Row
from llm_server.engine.scheduler import Want, next_depth, plan
from llm_server.engine.sequence import Prompt, Sequence
from llm_server.errors import ModelFailed, ServerError
from llm_server.worker.messages import Cancelled, Cells, Failed, Progress, RequestEvent

logger = logging.getLogger(__name__)

RESTORE_S = 0.02
"""Seconds of a step that restoring from disk may take while somebody decodes."""

MAX_FORCED = 64
"""Tokens of a decoding sequence that need not wait their turn with the prompts."""

QUIET_S = 10.0
"""How long tokens may show nothing before it is told that they come: silence looks like a hang."""


class Engine:
    """Runs all requests of one model."""

    def __init__(
        self,
        context: Decoder,
        vocabulary: Vocabulary,
        *,
        disk: DiskTier | None = None,
        wake: Callable[[], None] = lambda: None,
        pace: Pace | None = None,
        draft_max: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`wake` is called, from another thread, when a `blocked` engine can go on.

        `draft_max` tokens may be guessed for a sequence in a step; none where the memory keeps
        whole states, which cannot give wrong guesses back.
        """
        self._context = context
        self._vocabulary = vocabulary
        self._cache = PrefixCache(context, disk)
        self._ends = PromptEnds()
        self._admission = Admission(context, self._cache, wake)
        self._batch = context.batch
        self._pace = pace or Pace(context.n_batch)
        self._draft_max = 0 if context.whole_state else draft_max
        self._clock = clock
        self._running: list[Sequence] = []  # oldest first
        self._cancelled: set[int] = set()
        self._stalled = False

    def submit(self, prompt: Prompt, owner: str = "") -> None:
        """Take a request whose prompt leaves room for at least one token of the context.

        Owners take turns: one who submits much does not hold up another.
        """
        assert 0 < len(prompt.tokens) < self._context.n_ctx, (
            "an over-long prompt reached the engine"
        )
        sequence = Sequence(prompt, self._vocabulary, self._context.n_ctx, owner)
        if self._context.whole_state:
            sequence.boundaries = {prompt.head, *prompt.boundaries}
        if not sequence.is_echoing:
            sequence.end = self._ends.recall(sequence.tokens, sequence.namespace)
        self._admission.waiting.append(sequence)

    def cancel(self, id: int) -> None:
        """Drop a request at the next step; what it computed stays cached. Unknown ids are fine."""
        self._cancelled.add(id)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do until something is submitted."""
        return not (self._everybody or self._cancelled or self._cache.unsaved)

    @property
    def blocked(self) -> bool:
        """Whether it only waits for the disk: `step` would do nothing now."""
        return self._stalled and all(s.is_restoring and not s.can_restore for s in self._running)

    @property
    def reading(self) -> list[Progress]:
        """How far the prompts are that are being read from the disk."""
        return [s.read_so_far for s in self._everybody if s.is_reading]

    @property
    def cells(self) -> Cells:
        """The cells in use."""
        leased = self._cache.n_leased
        return Cells(leased, self._context.n_ctx - self._cache.n_free - leased)

    def step(self) -> list[RequestEvent | Cancelled]:
        """Admit, plan, decode, sample: one batch for everybody. Returns what came of it."""
        self._stalled = False
        events: list[RequestEvent | Cancelled] = [*self._drop_cancelled()]
        now = self._clock()
        self._cache.give_up()
        self._admission.admit(self._running, lambda sequence: self._want(sequence, now), now)
        rows: list[Row] = []
        try:
            self._restore()
            events += self._skip_known()
            rows = self._plan()
            saved = self._cache.save_some(busy=bool(rows))
            started = self._clock()
            if not rows or not self._decode(rows):
                self._stalled = not saved and not events
                return events
        except Exception:
            logger.exception("a step of %d rows failed", len(rows))
            return events + self._fail_step(rows)
        self._commit(rows, self._clock() - started)
        return events + [event for row in rows for event in self._advance(row)]

    def close(self, deadline_s: float) -> None:
        """Write what is worth keeping of the cached prompts. The engine is not used afterwards."""
        self._cache.close(deadline_s)

    def fail_all(self, error: ServerError) -> list[RequestEvent]:
        """End every request with `error`; used when the worker stops."""
        ended = self._everybody
        for sequence in ended:
            self._retire(sequence)
        return [Failed(sequence.id, error.info) for sequence in ended]

    def check(self) -> None:
        """Verify that nothing leaked; for tests and at idle."""
        self._cache.check()
        if self.idle:
            assert self._cache.n_leased == 0, "idle, and cells are leased"

    # ---- the stages of a step ------------------------------------------------------------------

    def _drop_cancelled(self) -> list[Cancelled]:
        """End those that nobody wants any more. What they took."""
        ended = [s for s in self._everybody if s.id in self._cancelled] if self._cancelled else []
        self._cancelled.clear()
        took = [sequence.cancelled() for sequence in ended]
        for sequence in ended:
            self._retire(sequence)
        return took

    def _restore(self) -> None:
        """Attach what was read from disk, for a short while if somebody decodes meanwhile."""
        restoring = [s for s in self._running if s.is_restoring]
        someone_decodes = any(not s.is_prefilling for s in self._running)
        end = self._clock() + RESTORE_S
        for sequence in restoring:
            while sequence.can_restore and not (someone_decodes and self._clock() > end):
                assert sequence.lease is not None
                started = self._clock()
                n = self._cache.restore(sequence.lease)
                sequence.restored(n, self._clock() - started)
                if n and self._context.whole_state:
                    self._keep(sequence)  # the state moves on, and others may have come for it

    def _skip_known(self) -> list[RequestEvent]:
        """Let those answer whose prompt needs nothing computed: its end is known, too."""
        events: list[RequestEvent] = []
        for sequence in [s for s in self._running if not s.n_wanted and not s.is_restoring]:
            assert sequence.end is not None, "a sequence wants nothing, and its end is not known"
            self._prompt_done(sequence)
            row = Row(sequence, 0, self._context.put_back(sequence.end), [])
            events += self._advance(row)
        return events

    def _plan(self) -> list[Row]:
        """Fill the batch: decoding sequences first, then prompts as far as time and cells go."""
        now = self._clock()
        while True:
            self._batch.clear()
            rows: list[Row] = []
            n_rows = 0
            running = [s for s in self._running if not s.is_restoring]
            wants = [self._want(s, now) for s in running]
            n_decoding = sum(want.is_decode for want in wants)
            prompts = [want for want in wants if want.is_prompt]
            n_short = sum(want.is_short for want in prompts)
            n_wanted = sum(want.n for want in prompts)
            budget = self._pace.prompt_budget(n_decoding, next_depth(wants), n_short, n_wanted)
            planned = list(plan(wants, budget, self._context.n_batch))
            decoding = [running[i] for i, n in planned if n == 1 == wants[i].n]
            drafts = self._drafts(decoding, len(planned))
            for i, n in planned:
                if self._make_room(n_rows + n, running[i], wants[i].is_decode):
                    rows.append(self._add_row(running[i], n, n_rows, drafts))
                    n_rows += n + len(rows[-1].draft)
            if rows or not running:
                return rows
            # Only prompts are running and none finds a cell: the youngest gives its own back.
            self._preempt(self._running[-1])

    def _decode(self, rows: list[Row]) -> bool:
        """Compute the batch; False when llama.cpp found no cells and something had to go."""
        if self._context.decode() == "done":
            return True
        logger.warning("no cells for %d rows; dropping cached prefixes", len(rows))
        if self._cache.n_idle:
            self._cache.reserve(self._context.n_ctx)
        elif len(self._running) > 1:
            self._preempt(self._running[-1])
        else:
            raise RuntimeError("llama.cpp finds no cells for a single sequence")
        return False

    def _commit(self, rows: list[Row], seconds: float) -> None:
        """The cells are computed: account for them and learn what they cost."""
        prompts = [row for row in rows if row.n > 1]
        n_prompt = sum(row.n for row in prompts)
        looks = sum(row.n * (row.sequence.n_computed + row.n / 2) for row in prompts)
        self._pace.learn(
            len(rows) - len(prompts),
            n_prompt,
            seconds,
            n_draft=sum(len(row.draft) for row in rows),
            depth=looks / max(1, n_prompt),
        )
        for row in rows:
            sequence = row.sequence
            assert sequence.lease is not None
            start, end = sequence.n_computed, sequence.n_computed + row.n
            self._cache.extend(sequence.lease, sequence.tokens[start:end])
            sequence.n_computed = end
            if end in sequence.boundaries:
                self._keep(sequence)
            if start < sequence.head <= end:
                store = self._cache.persist if sequence.persist else self._cache.persist_head
                store(sequence.tokens[: sequence.head], sequence.namespace)
            if start < sequence.n_prompt <= end:
                self._prompt_done(sequence)
            if sequence.is_prefilling and not sequence.n_wanted:
                self._remember(sequence, self._context.logits(row.index))

    def _prompt_done(self, sequence: Sequence) -> None:
        """All of a prompt has cells: store it if that is wanted, and count what was found of it."""
        if sequence.persist:
            for n in sequence.stored_ends:
                self._cache.persist(sequence.tokens[:n], sequence.namespace)
        elif 0 < sequence.head <= sequence.n_found:
            self._cache.count_hit(sequence.tokens[: sequence.head], sequence.namespace)

    def _remember(self, sequence: Sequence, logits: Logits) -> None:
        """Keep the end of a prompt, for later requests and who waits with the same one."""
        end = self._ends.remember(sequence.tokens, sequence.namespace, logits)
        for other in self._admission.waiting:
            same = (other.namespace, other.tokens) == (sequence.namespace, sequence.tokens)
            if same and not other.is_echoing:
                other.end = end

    def _keep(self, sequence: Sequence) -> None:
        """Leave the state behind that a sequence has now."""
        assert sequence.lease is not None
        at = sequence.n_computed
        mark = Mark.TURN if at in sequence.boundaries else Mark.END
        self._cache.keep(sequence.lease, Mark.HEAD if at == sequence.head else mark)

    def _advance(self, row: Row) -> list[RequestEvent]:
        """Sample where a sequence is fully computed, report progress where it is not."""
        sequence = row.sequence
        if sequence.is_persisted and sequence.lease is not None:
            sequence.state_bytes = self._cache.size(sequence.lease)
        n_before = sequence.n_computed
        try:
            events = sequence.advance(row.index, row.draft)
        except Exception as error:
            self._retire(sequence)
            if isinstance(error, ServerError):
                return [Failed(sequence.id, error.info)]
            logger.exception("request %d failed", sequence.id)
            return [Failed(sequence.id, ModelFailed().info)]
        if row.draft and sequence.lease is not None:
            self._cache.extend(sequence.lease, sequence.tokens[n_before : sequence.n_computed])
            self._cache.cut(sequence.lease, sequence.n_computed)
        if sequence.is_over:
            self._retire(sequence)
        now = self._clock()
        if events or now - sequence.told >= QUIET_S:
            sequence.told = now
            return events or [sequence.progress]
        return []

    @property
    def _everybody(self) -> list[Sequence]:
        return self._running + self._admission.waiting

    # ---- details -------------------------------------------------------------------------------

    def _want(self, sequence: Sequence, now: float) -> Want:
        n = sequence.n_wanted
        n_first = sequence.n_to_boundary
        waited = now - sequence.arrived
        return Want(
            n,
            min(n_first, self._echo_rows()) if sequence.is_echoing else n_first,
            self._pace.prompt_seconds(n),
            waited,
            # Forced tokens go together; only after a preemption there are ever more to do.
            is_decode=n == 1 or (not sequence.is_prefilling and n <= MAX_FORCED),
            is_short=self._pace.is_short(sequence.n_prompt - sequence.n_found),
            owner=sequence.owner,
            depth=sequence.n_computed,
        )

    def _echo_rows(self) -> int:
        """Rows of a step that each echoing prompt may have: llama.cpp keeps only so many logits."""
        n_echoing = sum(s.is_echoing for s in self._running)
        return max(1, (self._context.max_outputs - len(self._running)) // max(1, n_echoing))

    def _drafts(self, decoding: list[Sequence], n_planned: int) -> dict[int, list[int]]:
        """Guesses that pay, by sequence; none beside prompts, which leave no time for them."""
        if not self._draft_max or len(decoding) < n_planned:
            return {}
        room = min(self._context.max_outputs, self._context.n_batch)
        return guesses(decoding, self._draft_max, room, self._pace.decode_seconds)

    def _add_row(
        self, sequence: Sequence, n: int, n_before: int, drafts: dict[int, list[int]]
    ) -> Row:
        """Add the next `n` tokens to the batch, behind `n_before` others, and a draft if it fits.

        Guesses take only cells that nobody else wants.
        """
        assert sequence.lease is not None
        guess = drafts.get(sequence.id, [])
        if self._cache.n_free < n_before + n + len(guess):
            guess = []
        start = sequence.n_computed
        tokens = sequence.tokens[start : start + n]
        n_outputs = sequence.n_outputs(n) + len(guess)
        last = self._batch.add(sequence.lease.sequence, start, tokens + guess, logits=n_outputs)
        return Row(sequence, n, last - len(guess), guess)

    def _make_room(self, n: int, sequence: Sequence, is_decode: bool) -> bool:
        """Whether the batch may have `n` cells; a decoding sequence preempts younger ones."""
        while sequence.lease is not None and not self._cache.reserve(n):
            youngest = self._running[-1]
            if not is_decode or youngest is sequence:
                return False
            self._preempt(youngest)
        return sequence.lease is not None

    def _preempt(self, sequence: Sequence) -> None:
        """Send a sequence back to wait; its cells stay cached for as long as nobody needs them."""
        logger.debug("request %d is preempted", sequence.id)
        self._cache.release(sequence.preempt(), keep=True)
        self._running.remove(sequence)
        self._admission.waiting.append(sequence)

    def _retire(self, sequence: Sequence, *, keep: bool = True) -> None:
        """A sequence has ended: its cells become an idle prefix."""
        if sequence.lease is not None:
            self._cache.release(sequence.preempt(), keep=keep)
            self._running.remove(sequence)
        else:
            self._admission.waiting.remove(sequence)
        sequence.close()

    def _fail_step(self, rows: list[Row]) -> list[RequestEvent]:
        """A decode failed: its sequences end, the others start over, nothing cached is believed."""
        failed = [row.sequence for row in rows]
        for sequence in failed:
            self._retire(sequence, keep=False)
        for sequence in list(self._running):
            self._preempt(sequence)
        self._cache.reset()
        return [Failed(sequence.id, ModelFailed().info) for sequence in failed]
