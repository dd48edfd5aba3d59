"""How bytes on a worker's pipes become frames, and frames become messages.

A frame is a 4-byte little-endian length and that many bytes of msgpack. Both processes use this
module: the child through blocking files, the parent by feeding what its pipe delivers into a
`FrameSplitter`. It knows the message types, and nothing of processes or of what messages mean.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec.structs import replace

from llm_server.worker.messages import Command, Content, Event, Logprobs, Reasoning, ToolCall

MAX_FRAME = 8 * 1024 * 1024
"""Longest frame body in bytes; a longer one means a broken or hostile peer."""

_LENGTH = struct.Struct("<I")


class FrameError(Exception):
    """The byte stream is not a sequence of frames; the peer is broken and must be dropped."""


class FrameTooLong(FrameError):
    """A frame announces, or would have, more than MAX_FRAME bytes."""


class FrameTruncated(FrameError):
    """The stream ended inside a frame: the peer died while writing."""


class ProtocolError(Exception):
    """A well-formed event that cannot be right."""


class Readable(Protocol):
    """A blocking binary file; a raw one may return fewer bytes than asked for."""

    def read(self, size: int, /) -> bytes | None: ...


class Writable(Protocol):
    """A blocking binary file; a raw one may take fewer bytes than given."""

    def write(self, data: bytes | memoryview, /) -> int | None: ...

    def flush(self) -> None: ...


def pack(body: bytes) -> bytes:
    """`body` with its length in front. Raises FrameTooLong."""
    if len(body) > MAX_FRAME:
        raise FrameTooLong(f"a frame of {len(body)} bytes is over the limit of {MAX_FRAME}")
    return _LENGTH.pack(len(body)) + body


def read_frame(file: Readable) -> bytes | None:
    """The next frame's body, or None at the end of the stream. Blocks.

    Raises FrameTooLong, and FrameTruncated when the stream ends inside a frame.
    """
    header = _read_up_to(file, _LENGTH.size)
    if not header:
        return None
    if len(header) < _LENGTH.size:
        raise FrameTruncated("the stream ended inside a frame's length")
    size = _checked_length(header)
    body = _read_up_to(file, size)
    if len(body) < size:
        raise FrameTruncated(f"the stream ended after {len(body)} of {size} bytes of a frame")
    return body


def write_frame(file: Writable, body: bytes) -> None:
    """Write one frame and flush it. Blocks. Raises FrameTooLong, and OSError when the peer left."""
    rest = memoryview(pack(body))
    while rest:
        rest = rest[file.write(rest) or 0 :]
    file.flush()


class FrameSplitter:
    """Cuts a stream that arrives in arbitrary pieces into frame bodies."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """All frames that `data` completes, in order. Raises FrameTooLong."""
        pending = self._pending
        pending += data
        frames: list[bytes] = []
        start = 0
        while len(pending) - start >= _LENGTH.size:
            size = _checked_length(pending, start)
            end = start + _LENGTH.size + size
            if len(pending) < end:
                break
            frames.append(bytes(pending[start + _LENGTH.size : end]))
            start = end
        del pending[:start]
        return frames


def _checked_length(buffer: bytes | bytearray, offset: int = 0) -> int:
    size: int = _LENGTH.unpack_from(buffer, offset)[0]
    if size > MAX_FRAME:
        raise FrameTooLong(f"a frame of {size} bytes is announced, the limit is {MAX_FRAME}")
    return size


def _read_up_to(file: Readable, size: int) -> bytes:
    """`size` bytes, or fewer at the end of the stream."""
    data = file.read(size) or b""
    if len(data) == size or not data:
        return data
    pieces = bytearray(data)
    while len(pieces) < size:
        more = file.read(size - len(pieces))
        if not more:
            break
        pieces += more
    return bytes(pieces)


def _path(kind: type[Path], name: bytes) -> Path:
    return kind(os.fsdecode(name))


# Paths cross as bytes, as the system has them: they need not be text.
_encoder = msgspec.msgpack.Encoder(enc_hook=os.fsencode)
_command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(
    Command, dec_hook=_path
)
_event_decoder: msgspec.msgpack.Decoder[list[Event]] = msgspec.msgpack.Decoder(list[Event])


def encode_command(command: Command) -> bytes:
    """A command as the body of a frame."""
    return _encoder.encode(command)


def decode_command(body: bytes) -> Command:
    """The command in a frame. Raises msgspec.DecodeError (a ValidationError is one)."""
    return _command_decoder.decode(body)


def encode_events(events: list[Event]) -> bytes:
    """Events as the body of a frame."""
    return _encoder.encode(events)


def event_frames(events: list[Event]) -> Iterator[bytes]:
    """Any number of events, as the bodies of as many frames as they need: one, nearly always.

    A delta that no frame holds comes in parts. Raises FrameTooLong for another such event.
    """
    body = encode_events(events)
    if len(body) <= MAX_FRAME:
        yield body
        return
    if len(events) == 1:
        events = _halves(events[0])
    middle = len(events) // 2
    yield from event_frames(events[:middle])
    yield from event_frames(events[middle:])


def _halves(event: Event) -> list[Event]:
    """Two events that say together what this one does."""
    match event:
        case Content(text=text) | Reasoning(text=text) if len(text) > 1:
            n = len(text) // 2
            return [replace(event, text=text[:n]), replace(event, text=text[n:])]
        case ToolCall(arguments=text) if len(text) > 1:
            n = len(text) // 2
            rest = ToolCall(event.id, event.index, text[n:])
            return [replace(event, arguments=text[:n]), rest]
        case Logprobs(tokens=tokens) if len(tokens) > 1:
            n = len(tokens) // 2
            return [replace(event, tokens=tokens[:n]), Logprobs(event.id, tokens[n:])]
    raise FrameTooLong(f"a {type(event).__name__} is over the limit of {MAX_FRAME} bytes")


def decode_events(body: bytes) -> list[Event]:
    """The events in a frame. Raises msgspec.DecodeError (a ValidationError is one)."""
    return _event_decoder.decode(body)
