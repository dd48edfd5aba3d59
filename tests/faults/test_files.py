"""Files change, vanish and fill up under a running server."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import tiny_models
from tests.faults.conftest import Serve, answer, body, invariants, long_body
from tests.live import LiveServer

WORDS = "the way of water is long and all people call it by her name then "


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A model of the same shape with other weights."""
    return tiny_models.build_attention(tmp_path / "other.gguf", seed=77)


def golden_of(serve: Serve, models: Path, model: Path) -> str:
    """What that model answers to the golden request."""
    shutil.copy(model, models / "elsewhere.gguf")
    server = serve("--model-name", "elsewhere.gguf", "--cache-size", "0")
    text = answer(server)
    server.close()
    (models / "elsewhere.gguf").unlink()
    return text


# ---- the model (F10, F11) ----------------------------------------------------------------------


def test_a_model_that_is_replaced_is_loaded_anew(serve: Serve, models: Path, other: Path) -> None:
    new = golden_of(serve, models, other)
    server = serve("--cache-size", "0")
    old = answer(server)
    assert old != new
    (worker,) = server.workers()
    with server.client.stream("POST", "/chat/completions", json=long_body()) as response:
        lines = response.iter_lines()
        next(lines)
        other.rename(models / "a.gguf")
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]", "what runs still has the old file, whole"
    invariants(server, new)
    assert server.workers()[0].pid != worker.pid


def test_a_model_that_is_overwritten_ends_what_runs(
    serve: Serve, models: Path, other: Path
) -> None:
    new = golden_of(serve, models, other)
    server = serve("--cache-size", "0")
    assert answer(server) != new
    endless = long_body(max_tokens=100_000, n=4)
    with server.client.stream("POST", "/chat/completions", json=endless) as response:
        lines = response.iter_lines()
        next(lines)
        (models / "a.gguf").write_bytes(other.read_bytes())
        # A new request finds it out, or the watch over those that run.
        assert answer(server) == new
        seen = [line for line in lines if line.startswith("data: ")]
    error = json.loads(seen[-1].removeprefix("data: "))["error"]
    assert error["code"] == "worker_crashed" and "changed while it was in use" in error["message"]
    invariants(server, new)


def test_a_model_that_is_deleted_goes_on_serving(serve: Serve, models: Path) -> None:
    server = serve("--cache-size", "0")
    golden = answer(server)
    (worker,) = server.workers()
    (models / "a.gguf").unlink()
    invariants(server, golden)
    assert server.workers() == [worker]


def test_a_truncated_model_is_a_crash_and_a_clear_refusal(serve: Serve, models: Path) -> None:
    server = serve("--cache-size", "0")
    golden = answer(server)
    whole = (models / "a.gguf").read_bytes()
    os.truncate(models / "a.gguf", 4096)
    refused = server.client.post("/chat/completions", json=body())
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "model_load_failed")
    assert server.client.get("/health").status_code == 503
    (models / "a.gguf").write_bytes(whole)
    invariants(server, golden)


def test_a_replaced_model_never_uses_old_chunks(
    serve: Serve, models: Path, other: Path, tmp_path: Path
) -> None:
    options = ("--cache-dir", str(tmp_path / "cache"), "--cache-write", "all")
    server = serve(*options)
    stored = server.client.post("/restore_cache", json=body(WORDS * 20))
    assert stored.json()["bytes"] > 0
    status = os.stat(models / "a.gguf")
    shutil.copy(other, models / "new")
    os.utime(models / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
    (models / "new").rename(models / "a.gguf")
    usage = server.client.post("/chat/completions", json=body(WORDS * 20)).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0


# ---- the cache folder (F6, F17) ----------------------------------------------------------------


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A file system with little room, where this user may mount one."""
    path.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", str(path).encode(), b"tmpfs", 0, b"size=1m") != 0:
        pytest.skip("no file system may be mounted here")
    try:
        yield path
    finally:
        libc.umount2(str(path).encode(), 2)


@contextlib.contextmanager
def hung(path: Path) -> Iterator[None]:
    """A mount that never answers, as one of a network that is gone: of FUSE, with nobody behind."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
    except OSError:
        pytest.skip("no file system may be mounted here")
    told = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    try:
        if libc.mount(b"hung", str(path).encode(), b"fuse", 0, told) != 0:
            pytest.skip("no file system may be mounted here")
        yield
    finally:
        libc.umount2(str(path).encode(), 2)
        os.close(device)


@pytest.mark.parametrize("place", ["models", "cache"])
def test_a_mount_that_hangs_stops_no_server(
    serve: Serve, models: Path, tmp_path: Path, place: str
) -> None:
    server = serve("--cache-dir", str(tmp_path / "cache"))
    golden = answer(server)
    with hung(tmp_path / place):
        assert answer(server) == golden
        invariants(server, golden)
        server.process.terminate()
        assert server.process.wait(30) == 0


def metric(server: LiveServer, name: str) -> float:
    lines = server.client.get("/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(name + " ")))


def test_a_full_cache_folder_costs_no_request(serve: Serve, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        (disk / "filler").write_bytes(bytes(900_000))
        options = (
            "--cache-dir",
            str(disk / "cache"),
            "--cache-size",
            "1GB",
            "--cache-write",
            "all",
        )
        server = serve(*options)
        golden = answer(server)
        stored = []
        for i in range(4):
            response = server.client.post("/restore_cache", json=body(f"{i} {WORDS * 40}"))
            assert response.status_code == 200, response.text
            stored.append(response.json()["bytes"])
        assert 0 in stored  # Nothing is said to be stored where it could not be.
        invariants(server, golden)
        assert metric(server, "llm_cache_errors_total") >= 1
        # Said once each time that it stops: small chunks may still have found room in between.
        stopped = server.log.count("cannot write to its folder")
        assert 1 <= stopped <= server.log.count("can write to its folder again") + 1
        server.process.terminate()
        server.process.wait(20)


def test_a_cache_folder_that_is_taken_away_costs_no_request(serve: Serve, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    server = serve("--cache-dir", str(cache), "--cache-write", "all")
    golden = answer(server)
    assert server.client.post("/restore_cache", json=body(WORDS * 20)).json()["bytes"] > 0
    shutil.rmtree(cache)
    cache.write_text("a file")
    for i in range(3):
        response = server.client.post("/restore_cache", json=body(f"{i} {WORDS * 20}"))
        assert response.status_code == 200 and response.json()["bytes"] == 0, response.text
    invariants(server, golden)
    assert cache.read_text() == "a file"


def test_a_cache_folder_that_is_deleted_is_made_again(serve: Serve, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    server = serve("--cache-dir", str(cache), "--cache-write", "all")
    golden = answer(server)
    prompt = body(WORDS * 20)
    assert server.client.post("/restore_cache", json=prompt).json()["bytes"] > 0
    shutil.rmtree(cache)
    for _ in range(3):
        assert answer(server) == golden
    assert server.client.post("/restore_cache", json=prompt).json()["status"] == "ok"
    assert list(cache.rglob("*.kv"))
    assert server.log.count("The cache folder is gone.") == 1
    assert server.log.count(" WARNING ") == 1 and " ERROR " not in server.log
    invariants(server, golden)


def test_two_servers_share_a_cache_folder(serve: Serve, tmp_path: Path) -> None:
    options = (
        "--cache-dir",
        str(tmp_path / "cache"),
        "--cache-size",
        "3MB",
        "--cache-write",
        "all",
    )
    servers = [serve(*options), serve(*options)]
    prompts = [f"{i} {WORDS * 8}" for i in range(6)]
    expected = [answer(servers[0], prompt) for prompt in prompts]

    def ask(i: int) -> str:
        return answer(servers[i % 2], prompts[i % len(prompts)])

    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(ask, range(60)))
    assert texts == list(itertools.islice(itertools.cycle(expected), 60))
    for server in servers:
        assert metric(server, "llm_cache_corrupt_total") == 0
        assert metric(server, "llm_cache_errors_total") == 0
        invariants(server, answer(server))
