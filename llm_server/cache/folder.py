"""The cache folder: where chunk files lie, how they get there whole, and how they leave.

`<folder>/<model>-v<version>/<2 hex digits>/<chunk name>`; `<model>` is the beginning of the
fingerprint. Any number of processes and models share it: files appear by rename and never change,
and only eviction takes a lock. Raises OSError and BadChunk; what that means to a request is not
known here. What cannot be read or deleted below the folder itself is in nobody's way.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from llm_server.cache.chunkfile import (
    VERSION,
    BadChunk,
    Chunk,
    Header,
    decode,
    decode_header,
    encode,
)
from llm_server.cache.files import Entry, Files
from llm_server.cache.index import KEEP_SHARE, Stored, eviction_order

logger = logging.getLogger(__name__)

TOUCH_S = 60
"""Seconds within which a second use of a file is not noted: an SD card is not a log file."""
STALE_TEMPORARY_S = 3600
"""Seconds after which an unfinished file is taken to be left over from a crash."""
WRITE_TRIES = 8
"""How often another process may delete what is being written: a folder that was empty, or, where
the cache is cleared, the unfinished file."""

_MODEL = re.compile(r"[0-9a-f]{16}-v\d+")
_FAN = re.compile(r"[0-9a-f]{2}")
LOCK = ".lock"
"""Held by who evicts, or adds to a ledger; in the cache folder itself."""
LEDGER = "ledger.json"
"""Beside the chunks of a model: see `ledger.py`."""


def model_folder(fingerprint: bytes) -> str:
    """The name of the folder for a model's chunks."""
    return f"{fingerprint.hex()[:16]}-v{VERSION}"


@dataclass(slots=True)
class Scan:
    """What lies in the folder: all models' chunks, those of one model with the last used at the
    end, and what crashes left over."""

    stored: list[Stored] = field(default_factory=list)
    mine: list[Stored] = field(default_factory=list)
    temporary: list[tuple[str, float]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    @property
    def n_bytes(self) -> int:
        """Bytes of all chunks."""
        return sum(file.size for file in self.stored)


class ChunkFolder:
    """The files of all models, and the chunks of one of them. Thread-safe."""

    def __init__(self, path: Path, fingerprint: bytes, files: Files) -> None:
        self._root = str(path)
        self._fingerprint = fingerprint
        self._model = model_folder(fingerprint)
        self._files = files
        self._told = False

    def create(self) -> None:
        """Make the folder itself, if it is not there.

        Raises:
            OSError: it cannot be made.
        """
        self._files.make_folder(self._root, parents=True)

    def scan(self) -> Scan:
        """Everything in the folder, by names and sizes, without opening a file.

        Raises:
            OSError: the folder cannot be read; one that is not there is empty.
        """
        found = Scan()
        for model in self._list(self._root):
            if not (model.is_folder and _MODEL.fullmatch(model.name)):
                continue
            for fan in self._list(f"{self._root}/{model.name}"):
                if fan.is_folder and _FAN.fullmatch(fan.name):
                    self._scan_files(f"{self._root}/{model.name}/{fan.name}", found)
        found.mine.sort(key=lambda file: file.used)
        return found

    def _scan_files(self, folder: str, found: Scan) -> None:
        found.folders.append(folder)
        mine = folder.startswith(f"{self._root}/{self._model}/")
        for entry in self._list(folder):
            chunk = Chunk.parse(entry.name)
            path = f"{folder}/{entry.name}"
            if entry.is_folder:
                continue
            if chunk is None and entry.name.endswith(".tmp"):
                found.temporary.append((path, entry.mtime))
            elif chunk is not None and mine and entry.size < chunk.least_bytes:
                found.temporary.append((path, entry.mtime))
            elif chunk is not None:
                found.stored.append(Stored(chunk, path, entry.size, entry.mtime))
                if mine:
                    found.mine.append(found.stored[-1])

    def _list(self, path: str) -> list[Entry]:
        try:
            return self._files.list_folder(path)
        except FileNotFoundError:
            return []
        except OSError as error:
            if path == self._root:
                raise
            self._pass_over(path, error)
            return []

    def _pass_over(self, path: str, error: OSError) -> None:
        """Say that something is left as it is; once, for it will be met again."""
        if not self._told:
            self._told = True
            logger.warning("The prompt cache leaves %s alone (%s).", path, error.strerror)

    def path(self, chunk: Chunk) -> str:
        """Where a chunk of this model lies."""
        return f"{self._root}/{self._model}/{chunk.key.hex()[:2]}/{chunk.name}"

    def find(self, chunk: Chunk) -> Chunk | None:
        """The chunk as it lies there now, a head or not; None if it does not, or is cut off.

        By its names and sizes alone, so that it costs the same however much is stored.

        Raises:
            OSError: the folder cannot be searched.
        """
        for named in (chunk.as_head(), replace(chunk, head=False)):
            if (self._files.size(self.path(named)) or 0) >= named.least_bytes:
                return named
        return None

    def has_lost(self, chunk: Chunk) -> bool:
        """Whether somebody took the chunk away, or cut it off, and not the whole folder.

        Raises:
            OSError: the folder cannot be searched.
        """
        return self.find(chunk) is None and self._files.is_folder(self._root)

    def read(self, chunk: Chunk) -> tuple[Header, memoryview]:
        """(header, payload) of a chunk, verified; its use is noted.

        Raises:
            OSError: it cannot be read; FileNotFoundError if it is gone.
            BadChunk: it is damaged, or another chunk than its name says.
        """
        with self._opened(chunk) as (path, descriptor, size, mtime):
            data = self._read_bytes(descriptor, size)
        header, payload = decode(data)
        self._check(header, chunk)
        if not 0 <= self._files.now() - mtime < TOUCH_S:
            with contextlib.suppress(OSError):  # a read-only folder still gives hits
                self._files.touch(path, self._files.now())
        return header, payload

    def touch(self, chunk: Chunk) -> None:
        """Note a use of a chunk that need not be read.

        Raises:
            OSError: it cannot be noted; FileNotFoundError if it is gone.
        """
        found = self.find(chunk)
        if found is None:
            raise FileNotFoundError(self.path(chunk))
        self._files.touch(self.path(found), self._files.now())

    def read_tokens(self, chunk: Chunk) -> bytes:
        """The packed tokens of a chunk; believed only for finding it, for they are not verified.

        Raises:
            OSError: it cannot be read.
            BadChunk: the header is damaged.
        """
        with self._opened(chunk) as (_, descriptor, size, _):
            header = decode_header(self._read_bytes(descriptor, min(size, chunk.least_bytes)))
        self._check(header, chunk)
        return header.packed

    @contextlib.contextmanager
    def _opened(self, chunk: Chunk) -> Iterator[tuple[str, int, int, float]]:
        """(path, descriptor, size, mtime); another process may have made it a head meanwhile."""
        path = self.path(chunk)
        try:
            descriptor, size, mtime = self._files.open(path)
        except FileNotFoundError:
            path = self.path(chunk.as_head())
            descriptor, size, mtime = self._files.open(path)
        try:
            yield path, descriptor, size, mtime
        finally:
            self._files.close(descriptor)

    def _read_bytes(self, descriptor: int, size: int) -> memoryview:
        data = memoryview(bytearray(size))
        at = 0
        while at < size:
            n = self._files.read_into(descriptor, data[at:])
            if n == 0:
                raise BadChunk("it ends too early")
            at += n
        return data

    def _check(self, header: Header, chunk: Chunk) -> None:
        if header.fingerprint != self._fingerprint:
            raise BadChunk("it belongs to another model")
        if header.chunk.as_head() != chunk.as_head():
            raise BadChunk("its name belongs to other contents")

    def write(self, header: Header, payload: bytes | memoryview, *, head: bool) -> Chunk:
        """Store a chunk: a temporary file, then its name. Crashes leave nothing that matches.

        It is not forced to the disk: after a power failure its size or its checksum will tell.

        Raises:
            OSError: it is not stored; nothing is left behind if that could be helped.
        """
        chunk = header.chunk.as_head() if head else header.chunk
        target = self.path(chunk)
        for _ in range(WRITE_TRIES):
            with contextlib.suppress(FileNotFoundError):
                self._write_file(target, header, payload)
                return chunk
            with contextlib.suppress(FileNotFoundError):
                fan = os.path.dirname(target)
                for folder in (self._root, os.path.dirname(fan), fan):
                    self._files.make_folder(folder)
        self._write_file(target, header, payload)
        return chunk

    def _write_file(self, target: str, header: Header, payload: bytes | memoryview) -> None:
        temporary = f"{os.path.dirname(target)}/{secrets.token_hex(8)}.tmp"
        descriptor = self._files.create(temporary)
        try:
            try:
                self._files.write_all(descriptor, encode(header, payload))
                self._files.write_all(descriptor, payload)
            finally:
                self._files.close(descriptor)
            self._files.rename(temporary, target)
        except OSError:
            with contextlib.suppress(OSError):
                self._files.remove(temporary)
            raise

    def mark_head(self, chunk: Chunk) -> Chunk:
        """Let a stored chunk count as part of a head from now on.

        Raises:
            OSError: it could not be renamed.
        """
        head = chunk.as_head()
        self._files.rename(self.path(chunk), self.path(head))
        return head

    def remove(self, path: str) -> None:
        """Delete a file; no error if it is gone.

        Raises:
            OSError: it cannot be deleted.
        """
        with contextlib.suppress(FileNotFoundError):
            self._files.remove(path)

    def discard(self, chunk: Chunk) -> None:
        """Delete a chunk that is not worth its name, under whichever of its names it lies.

        Raises:
            OSError: it cannot be deleted.
        """
        self.remove(self.path(chunk))
        self.remove(self.path(chunk.as_head()))

    def sweep(self, found: Scan) -> None:
        """Delete unfinished files that no living process can still be writing."""
        now = self._files.now()
        for path, mtime in found.temporary:
            if abs(now - mtime) > STALE_TEMPORARY_S:
                try:
                    self.remove(path)
                except OSError as error:
                    self._pass_over(path, error)

    def make_room(self, n_bytes: int, budget: int) -> tuple[Scan, int]:
        """Evict until `n_bytes` more fit into the budget: (what is left, how many were evicted).

        One process at a time evicts; while another one does, this only looks.

        Raises:
            OSError: the folder cannot be read or locked, or too little of it be deleted.
        """
        self._files.make_folder(self._root)
        lock = self._files.lock(f"{self._root}/{LOCK}")
        try:
            found = self.scan()
            if lock is None or found.n_bytes + n_bytes <= budget:
                return found, 0
            excess = found.n_bytes + n_bytes - int(budget * KEEP_SHARE)
            n_evicted, error = self._evict(found, excess)
            self.remove_empty(found.folders)
            left = self.scan()
            if error is not None and left.n_bytes + n_bytes > budget:
                raise error
            return left, n_evicted
        finally:
            if lock is not None:
                self._files.close(lock)

    def _evict(self, found: Scan, excess: int) -> tuple[int, OSError | None]:
        """Delete files of `excess` bytes: (how many, why one could not be that came before)."""
        n_evicted, failed = 0, None
        for victim in eviction_order(found.stored, self._files.now()):
            if excess <= 0:
                break
            try:
                self.remove(victim.path)
            except OSError as error:
                failed = error
                self._pass_over(victim.path, error)
            else:
                n_evicted += 1
                excess -= victim.size
        return n_evicted, failed

    def remove_empty(self, folders: list[str]) -> None:
        """Delete folders that no chunk is in any more; one that is in use just refuses."""
        for path in folders:
            with contextlib.suppress(OSError):
                self._files.remove_folder(path)
        for path in sorted({os.path.dirname(folder) for folder in folders}):
            with contextlib.suppress(OSError):
                if [entry.name for entry in self._list(path)] == [LEDGER]:
                    self._files.remove(f"{path}/{LEDGER}")
                self._files.remove_folder(path)
