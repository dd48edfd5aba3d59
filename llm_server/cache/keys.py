"""Names for prefixes: what a stored piece of KV memory is the memory of.

A key is a SHA-256 chain over everything before: fingerprint and salt at the root, then the tokens
chunk by chunk. Equal keys mean equal tokens from the first one on, computed by the same model.
Pure; it knows no files and no llama.cpp.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from llm_server.cache.tree import common_prefix

CHUNK_TOKENS = 256
"""Tokens of a full chunk: 3 MB at 12 KB a token, one file read, and seldom much to trim."""

TOKEN_BYTES = 4


class Kind(enum.IntEnum):
    """What a payload restores: the cells of the chunk's own tokens, or the state after them."""

    RANGE = 1
    CHECKPOINT = 2


def pack(tokens: Sequence[int]) -> bytes:
    """Token ids as 4 bytes each, big-endian: equal prefixes of ids are equal prefixes of bytes."""
    return struct.pack(f">{len(tokens)}i", *tokens)


def unpack(packed: bytes) -> list[int]:
    """The ids that `pack` was given."""
    return list(struct.unpack(f">{len(packed) // TOKEN_BYTES}i", packed))


def common_tokens(a: bytes, b: bytes) -> int:
    """How many tokens two packed runs share from their beginnings."""
    return common_prefix(a, 0, b, 0) // TOKEN_BYTES


def root_key(fingerprint: bytes, salt: str = "") -> bytes:
    """Where all chains of one model and one namespace begin: 32 bytes.

    `salt` separates the caches of different API keys: none can find, or time, another's prompts.
    """
    return hashlib.sha256(b"root" + fingerprint + salt.encode("utf-8")).digest()


def chunk_key(kind: Kind, parent: bytes, packed: bytes) -> bytes:
    """The key of the tokens `packed` behind the prefix that `parent` stands for: 32 bytes."""
    return hashlib.sha256(b"chunk%d" % kind + parent + packed).digest()


@dataclass(frozen=True, slots=True)
class Chain:
    """A prompt cut into chunks at multiples of `size`, with the key of each cut.

    `keys[i]` stands for the first `i * size` tokens, `keys[0]` is the root. Tokens behind the
    last cut belong to no key yet.
    """

    packed: bytes
    keys: tuple[bytes, ...]
    size: int = CHUNK_TOKENS

    @classmethod
    def of(cls, root: bytes, tokens: Sequence[int], size: int = CHUNK_TOKENS) -> Chain:
        """The chain of `tokens` from `root` (see `root_key`)."""
        packed, step = pack(tokens), size * TOKEN_BYTES
        keys = [root]
        for end in range(step, len(packed) + 1, step):
            keys.append(chunk_key(Kind.RANGE, keys[-1], packed[end - step : end]))
        return cls(packed, tuple(keys), size)

    @property
    def n_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.packed) // TOKEN_BYTES

    def slice(self, start: int, stop: int) -> bytes:
        """The packed tokens of positions [start, stop)."""
        return self.packed[start * TOKEN_BYTES : stop * TOKEN_BYTES]

    def key(self, kind: Kind, start: int, stop: int) -> bytes:
        """The key of the chunk of positions [start, stop).

        Raises:
            ValueError: it does not begin at a cut, or is empty, too long or past the end.
        """
        if start % self.size or not 0 < stop - start <= self.size or stop > self.n_tokens:
            raise ValueError(f"[{start}, {stop}) is not a chunk of {self.n_tokens} tokens")
        return chunk_key(kind, self.keys[start // self.size], self.slice(start, stop))

    def chunk_start(self, stop: int) -> int:
        """Where the chunk that ends at position `stop` begins; `stop` is at least 1."""
        return (stop - 1) // self.size * self.size
