"""`python -m llm_server.web`: a process that renders Markdown, frames of JSON in and out.

A frame is a 4-byte little-endian length and a JSON list of texts; the answer is a list of as many
pieces of HTML. End of file ends it.
"""

from __future__ import annotations

import struct
import sys
from typing import BinaryIO

import msgspec

from llm_server.web.markdown import render

LENGTH = struct.Struct("<I")


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer until the source ends."""
    while len(head := source.read(LENGTH.size)) == LENGTH.size:
        texts = msgspec.json.decode(source.read(LENGTH.unpack(head)[0]), type=list[str])
        body = msgspec.json.encode([render(text) for text in texts])
        sink.write(LENGTH.pack(len(body)) + body)
        sink.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
