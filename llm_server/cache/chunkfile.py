"""The format of a chunk file: a name that places it in the tree, and bytes that prove themselves.

llama.cpp believes any state it is given (one flipped bit is a wrong answer, or a dead process), so
a file says what it is for and carries a 128-bit checksum of everything in it: XXH3, which finds
damage as surely as SHA-256 and ten times as fast (whoever may forge a file could forge either).
Pure: bytes in, bytes out.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace

import xxhash

from llm_server.cache.keys import TOKEN_BYTES, Kind, chunk_key

MAGIC = b"LLMKV\r\n\x1a"
VERSION = 1
_COVERED = struct.Struct("<8sIIIIQ32s32s")
"""magic, version, kind, start, n_tokens, payload bytes, fingerprint, parent key."""
_DIGEST_BYTES = 16
HEADER_BYTES = _COVERED.size + _DIGEST_BYTES
"""The fixed part; the packed tokens follow, then the payload."""

PARENT_BYTES = 8
"""Of a parent's key in a name: enough to find children by, the header has all of it."""

_NAME = re.compile(r"([0-9a-f]{64})-([0-9a-f]{16})-([rc])(h?)-(\d{1,10})-(\d{1,5})\.kv")
_LETTERS = {Kind.RANGE: "r", Kind.CHECKPOINT: "c"}
_KINDS = {letter: kind for kind, letter in _LETTERS.items()}


class BadChunk(Exception):
    """The file is not what it should be; the message says in what way."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a file's name says. `parent` is the beginning of the parent's key.

    A `head` is part of a system prompt and its tools: worth more than what follows it. That is
    advice and not content, so it is in the name alone.
    """

    key: bytes
    parent: bytes
    kind: Kind
    start: int
    n_tokens: int
    head: bool = False

    @property
    def name(self) -> str:
        """The file's name."""
        place = f"{_LETTERS[self.kind]}{'h' * self.head}-{self.start}-{self.n_tokens}"
        return f"{self.key.hex()}-{self.parent.hex()}-{place}.kv"

    @property
    def least_bytes(self) -> int:
        """Length of a file with no payload: one that is shorter was cut off by a power failure."""
        return HEADER_BYTES + self.n_tokens * TOKEN_BYTES

    @property
    def positions(self) -> range:
        """What it brings back: the positions of its tokens, or of all up to its last one."""
        return range(self.start if self.kind is Kind.RANGE else 0, self.start + self.n_tokens)

    @classmethod
    def parse(cls, name: str) -> Chunk | None:
        """What a name says; None for a file that is not a chunk."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        key, parent, kind, head, start, n_tokens = match.groups()
        return cls(
            bytes.fromhex(key),
            bytes.fromhex(parent),
            _KINDS[kind],
            int(start),
            int(n_tokens),
            bool(head),
        )

    def as_head(self) -> Chunk:
        """The same chunk, marked as part of a head."""
        return replace(self, head=True)


@dataclass(frozen=True, slots=True)
class Header:
    """What a file's first bytes say about the payload behind them."""

    fingerprint: bytes
    parent: bytes
    kind: Kind
    start: int
    packed: bytes
    n_payload: int

    @property
    def key(self) -> bytes:
        """The key these contents must be found under."""
        return chunk_key(self.kind, self.parent, self.packed)

    @property
    def chunk(self) -> Chunk:
        """What the file must be called, the mark of a head aside."""
        n_tokens = len(self.packed) // TOKEN_BYTES
        return Chunk(self.key, self.parent[:PARENT_BYTES], self.kind, self.start, n_tokens)

    @property
    def n_bytes(self) -> int:
        """Length of the file."""
        return HEADER_BYTES + len(self.packed) + self.n_payload


def encode(header: Header, payload: bytes | memoryview) -> bytes:
    """The bytes that go before the payload in the file."""
    covered = _COVERED.pack(
        MAGIC,
        VERSION,
        header.kind,
        header.start,
        len(header.packed) // TOKEN_BYTES,
        header.n_payload,
        header.fingerprint,
        header.parent,
    )
    digest = xxhash.xxh3_128(covered + header.packed)
    digest.update(payload)
    return covered + digest.digest() + header.packed


def decode_header(data: bytes | memoryview) -> Header:
    """The header at the beginning of `data`, which holds at least all of its tokens.

    Raises:
        BadChunk: it is none, or of another version.
    """
    if len(data) < HEADER_BYTES:
        raise BadChunk("it is shorter than a header")
    magic, version, kind, start, n_tokens, n_payload, fingerprint, parent = _COVERED.unpack_from(
        data
    )
    if magic != MAGIC:
        raise BadChunk("it is not a chunk file")
    if version != VERSION:
        raise BadChunk(f"it has version {version} of the format")
    end = HEADER_BYTES + n_tokens * TOKEN_BYTES
    if kind not in _LETTERS or len(data) < end:
        raise BadChunk("its header is damaged")
    packed = bytes(data[HEADER_BYTES:end])
    return Header(fingerprint, parent, Kind(kind), start, packed, n_payload)


def decode(data: bytes | memoryview) -> tuple[Header, memoryview]:
    """(header, payload) of a whole file, every byte of it verified.

    Raises:
        BadChunk: a byte is wrong, missing or too many.
    """
    header = decode_header(data)
    if len(data) != header.n_bytes:
        raise BadChunk(f"it has {len(data)} bytes instead of {header.n_bytes}")
    view = memoryview(data)
    digest = xxhash.xxh3_128(view[: _COVERED.size])
    digest.update(view[HEADER_BYTES:])
    if digest.digest() != view[_COVERED.size : HEADER_BYTES]:
        raise BadChunk("its checksum is wrong")
    return header, view[HEADER_BYTES + len(header.packed) :].toreadonly()
