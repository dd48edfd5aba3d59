"""Threads, memory, disk, folders and port: what a server with these settings would meet here."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from llm_server import places
from llm_server.doctor.finding import Finding
from llm_server.machine import Cores

LITTLE_MEMORY = 10**9
SLOW_DISK = 50e6
"""Bytes a second; below, a large model computes a short prompt sooner than it reads it."""
_MEASURED_BYTES = 32 << 20
_LITTLE_DISK = 2 * 10**9


def thread_finding(n_threads: int, cores: Cores, quota: float | None) -> Finding:
    """Whether `n_threads` suit the cores, of whose logical processors `quota` may be used."""
    kinds = f"{cores.fast} fast and {cores.slow} slow" if cores.slow else cores.fast
    detail = f"{n_threads} threads on {kinds} cores"
    if quota is not None and n_threads > max(1, round(quota)):
        detail += f", and only {quota:g} processors may be used here: they wait for each other"
        return Finding("threads", "warn", detail, _threads_fix(max(1, round(quota))))
    if n_threads > cores.fast:
        slow = "the fast wait for the slow"
        detail += f": {slow if cores.slow else 'more than there are only wait for each other'}"
        return Finding("threads", "warn", detail, _threads_fix(cores.fast))
    return Finding("threads", "ok", detail)


def _threads_fix(n_threads: int) -> str:
    return f"export LLM_SERVER_THREADS={n_threads}"


def memory_finding(total: int, available: int, limit: int | None, largest: int) -> Finding:
    """Whether the `largest` model, in bytes, can be held; `limit` is a container's or service's."""
    usable = min(total, limit or total)
    detail = f"{usable / 1e9:.1f} GB, {min(available, usable) / 1e9:.1f} GB of it available"
    if limit is not None and limit < total:
        detail += f" (this container or service may use {limit / 1e9:.1f} GB)"
    if largest > usable:
        detail += f"; the largest model has {largest / 1e9:.1f} GB"
        fix = "take a smaller quantization, such as llm-server pull hf:OWNER/REPO:Q4_K_M"
        return Finding("memory", "warn", detail, fix)
    if min(available, usable) < LITTLE_MEMORY:
        return Finding("memory", "warn", detail, "end other programs, or take a smaller model")
    return Finding("memory", "ok", detail)


def swap_finding(total: int, used: int) -> Finding:
    """Whether the machine lives on its swap."""
    if not total:
        return Finding("swap", "ok", "none")
    detail = f"{used / 1e9:.1f} of {total / 1e9:.1f} GB used"
    if used > total // 2:
        return Finding("swap", "warn", detail, "end other programs: what is swapped out is slow")
    return Finding("swap", "ok", detail)


def folder_finding(check: str, folder: Path, needs_write: bool) -> Finding:
    """Whether the folder, or where it will be made, can be used by this user."""
    folder = folder.absolute()
    existing = _existing(folder)
    quoted = shlex.quote(str(existing))
    elsewhere = f"export LLM_SERVER_{check.upper()}_DIR=/another/folder"
    if not places.is_folder(existing):
        return Finding(check, "fail", f"{existing} is no folder", elsewhere)
    mend = f'sudo chown -R "$(id -un)" {quoted} && chmod -R u+rwX {quoted}'
    if not os.access(existing, os.R_OK | os.X_OK):
        return Finding(check, "fail", f"{existing} cannot be read", mend)
    writes = needs_write or existing != folder
    if writes and _is_read_only(existing):
        return Finding(check, "fail", f"{existing} is on a read-only file system", elsewhere)
    if writes and not os.access(existing, os.W_OK):
        return Finding(check, "fail", f"{existing} cannot be written", mend)
    if existing != folder:
        return Finding(check, "ok", f"{folder} (will be made when it is needed)")
    return Finding(check, "ok", str(folder))


def disk_finding(folder: Path) -> Finding:
    """How fast the disk of the cache folder is, and what is free; writes and removes 32 MB."""
    existing = _existing(folder)
    free = psutil.disk_usage(str(existing)).free
    try:
        write, read = measure_disk(existing)
    except OSError as error:
        return Finding("disk", "fail", f"{existing}: {error.strerror}", f"df -h {existing}")
    detail = f"{write / 1e6:.0f} MB/s written, {read / 1e6:.0f} MB/s read, {free / 1e9:.1f} GB free"
    kind = _file_system(existing)
    if kind == "tmpfs":
        detail += "; it is in memory, and gone after a restart"
        return Finding("disk", "warn", detail, "export LLM_SERVER_CACHE_DIR=/a/folder/on/a/disk")
    if free < _LITTLE_DISK:
        return Finding("disk", "warn", detail, "llm-server cache clear")
    if min(write, read) < SLOW_DISK:
        detail += ": slow for a prompt cache"
        return Finding(
            "disk", "warn", detail, "export LLM_SERVER_CACHE_DIR=/a/folder/on/a/faster/disk"
        )
    return Finding("disk", "ok", detail)


def measure_disk(folder: Path) -> tuple[float, float]:
    """Bytes a second, written and read, past the system's cache where it can be told to forget."""
    block = os.urandom(1 << 20)
    with tempfile.TemporaryFile(dir=folder, prefix=".llm-server-", buffering=0) as file:
        started = time.perf_counter()
        for _ in range(_MEASURED_BYTES // len(block)):
            file.write(block)
        os.fsync(file.fileno())
        written = time.perf_counter()
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        turned = time.perf_counter()
        while file.read(len(block)):
            pass
        ended = time.perf_counter()
    return _MEASURED_BYTES / (written - started), _MEASURED_BYTES / (ended - turned)


def port_finding(host: str, port: int) -> Finding:
    """Whether a server could listen there, or is there already."""
    from llm_server.server import CannotStart, listen

    try:
        listen(host, port).close()
    except CannotStart as error:
        if name := _server_at(host, port):
            return Finding("port", "ok", f"{name} is running on {host} port {port}")
        with listen("127.0.0.1", 0) as free:
            other = free.getsockname()[1]
        return Finding("port", "fail", str(error), f"export LLM_SERVER_PORT={other}")
    return Finding("port", "ok", f"{port} on {host} is free")


def _server_at(host: str, port: int) -> str | None:
    """Name of the llm-server that listens there, with its version if it tells that to everybody."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{host}:{port}/", timeout=3) as response:
            said = json.loads(response.read(1 << 16))
    except urllib.error.HTTPError as error:
        # It asks for a key, and is known by the id of the request that all its answers have.
        ours = error.code == 401 and str(error.headers.get("x-request-id")).startswith("req_")
        return "llm-server" if ours else None
    except (OSError, ValueError):
        return None
    if not isinstance(said, dict) or said.get("name") != "llm-server":
        return None
    return f"llm-server {said.get('version')}"


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if os.path.exists(path))


def _is_read_only(folder: Path) -> bool:
    """Whether nobody may write to the file system that holds `folder`."""
    return sys.platform != "win32" and bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _file_system(folder: Path) -> str:
    """The type of the file system that holds `folder`."""
    if sys.platform == "win32":
        return ""
    resolved = folder.resolve()
    holders = [p for p in psutil.disk_partitions(all=True) if resolved.is_relative_to(p.mountpoint)]
    return max(holders, key=lambda p: len(p.mountpoint)).fstype if holders else ""
