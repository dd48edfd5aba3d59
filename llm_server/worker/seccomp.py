"""A seccomp filter that leaves a process computing and its files: no network, no other programs.

Classic BPF, built by hand for x86-64 and AArch64 (linux/filter.h, linux/seccomp.h). What is
refused fails with EPERM, as if it had not been permitted: libraries cope with that. It knows no
models and no workers.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_SET_MODE_FILTER = 1
_ALL_THREADS = 1  # SECCOMP_FILTER_FLAG_TSYNC

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_AT_NUMBER, _AT_ARCH, _AT_FIRST_ARGUMENT = 0, 4, 16  # struct seccomp_data; low word, little endian
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_CLONE_THREAD = 0x00010000

_REFUSED = {
    # network
    "socket": (41, 198),
    "connect": (42, 203),
    "accept": (43, 202),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept4": (288, 242),
    "io_uring_setup": (425, 425),  # a ring would do all of this unseen
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # other programs and processes
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    # file systems and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # the kernel itself
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "personality": (135, 92),
    "modify_ldt": (154, None),
    "iopl": (172, None),
    "ioperm": (173, None),
}
"""Name: number on x86-64 and on AArch64."""


@dataclass(frozen=True, slots=True)
class _Arch:
    column: int
    audit: int  # AUDIT_ARCH_*, linux/audit.h
    seccomp: int
    clone: int
    clone3: int
    tgkill: int
    foreign: int | None  # numbers from here on belong to another calling convention


_ARCHS = {
    "x86_64": _Arch(0, 0xC000003E, 317, 56, 435, 234, 0x40000000),
    "aarch64": _Arch(1, 0xC00000B7, 277, 220, 435, 131, None),
}


def install() -> None:
    """Put the filter on all threads of this process, for ever. Needs PR_SET_NO_NEW_PRIVS.

    Raises:
        OSError: the kernel has no seccomp filters, or this architecture is not known here.
    """
    arch = _ARCHS.get(platform.machine())
    if arch is None:
        raise OSError(errno.ENOSYS, f"no system call filter for {platform.machine()}")
    code = b"".join(program(platform.machine(), os.getpid()))
    buffer = ctypes.create_string_buffer(code, len(code))
    header = _Program(len(code) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(
        ctypes.c_long(arch.seccomp), _SET_MODE_FILTER, _ALL_THREADS, ctypes.byref(header)
    )
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def refused(machine: str) -> dict[str, int]:
    """Names and numbers of the system calls that the filter refuses whatever their arguments."""
    column = _ARCHS[machine].column
    return {name: n for name, both in _REFUSED.items() if (n := both[column]) is not None}


def program(machine: str, pid: int) -> Iterator[bytes]:
    """The filter's instructions, 8 bytes each, for a process `pid` on `machine`."""
    arch = _ARCHS[machine]
    yield _instruction(_LOAD, _AT_ARCH)
    yield _instruction(_JUMP_EQUAL, arch.audit, 1, 0)
    yield _instruction(_RETURN, _KILL_PROCESS)
    yield _instruction(_LOAD, _AT_NUMBER)
    if arch.foreign is not None:
        yield _instruction(_JUMP_AT_LEAST, arch.foreign, 0, 1)
        yield _instruction(_RETURN, _ERRNO | errno.EPERM)
    # Its flags are in memory that a filter cannot see; libraries fall back to clone.
    yield _instruction(_JUMP_EQUAL, arch.clone3, 0, 1)
    yield _instruction(_RETURN, _ERRNO | errno.ENOSYS)
    # New threads, but no new processes.
    yield from _only_if(arch.clone, _JUMP_BITS, _CLONE_THREAD)
    # abort() signals its own process.
    yield from _only_if(arch.tgkill, _JUMP_EQUAL, pid)
    for number in refused(machine).values():
        yield _instruction(_JUMP_EQUAL, number, 0, 1)
        yield _instruction(_RETURN, _ERRNO | errno.EPERM)
    yield _instruction(_RETURN, _ALLOW)


def _only_if(number: int, test: int, value: int) -> Iterator[bytes]:
    """Decide call `number` by its first argument."""
    yield _instruction(_JUMP_EQUAL, number, 0, 4)
    yield _instruction(_LOAD, _AT_FIRST_ARGUMENT)
    yield _instruction(test, value, 0, 1)
    yield _instruction(_RETURN, _ALLOW)
    yield _instruction(_RETURN, _ERRNO | errno.EPERM)


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))
