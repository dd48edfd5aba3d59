"""GGUF files as bytes, right and wrong ones, which no library would write."""

from __future__ import annotations

import struct
from collections.abc import Sequence

Metadata = dict[str, object]
TensorEntry = tuple[str, tuple[int, ...], int]
"""Name, shape in llama.cpp's order, ggml type."""

TINY: Metadata = {
    "general.architecture": "llama",
    "llama.context_length": 4096,
    "llama.embedding_length": 64,
    "llama.block_count": 1,
    "llama.attention.head_count": 2,
    "llama.feed_forward_length": 128,
    "tokenizer.ggml.tokens": ["a", "b"],
}
"""As much metadata as a model needs to be understood without loading it."""


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def encoded(value: object) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + text(value)
        case list():
            items = [encoded(item) for item in value]
            kind = items[0][:4] if items else struct.pack("<I", 4)
            body = b"".join(item[4:] for item in items)
            return struct.pack("<I", 9) + kind + struct.pack("<Q", len(items)) + body
    raise TypeError(type(value))


def gguf(
    metadata: Metadata | None = None,
    tensors: Sequence[TensorEntry] = (),
    *,
    sizes: Sequence[int] = (),
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """A file whose tensors take `sizes` bytes each, all zero."""
    pairs = TINY if metadata is None else metadata
    head = bytearray(struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(pairs)))
    head += b"".join(text(key) + encoded(item) for key, item in pairs.items())
    offset = 0
    for (name, shape, kind), size in zip(tensors, sizes, strict=True):
        head += text(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}qIQ", *shape, kind, offset)
        offset += -(-size // alignment) * alignment
    return bytes(head) + bytes(-len(head) % alignment) + bytes(offset)
