"""Model files and chunk files: any bytes are read, or refused by the one error for that."""

from __future__ import annotations

import contextlib
import resource
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llm_server.cache.chunkfile import (
    HEADER_BYTES,
    BadChunk,
    Header,
    decode,
    decode_header,
    encode,
)
from llm_server.cache.fingerprint import model_fingerprint
from llm_server.cache.keys import Kind
from llm_server.gguf.header import InvalidGguf, read_header

HUGE = [2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
MAX_GROWTH = 64 << 10  # KiB of memory that no header may cost

EDITS = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 2**14), st.integers(0, 255).map(lambda byte: bytes([byte]))),
        st.tuples(st.integers(0, 2**14), st.sampled_from(HUGE).map(struct.Struct("<Q").pack)),
        st.tuples(st.integers(0, 2**14), st.binary(max_size=12)),
    ),
    max_size=6,
)

_START = b"GGUF" + struct.pack("<I", 3)
CORPUS = [
    b"",
    b"GGUF",
    _START + struct.pack("<QQ", 2**62, 0),
    _START + struct.pack("<QQ", 0, 2**62),
    # a key of 2^63 bytes; an array of 2^63 texts; an array in an array without end
    _START + struct.pack("<QQQ", 0, 1, 2**63),
    _START + struct.pack("<QQQ1sIIQ", 0, 1, 1, b"k", 9, 8, 2**63),
    _START + struct.pack("<QQQ1sI", 0, 1, 1, b"k", 9) + struct.pack("<IQ", 9, 1) * 5000,
    # alignment 0 and 3
    _START + struct.pack("<QQQ17sII", 0, 1, 17, b"general.alignment", 4, 0),
    _START + struct.pack("<QQQ17sII", 0, 1, 17, b"general.alignment", 4, 3),
    # a tensor whose size overflows 64 bits, one with an offset behind the file
    _START + struct.pack("<QQQ1sIQQIQ", 1, 0, 1, b"t", 2, 2**33, 2**33, 0, 0),
    _START + struct.pack("<QQQ1sIQIQ", 1, 0, 1, b"t", 1, 1, 0, 2**63),
]


def read_anything(path: Path, data: bytes) -> None:
    """What reads model files in Python, on one file."""
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        header = read_header(path)
    except InvalidGguf:
        pass
    else:
        assert all(tensor.n_bytes <= len(data) for tensor in header.tensors)
    with contextlib.suppress(ValueError):  # an empty file
        assert len(model_fingerprint(path)) == 32
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH


@pytest.fixture(scope="module")
def real(attention_gguf: Path) -> bytes:
    return attention_gguf.read_bytes()[: 1 << 15]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS, length=st.integers(0, 1 << 15))
def test_an_edited_model_is_read_or_refused(
    tmp_path: Path, real: bytes, edits: list[tuple[int, bytes]], length: int
) -> None:
    data = bytearray(real)
    for at, new in edits:
        data[at : at + len(new)] = new
    read_anything(tmp_path / "x.gguf", bytes(data[:length]))


@pytest.mark.parametrize("data", CORPUS, ids=range(len(CORPUS)))
def test_known_bad_models_are_refused(tmp_path: Path, data: bytes) -> None:
    for padding in (0, 4096):
        read_anything(tmp_path / "x.gguf", data + bytes(padding))


HEADER = Header(bytes(range(32)), bytes(32), Kind.RANGE, 256, struct.pack("<4I", 1, 2, 3, 4), 64)
CHUNK = encode(HEADER, bytes(64)) + bytes(64)


@given(edits=EDITS)
@example([(8, struct.pack("<I", 2**31))])
@example([(20, struct.pack("<I", 2**32 - 1))])  # tokens
@example([(24, struct.pack("<Q", 2**64 - 1))])  # payload
@example([(12, struct.pack("<I", 77))])  # kind
def test_an_edited_chunk_is_whole_or_refused(edits: list[tuple[int, bytes]]) -> None:
    data = bytearray(CHUNK)
    for at, new in edits:
        data[at % HEADER_BYTES : at % HEADER_BYTES + len(new)] = new
    with contextlib.suppress(BadChunk):
        assert len(decode_header(bytes(data)).packed) <= len(data)
    if bytes(data) == CHUNK:
        decode(bytes(data))
    else:
        with pytest.raises(BadChunk):
            decode(bytes(data))
