"""Run as a program: a worker up to the point where it would serve, which then tries to break out.

Arguments: its model, another model, and the folder of its cache folder. One JSON object on stdout.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from llm_server.worker.__main__ import begin, load

libc = ctypes.CDLL(None, use_errno=True)
PTRACE_ATTACH, CLONE_NEWUSER = 16, 0x10000000


def call(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")


def attempts(model: Path, other: Path, folder: Path) -> dict[str, Callable[[], object]]:
    parent = os.getppid()
    cache = folder / "cache"
    return {
        "read model": lambda: model.read_bytes(),
        "write cache": lambda: (cache / "x.tmp").write_bytes(b"x"),
        "rename in cache": lambda: (cache / "x.tmp").rename(cache / "x"),
        "remove in cache": lambda: (cache / "x").unlink(),
        "thread": lambda: threading.Thread(target=lambda: None).start(),
        "read /etc/passwd": lambda: open("/etc/passwd"),
        "read another model": lambda: open(other),
        "read the home folder": lambda: os.listdir("/root" if os.getuid() == 0 else "/home"),
        "write beside the cache": lambda: (folder / "x").write_bytes(b"x"),
        "write /tmp": lambda: open(f"/tmp/confined-{os.getpid()}", "w"),
        "write the model": lambda: open(model, "r+b"),
        "read /proc/loadavg": lambda: open("/proc/loadavg"),
        "read the parent's environment": lambda: open(f"/proc/{parent}/environ"),
    }


def calls() -> dict[str, Callable[[], object]]:
    parent = os.getppid()
    return {
        "socket inet": lambda: socket.socket(),
        "socket unix": lambda: socket.socket(socket.AF_UNIX),
        "exec": lambda: os.execv("/bin/true", ["true"]),
        "fork": lambda: os.fork() or os._exit(0),
        "signal the parent": lambda: os.kill(parent, 0),
        "ptrace the parent": lambda: call(libc.ptrace(PTRACE_ATTACH, parent, 0, 0)),
        "mount": lambda: call(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)),
        "unshare": lambda: call(libc.unshare(CLONE_NEWUSER)),
        "read the parent's memory": lambda: call(
            libc.process_vm_readv(parent, None, 0, None, 0, 0)
        ),
    }


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return f"{type(error).__name__} {error.errno}"
    return "ok"


def main() -> None:
    begun = begin()
    assert begun is not None
    command, _, _, out = begun
    ready = load(command, lambda fraction: None)
    model, other, folder = map(Path, sys.argv[1:])
    results = {name: outcome(attempt) for name, attempt in attempts(model, other, folder).items()}
    results |= {name: outcome(attempt) for name, attempt in calls().items()}

    def in_a_thread() -> None:
        results.update({f"{name} in a thread": outcome(f) for name, f in calls().items()})

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    results["environment"] = " ".join(os.environ)
    results["core limit"] = "{} {}".format(*resource.getrlimit(resource.RLIMIT_CORE))
    results["descriptors"] = " ".join(str(fd) for fd in range(100) if is_open(fd))
    if ready.disk:
        ready.disk.store.close(5)
    out.write(json.dumps(results).encode())
    out.flush()


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
