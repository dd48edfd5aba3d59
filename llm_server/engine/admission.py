"""Who waits for a place among those that run, and when they get one.

Computes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from llm_server.cache.prefix import PrefixCache
from llm_server.cache.tree import common_prefix
from llm_server.engine.rows import Decoder
from llm_server.engine.scheduler import Want, in_turn
from llm_server.engine.sequence import Sequence

logger = logging.getLogger(__name__)

PATIENCE_S = 10.0
"""How long others pass a request for which there are not enough cells."""

WORTH_WAITING = 32
"""Tokens that a running sequence must be about to compute for another to wait for them."""

MAX_OWNERS = 1024
"""Owners whose last admission is remembered. Who is forgotten counts as never admitted."""


class Admission:
    """The sequences of one engine that do not run (yet, or since they were preempted)."""

    def __init__(self, context: Decoder, cache: PrefixCache, wake: Callable[[], None]) -> None:
        self._context = context
        self._cache = cache
        self._wake = wake
        self._last: dict[str, int] = {}  # the number of each owner's last admission, in order
        self._n_admitted = 0
        self.waiting: list[Sequence] = []

    def admit(self, running: list[Sequence], want: Callable[[Sequence], Want], now: float) -> None:
        """Let waiting sequences run, the most urgent first, while they would fit.

        `running` is kept with the oldest first; `want` says what a sequence asks of a step.
        """
        served = [s.owner for s in running]
        order = in_turn([want(s) for s in self.waiting], served, self._last)
        self.waiting = [self.waiting[i] for i in order]
        for sequence in list(self.waiting):
            known = self._cache.match(sequence.reusable, sequence.namespace)
            if self._follows_another(sequence, running, known) or not self._looked_up(sequence):
                continue
            if not self._fits(sequence, running, known):
                if now - sequence.arrived > PATIENCE_S:
                    return  # cells come free for it, if nobody passes any more
                continue
            lease = self._cache.acquire(sequence.reusable, sequence.namespace, sequence.fetch)
            if lease is None:
                return
            sequence.admit(lease)
            logger.debug(
                "request %d: %d of %d tokens are in cells, %d on disk; there the prompt leaves the "
                "nearest one cached",
                sequence.id,
                lease.n_reused,
                len(sequence.tokens),
                lease.fetch.stop if lease.fetch else 0,
            )
            self.waiting.remove(sequence)
            running.append(sequence)
            running.sort(key=lambda s: s.arrived)
            self._took_turn(sequence.owner)

    def _took_turn(self, owner: str) -> None:
        """Who runs may be nobody when a place comes free: turns that are over count, too."""
        self._last.pop(owner, None)
        self._last[owner] = self._n_admitted
        self._n_admitted += 1
        if len(self._last) > MAX_OWNERS:
            del self._last[next(iter(self._last))]

    def _follows_another(self, sequence: Sequence, running: list[Sequence], known: int) -> bool:
        """Whether to wait for tokens that a running sequence is about to compute for both.

        The first `known` tokens have cells.
        """
        # One that reads from the disk leads too, but never two each other.
        reading = [] if sequence.fetch else [s for s in self.waiting if s.fetch]
        for leader in running + reading:
            if leader.namespace != sequence.namespace:
                continue
            if leader.id not in sequence.shared_with:
                n = common_prefix(leader.tokens, 0, sequence.reusable, 0)
                sequence.shared_with[leader.id] = min(n, leader.n_prompt)
            shared = sequence.shared_with[leader.id]
            if leader.n_computed < shared and shared - known >= WORTH_WAITING:
                if self._context.whole_state:
                    leader.boundaries.add(shared)
                return True
        return False

    def _looked_up(self, sequence: Sequence) -> bool:
        """Whether what the disk knows of a prompt has been read, all or as much as is read ahead;
        begins to if need be.

        What is read ahead is in memory a second time, so it is never more than there are cells.
        """
        if sequence.fetch is None:
            held = sum(s.fetch.n_held for s in self.waiting if s.fetch)
            if held and held + len(sequence.tokens) > self._context.n_ctx:
                return False
            sequence.fetch = self._cache.fetch(
                sequence.reusable, sequence.namespace, self._wake, sequence.head
            )
        return sequence.fetch.done

    def _fits(self, sequence: Sequence, running: list[Sequence], known: int) -> bool:
        """Whether its prompt, and those under way, find cells without preempting anybody."""
        if not running:
            return True
        under_way = sum(s.n_wanted for s in running)
        new = len(sequence.tokens) - known
        return self._cache.n_leased + under_way + new <= self._context.n_ctx
