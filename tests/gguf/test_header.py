"""GGUF headers: what real files say, and that no damaged one gets through or does harm."""

from __future__ import annotations

import ctypes
import importlib.machinery
import os
import struct
from pathlib import Path

import pytest
from gguf import GGUFReader

from llm_server.gguf.header import (
    MAX_ALL_ITEMS,
    MAX_ALL_TEXTS,
    MAX_HEADER,
    MAX_ITEMS,
    MAX_KEY,
    MAX_KEYS,
    MAX_TEXT,
    InvalidGguf,
    Omitted,
    read_header,
)
from llm_server.gguf.types import TENSOR_TYPES
from tests.gguf_bytes import TINY, Metadata, encoded, gguf, text

F32, Q4_0 = 0, 2


def written(folder: Path, content: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(content)
    return path


def reason(folder: Path, content: bytes) -> str:
    with pytest.raises(InvalidGguf) as caught:
        read_header(written(folder, content))
    assert str(folder) not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("fixture", ["attention_gguf", "spm_gguf", "recurrent_gguf", "hybrid_gguf"])
def test_real_files_are_read_as_their_library_reads_them(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(fixture)
    header, theirs = read_header(path), GGUFReader(path)
    assert set(header.metadata) == {k for k in theirs.fields if not k.startswith("GGUF.")}
    for tensor, other in zip(header.tensors, theirs.tensors, strict=True):
        assert (tensor.name, tensor.n_elements, tensor.n_bytes, tensor.offset) == (
            other.name,
            other.n_elements,
            other.n_bytes,
            other.data_offset,
        )
        assert tensor.shape == tuple(other.shape)
    template = theirs.fields["tokenizer.chat_template"]
    assert header.metadata["tokenizer.chat_template"] == template.contents()


def test_the_table_of_types_is_that_of_the_installed_library() -> None:
    # Not importlib.util: it asks sys.modules, where the loader may have put a bare package.
    spec = importlib.machinery.PathFinder.find_spec("llama_cpp")
    assert spec is not None and spec.submodule_search_locations
    (folder,) = spec.submodule_search_locations
    ggml = ctypes.CDLL(str(next(Path(folder, "lib").glob("libggml-base.*"))))
    ggml.ggml_type_size.restype = ctypes.c_size_t
    ggml.ggml_blck_size.restype = ctypes.c_int64
    ggml.ggml_type_name.restype = ctypes.c_char_p
    for number in range(64):
        # Types that were removed have no block; those behind the last have no name.
        if number >= 43:
            assert number not in TENSOR_TYPES
        elif (block := ggml.ggml_blck_size(number)) == 0:
            assert number not in TENSOR_TYPES
        else:
            known = TENSOR_TYPES[number]
            assert (known.block, known.size) == (block, ggml.ggml_type_size(number))
            assert known.name.lower() == ggml.ggml_type_name(number).decode().lower()


def test_long_values_are_passed_over_and_what_follows_is_read(tmp_path: Path) -> None:
    metadata = {
        "words": ["x" * (i % 50) for i in range(200_000)],
        "numbers": list(range(5000)),
        "long": "y" * (MAX_TEXT + 1),
        "few": [1, 2, 3],
        "names": ["a", "b"],
        "last": "z",
    }
    header = read_header(written(tmp_path, gguf(metadata)))
    assert header.metadata == {
        "words": Omitted(200_000),
        "numbers": Omitted(5000),
        "long": Omitted(MAX_TEXT + 1),
        "few": (1, 2, 3),
        "names": ("a", "b"),
        "last": "z",
    }


def test_what_is_kept_of_all_values_is_bounded(tmp_path: Path) -> None:
    array, text = list(range(MAX_ITEMS)), "y" * MAX_TEXT
    metadata: Metadata = {f"a{i}": array for i in range(MAX_ALL_ITEMS // MAX_ITEMS + 1)}
    metadata |= {f"t{i}": text for i in range(MAX_ALL_TEXTS // MAX_TEXT + 1)}
    kept = read_header(written(tmp_path, gguf(metadata | {"last": 1}))).metadata
    assert [name for name, value in kept.items() if isinstance(value, Omitted)] == [
        f"a{MAX_ALL_ITEMS // MAX_ITEMS}",
        f"t{MAX_ALL_TEXTS // MAX_TEXT}",
    ]
    assert kept["last"] == 1


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    whole = gguf(TINY, [("a", (32, 2), Q4_0), ("b", (8,), F32)], sizes=(36, 32))
    assert len(read_header(written(tmp_path, whole)).tensors) == 2
    for length in range(len(whole)):
        assert reason(tmp_path, whole[:length])


def test_a_tensor_may_end_where_the_file_does(tmp_path: Path) -> None:
    # Without the padding behind the last one, which llama.cpp does not need.
    whole = gguf(TINY, [("a", (32, 2), Q4_0)], sizes=(36,))
    read_header(written(tmp_path, whole[: len(whole) - (64 - 36)]))
    assert "shorter" in reason(tmp_path, whole[: len(whole) - (64 - 36) - 1])


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"GGML" + bytes(60), "not a GGUF"),
        (gguf(version=1), "version 1"),
        (gguf(version=4), "version 4"),
        (gguf(version=3 << 24), "byte order"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 1 << 62, 0), "absurdly"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 1 << 62), "absurdly"),
        (struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 1 << 63), "damaged"),
        (gguf({"": 1}), "empty"),
        (gguf({"k" * (MAX_KEY + 1): 1}), "absurdly long"),
        (gguf({f"k{i}": 1 for i in range(MAX_KEYS + 1)}), "absurdly many"),
        (gguf({"general.alignment": 0}), "power of two"),
        (gguf({"general.alignment": 3}), "power of two"),
        (gguf({"general.alignment": "32"}), "wrong type"),
        (gguf({}, [("x" * 64, (1,), F32)], sizes=(4,)), "too long"),
        (gguf({}, [("x", (1,) * 5, F32)], sizes=(4,)), "dimensions"),
        (gguf({}, [("x", (-1, -1), F32)], sizes=(4,)), "shape"),
        (gguf({}, [("x", (31,), Q4_0)], sizes=(18,)), "shape"),
        (gguf({}, [("x", (1 << 31,) * 4, F32)], sizes=(4,)), "no memory"),
        (gguf({}, [("x", (1,), 99)], sizes=(4,)), "type 99"),
        (gguf({}, [("x", (1,), F32)] * 2, sizes=(4, 4)), "twice"),
        (gguf({}, [("x", (1,), F32), ("y", (1,), F32)], sizes=(64, 4)), "where it should be"),
        (gguf({}, [("x", (1 << 40,), F32)], sizes=(4,)), "shorter"),
    ],
)
def test_damage_is_named(tmp_path: Path, content: bytes, word: str) -> None:
    assert word in reason(tmp_path, content)


def test_a_key_twice_and_unknown_or_nested_types(tmp_path: Path) -> None:
    def with_pairs(*pairs: bytes) -> bytes:
        return struct.pack("<4sIQQ", b"GGUF", 3, 0, len(pairs)) + b"".join(pairs) + bytes(64)

    assert "twice" in reason(tmp_path, with_pairs(*[text("a") + encoded(1)] * 2))
    assert "unknown type" in reason(tmp_path, with_pairs(text("a") + struct.pack("<I", 13)))
    nested = text("a") + struct.pack("<IIQ", 9, 9, 1)
    assert "unknown type" in reason(tmp_path, with_pairs(nested))
    huge = text("a") + struct.pack("<IIQ", 9, 8, 1 << 63)
    assert "damaged" in reason(tmp_path, with_pairs(huge))
    huge_text = text("a") + struct.pack("<IIQQ", 9, 8, 1 << 20, (1 << 64) - 1)
    assert "damaged" in reason(tmp_path, with_pairs(huge_text))


def test_a_header_has_a_longest_length(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text("a"))
        file.write(struct.pack("<IIQ", 9, 0, 2 * MAX_HEADER))
        file.truncate(3 * MAX_HEADER)
    with pytest.raises(InvalidGguf, match="longer"):
        read_header(path)


def test_only_regular_files_are_read_and_none_blocks(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.gguf"
    os.mkfifo(fifo)
    for path in (fifo, Path("/dev/zero")):
        with pytest.raises(InvalidGguf, match="regular"):
            read_header(path)
    with pytest.raises(OSError):
        read_header(tmp_path / "nothing.gguf")
