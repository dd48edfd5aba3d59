"""What is said of threads, memory, folders, disk and port."""

from __future__ import annotations

import os
import socket
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from llm_server.doctor import checks
from llm_server.machine import Cores
from tests.fake_live import live_server

GB = 10**9


@pytest.mark.parametrize(
    ("n_threads", "fast", "slow", "quota", "status", "fix"),
    [
        (4, 4, 0, None, "ok", None),
        (2, 4, 0, None, "ok", None),
        (8, 4, 0, None, "warn", "export LLM_SERVER_THREADS=4"),
        (8, 4, 4, None, "warn", "export LLM_SERVER_THREADS=4"),
        (24, 8, 16, None, "warn", "export LLM_SERVER_THREADS=8"),
        (4, 4, 4, None, "ok", None),
        (16, 16, 0, 2.0, "warn", "export LLM_SERVER_THREADS=2"),
        (16, 16, 0, 0.5, "warn", "export LLM_SERVER_THREADS=1"),
        (2, 16, 0, 2.0, "ok", None),
    ],
)
def test_threads(
    n_threads: int, fast: int, slow: int, quota: float | None, status: str, fix: str | None
) -> None:
    found = checks.thread_finding(n_threads, Cores(fast, slow), quota)
    assert (found.status, found.fix) == (status, fix)
    kinds = f"{fast} fast and {slow} slow" if slow else fast
    assert found.detail.startswith(f"{n_threads} threads on {kinds} cores")


def test_memory() -> None:
    assert checks.memory_finding(16 * GB, 9 * GB, None, 5 * GB).status == "ok"
    tight = checks.memory_finding(16 * GB, GB // 2, None, 0)
    assert tight.status == "warn"
    large = checks.memory_finding(16 * GB, 9 * GB, None, 40 * GB)
    assert large.status == "warn" and "40.0 GB" in large.detail
    boxed = checks.memory_finding(64 * GB, 60 * GB, 4 * GB, 5 * GB)
    assert boxed.status == "warn" and "service may use 4.0 GB" in boxed.detail


def test_swap() -> None:
    assert checks.swap_finding(0, 0).status == "ok"
    assert checks.swap_finding(4 * GB, GB).status == "ok"
    assert checks.swap_finding(4 * GB, 3 * GB).status == "warn"


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.folder_finding("models", tmp_path, needs_write=True).status == "ok"
    missing = checks.folder_finding("cache", tmp_path / "a" / "b", needs_write=True)
    assert missing.status == "ok" and "will be made" in missing.detail
    (tmp_path / "file").write_text("")
    found = checks.folder_finding("models", tmp_path / "file" / "x", needs_write=False)
    assert found.status == "fail" and found.fix == "export LLM_SERVER_MODELS_DIR=/another/folder"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    relative = checks.folder_finding("models", Path("here"), needs_write=False)
    assert (relative.status, relative.detail) == ("ok", str(tmp_path / "here"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do all")
def test_folders_of_somebody_else(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert checks.folder_finding("models", tmp_path, needs_write=False).status == "ok"
    found = checks.folder_finding("cache", tmp_path, needs_write=True)
    assert found.status == "fail" and found.fix and "chown" in found.fix
    tmp_path.chmod(0o700)


@pytest.mark.skipif(sys.platform == "win32", reason="has no statvfs")
def test_a_read_only_file_system_is_no_matter_of_owners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = namedtuple("flags", "f_flag")
    monkeypatch.setattr(os, "statvfs", lambda _: flags(os.ST_RDONLY))
    assert checks.folder_finding("models", tmp_path, needs_write=False).status == "ok"
    found = checks.folder_finding("cache", tmp_path, needs_write=True)
    assert found.status == "fail" and "read-only" in found.detail
    assert found.fix == "export LLM_SERVER_CACHE_DIR=/another/folder"


def test_the_disk_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    found = checks.disk_finding(tmp_path / "not yet")
    assert "MB/s written" in found.detail
    assert list(tmp_path.iterdir()) == []


def test_a_free_port() -> None:
    assert checks.port_finding("127.0.0.1", 0).status == "ok"


def test_a_port_in_use_by_another_program() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        other.settimeout(10)
        found = checks.port_finding("127.0.0.1", port)
    assert found.status == "fail" and "in use" in found.detail
    assert found.fix is not None and found.fix.startswith("export LLM_SERVER_PORT=")


@pytest.mark.parametrize("keys", [(), ("a-key",)])
def test_a_port_in_use_by_this_server_is_no_fault(tmp_path: Path, keys: tuple[str, ...]) -> None:
    with live_server(tmp_path, wait=False, api_key=keys) as live:
        found = checks.port_finding("127.0.0.1", live.client.base_url.port or 0)
    assert found.status == "ok" and "llm-server" in found.detail
