"""`/api/cache`: what the folder holds against its budget, and clearing it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_server.cache.chunkfile import PARENT_BYTES, Chunk
from llm_server.cache.folder import LEDGER
from llm_server.cache.keys import Kind
from tests.cache.scenario import MODEL, add_chunk
from tests.fake_live import add_models, live_server


def test_size_heads_and_clearing(tmp_path: Path) -> None:
    models, cache = tmp_path / "models", tmp_path / "cache"
    add_models(models, "a.gguf", "empty.gguf")
    keys = [bytes([i]) * 32 for i in range(4)]
    parents = [key[:PARENT_BYTES] for key in keys]
    heads = [Chunk(keys[i + 1], parents[i], Kind.RANGE, 256 * i, 256, True) for i in (0, 1)]
    rest = Chunk(keys[3], parents[2], Kind.RANGE, 512, 100)
    for chunk, size in zip([*heads, rest], (10, 20, 30), strict=True):
        add_chunk(cache, chunk, size)
    add_chunk(cache, Chunk(bytes([9]) * 32, parents[2], Kind.CHECKPOINT, 512, 88), 40)
    use = {keys[2].hex(): {"hits": 7, "used": 4e9}}
    record = {"model": "a.gguf", "heads": use}
    (cache / MODEL / LEDGER).write_text(json.dumps(record))
    with live_server(models, cache_dir=cache, cache_size=1000) as live:
        seen = live.client.get("/api/cache").json()
        assert (seen["bytes"], seen["budget"], seen["write"]) == (100, 1000, "auto")
        (model,) = seen["models"]
        assert (model["chunks"], model["tokens"], model["head_bytes"]) == (4, 612 + 600, 30)
        (head,) = seen["heads"]  # The two chunks of a head are one, its whole length told.
        assert (head["tokens"], head["bytes"]) == (512, 20)
        assert (head["hits"], head["used"]) == (7, 4e9)
        assert (head["name"], model["name"], model["id"]) == ("a.gguf", "a.gguf", head["model"])
        other = live.post("/api/cache/clear", {"model": "another"})
        assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")
        without = live.post("/api/cache/clear", {"model": "empty.gguf"})
        assert without.json() == {"chunks": 0, "bytes": 0, "status": "ok"}
        assert live.client.get("/api/cache").json()["bytes"] == 100
        cleared = live.post("/api/cache/clear", {"model": "*"}).json()
        assert cleared == {"chunks": 4, "bytes": 100, "status": "ok"}
        assert live.client.get("/api/cache").json()["bytes"] == 0


@pytest.mark.parametrize("name", ["a.gguf", "a", MODEL])
def test_the_prompts_of_one_model_are_cleared_by_its_name_or_its_id(
    tmp_path: Path, name: str
) -> None:
    models, cache = tmp_path / "models", tmp_path / "cache"
    add_models(models, "a.gguf")
    add_chunk(cache, Chunk(bytes([1]) * 32, bytes(PARENT_BYTES), Kind.RANGE, 0, 100), 10)
    (cache / MODEL / LEDGER).write_text(json.dumps({"model": "a.gguf", "heads": {}}))
    with live_server(models, cache_dir=cache) as live:
        cleared = live.post("/api/cache/clear", {"model": name}).json()
        assert cleared == {"chunks": 1, "bytes": 10, "status": "ok"}


def test_without_a_cache_on_disk(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    with live_server(tmp_path, cache_size=0) as live:
        seen = live.client.get("/api/cache").json()
        assert (seen["bytes"], seen["budget"], seen["models"]) == (0, 0, [])
        assert live.post("/api/cache/clear", {"model": "*"}).json()["chunks"] == 0


def test_a_disk_that_refuses_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    models, cache = tmp_path / "models", tmp_path / "cache"
    add_models(models, "a.gguf")
    cache.touch()
    with live_server(models, cache_dir=cache) as live:
        for answer, done in (
            (live.client.get("/api/cache"), "looked at"),
            (live.post("/api/cache/clear", {"model": "*"}), "cleared"),
        ):
            assert answer.status_code == 500
            message = answer.json()["error"]["message"]
            assert message == f"The prompt cache cannot be {done} (Not a directory)."
    assert not [record for record in caplog.records if record.exc_info]
