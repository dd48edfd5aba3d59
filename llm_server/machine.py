"""What this machine has: processors, limits set by containers and services, graphics cards.

Read from what the system says of itself (/proc, /sys, sysctl); where it says nothing, so do these.
Judges nothing. `root` stands for `/`, for tests. psutil is imported where it is used, because flags
are asked for before anything is installed (`doctor/build.py`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
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


def physical_cores() -> int:
    """Cores this process may use; more threads than that slow llama.cpp down."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return min(cores, allowed or cores)


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


def core_classes(root: Path = ROOT) -> list[int]:
    """How many logical processors there are of each speed, the fastest first; empty if unknown.

    By `cpu_capacity`, which ARM kernels have, or by the greatest clock rate, where a difference
    under a quarter is a boost and no other kind of core.
    """
    folder = root / "sys/devices/system/cpu"
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        said = [_read(cpu / name).strip() for cpu in folder.glob("cpu[0-9]*")]
        speeds = Counter(int(value) for value in said if value.isdecimal())
        if speeds:
            return _merged(speeds)
    return []


def _merged(speeds: Counter[int]) -> list[int]:
    classes: list[int] = []
    fastest = 0
    for speed, count in sorted(speeds.items(), reverse=True):
        if classes and speed > 0.75 * fastest:
            classes[-1] += count
        else:
            classes.append(count)
            fastest = speed
    return classes


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
