"""Fetching one model file over HTTP, so that it is there whole or not at all.

What has arrived lies beside the final name as `NAME.IDENTITY.part`, which is no model to anybody,
and is continued by the next attempt and the next run; IDENTITY stands for the content, so that
pieces of two versions never meet. The server never uses this module: only `llm-server pull` does.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO, NoReturn, Self, TypeVar

import httpx2

from llm_server import places
from llm_server.cache.files import NO_LOCKS
from llm_server.gguf.header import MAX_HEADER, InvalidGguf, read_header
from llm_server.models.connection import DownloadError, connect

if sys.platform != "win32":
    import fcntl

MAGIC = b"GGUF"
SPARE_BYTES = 64 * 10**6
"""Disk space that a download leaves free."""

T = TypeVar("T")

_READ = 1 << 20
_RETRIED = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_WAIT_S = 60.0
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,19})-\d+|\*)/(\d{1,19}|\*)")

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and, where it is known, how many it will be."""


class _GaveUp(DownloadError):
    """Attempt after attempt failed; a later one may not."""


class _Interrupted(Exception):
    """An attempt failed in a way that the next one may not; `wait_s` is what the server asks."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class Remote:
    """A file on a web server, and what is known of it. `name` is the name it gets here."""

    url: str
    name: str
    size: int | None = None
    sha256: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Retry:
    """Attempts in a row that may bring nothing new; seconds before the second, then doubled."""

    attempts: int = 5
    wait_s: float = 1.0


def fetch(remote: Remote, folder: Path, progress: Progress, retry: Retry | None = None) -> Path:
    """Fetch `remote` into `folder`, going on from what an earlier call left there.

    Raises:
        DownloadError: it cannot be had; what has arrived stays, unless it is known to be wrong.
        OSError: the disk refuses.
    """
    retry = retry or Retry()
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / remote.name
    with connect(remote.headers) as client:
        size, identity = _persist(lambda: _offer(client, remote), retry, remote.name)
        if final.exists():
            _require_same(final, replace(remote, size=size), progress)
            return final
        with _Part(folder, remote.name, identity) as part:
            _require_space(folder, max(0, (size or 0) - part.size))
            try:
                _Transfer(client, remote, size, identity, part, progress).run(retry)
            except _GaveUp as error:
                if not part.size:
                    raise
                said = "What has arrived is kept; the same command continues"
                raise DownloadError(f"{error}. {said}") from None
            part.check(remote.sha256)
            part.publish(final)
    return final


def check_space(folder: Path, files: Sequence[Remote]) -> None:
    """Raises DownloadError when what is known to be missing of `files` does not fit on the disk."""
    missing = 0
    for remote in files:
        paths = [folder / remote.name, *unfinished(folder, remote.name)]
        there = sum(path.stat().st_size for path in paths if path.exists())
        missing += max(0, (remote.size or 0) - there)
    if missing:
        _require_space(folder, missing)


def _require_space(folder: Path, n_bytes: int) -> None:
    free = places.free_bytes(folder.absolute())
    if n_bytes + SPARE_BYTES > free:
        wanted = f"{n_bytes / 1e6:,.0f} MB" if n_bytes else "an unknown number of MB"
        raise DownloadError(
            f"the disk of {folder} has {free / 1e6:,.0f} MB free, and {wanted} are to be "
            f"downloaded, with {SPARE_BYTES / 1e6:.0f} MB left free"
        )


def unfinished(folder: Path, name: str) -> list[Path]:
    """What downloads of the file `name` have left in `folder`."""
    return [path for path in folder.glob("*.part") if name_of_part(path) == name]


def name_of_part(path: Path) -> str:
    """The name that an unfinished file will have."""
    return _PART.sub("", path.name)


_PART = re.compile(r"\.[0-9a-f]{12}\.part$")


class _Part:
    """The beginning of a file, locked, with the hash of what is there."""

    def __init__(self, folder: Path, name: str, identity: str) -> None:
        self.name = name
        self.size = 0
        self._path = folder / f"{name}.{identity}.part"
        for other in unfinished(folder, name):
            if other != self._path:
                with contextlib.suppress(FileNotFoundError), other.open("rb") as left:
                    self._lock(left)  # Another version of it may be on its way.
                other.unlink(missing_ok=True)
        self._file = self._path.open("ab+")
        try:
            self._lock(self._file)
            self._rehash()
        except BaseException:
            self._file.close()
            raise

    def _lock(self, file: BinaryIO) -> None:
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    said = f"{self.name} is being pulled by another process"
                    raise DownloadError(said) from None

    def _rehash(self) -> None:
        self._file.seek(0)
        self._hash = hashlib.file_digest(self._file, "sha256")
        self.size = self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if not self.size:
            self.discard()

    def write(self, data: bytes) -> None:
        """Append. Raises DownloadError, and deletes the part, when this is no GGUF file."""
        self._file.write(data)
        self._hash.update(data)
        begun = self.size
        self.size += len(data)
        if begun < len(MAGIC) <= self.size:
            self._file.seek(0)
            head = self._file.read(24)
            if not head.startswith(MAGIC):
                self.discard()
                text = head.decode("ascii", "replace").splitlines()[0]
                raise DownloadError(f"{self.name} is not a GGUF file: it begins with {text!r}")
        if begun < MAX_HEADER <= self.size:
            self._check_header(whole=False)

    def require_space(self) -> None:
        """Raises DownloadError when the disk is nearly full."""
        _require_space(self._path.parent, 0)

    def restart(self) -> None:
        """Forget what is there."""
        self._file.truncate(0)
        self._hash = hashlib.sha256()
        self.size = 0

    def check(self, sha256: str | None) -> None:
        """Raises DownloadError, and deletes the part, when it is not what it should be."""
        if sha256 is not None and self._hash.hexdigest() != sha256:
            self._refuse("it has another SHA-256 than announced")
        self._check_header(whole=True)

    def _check_header(self, *, whole: bool) -> None:
        self._file.flush()
        try:
            read_header(self._path, whole=whole)
        except InvalidGguf as error:
            self._refuse(str(error))

    def _refuse(self, fault: str) -> NoReturn:
        self.discard()
        raise DownloadError(f"{self.name} arrived damaged and was deleted: {fault}")

    def discard(self) -> None:
        """Delete what is there."""
        self._path.unlink(missing_ok=True)

    def publish(self, final: Path) -> None:
        """Give the file its name, once its bytes are on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()  # Some systems rename no open files.
        self._path.replace(final)


class _Transfer:
    """Getting from the beginning of a file to all of it, in as many requests as it takes."""

    def __init__(
        self,
        client: httpx2.Client,
        remote: Remote,
        size: int | None,
        identity: str,
        part: _Part,
        progress: Progress,
    ) -> None:
        self._client = client
        self._remote = remote
        self._size = size
        self._identity = identity
        self._part = part
        self._progress = progress
        self._most = part.size

    def run(self, retry: Retry) -> None:
        """Raises DownloadError when attempts bring nothing new any more."""
        self._progress(self._part.size, self._size)
        while self._part.size != self._size:
            ended = _persist(self._attempt, retry, self._remote.name)
            if ended:
                return

    def _attempt(self) -> bool:
        """One request. True when the answer was read to its end, False when it brought something.

        Raises _Interrupted when it brought nothing that was not there before.
        """
        try:
            self._request()
            return True
        except (httpx2.HTTPError, _Interrupted):
            if self._part.size > self._most:
                self._most = self._part.size
                return False
            raise

    def _request(self) -> None:
        part, name = self._part, self._remote.name
        headers = {"Range": f"bytes={part.size}-"} if part.size else {}
        with self._client.stream("GET", self._remote.url, headers=headers) as response:
            if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                part.restart()
                raise _Interrupted("the server did not know the rest of the file")
            _require_success(response, name)
            start, size = _extent(response)
            if start != part.size:
                if start:
                    raise DownloadError(f"{name}: the server sent another part than asked for")
                part.restart()  # It does not know ranges.
            if _identity(self._remote, response, size) != self._identity or (
                size is not None and size != self._size
            ):
                raise DownloadError(
                    f"{name}: the server offers {size} bytes of another version than announced "
                    f"({self._size} bytes); pull it again"
                )
            for block in response.iter_raw():  # A size would lose what is short of it at a break.
                if self._size is None:
                    part.require_space()
                part.write(block)
                self._progress(part.size, self._size)
                if self._size is not None and part.size > self._size:
                    part.restart()
                    raise _Interrupted(f"the server sent more than {self._size} bytes")
        if self._size is not None and part.size != self._size:
            raise _Interrupted(f"the server sent {part.size} of {self._size} bytes")


def _persist(attempt: Callable[[], T], retry: Retry, name: str) -> T:
    """What `attempt` returns, in the end. Raises _GaveUp when it keeps failing."""
    wait_s = retry.wait_s
    for remaining in reversed(range(retry.attempts)):
        try:
            return attempt()
        except httpx2.TransportError as error:
            reason, asked = str(error) or type(error).__name__, None
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
            # UnicodeError: no host has such a name.
            raise DownloadError(f"{name}: {error}") from None
        except _Interrupted as error:
            reason, asked = str(error), error.wait_s
        if remaining:
            time.sleep(min(_LONGEST_WAIT_S, wait_s if asked is None else asked))
            wait_s *= 2
    raise _GaveUp(f"{name}: {retry.attempts} attempts failed, the last one with: {reason}")


def _offer(client: httpx2.Client, remote: Remote) -> tuple[int | None, str]:
    """Size and identity of the file, from what is known or else from the server."""
    if remote.sha256 and remote.size is not None:
        return remote.size, remote.sha256[:12]
    with client.stream("GET", remote.url) as response:  # Not every server answers HEAD.
        _require_success(response, remote.name)
        _, size = _extent(response)
        if remote.size is not None and size not in (None, remote.size):
            raise DownloadError(
                f"{remote.name}: the server offers {size} bytes where {remote.size} are announced"
            )
        size = size if remote.size is None else remote.size
        return size, _identity(remote, response, size)


def _identity(remote: Remote, response: httpx2.Response, size: int | None) -> str:
    """Twelve digits that stand for the content, as far as the server tells contents apart."""
    if remote.sha256:
        return remote.sha256[:12]
    tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or remote.url
    return hashlib.sha256(f"{tag} {size}".encode()).hexdigest()[:12]


def _extent(response: httpx2.Response) -> tuple[int, int | None]:
    """Where the body starts in the file, and the size of the whole file if it is told."""
    if response.status_code == HTTPStatus.PARTIAL_CONTENT:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is None or match[1] is None:
            raise DownloadError("the server answered a range with an unreadable Content-Range")
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _require_success(response: httpx2.Response, name: str) -> None:
    status = response.status_code
    if status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        return
    said = f"the server answered {status} {response.reason_phrase}".rstrip()
    if status in _RETRIED:
        asked = response.headers.get("Retry-After", "")
        raise _Interrupted(said, float(asked) if asked.isdecimal() else None)
    hint = {
        401: "; it wants a token (HF_TOKEN for Hugging Face)",
        403: "; the token, if any, is not allowed to read this file",
        404: "; check the address",
    }.get(status, "")
    raise DownloadError(f"{name}: {said}{hint}")


def _require_same(final: Path, remote: Remote, progress: Progress) -> None:
    """The file is here already: the same one, or somebody's own that must not be overwritten."""
    here = final.stat().st_size
    same = remote.size in (None, here)
    if same and remote.sha256:
        digest = hashlib.sha256()
        with final.open("rb") as file:
            while block := file.read(_READ):
                digest.update(block)
                progress(file.tell(), here)
        same = digest.hexdigest() == remote.sha256
    if not same:
        raise DownloadError(
            f"{final} exists and is another file; remove it first: llm-server rm {remote.name}"
        )
