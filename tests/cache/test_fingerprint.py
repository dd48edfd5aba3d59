"""The fingerprint of a model: its content decides, its name does not."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest

from llm_server.cache.fingerprint import BLOCK, SAMPLES, fingerprint, model_fingerprint


def test_a_renamed_model_is_the_same(attention_gguf: Path, tmp_path: Path) -> None:
    renamed = shutil.copy(attention_gguf, tmp_path / "other.gguf")
    assert model_fingerprint(Path(renamed)) == model_fingerprint(attention_gguf)


def test_models_differ(attention_gguf: Path, spm_gguf: Path, hybrid_gguf: Path) -> None:
    assert len({model_fingerprint(p) for p in (attention_gguf, spm_gguf, hybrid_gguf)}) == 3


def test_every_byte_of_header_and_small_tensors_counts(
    attention_gguf: Path, tmp_path: Path
) -> None:
    data = bytearray(attention_gguf.read_bytes())
    original = model_fingerprint(attention_gguf)
    path = tmp_path / "changed.gguf"
    header_end = data.index(b"blk.1.ffn_down.weight")
    # Offset fields are left alone: they move the samples. The last tensor is a small one.
    for at in [*range(24, header_end, 97), len(data) - 1, len(data) - 200]:
        data[at] ^= 1
        path.write_bytes(data)
        assert model_fingerprint(path) != original, f"byte {at}"
        data[at] ^= 1


def gguf_with_one_tensor(path: Path, n_bytes: int) -> int:
    """A minimal GGUF; returns where its tensor's data begins."""
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 0)
    header += struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, n_bytes // 4, 0, 0)
    start = -(-len(header) // 32) * 32
    path.write_bytes(header.ljust(start, b"\0") + bytes(n_bytes))
    return start


def test_big_tensors_are_sampled_from_end_to_end(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    n_bytes = BLOCK * SAMPLES * 10
    start = gguf_with_one_tensor(path, n_bytes)
    seen = {model_fingerprint(path)}
    data = bytearray(path.read_bytes())
    for at in (0, n_bytes // 7 * 3, n_bytes - 1):
        data[start + at : start + at + BLOCK] = b"x" * min(BLOCK, n_bytes - at)
        path.write_bytes(data)
        seen.add(model_fingerprint(path))
    assert len(seen) >= 3
    path.write_bytes(data + b"\0")
    assert model_fingerprint(path) not in seen


@pytest.mark.parametrize("n_bytes", [4, 100, 5000])
def test_other_formats_are_hashed_whole(tmp_path: Path, n_bytes: int) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(b"GGUF" + bytes(n_bytes))
    original = model_fingerprint(path)
    path.write_bytes(b"GGUF" + bytes(n_bytes - 1) + b"x")
    assert model_fingerprint(path) != original


def test_truncated_headers_are_no_error(attention_gguf: Path, tmp_path: Path) -> None:
    data = attention_gguf.read_bytes()
    path = tmp_path / "cut.gguf"
    seen = set()
    for n in range(1, 12_000, 331):
        path.write_bytes(data[:n])
        seen.add(model_fingerprint(path))
    assert len(seen) == len(range(1, 12_000, 331))


def test_all_parts_of_a_split_model_count(tmp_path: Path) -> None:
    first, second = (tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2))
    first.write_bytes(b"GGUF one")
    second.write_bytes(b"GGUF two")
    original = model_fingerprint(first)
    second.write_bytes(b"GGUF 2")
    assert model_fingerprint(first) != original


def test_settings_count_whatever_their_order() -> None:
    model = bytes(32)
    one = fingerprint(model, {"type_k": "f16", "flash_attn": True})
    assert one == fingerprint(model, {"flash_attn": True, "type_k": "f16"})
    assert one != fingerprint(model, {"type_k": "q8_0", "flash_attn": True})
    assert one != fingerprint(b"x" * 32, {"type_k": "f16", "flash_attn": True})
