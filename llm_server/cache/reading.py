"""Reading stored prompts ahead of the steps that attach them: in what order, and how far ahead.

One thread reads for everybody. It knows chunks of prompts; where they go is `cache/prefix`'s.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from llm_server.cache.index import Hit
from llm_server.cache.keys import Chain, Kind
from llm_server.cache.store import ChunkStore

logger = logging.getLogger(__name__)

WORTH_READING = 16
"""Tokens a read must save; fewer are computed as fast as they are fetched."""
READ_AHEAD = 64 << 20
"""Bytes that may have been read and not attached yet, of all prompts together: more than most
prompts take. One payload may pass it."""

HUNG_S = 20.0
"""A disk that takes longer over one thing hangs, and prompts are computed: a big one takes ten
seconds to spin up, and a bad SD card as long for a whole state."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A payload from the disk: positions [start, stop) of it are wanted, it holds `n_cells`."""

    start: int
    stop: int
    n_cells: int
    payload: memoryview


class Fetch:
    """What the disk knows of a prompt beyond its `n_known` first tokens, as far as that is read.

    Once `done` it may be attached: then all of it is in `pieces`, in order, or as much as is read
    ahead, and the rest follows while `take` makes room. Whoever began it takes all or calls `drop`.
    """

    def __init__(
        self,
        n_known: int = 0,
        n_most: int = 0,
        *,
        wake: Callable[[], None] = lambda: None,
        changed: threading.Condition | None = None,
    ) -> None:
        """At most `n_most` tokens are looked for; `wake` is called when there is news.

        Without `changed`, which the reader brings, there is nothing to read.
        """
        self.n_known = n_known
        self.wake = wake
        self.done = changed is None
        self.stop = 0
        """How many first tokens of the prompt the disk knows; 0 if that is not worth reading."""
        self.attaching = False
        self.left: deque[Hit] = deque()
        self.pieces: deque[Piece] = deque()
        self.n_bytes = self.n_cells = 0
        self._n_most = n_most
        self._broken = False
        self._changed = changed or threading.Condition()

    @property
    def n_held(self) -> int:
        """Cells' worth of payload in `pieces`; before it is done, the most it may be."""
        return self.n_cells if self.done else self._n_most

    @property
    def is_over(self) -> bool:
        """Whether there are no pieces, and none to come."""
        return self.done and not self.left and not self.pieces

    def attach(self) -> None:
        """From now on `take` is called for each piece as soon as it is there."""
        with self._changed:
            self.attaching = True
            self._changed.notify_all()

    def take(self) -> Piece:
        """The next piece, of which there is one."""
        with self._changed:
            piece = self.pieces.popleft()
            self.n_bytes -= piece.payload.nbytes
            self.n_cells -= piece.n_cells
            self._changed.notify_all()
        return piece

    def add(self, piece: Piece | None, *, damaged: bool = False) -> None:
        """What was read of the first that is left; None if it could not be, so that it ends.

        Behind a `damaged` one the rest is read, too, and not used: after a power failure many are,
        and what the prompt stores anew is what has been found to be damaged.
        """
        with self._changed:
            self._broken |= damaged
            if not self.left or (piece is None and not damaged):
                self.left.clear()
            else:
                # In this order: the engine looks without the lock, and must not see neither.
                if piece is not None and not self._broken:
                    self.pieces.append(piece)
                    self.n_bytes += piece.payload.nbytes
                    self.n_cells += piece.n_cells
                self.left.popleft()
            self.done = self.done or not self.left

    def drop(self) -> None:
        """Nobody waits for it any more."""
        with self._changed:
            self.done = True
            self.left.clear()
            self.pieces.clear()
            self.n_bytes = self.n_cells = 0
            self._changed.notify_all()


class Reader:
    """The thread. Look-ups and other short jobs come first, for most find nothing; then the prompt
    of which least is left; then what later look-ups will need."""

    def __init__(
        self, store: ChunkStore, kind: Kind, ahead: int = READ_AHEAD, hung_s: float = HUNG_S
    ) -> None:
        self._store = store
        self._hung_s = hung_s
        self._since: float | None = None  # when it began with what it does
        self._begun: list[Fetch] = []  # those that may not be over, for the engine's thread
        self._kind = kind
        self._ahead = ahead
        self._changed = threading.Condition()
        self._jobs: deque[Callable[[], None]] = deque()
        self._fetches: list[Fetch] = []
        self._largest = 0
        self._learning: Chain | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="cache-read", daemon=True)
        self._thread.start()

    def fetch(
        self,
        chain: Callable[[], Chain],
        *,
        n_known: int,
        n_most: int,
        head: int,
        wake: Callable[[], None],
    ) -> Fetch:
        """Begin to look for more than the `n_known` first tokens of `chain`, `n_most` at most.

        The first `head` tokens are a head, as others may have stored it.
        """
        if self.hangs:
            return Fetch()
        fetch = Fetch(n_known, n_most, wake=wake, changed=self._changed)
        self._begun = [*(other for other in self._begun if not other.is_over), fetch]
        self.do(partial(self._look_up, fetch, chain, head))
        return fetch

    @property
    def hangs(self) -> bool:
        """Whether the disk does."""
        since = self._since
        return since is not None and time.monotonic() - since > self._hung_s

    def give_up(self) -> None:
        """If the disk hangs, let all who wait for it go on without."""
        if self._begun and self.hangs:
            logger.warning("The prompt cache's disk hangs; prompts are computed meanwhile.")
            for fetch in self._begun:
                fetch.drop()
            self._begun = []

    def do(self, job: Callable[[], None]) -> None:
        """Have something short done soon, if the disk does not hang."""
        if self.hangs:
            return
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()

    def close(self, deadline_s: float) -> None:
        """Do what is short and end the thread, within `deadline_s` seconds if the disk answers."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(deadline_s)

    def _run(self) -> None:
        while (job := self._next_job()) is not None:
            self._since = time.monotonic()
            try:
                job()
            except Exception:  # the border of this thread: others wait for what is behind it
                logger.exception("the prompt cache's reader failed")
            self._since = None

    def _next_job(self) -> Callable[[], None] | None:
        """What to do next, once there is something; None after `close`."""
        with self._changed:
            while True:
                if self._jobs:
                    return self._jobs.popleft()
                if self._closed:
                    return None
                self._fetches = [fetch for fetch in self._fetches if not fetch.is_over]
                fetch = self._next_fetch()
                if fetch is not None:
                    return partial(self._read, fetch, fetch.left[0])
                if self._learning is not None:
                    return self._learn
                self._changed.wait()

    def _next_fetch(self) -> Fetch | None:
        """What to read of next, if there is room for it.

        Without room, what was read so far is attached, which makes some: it goes on piece by piece.
        """
        unread = [fetch for fetch in self._fetches if fetch.left]
        held = sum(fetch.n_bytes for fetch in self._fetches)
        if held and held + self._largest > self._ahead:
            for fetch in self._fetches:
                if fetch.pieces and not fetch.done:
                    fetch.done = True
                    fetch.wake()
            unread = [fetch for fetch in unread if fetch.attaching]
            if any(fetch.attaching and fetch.pieces for fetch in self._fetches):
                return None
        return min(unread, key=lambda fetch: len(fetch.left), default=None)

    def _look_up(self, fetch: Fetch, chain: Callable[[], Chain], head: int) -> None:
        if fetch.done:
            return
        hits: list[Hit] = []
        try:
            hits = self._hits(chain(), head)
        except Exception:
            # A cache that cannot be read is a miss, whatever the reason.
            logger.exception("a prompt could not be looked up on disk")
        stop = hits[-1].start + hits[-1].n_used if hits else 0
        with self._changed:
            if not fetch.done and stop - fetch.n_known >= WORTH_READING:
                fetch.stop = stop
                fetch.left.extend(h for h in hits if h.start + h.n_used > fetch.n_known)
                self._fetches.append(fetch)
            else:
                fetch.done = True
        if fetch.done:
            fetch.wake()

    def _hits(self, chain: Chain, head: int) -> list[Hit]:
        if self._kind is Kind.RANGE:
            self._learning = chain
            return self._store.match(chain, head)
        hit = self._store.checkpoint(chain, chain.n_tokens, head)
        return [hit] if hit else []

    def _read(self, fetch: Fetch, hit: Hit) -> None:
        piece: Piece | None = None
        try:
            piece = self._piece(hit)
        except Exception:
            logger.exception("a prompt could not be read from disk")
        if piece is not None:
            self._largest = max(self._largest, piece.payload.nbytes)
        fetch.add(piece, damaged=self._store.is_damaged(hit))
        if fetch.done:
            fetch.wake()

    def _piece(self, hit: Hit) -> Piece | None:
        payload = self._store.load(hit)
        if payload is None:
            return None
        stop = hit.start + hit.n_used
        if self._kind is Kind.CHECKPOINT:
            return Piece(0, stop, stop, payload)
        return Piece(hit.start, stop, hit.n_tokens, payload)

    def _learn(self) -> None:
        """Learn what else may go on from where the last prompt went."""
        chain, self._learning = self._learning, None
        if chain is not None and self._store.learn(chain):
            self._learning = chain
