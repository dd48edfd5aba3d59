"""The file format: no damage goes unnoticed, and names say what is inside."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_server.cache.chunkfile import BadChunk, Chunk, Header, decode, decode_header, encode
from llm_server.cache.keys import Kind, pack

PAYLOAD = b"the cells"
HEADER = Header(b"f" * 32, b"p" * 32, Kind.RANGE, 512, pack([7, 8]), len(PAYLOAD))


def test_what_was_encoded_is_decoded() -> None:
    header, payload = decode(encode(HEADER, PAYLOAD) + PAYLOAD)
    assert header == HEADER
    assert payload == PAYLOAD


def test_any_bit_flipped_is_noticed() -> None:
    data = bytearray(encode(HEADER, PAYLOAD) + PAYLOAD)
    for at in range(len(data)):
        for bit in range(8):
            data[at] ^= 1 << bit
            with pytest.raises(BadChunk):
                decode(data)
            data[at] ^= 1 << bit
    decode(data)


def test_any_byte_missing_or_added_is_noticed() -> None:
    data = encode(HEADER, PAYLOAD) + PAYLOAD
    for n in range(len(data)):
        with pytest.raises(BadChunk):
            decode(data[:n])
        with pytest.raises(BadChunk):
            decode(data[:n] + bytes(len(data) - n))
    with pytest.raises(BadChunk):
        decode(data + b"\0")


@given(st.binary(max_size=300))
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BadChunk):
        decode(data)
    with pytest.raises(BadChunk):
        decode_header(data)


CHUNKS = st.builds(
    Chunk,
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=8, max_size=8),
    st.sampled_from(Kind),
    st.integers(0, 2**31),
    st.integers(0, 65_535),
    st.booleans(),
)


@given(CHUNKS)
def test_names_say_everything(chunk: Chunk) -> None:
    assert Chunk.parse(chunk.name) == chunk


@given(st.text(max_size=20))
def test_foreign_names_are_no_chunks(name: str) -> None:
    assert Chunk.parse(name) is None
