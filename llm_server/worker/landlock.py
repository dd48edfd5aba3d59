"""Landlock through its three system calls: which files this thread, and what it starts, may touch.

Constants and structures are those of linux/landlock.h; the numbers of the calls are the same on
all architectures. It knows no models and no workers.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_PATH_BENEATH = 1

_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_ALL_OF_ABI_1 = (1 << 13) - 1
_SINCE = {2: _REFER, 3: _TRUNCATE, 5: _IOCTL_DEV}
_NO_TCP = 0b11  # bind and connect; ABI 4
_SCOPED = 0b11  # abstract sockets and signals beyond the domain; ABI 6

_READ = _READ_FILE | _READ_DIR
_CHANGE = (
    _READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _REFER | _TRUNCATE
)
_USE_DEVICE = _READ | _WRITE_FILE | _IOCTL_DEV
_FOR_FILES = _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
"""What can be granted on anything but a folder."""


class _RulesetAttr(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneathAttr(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def abi() -> int:
    """The version of Landlock that this kernel offers, 0 for none.

    Call it on Linux only.
    """
    size, flags = ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG)
    return max(0, _syscall(_CREATE_RULESET, None, size, flags))


def restrict(
    *, readable: Iterable[Path], writable: Iterable[Path] = (), devices: Iterable[Path] = ()
) -> int:
    """Leave this thread only those files and folders, for ever. The ABI that did it.

    From ABI 4 on TCP is gone too, from ABI 6 on signals to processes outside. What does not exist
    is passed over. Needs PR_SET_NO_NEW_PRIVS.

    Raises:
        OSError: the kernel offers no Landlock, or refuses.
    """
    version = abi()
    if version == 0:
        raise OSError(ctypes.get_errno(), "the kernel offers no Landlock")
    handled = _ALL_OF_ABI_1
    for since, access in _SINCE.items():
        handled |= access if version >= since else 0
    attr = _RulesetAttr(handled, _NO_TCP, _SCOPED)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = _checked(_CREATE_RULESET, ctypes.byref(attr), ctypes.c_size_t(size), 0)
    try:
        for paths, access in ((readable, _READ), (writable, _CHANGE), (devices, _USE_DEVICE)):
            for path in paths:
                _allow(ruleset, path, access & handled)
        _checked(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return version


def _allow(ruleset: int, path: Path, access: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # What is not there, or not ours to see, cannot be granted.
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            access &= _FOR_FILES
        rule = _PathBeneathAttr(access, descriptor)
        _checked(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(descriptor)


def _syscall(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.syscall(ctypes.c_long(number), *arguments))


def _checked(number: int, *arguments: object) -> int:
    result = _syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
