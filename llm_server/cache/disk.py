"""Between live cells and stored chunks: what to read for a prompt, what to write of one.

Reads happen in a thread, ahead of the step that attaches them (`cache/reading`); copies out of the
memory are made one chunk at a time between steps, and the store writes them in a thread of its own.
It decides what is worth keeping and knows no sequences.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from llm_server.cache.answers import Answers
from llm_server.cache.folder import TOUCH_S
from llm_server.cache.heads import Heads
from llm_server.cache.keys import CHUNK_TOKENS, Chain, Kind, root_key
from llm_server.cache.ledger import Ledger
from llm_server.cache.reading import HUNG_S, READ_AHEAD, WORTH_READING, Fetch, Reader
from llm_server.cache.store import ChunkStore

logger = logging.getLogger(__name__)

_PIECE_BYTES = 4 << 20
"""Most bytes to copy out between two steps: about 10 ms, at the 0.5 GB/s measured for scattered
cells on two slow cores. A whole state cannot be copied in parts."""
_WAITING_TOKENS = 1 << 20
"""Tokens of the prompts that wait to be copied out, some 40 MB of numbers. There are seldom as many
cells; more are refused, for the disk seems to hang."""

Policy = Literal["all", "auto", "off"]


@dataclass(frozen=True, slots=True)
class Copy:
    """A chunk that is to be copied out of the memory and stored; `tokens` are the whole prompt."""

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
        read_ahead: int = READ_AHEAD,
        hung_s: float = HUNG_S,
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
        self._heads = Heads()
        self._copies: OrderedDict[bytes, Copy] = OrderedDict()
        self._touched: dict[bytes, float] = {}  # heads by their last chunk; the reader's alone
        self._missing: deque[tuple[Sequence[int], str]] = deque()
        self._reader = Reader(store, self._kind, read_ahead, hung_s)
        self._answers = Answers()

    # ---- reading -------------------------------------------------------------------------------

    def fetch(
        self,
        tokens: Sequence[int],
        namespace: str,
        n_known: int,
        wake: Callable[[], None],
        head: int = 0,
    ) -> Fetch:
        """Begin to look for more than the `n_known` first tokens; `wake` is called at any news.

        The first `head` tokens are a head, as others may have stored it.
        """
        n_most = len(tokens) - n_known
        if not self._trusted or n_most < WORTH_READING:
            return Fetch()
        chain = partial(self._chain, tokens, namespace)
        return self._reader.fetch(chain, n_known=n_known, n_most=n_most, head=head, wake=wake)

    def give_up(self) -> None:
        """If the disk hangs, let all who wait for what they fetch go on without."""
        self._reader.give_up()

    def distrust(self) -> None:
        """Read no more: a payload that proved itself was refused, so the fingerprint is wrong."""
        logger.error("llama.cpp refused a stored prompt; the disk cache is not read any more")
        self._trusted = False

    def count_hit(self, tokens: Sequence[int], namespace: str) -> None:
        """A request began with this head and did not compute it."""
        if self.policy != "off":
            self._heads.used(tokens, namespace)
            self._reader.do(partial(self._count_hit, tokens, namespace))

    def _count_hit(self, tokens: Sequence[int], namespace: str) -> None:
        """Note it, also where eviction looks: a head that stays in cells is never read."""
        chain = self._chain(tokens, namespace)
        pieces = self._pieces(chain, tail=True)
        key = chain.key(self._kind, *pieces[-1])
        if self._ledger is not None:
            self._ledger.hit(key)
        now = time.monotonic()
        self._touched = {head: at for head, at in self._touched.items() if now - at < TOUCH_S}
        if self._touched.setdefault(key, now) == now:
            stored = [self._use(chain, start, stop) for start, stop in pieces]
            if not all(stored):
                self._missing.append((tokens, namespace))

    def _use(self, chain: Chain, start: int, stop: int) -> bool:
        """Note a use of a chunk, which is part of a head from now on; False if it is not stored."""
        if not self.store.touch(chain, start, stop, self._kind):
            return False
        self.store.mark_head(chain, start, stop, self._kind)
        return True

    # ---- writing -------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether there is something to copy out."""
        return bool(self._copies)

    def want(self, tokens: Sequence[int], namespace: str, *, head: bool, tail: bool) -> None:
        """Store these tokens, as far as they are not stored; copied out by `next_copy`'s caller.

        `tail`: also the part after the last full chunk. A whole state has no other part. What is
        known to be stored is looked for in the folder, where others may have cleared it, unless
        that hangs.
        """
        if self.policy == "off" or not tokens:
            return
        chain = self._chain(tokens, namespace)
        pieces = self._pieces(chain, tail=tail)
        waiting_prompts = {id(copy.tokens): len(copy.tokens) for copy in self._copies.values()}
        if waiting_prompts and len(tokens) + sum(waiting_prompts.values()) > _WAITING_TOKENS:
            self.store.refuse(len(pieces))
            return
        lost = self._lost(chain, pieces)
        for start, stop in pieces:
            key = chain.key(self._kind, start, stop)
            waiting = self._copies.get(key)
            if waiting is not None:
                self._copies[key] = replace(waiting, head=waiting.head or head)
            elif key in lost or not self.store.knows(key):
                self._copies[key] = Copy(tokens, namespace, chain, start, stop, head)
            elif head:
                self.store.mark_head(chain, start, stop, self._kind)

    def want_head(self, tokens: Sequence[int], namespace: str) -> None:
        """Store a head that was computed; at its first use if the last ones had none."""
        if self._heads.computed(tokens, namespace):
            self.want(tokens, namespace, head=True, tail=True)

    def want_missing(self) -> None:
        """Store the heads that are used and were found not to be stored, or not any more."""
        while self._missing:
            self.want(*self._missing.popleft(), head=True, tail=True)

    def keys(self, tokens: Sequence[int], namespace: str) -> list[bytes]:
        """The names of all the chunks that these tokens are stored as, tail included."""
        chain = self._chain(tokens, namespace)
        return [chain.key(self._kind, *piece) for piece in self._pieces(chain, tail=True)]

    def copying(self, keys: Collection[bytes]) -> bool:
        """Whether some of these chunks are still to be copied out."""
        return not self._copies.keys().isdisjoint(keys)

    def has(self, tokens: Sequence[int], namespace: str) -> bool:
        """Whether all of these tokens are stored, tail included."""
        chain = self._chain(tokens, namespace)
        pieces = self._pieces(chain, tail=True)
        return all(self.store.holds(chain, start, stop, self._kind) for start, stop in pieces)

    def surely_has(self, tokens: Sequence[int], namespace: str) -> bool:
        """The same, and the disk says so at once."""
        return self._answers.to(lambda: self.has(tokens, namespace), otherwise=False)

    def _lost(self, chain: Chain, pieces: Sequence[tuple[int, int]]) -> set[bytes]:
        """Those of the chunks that were stored and are not any more, as far as the disk says so."""
        keyed = {chain.key(self._kind, *piece): piece for piece in pieces}
        known = {key: piece for key, piece in keyed.items() if self.store.knows(key)}
        nothing: set[bytes] = set()
        if not known:
            return nothing

        def look() -> set[bytes]:
            holds = self.store.holds
            return {key for key, piece in known.items() if not holds(chain, *piece, self._kind)}

        return self._answers.to(look, otherwise=nothing)

    def next_copy(self) -> Copy:
        """The chunk to copy out next."""
        return self._copies.popitem(last=False)[1]

    def put(self, copy: Copy, payload: memoryview) -> None:
        """Hand a copied chunk to the store."""
        self.store.put(copy.chain, copy.start, copy.stop, payload, kind=self._kind, head=copy.head)
        if self._ledger is not None:
            self._ledger.named()

    def close(self, deadline_s: float) -> None:
        """Write what has been copied, for at most `deadline_s` seconds."""
        end = time.monotonic() + deadline_s
        self._reader.close(deadline_s / 4)
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
