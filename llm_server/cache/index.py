"""Which chunks are stored, and the decisions about them: what a prompt finds, what has to go.

Pure: built from names alone, one dictionary look-up a chunk. It reads no files; where tokens decide
(a chunk that is shared only in part) the caller brings them with `learn`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llm_server.cache.chunkfile import PARENT_BYTES, Chunk
from llm_server.cache.keys import TOKEN_BYTES, Chain, Kind
from llm_server.cache.siblings import Siblings

KEEP_SHARE = 0.9
"""Eviction goes down to this share of the budget, so that it is not needed at every write."""
HEAD_DAYS = 30
"""Days after its last use until a head is worth no more than anything else."""
FUTURE_S = 60.0
"""Seconds after now: a last use that is later proves only that a clock was wrong."""
_MINUTE_S = 60


@dataclass(frozen=True, slots=True)
class Hit:
    """A stored chunk that a prompt can use. It must prove `parent`, the key of what comes before
    it, and to begin with `packed`, tokens of the prompt."""

    chunk: Chunk
    parent: bytes
    packed: bytes

    @property
    def start(self) -> int:
        """Position of the chunk's first token."""
        return self.chunk.start

    @property
    def n_tokens(self) -> int:
        """Tokens that the payload holds."""
        return self.chunk.n_tokens

    @property
    def n_used(self) -> int:
        """Tokens of it that the prompt shares; cut the rest off after loading."""
        return len(self.packed) // TOKEN_BYTES


class Index:
    """The chunks of one model. Not thread-safe."""

    def __init__(self, chunks: Iterable[Chunk] = ()) -> None:
        self._chunks: dict[bytes, Chunk] = {}
        self._children: dict[bytes, Siblings] = {}
        for chunk in chunks:
            self.add(chunk)

    def __len__(self) -> int:
        return len(self._chunks)

    def get(self, key: bytes) -> Chunk | None:
        """The chunk of that key."""
        return self._chunks.get(key)

    def add(self, chunk: Chunk) -> None:
        """Know a chunk; one of the same key is replaced, but a head stays a head."""
        known = self._chunks.get(chunk.key)
        if known and known.head:
            chunk = chunk.as_head()
        packed = self.tokens(chunk.key)
        self.discard(chunk.key)
        self._chunks[chunk.key] = chunk
        self._children.setdefault(chunk.parent, Siblings()).add(chunk)
        if packed is not None:
            self.learn(chunk.key, packed)

    def discard(self, key: bytes) -> None:
        """Forget a chunk, if it is known."""
        chunk = self._chunks.pop(key, None)
        if chunk:
            siblings = self._children[chunk.parent]
            siblings.discard(chunk)
            if not siblings:
                del self._children[chunk.parent]

    def whole(self, chain: Chain) -> list[Chunk]:
        """The longest run of full ranges from the beginning of `chain`."""
        found: list[Chunk] = []
        for key in chain.keys[1:]:
            chunk = self._chunks.get(key)
            if chunk is None or chunk.kind is not Kind.RANGE:
                break
            found.append(chunk)
        return found

    def learn(self, key: bytes, packed: bytes) -> None:
        """The packed tokens of a range, without which it is only found whole."""
        chunk = self._chunks.get(key)
        if chunk is not None:
            self._children[chunk.parent].learn(key, packed)

    def learn_from(self, other: Index) -> None:
        """All that another index knows of the same chunks."""
        for key in self._chunks:
            packed = other.tokens(key)
            if packed is not None:
                self.learn(key, packed)

    def tokens(self, key: bytes) -> bytes | None:
        """The packed tokens of a range, if they are known."""
        chunk = self._chunks.get(key)
        return self._children[chunk.parent].tokens(key) if chunk else None

    def unknown(self, chain: Chain, limit: int) -> list[Chunk]:
        """Ranges that `chain` may go on with whose tokens are to be learnt, at most `limit`."""
        siblings = self._children.get(chain.keys[len(self.whole(chain))][:PARENT_BYTES])
        return siblings.unknown(limit) if siblings else []

    def partial(self, chain: Chain, n_chunks: int) -> tuple[Chunk, int] | None:
        """The known range behind the first `n_chunks` that shares most of what follows them.

        With how many tokens it shares.
        """
        siblings = self._children.get(chain.keys[n_chunks][:PARENT_BYTES])
        start = n_chunks * chain.size
        wanted = chain.slice(start, min(start + chain.size, chain.n_tokens))
        return siblings.longest_partial(wanted) if siblings and wanted else None

    def checkpoint(self, chain: Chain, n_max: int) -> Chunk | None:
        """The checkpoint with the longest prefix of `chain`, of at most `n_max` tokens."""
        for i in reversed(range(len(chain.keys))):
            start = i * chain.size
            siblings = self._children.get(chain.keys[i][:PARENT_BYTES], Siblings())
            room = min(n_max - start, chain.n_tokens - start, chain.size)
            for n in siblings.lengths(room):
                chunk = self._chunks.get(chain.key(Kind.CHECKPOINT, start, start + n))
                if chunk is not None:
                    return chunk
        return None


@dataclass(frozen=True, slots=True)
class Stored:
    """A chunk file of any model: its path, size in bytes and last use (its mtime)."""

    chunk: Chunk
    path: str
    size: int
    used: float


def eviction_order(stored: Iterable[Stored], now: float) -> list[Stored]:
    """What to delete first where room is wanted.

    Least recently used first and heads last. A last use in the future proves only that a clock
    was wrong: such a file goes first, or it would stay for ever. Within a minute the end of a
    prompt goes before its beginning, without which it could not be found.
    """

    def worth(file: Stored) -> tuple[bool, bool, int, int]:
        known = file.used <= now + FUTURE_S
        head = file.chunk.head and not (known and now - file.used > HEAD_DAYS * 86400)
        return head, known, int(file.used) // _MINUTE_S, -file.chunk.start

    return sorted(stored, key=worth)
