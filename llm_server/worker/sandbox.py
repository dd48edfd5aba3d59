"""What a worker process gives up before it touches a model file; most of it on Linux alone.

A model is a hostile file until proven otherwise: what takes over this process by one shall find no
network, no other programs, no keys and no files but the model's own. `enter` comes with the first
lines of the process, `confine` once it knows its model and before libraries start threads, for
Landlock binds only the thread that asks for it and those it starts.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import llm_server
from llm_server.worker import landlock, seccomp

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITIES_VERSION_3 = 0x20080522
_KEPT_CAPABILITIES = 1 << 1 | 1 << 2 | 1 << 3  # DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER
_OOM_SCORE = 500  # the kernel should end a worker before it ends the server
_MAX_DESCRIPTORS = 1024  # a split model and a GPU's driver need some hundred

# Read by the C library, the loader, psutil and ggml.
_SYSTEM = (
    "/lib /lib64 /usr/lib /usr/lib64 /usr/local/lib /usr/local/lib64 /nix/store /gnu/store "
    "/etc/ld.so.cache /etc/ld.so.preload /etc/localtime /usr/share/zoneinfo /usr/share/locale "
    "/etc/ssl/openssl.cnf /dev/urandom /dev/random /dev/zero "
    "/proc/self /proc/meminfo /proc/cpuinfo /proc/stat /proc/vmstat /proc/filesystems "
    "/proc/sys/vm /proc/sys/kernel/osrelease /sys/devices/system /sys/fs/cgroup"
).split()
_GPU_LIBRARIES = (
    "proc sys opt/rocm* opt/cuda* usr/local/cuda* usr/share/vulkan etc/vulkan etc/OpenCL "
    "etc/nvidia etc/alternatives usr/share/nvidia"
).split()
_GPU_DEVICES = ("nvidia*", "dri", "kfd", "dxg", "mali*", "davinci*")


def enter() -> None:
    """Die with the parent, dump no core, be the first to go when memory runs out."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # No limit on the size of files: it would also hold for a log file on stderr, and for chunks.
    _limit(resource.RLIMIT_NOFILE, _MAX_DESCRIPTORS)
    # llama.cpp forks a debugger on abort if one is installed: seconds of delay, and a core's worth
    # of private data on stderr.
    os.environ["GGML_NO_BACKTRACE"] = "1"
    # Ctrl-C reaches the whole process group; the parent decides when workers stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        # Of a parent that is gone already, the pipe says so.
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        try:
            Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
        except OSError as error:
            print(f"this worker cannot be made the first to go: {error}", file=sys.stderr)
        # From here on nobody without privileges reads its memory through /proc, or traces it.
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def confine(*, readable: Iterable[Path], writable: Iterable[Path], gpu: bool) -> str:
    """Give up the network, other programs, and all files but those and the libraries' own.

    `gpu`: leave it the devices of graphics cards and what their drivers read, if there is a card.
    Says what it came to: "full", or "partial" with what this system does not offer. Never raises
    for that.
    """
    if sys.platform != "linux":
        return "partial (only Linux has Landlock and seccomp)"
    missing = []
    if len(os.listdir("/proc/self/task")) > 1:
        missing.append("threads that were there before it are free")
    cards = gpu_devices(Path("/dev")) if gpu else []
    libraries = [*library_paths(), *(gpu_libraries(Path("/")) if cards else ())]
    try:
        version = landlock.restrict(
            readable=[*libraries, *readable],
            writable=writable,
            devices=[Path("/dev/null"), *cards],
        )
    except OSError as error:
        missing.append(f"no Landlock: {error.strerror}")
    try:
        _drop_capabilities()
    except OSError as error:
        missing.append(f"capabilities kept: {error.strerror}")
    try:
        seccomp.install()
    except OSError as error:
        missing.append(f"no seccomp: {error.strerror}")
    if missing:
        return f"partial ({'; '.join(missing)})"
    return f"full (Landlock ABI {version}, seccomp)"


def gpu_devices(dev: Path) -> list[Path]:
    """The nodes and folders of graphics cards in `/dev`, by the names their drivers give them."""
    return sorted(path for pattern in _GPU_DEVICES for path in dev.glob(pattern))


def gpu_libraries(root: Path) -> Iterator[Path]:
    """What drivers of graphics cards read; toolkits lie in folders with or without a version."""
    for pattern in _GPU_LIBRARIES:
        yield from root.glob(pattern)


def library_paths() -> Iterator[Path]:
    """Where Python and the libraries of this process come from, and what they read at run time."""
    yield from map(Path, _SYSTEM)
    yield Path(llm_server.__file__).parent
    yield from {Path(sys.prefix, "lib"), Path(sys.base_prefix, "lib")}
    # A virtual environment is recognised by this file.
    yield Path(sys.prefix, "pyvenv.cfg")
    yield from map(Path, sorted(set(sysconfig.get_paths().values())))
    # Not what `-m` puts first: the folder the server was started in.
    imported = sys.path if sys.flags.safe_path else sys.path[1:]
    yield from (Path(entry) for entry in imported if entry)
    yield from (Path(p) for p in os.environ.get("LD_LIBRARY_PATH", "").split(":") if p)


def _limit(what: int, most: int) -> None:
    """Lower a limit of this process, also for ever."""
    _, hard = resource.getrlimit(what)
    value = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (value, value))


def _drop_capabilities() -> None:
    """What root may do beyond reading and writing files of others, which Landlock narrows.

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    if libc.capget(header, data) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if not (data[1] & ~_KEPT_CAPABILITIES or data[4]):
        return  # No root; a service manager may even forbid the call.
    effective, permitted = data[0] & _KEPT_CAPABILITIES, data[1] & _KEPT_CAPABILITIES
    kept = (ctypes.c_uint32 * 6)(effective, permitted, 0, 0, 0, 0)
    if libc.capset(header, kept) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
