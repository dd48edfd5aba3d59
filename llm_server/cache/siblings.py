"""The chunks behind one prefix, arranged so that a look-up does not care how many there are.

Thousands of conversations may begin differently behind the same head. Ranges whose tokens are
known are kept in the order of their tokens, in which the ones that share most with a prompt stand
beside the place where the prompt itself would stand. Pure; not thread-safe.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from itertools import islice

from llm_server.cache.chunkfile import Chunk
from llm_server.cache.keys import Kind, common_tokens

_EQUALS = 8  # neighbours looked at for a shorter chunk that shares as much


class Siblings:
    """Chunks with the same parent. Ranges are found by their tokens once `learn` brought them."""

    def __init__(self) -> None:
        self._chunks: dict[bytes, Chunk] = {}
        self._tokens: dict[bytes, bytes] = {}
        self._ordered: list[tuple[bytes, bytes]] = []  # packed tokens and key of the known ones
        self._unknown: dict[bytes, Chunk] = {}
        self._lengths: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._chunks)

    def add(self, chunk: Chunk) -> None:
        """Take a chunk that is not there yet."""
        self._chunks[chunk.key] = chunk
        if chunk.kind is Kind.RANGE:
            self._unknown[chunk.key] = chunk
        else:
            self._lengths[chunk.n_tokens] += 1

    def discard(self, chunk: Chunk) -> None:
        """Forget a chunk that is there."""
        del self._chunks[chunk.key]
        packed = self._tokens.pop(chunk.key, None)
        if packed is not None:
            del self._ordered[bisect_left(self._ordered, (packed, chunk.key))]
        elif chunk.kind is Kind.RANGE:
            del self._unknown[chunk.key]
        else:
            self._lengths[chunk.n_tokens] -= 1
            self._lengths += Counter()  # drops what has come to zero

    def learn(self, key: bytes, packed: bytes) -> None:
        """The packed tokens of a range; of one that is not there they are not wanted."""
        if self._unknown.pop(key, None) is not None:
            self._tokens[key] = packed
            insort(self._ordered, (packed, key))

    def tokens(self, key: bytes) -> bytes | None:
        """The packed tokens of a range, if they are known."""
        return self._tokens.get(key)

    def unknown(self, n: int) -> list[Chunk]:
        """Up to `n` ranges whose tokens are not known yet, the last added first."""
        return list(islice(reversed(self._unknown.values()), n))

    def lengths(self, n_max: int) -> list[int]:
        """The lengths of the checkpoints here that are at most `n_max` tokens, longest first."""
        return sorted((n for n in self._lengths if 0 < n <= n_max), reverse=True)

    def longest_partial(self, wanted: bytes) -> tuple[Chunk, int] | None:
        """The range that shares most of the packed tokens `wanted`, and how many it shares.

        Of equals a shorter one is taken if it is near: less to read and to trim.
        """
        at = bisect_left(self._ordered, (wanted, b""))
        best: tuple[int, int, bytes] | None = None
        for packed, key in self._ordered[max(0, at - _EQUALS) : at + _EQUALS]:
            n = common_tokens(wanted, packed)
            if n and (best is None or (n, -len(packed)) > best[:2]):
                best = (n, -len(packed), key)
        return (self._chunks[best[2]], best[0]) if best else None
