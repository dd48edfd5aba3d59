"""Every operation of the operating system that the chunk store uses, one method each.

The one seam of the store: tests make any of them fail, or the clock lie. No policy here; methods
raise OSError as the system does.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
import time
from dataclasses import dataclass

if sys.platform != "win32":
    import fcntl

_FLAGS = 0
for _name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):
    _FLAGS |= getattr(os, _name, 0)  # each system has some of them

NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
"""What `flock` fails with where a file system has no locks: NFS without its daemon, Lustre."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder: `size` in bytes, `mtime` in seconds since the epoch."""

    name: str
    is_folder: bool
    size: int
    mtime: float


class Files:
    """The real file system and the real clocks."""

    def now(self) -> float:
        """The wall clock, which modification times are compared with; it may jump."""
        return time.time()

    def monotonic(self) -> float:
        """A clock for intervals, in seconds."""
        return time.monotonic()

    def make_folder(self, path: str, *, parents: bool = False) -> None:
        """Create a folder for its owner alone. No error if it exists."""
        if parents:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not os.path.isdir(path):
                raise

    def list_folder(self, path: str) -> list[Entry]:
        """The regular files and folders in a folder; what vanishes meanwhile, or cannot be looked
        at, is left out."""
        found = []
        with os.scandir(path) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                    is_folder = stat.S_ISDIR(status.st_mode)
                    found.append(Entry(entry.name, is_folder, status.st_size, status.st_mtime))
        return found

    def size(self, path: str) -> int | None:
        """Bytes of the regular file of that name, not through a link; None if there is none."""
        try:
            status = os.stat(path, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def is_folder(self, path: str) -> bool:
        """Whether it is one, also behind a link."""
        return os.path.isdir(path)

    def create(self, path: str) -> int:
        """A descriptor for writing a new file, readable by its owner alone."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        """Write some of `data`; how many bytes."""
        return os.write(descriptor, data)

    def write_all(self, descriptor: int, data: bytes | memoryview) -> None:
        """Write all of `data`."""
        view = memoryview(data).cast("B")
        while view:
            view = view[self.write(descriptor, view) :]

    def open(self, path: str) -> tuple[int, int, float]:
        """(descriptor for reading, size, mtime) of a regular file, not through a link."""
        descriptor = os.open(path, os.O_RDONLY | _FLAGS)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise FileNotFoundError(path)
        return descriptor, status.st_size, status.st_mtime

    def read_into(self, descriptor: int, buffer: memoryview) -> int:
        """Fill the beginning of `buffer`; how many bytes, 0 at the end of the file."""
        with io.FileIO(descriptor, closefd=False) as file:
            return file.readinto(buffer)

    def close(self, descriptor: int) -> None:
        """Give a descriptor back."""
        os.close(descriptor)

    def rename(self, source: str, target: str) -> None:
        """Give a file another name, atomically, replacing what has it."""
        os.replace(source, target)

    def remove(self, path: str) -> None:
        """Delete a file."""
        os.unlink(path)

    def remove_folder(self, path: str) -> None:
        """Delete an empty folder."""
        os.rmdir(path)

    def touch(self, path: str, now: float) -> None:
        """Set the modification time of a file."""
        os.utime(path, (now, now))

    def lock(self, path: str) -> int | None:
        """A descriptor that holds the lock `path`, or None if another process has it.

        The system frees the lock when the descriptor is closed, also by the death of its process.
        Where the file system has no locks, everybody holds it.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
        try:
            if sys.platform != "win32":
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(descriptor)
                raise
        return descriptor
