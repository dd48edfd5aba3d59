"""What this machine has: processors, limits set by containers and services, graphics cards.

Read from what the system says of itself (/proc, /sys, sysctl); where it says nothing, so do these.
Judges nothing. `root` stands for `/`, for tests. psutil is imported where it is used, because flags
are asked for before anything is installed (`doctor/build.py`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

ROOT = Path("/")
_PCI_DISPLAY = "0x03"
_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
_CGROUP = "sys/fs/cgroup"


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, of this machine or of what the container or service may use that we run in."""

    total: int
    available: int


@dataclass(frozen=True, slots=True)
class Cores:
    """Physical cores that this process may use. Threads on the `slow` ones hold up the others."""

    fast: int
    slow: int


def physical_cores() -> int:
    """Fast cores that this process may use; more threads than that slow llama.cpp down."""
    return cores().fast


def cores(root: Path = ROOT, allowed: Collection[int] | None = None) -> Cores:
    """What there is among the processors `allowed`, by default those of this process.

    Of Intel's hybrids the efficiency cores are slow, as for llama.cpp's own programs
    (common_cpu_get_num_math). Elsewhere `cpu_capacity`, which ARM kernels have, or the greatest
    clock rate says how fast a core is, and the fast ones are as many as compute most when each
    gets the same share of the work, so that all take as long as the slowest of them.
    """
    if allowed is None and hasattr(os, "sched_getaffinity"):
        allowed = os.sched_getaffinity(0)
    folder = root / "sys/devices/system/cpu"
    numbers = _one_per_core(folder, allowed)
    if not numbers:
        return Cores(_told_cores(allowed), 0)
    performance = _listed(_read(root / "sys/devices/cpu_core/cpus"))
    if fast := sum(number in performance for number in numbers):
        return Cores(fast, len(numbers) - fast)
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        speeds = sorted((_number(folder / f"cpu{i}" / name) or 0 for i in numbers), reverse=True)
        if speeds[-1]:
            fast = max(range(1, len(speeds) + 1), key=lambda n: n * speeds[n - 1])
            return Cores(fast, len(speeds) - fast)
    return Cores(len(numbers), 0)


def _one_per_core(folder: Path, allowed: Collection[int] | None) -> list[int]:
    """The number of one logical processor of each physical core; none if nothing is said."""
    by_core: dict[str, int] = {}
    for cpu in folder.glob("cpu[0-9]*"):
        number = int(cpu.name.removeprefix("cpu"))
        if allowed is None or number in allowed:
            siblings = _read(cpu / "topology/core_cpus_list") or _read(
                cpu / "topology/thread_siblings_list"
            )
            if siblings:
                by_core[siblings] = number
    return list(by_core.values())


def _told_cores(allowed: Collection[int] | None) -> int:
    import psutil

    told = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return min(told, len(allowed)) if allowed else told


def _listed(text: str) -> set[int]:
    """The numbers of a kernel's list, such as `0-3,8`."""
    spans = (span.partition("-") for span in text.strip().split(",") if span)
    return {n for low, _, high in spans for n in range(int(low), int(high or low) + 1)}


def cpu_flags(root: Path = ROOT) -> set[str]:
    """Names of instruction sets as the kernel has them, such as `avx2` or `asimddp`."""
    if sys.platform == "darwin":
        return _darwin_flags()
    for line in _read(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def _darwin_flags() -> set[str]:
    """What `sysctl hw.optional` has switched on, under Linux's names where llama.cpp uses them."""
    names = {
        "neon": "asimd",
        "AdvSIMD": "asimd",
        "arm.FEAT_FP16": "asimdhp",
        "arm.FEAT_DotProd": "asimddp",
        "arm.FEAT_I8MM": "i8mm",
        "avx1_0": "avx",
        "avx2_0": "avx2",
        "f16c": "f16c",
        "fma": "fma",
    }
    try:
        said = subprocess.run(
            ["sysctl", "hw.optional"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except OSError:
        return set()
    lines = (line.partition(": ") for line in said.splitlines())
    found = {name.removeprefix("hw.optional.") for name, _, on in lines if on.strip() == "1"}
    return {flag for name, flag in names.items() if name in found}


def cpu_quota(root: Path = ROOT) -> float | None:
    """Processors that this process may use at a time (cgroup v2 `cpu.max`); None for no limit."""
    quotas: list[float] = []
    for group in _groups(root):
        quota, _, period = _read(group / "cpu.max").strip().partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory(root: Path = ROOT) -> Memory:
    """What there is now. A limit of a container or service counts as all there is.

    Pages of files that the limited group holds are not counted as used, since the kernel takes
    them back when it needs them.
    """
    import psutil

    now = psutil.virtual_memory()
    total, available = int(now.total), int(now.available)
    for group in _groups(root):
        limit = _number(group / "memory.max")
        if limit is not None and limit < int(now.total):
            total, available = min(total, limit), min(available, limit - _used(group))
    return Memory(total, max(0, available))


def _used(group: Path) -> int:
    used = _number(group / "memory.current") or 0
    for line in _read(group / "memory.stat").splitlines():
        if line.startswith("inactive_file "):
            used -= int(line.split()[1])
    return used


def open_files(wanted: int) -> int:
    """How many files this process may have open at once: its limit, raised to `wanted` if need be.

    Less than that where the system allows no more.
    """
    if sys.platform == "win32":
        return wanted
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes that this process may use (cgroup v2 `memory.max`); None for no limit."""
    limits = [_number(group / "memory.max") for group in _groups(root)]
    return min((limit for limit in limits if limit is not None), default=None)


def _groups(root: Path) -> list[Path]:
    """The control groups (v2) whose limits hold here: the outermost one, that of a container as it
    sees itself, and those below it down to this process's own, such as a service's."""
    lines = _read(root / "proc/self/cgroup").splitlines()
    name = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")
    return list(accumulate(filter(None, name.split("/")), Path.joinpath, initial=root / _CGROUP))


def graphics_cards(root: Path = ROOT) -> set[str]:
    """Makers of the graphics cards on the PCI bus, with or without a driver; `Apple` on a Mac."""
    if sys.platform == "darwin":
        return {"Apple"} if os.uname().machine == "arm64" else set()
    cards = (root / "sys/bus/pci/devices").glob("*")
    vendors = [
        _VENDORS.get(_read(card / "vendor").strip())
        for card in cards
        if _read(card / "class").startswith(_PCI_DISPLAY)
    ]
    return {vendor for vendor in vendors if vendor is not None}


def _number(path: Path) -> int | None:
    """A number of the system; None where it says none, such as `max`."""
    said = _read(path).strip()
    return int(said) if said.isdecimal() else None


def _read(path: Path) -> str:
    """A short text of the system; empty if there is none."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
