"""A web server for files in a thread, which misbehaves on command: once for each fault given."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Fault:
    """How the next request for a file is to be answered, instead of as it should be."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    drop_after: int | None = None
    """Bytes of the body after which the connection is cut."""
    ignore_range: bool = False
    length: int | None = None
    """What is said in Content-Length."""
    unsized: bool = False
    """Whether nothing is: the body ends with the connection."""


@dataclass
class FileServer:
    """`files` by path; what was asked for is in `requests`, as path and Range header."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    repos: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the hub's API says of a repository."""
    repo_status: tuple[int, str] | None = None
    """Status and X-Error-Code of the hub's API."""

    def add_repo(self, repo: str, files: dict[str, bytes], **lies: str) -> None:
        """A repository of the hub with these files; `lies` are hashes that are not theirs."""
        siblings = []
        for name, data in files.items():
            sha256 = lies.get("sha256") or hashlib.sha256(data).hexdigest()
            lfs = {"sha256": sha256, "size": len(data), "pointerSize": 134}
            siblings.append({"rfilename": name, "size": len(data), "blobId": "b", "lfs": lfs})
            self.files[f"/{repo}/resolve/{'c' * 40}/{name}"] = data
        self.repos[repo] = {"id": repo, "sha": "c" * 40, "siblings": siblings, "tags": []}

    def ranges(self) -> list[str | None]:
        """The Range headers of all requests for files so far."""
        return [range_ for _, range_ in self.requests]


class _Handler(BaseHTTPRequestHandler):
    served: FileServer

    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # The client may hang up when it likes.
            super().handle()

    def do_GET(self) -> None:
        if self.path.startswith("/api/") and not self.path.startswith("/api/models/"):
            self._answer(404, b"", {})  # The hub's library looks for more than it is asked for.
            return
        self.served.tokens.append(self.headers.get("Authorization"))
        if self.path.startswith("/api/models/"):
            path = self.path.partition("?")[0].removeprefix("/api/models/")
            self._repository(path.partition("/revision/")[0])
            return
        self.served.requests.append((self.path, self.headers.get("Range")))
        fault = self.served.faults.pop(0) if self.served.faults else Fault()
        data = self.served.files.get(self.path)
        if fault.status is not None or data is None:
            self._answer(fault.status or 404, b"<html>no</html>", fault.headers)
        else:
            self._file(data, fault)

    def _repository(self, repo: str) -> None:
        if self.served.repo_status is not None:
            status, code = self.served.repo_status
            self._answer(status, b"{}", {"X-Error-Code": code})
        elif repo in self.served.repos:
            self._answer(200, json.dumps(self.served.repos[repo]).encode(), {})
        else:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _file(self, data: bytes, fault: Fault) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and not fault.ignore_range else 0
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        if start >= len(data) > 0:
            self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        if asked and not fault.ignore_range:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        status = 206 if "Content-Range" in headers else 200
        self._answer(status, body, headers | fault.headers, fault)

    def _answer(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str],
        fault: Fault | None = None,
    ) -> None:
        fault = fault or Fault()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if not fault.unsized:
            length = len(body) if fault.length is None else fault.length
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body[: fault.drop_after])
        if (fault.drop_after, fault.length, fault.unsized) != (None, None, False):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def file_server() -> Iterator[FileServer]:
    """A server on a free port of this machine."""
    handler = type("Handler", (_Handler,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        handler.served = served = FileServer(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
