"""What makes stored KV memory compatible: the content of the model, and how it is computed.

The content of a GGUF is its header (all metadata and the table of tensors) and blocks sampled from
every tensor, never its path or dates: a renamed model keeps its cache, a replaced one does not.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from llm_server.gguf.header import InvalidGguf, read_header
from llm_server.gguf.parts import model_parts

BLOCK = 4096
"""Bytes of one sample."""
SAMPLES = 8
"""Blocks sampled evenly from each tensor; smaller ones (norms, biases) are hashed whole."""


def _extents(path: Path, size: int) -> Iterator[tuple[int, int]]:
    """The parts [start, end) of a file that its fingerprint covers; all of an unknown format."""
    try:
        header = read_header(path)
    except InvalidGguf:
        yield 0, size
        return
    yield 0, header.n_bytes
    starts = [tensor.offset for tensor in header.tensors]
    for start, end in zip(starts, [*starts[1:], size], strict=True):
        if end - start <= BLOCK * SAMPLES:
            yield start, end
        else:
            for i in range(SAMPLES):
                at = start + (end - start - BLOCK) * i // (SAMPLES - 1)
                yield at, at + BLOCK


def model_fingerprint(path: Path) -> bytes:
    """32 bytes that stand for the content of a model file, or of all parts of a split one.

    Takes some 0.1 s for a vocabulary of 150,000, whatever the size of the model; a file whose
    header is not understood is hashed whole.

    Raises:
        OSError: a file could not be read.
        ValueError: a file is empty.
    """
    digest = hashlib.sha256()
    for part in model_parts(path):
        with part.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            digest.update(struct.pack("<Q", len(data)))
            for start, end in _extents(part, len(data)):
                digest.update(data[start:end])
    return digest.digest()


def fingerprint(model: bytes, settings: Mapping[str, str | int | float | bool]) -> bytes:
    """32 bytes for a model (`model_fingerprint`) computed under `settings`.

    Settings are whatever changes the bytes of KV memory or their meaning: types of K and V, flash
    attention, RoPE overrides, adapters, the version of llama.cpp and of its state format. The
    length of the context belongs there only if the model's RoPE depends on it.
    """
    text = json.dumps({**settings, "byteorder": sys.byteorder}, sort_keys=True)
    return hashlib.sha256(model + text.encode("utf-8")).digest()
