"""Between live cells and stored chunks: what to read for a prompt, what to write of one.

Reads happen in a thread, ahead of the step that attaches them; copies out of the memory are made
one chunk at a time between steps, and the store writes them in a thread of its own. It decides
what is worth keeping and knows no sequences.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from llm_server.cache.keys import CHUNK_TOKENS, Chain, Kind, root_key
from llm_server.cache.ledger import Ledger
from llm_server.cache.store import ChunkStore, Hit

logger = logging.getLogger(__name__)

WORTH_READING = 16
"""Tokens a read must save; fewer are computed as fast as they are fetched."""

_PIECE_BYTES = 4 << 20
"""Most bytes to copy out between two steps: about 10 ms, at the 0.5 GB/s measured for scattered
cells on two slow cores. A whole state cannot be copied in parts."""

Policy = Literal["all", "auto", "off"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A payload from the disk: positions [start, stop) of it are wanted, it holds `n_cells`."""

    start: int
    stop: int
    n_cells: int
    payload: memoryview


@dataclass(slots=True)
class Fetch:
    """A prompt's look-up on disk. Use `pieces` once `done` is set; they are in order.

    Its first `head` tokens are a head, as others may have stored it.
    """

    tokens: Sequence[int]
    namespace: str
    n_known: int
    head: int = 0
    done: bool = False
    pieces: list[Piece] = field(default_factory=list)

    @property
    def n_held(self) -> int:
        """Cells' worth of payload in `pieces`; before they are there, the most it may be."""
        if not self.done:
            return len(self.tokens) - self.n_known
        return sum(piece.n_cells for piece in self.pieces)

    @property
    def n_tokens(self) -> int:
        """How many first tokens of the prompt the pieces so far, and what was known, bring."""
        return self.pieces[-1].stop if self.pieces else 0


@dataclass(frozen=True, slots=True)
class Copy:
    """A chunk of a prompt that is to be copied out of the memory and stored."""

    tokens: Sequence[int]
    namespace: str
    chain: Chain
    start: int
    stop: int
    head: bool


def chunk_tokens(bytes_per_token: int, window: int = 0) -> int:
    """Tokens of a chunk: 256, or fewer where so many would take too long to copy at once.

    Never more than a sliding `window` (0: none): a longer chunk would not be whole. A power of 2.
    """
    fits = max(16, _PIECE_BYTES // max(1, bytes_per_token))
    if window:
        fits = min(fits, window)
    return min(CHUNK_TOKENS, 1 << (fits.bit_length() - 1))


class DiskTier:
    """Reads and writes the prompts of one model. All methods are called by the engine's thread.

    `whole_state`: the memory gives and takes whole states (checkpoints) instead of ranges.
    """

    def __init__(
        self,
        store: ChunkStore,
        fingerprint: bytes,
        *,
        whole_state: bool,
        policy: Policy = "auto",
        size: int = CHUNK_TOKENS,
        ledger: Ledger | None = None,
    ) -> None:
        self.store = store
        self._ledger = ledger
        if ledger is not None and store.stats().chunks:
            ledger.named()
        self.policy = policy
        self._fingerprint = fingerprint
        self._kind = Kind.CHECKPOINT if whole_state else Kind.RANGE
        self._size = size
        self._trusted = True
        self._copies: deque[Copy] = deque()
        self._queued: set[tuple[bytes, int]] = set()
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="cache-read", daemon=True).start()

    # ---- reading -------------------------------------------------------------------------------

    def fetch(
        self,
        tokens: Sequence[int],
        namespace: str,
        n_known: int,
        wake: Callable[[], None],
        head: int = 0,
    ) -> Fetch:
        """Begin to look for more than the `n_known` first tokens; `wake` is called when done."""
        fetch = Fetch(tokens, namespace, n_known, head)
        if not self._trusted or len(fetch.tokens) - n_known < WORTH_READING:
            fetch.done = True
        else:
            self._jobs.put(partial(self._read_all, fetch, wake))
        return fetch

    def distrust(self) -> None:
        """Read no more: a payload that proved itself was refused, so the fingerprint is wrong."""
        logger.error("llama.cpp refused a stored prompt; the disk cache is not read any more")
        self._trusted = False

    def count_hit(self, tokens: Sequence[int], namespace: str) -> None:
        """A request began with this head and did not compute it."""
        if self._ledger is not None:
            self._jobs.put(partial(self._count_hit, self._ledger, tokens, namespace))

    def _count_hit(self, ledger: Ledger, tokens: Sequence[int], namespace: str) -> None:
        chain, n = self._chain(tokens, namespace), len(tokens)
        ledger.hit(chain.key(self._kind, chain.chunk_start(n), n))

    def _work(self) -> None:
        while True:
            self._jobs.get()()

    def _read_all(self, fetch: Fetch, wake: Callable[[], None]) -> None:
        try:
            self._read(fetch)
        except Exception:
            # A cache that cannot be read is a miss, whatever the reason.
            logger.exception("a prompt could not be looked up on disk")
        fetch.done = True
        wake()

    def _read(self, fetch: Fetch) -> None:
        chain = self._chain(fetch.tokens, fetch.namespace)
        hits = self._hits(chain, fetch.head)
        n_found = hits[-1].start + hits[-1].n_used if hits else 0
        if n_found - fetch.n_known < WORTH_READING:
            return
        for hit in hits:
            stop = hit.start + hit.n_used
            start, n_cells = hit.start, hit.n_tokens
            if self._kind is Kind.CHECKPOINT:
                start, n_cells = 0, stop
            if stop <= fetch.n_known:
                continue
            payload = self.store.load(hit)
            if payload is None:
                break
            fetch.pieces.append(Piece(start, stop, n_cells, payload))

    def _hits(self, chain: Chain, head: int) -> list[Hit]:
        if self._kind is Kind.RANGE:
            self._jobs.put(partial(self._learn, chain))
            return self.store.match(chain, head)
        hit = self.store.checkpoint(chain, chain.n_tokens, head)
        return [hit] if hit else []

    def _learn(self, chain: Chain) -> None:
        """Learn what else may go on from where a prompt went, until there is other work."""
        if self._jobs.empty() and self.store.learn(chain):
            self._jobs.put(partial(self._learn, chain))

    # ---- writing -------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether there is something to copy out."""
        return bool(self._copies)

    def want(self, tokens: Sequence[int], namespace: str, *, head: bool, tail: bool) -> None:
        """Store these tokens, as far as they are not stored; copied out by `next_copy`'s caller.

        `tail`: also the part after the last full chunk. A whole state has no other part.
        """
        if self.policy == "off" or not tokens:
            return
        chain = self._chain(tokens, namespace)
        for start, stop in self._pieces(chain, tail=tail):
            name = (chain.key(self._kind, start, stop), stop)
            if name in self._queued or self.store.holds(chain, start, stop, self._kind):
                continue
            self._queued.add(name)
            self._copies.append(Copy(tokens[:stop], namespace, chain, start, stop, head))

    def has(self, tokens: Sequence[int], namespace: str) -> bool:
        """Whether all of these tokens are stored, tail included."""
        chain = self._chain(tokens, namespace)
        pieces = self._pieces(chain, tail=True)
        return all(self.store.holds(chain, start, stop, self._kind) for start, stop in pieces)

    def next_copy(self) -> Copy:
        """The chunk to copy out next."""
        copy = self._copies.popleft()
        self._queued.discard((copy.chain.key(self._kind, copy.start, copy.stop), copy.stop))
        return copy

    def put(self, copy: Copy, payload: memoryview) -> None:
        """Hand a copied chunk to the store."""
        self.store.put(copy.chain, copy.start, copy.stop, payload, kind=self._kind, head=copy.head)
        if self._ledger is not None:
            self._ledger.named()

    def close(self, deadline_s: float) -> None:
        """Write what has been copied, for at most `deadline_s` seconds."""
        end = time.monotonic() + deadline_s
        counted = threading.Event()
        self._jobs.put(counted.set)
        counted.wait(deadline_s)
        self.store.close(max(0.0, end - time.monotonic()))
        if self._ledger is not None:
            self._ledger.close(max(0.1, end - time.monotonic()))

    def _pieces(self, chain: Chain, *, tail: bool) -> list[tuple[int, int]]:
        """What a prompt is stored as: ranges of full chunks and maybe the rest, or one state."""
        n = chain.n_tokens
        stops = list(range(self._size, n + 1, self._size))
        if self._kind is Kind.CHECKPOINT:
            stops = [n]
        elif tail and n % self._size:
            stops.append(n)
        return [(chain.chunk_start(stop), stop) for stop in stops]

    def _chain(self, tokens: Sequence[int], namespace: str) -> Chain:
        return Chain.of(root_key(self._fingerprint, namespace), tokens, self._size)
