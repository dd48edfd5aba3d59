"""What makes stored KV memory compatible: the content of the model, and how it is computed.

The content of a GGUF is its header (all metadata and the table of tensors) and blocks sampled from
every tensor, never its path or dates: a renamed model keeps its cache, a replaced one does not.
Reads the files itself, with no more of their format than finds the tensors.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

BLOCK = 4096
"""Bytes of one sample."""
SAMPLES = 8
"""Blocks sampled evenly from each tensor; smaller ones (norms, biases) are hashed whole."""

_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32
_MAX_DIMS = 4


class _Malformed(Exception):
    """Not a header this module can walk."""


class _Header:
    """Walks a GGUF header (ggml/docs/gguf.md) to learn where it ends and tensors begin."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0
        self.alignment = _ALIGNMENT
        magic, version, n_tensors, n_metadata = self._read("<4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise _Malformed
        for _ in range(n_metadata):
            self._metadata()
        offsets = [self._tensor() for _ in range(n_tensors)]
        if self.alignment <= 0:
            raise _Malformed
        self.end = -(-self._at // self.alignment) * self.alignment
        self.tensors = sorted(self.end + offset for offset in offsets)
        if self.end > len(data) or (self.tensors and self.tensors[-1] > len(data)):
            raise _Malformed

    def _read(self, layout: str) -> tuple[Any, ...]:
        try:
            values = struct.unpack_from(layout, self._data, self._at)
        except struct.error as error:
            raise _Malformed from error
        self._at += struct.calcsize(layout)
        return values

    def _skip(self, n: int) -> None:
        self._at += n
        if self._at > len(self._data):
            raise _Malformed

    def _text(self) -> bytes:
        (n,) = self._read("<Q")
        start = self._at
        self._skip(n)
        return self._data[start : self._at]

    def _metadata(self) -> None:
        key = self._text()
        (kind,) = self._read("<I")
        if key == b"general.alignment" and kind == 4:
            (self.alignment,) = self._read("<I")
            return
        n = 1
        if kind == _ARRAY:
            kind, n = self._read("<IQ")
        if kind == _STRING:
            self._skip_texts(n)
        elif kind in _SCALAR_BYTES:
            self._skip(n * _SCALAR_BYTES[kind])
        else:
            raise _Malformed

    def _skip_texts(self, n: int) -> None:
        """Vocabularies and merges: hundreds of thousands, so a loop with little in it."""
        data, at, length = self._data, self._at, struct.Struct("<Q")
        try:
            for _ in range(n):
                at += 8 + length.unpack_from(data, at)[0]
        except (struct.error, OverflowError) as error:
            raise _Malformed from error
        self._at = at
        self._skip(0)

    def _tensor(self) -> int:
        self._text()
        (n_dims,) = self._read("<I")
        if n_dims > _MAX_DIMS:
            raise _Malformed
        *_, offset = self._read(f"<{n_dims}QIQ")
        return int(offset)


def _extents(data: mmap.mmap) -> Iterator[tuple[int, int]]:
    """The parts [start, end) of a file that its fingerprint covers; all of an unknown format."""
    try:
        header = _Header(data)
    except _Malformed:
        yield 0, len(data)
        return
    yield 0, header.end
    for start, end in zip(header.tensors, [*header.tensors[1:], len(data)], strict=True):
        if end - start <= BLOCK * SAMPLES:
            yield start, end
        else:
            for i in range(SAMPLES):
                at = start + (end - start - BLOCK) * i // (SAMPLES - 1)
                yield at, at + BLOCK


def model_parts(path: Path) -> list[Path]:
    """All files of a split model, given its first; the name's pattern is llama.cpp's."""
    match = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})\.gguf", path.name)
    if not match:
        return [path]
    stem, count = match.groups()
    return [path.with_name(f"{stem}-{i:05}-of-{count}.gguf") for i in range(1, int(count) + 1)]


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
            for start, end in _extents(data):
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
