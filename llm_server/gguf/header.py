"""GGUF headers, read without loading a model: metadata, tensors, and whether they fit the file.

The one reader, and the API process must survive any file: plain reads in bounded pieces (a mapped
file that shrinks would kill the process), every length checked against what is left, sums in
Python's integers. The rules are those of llama.cpp's `ggml/src/gguf.cpp`, so that what passes
here is in form what it expects. Knows the format and nothing of what the values mean.
"""

from __future__ import annotations

import math
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from llm_server.gguf.types import TENSOR_TYPES, TensorType

MAX_HEADER = 64 << 20
"""Bytes of metadata and table of tensors; the largest vocabularies need a quarter of it."""
MAX_KEYS = 1 << 12
MAX_KEY = 1 << 10
"""Bytes of one."""
MAX_TENSORS = 1 << 16
MAX_NAME = 64
"""GGML_MAX_NAME, with its terminating zero."""
MAX_DIMS = 4
MAX_TEXT = 1 << 20
"""Longer texts are passed over; no chat template comes near."""
MAX_ITEMS = 1024
"""Longer arrays are passed over: vocabularies, of which only the length matters here."""
MAX_ALL_TEXTS = 8 << 20
MAX_ALL_ITEMS = 200_000
"""What is kept of one header, in bytes of texts and in items of arrays; the rest is passed over."""

_PIECE = 1 << 20
_PEEK = 16 << 10
"""Bytes among which `general.type` is looked for: writers put it first, before the vocabulary."""
_ANY_SIZE = 1 << 63
_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
"""enum gguf_type, in the letters of `struct`."""
_UINT32 = 4


class InvalidGguf(ValueError):
    """The file is no GGUF that llama.cpp would take. The message says why, and names no path."""


@dataclass(frozen=True, slots=True)
class Omitted:
    """A value that was passed over: `n` items of an array, or bytes of a text."""

    n: int


Scalar: TypeAlias = bool | int | float | str
Value: TypeAlias = Scalar | tuple[Scalar, ...] | Omitted


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the table. `shape` as llama.cpp has it, the row first; `offset` in the file."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int

    @property
    def n_elements(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """What it takes in the file, without padding."""
        return self.n_elements // self.type.block * self.type.size


@dataclass(frozen=True, slots=True)
class Header:
    """All that stands before the weights of one file."""

    metadata: dict[str, Value]
    tensors: list[Tensor]
    n_bytes: int
    """Where the first tensor begins, or would."""


def read_header(path: Path, *, whole: bool = True) -> Header:
    """The header of a regular file, of which every tensor is known to lie inside the file.

    Blocks for the disk: some 50 ms for a vocabulary of 150,000, whatever the size of the weights.
    Of a file that is not `whole`, the first `MAX_HEADER` bytes must be there.

    Raises:
        InvalidGguf: it is not a GGUF, or damaged.
        OSError: it cannot be read.
    """
    # Not to wait for a FIFO that took the place of the file.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb", buffering=0) as file:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise InvalidGguf("it is not a regular file")
        return _Parser(_Source(file, info.st_size if whole else _ANY_SIZE)).header()


def read_kind(path: Path) -> str:
    """`general.type` of a file: model, adapter, mmproj, imatrix ...

    "model" for a file that does not say so among its first keys, or is damaged: whoever loads it
    will say what is wrong. Reads some kilobytes.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb", buffering=0) as file:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode):
                return "model"
            return _Parser(_Source(file, min(info.st_size, _PEEK), piece=_PEEK)).kind()
    except (InvalidGguf, OSError):
        return "model"


class _Source:
    """The bytes of a file from its beginning on, read in pieces, never past its end."""

    def __init__(self, file: BinaryIO, size: int, piece: int = _PIECE) -> None:
        self.size = size
        self._piece = piece
        self._file = file
        self._data = b""
        self._start = 0  # of the piece in the file
        self._at = 0  # in the piece, or behind it

    @property
    def position(self) -> int:
        """Offset in the file of what comes next."""
        return self._start + self._at

    def take(self, n: int) -> bytes:
        """The next `n` bytes."""
        self._need(n)
        taken = self._data[self._at : self._at + n]
        self._at += n
        return taken

    def skip(self, n: int) -> None:
        """Pass over `n` bytes."""
        self._check(n)
        self._at += n

    def skip_texts(self, n: int) -> None:
        """Pass over `n` texts. There are hundreds of thousands: a loop with little in it."""
        length = struct.Struct("<Q").unpack_from
        while n:
            self._need(8)
            data, at = self._data, self._at
            try:
                while n:
                    at += 8 + length(data, at)[0]
                    n -= 1
            except (struct.error, OverflowError):
                pass  # The end of this piece.
            self.skip(at - self._at)

    def _check(self, n: int) -> None:
        if self.position + n > self.size:
            raise InvalidGguf("the file ends inside its header, or a length in it is damaged")
        if self.position + n > MAX_HEADER:
            raise InvalidGguf(f"the header is longer than {MAX_HEADER >> 20} MB")

    def _need(self, n: int) -> None:
        self._check(n)
        if self._at + n <= len(self._data):
            return
        self._start, kept = self.position, self._data[self._at :]
        self._at = 0
        self._file.seek(self._start + len(kept))
        pieces = [kept]
        left = n - len(kept)
        while left > 0:
            piece = self._file.read(max(self._piece, left))
            if not piece:
                raise InvalidGguf("the file became shorter while it was read")
            pieces.append(piece)
            left -= len(piece)
        self._data = b"".join(pieces)


class _Parser:
    """Reads one header (ggml/docs/gguf.md, versions 2 and 3, little-endian)."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._text_left = MAX_ALL_TEXTS
        self._items_left = MAX_ALL_ITEMS

    def kind(self) -> str:
        """What `read_kind` says."""
        _, n_keys = self._counts()
        for _ in range(n_keys):
            key, value = self._pair()
            if key == "general.type" and isinstance(value, str):
                return value
        return "model"

    def header(self) -> Header:
        """What `read_header` returns."""
        n_tensors, n_keys = self._counts()
        metadata = self._metadata(n_keys)
        alignment = _alignment(metadata)
        tensors = [self._tensor() for _ in range(n_tensors)]
        n_bytes = _padded(self._source.position, alignment)
        return Header(metadata, self._placed(tensors, n_bytes, alignment), n_bytes)

    def _counts(self) -> tuple[int, int]:
        """Number of tensors, number of keys."""
        if self._source.size < 24 or self._source.take(4) != b"GGUF":
            raise InvalidGguf("it is not a GGUF file")
        version, n_tensors, n_keys = self._unpack("<IQQ")
        if version & 0xFFFF == 0:
            raise InvalidGguf("it was made for machines of the other byte order")
        if version not in (2, 3):
            raise InvalidGguf(f"its GGUF version {version} is not supported")
        if n_tensors > MAX_TENSORS or n_keys > MAX_KEYS:
            raise InvalidGguf("it claims to hold absurdly many tensors or keys")
        return n_tensors, n_keys

    def _unpack(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, self._source.take(struct.calcsize(layout)))

    def _text(self, limit: int) -> str | None:
        """A text; None for one that is longer than `limit` and was passed over."""
        (n,) = self._unpack("<Q")
        if n > limit:
            self._source.skip(n)
            return None
        return self._source.take(n).decode("utf-8", "replace")

    def _metadata(self, n_keys: int) -> dict[str, Value]:
        metadata: dict[str, Value] = {}
        for _ in range(n_keys):
            key, value = self._pair()
            if key in metadata:
                raise InvalidGguf("a key of its metadata is there twice")
            metadata[key] = value
        return metadata

    def _pair(self) -> tuple[str, Value]:
        key = self._text(MAX_KEY)
        if not key:
            raise InvalidGguf("a key of its metadata is empty or absurdly long")
        (kind,) = self._unpack("<I")
        if key == "general.alignment" and kind != _UINT32:
            raise InvalidGguf("its alignment is of the wrong type")
        return key, self._array() if kind == _ARRAY else self._scalars(kind, 1)[0]

    def _array(self) -> Value:
        kind, n = self._unpack("<IQ")
        if n <= min(MAX_ITEMS, self._items_left):
            self._items_left -= n
            items = self._scalars(kind, n)
            known = tuple(item for item in items if not isinstance(item, Omitted))
            # A list with a hole in it is of no use.
            return known if len(known) == n else Omitted(n)
        if kind == _STRING:
            self._source.skip_texts(n)
        else:
            self._source.skip(n * struct.calcsize("<" + _letter(kind)))
        return Omitted(n)

    def _scalars(self, kind: int, n: int) -> list[Scalar | Omitted]:
        if kind == _STRING:
            return [self._text_or_length() for _ in range(n)]
        return list(self._unpack(f"<{n}{_letter(kind)}"))

    def _text_or_length(self) -> str | Omitted:
        before = self._source.position
        text = self._text(min(MAX_TEXT, self._text_left))
        n = self._source.position - before - 8
        if text is None:
            return Omitted(n)
        self._text_left -= n
        return text

    def _placed(self, tensors: list[Tensor], start: int, alignment: int) -> list[Tensor]:
        """With offsets in the file, which begins its tensors at `start`.

        They must follow each other as llama.cpp computes it, and end in time.
        """
        if len({tensor.name for tensor in tensors}) < len(tensors):
            raise InvalidGguf("a tensor is there twice")
        expected = 0
        for tensor in tensors:
            if tensor.offset != expected:
                raise InvalidGguf("a tensor is not where it should be")
            if start + expected + tensor.n_bytes > self._source.size:
                raise InvalidGguf("the file is shorter than its tensors (an unfinished download?)")
            expected += _padded(tensor.n_bytes, alignment)
        return [
            Tensor(tensor.name, tensor.shape, tensor.type, start + tensor.offset)
            for tensor in tensors
        ]

    def _tensor(self) -> Tensor:
        """One entry, its offset still relative to the first tensor."""
        name = self._text(MAX_NAME - 1)
        if name is None:
            raise InvalidGguf("the name of a tensor is too long")
        (n_dims,) = self._unpack("<I")
        if n_dims > MAX_DIMS:
            raise InvalidGguf("a tensor has too many dimensions")
        *shape, kind, offset = self._unpack(f"<{n_dims}qIQ")
        type_ = TENSOR_TYPES.get(kind)
        if type_ is None:
            raise InvalidGguf(f"a tensor has type {kind}, which is not supported")
        row = shape[0] if shape else 1
        if min(shape, default=1) < 0 or row % type_.block:
            raise InvalidGguf("a tensor has a shape that its type cannot have")
        tensor = Tensor(name, tuple(shape), type_, offset)
        if max(tensor.n_elements, tensor.n_bytes) > 2**63 - 1:
            raise InvalidGguf("a tensor has a shape that no memory could hold")
        return tensor


def _letter(kind: int) -> str:
    try:
        return _SCALARS[kind]
    except KeyError:
        raise InvalidGguf("a value of its metadata has an unknown type") from None


def _alignment(metadata: dict[str, Value]) -> int:
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise InvalidGguf("its alignment is not a power of two")
    return alignment


def _padded(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment
