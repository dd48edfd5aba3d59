"""HTTP by hand, for what no client library would send."""

from __future__ import annotations

import json
import re
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: all responses on the connection, and whether the server closed it."""

    received: bytes
    closed: bool

    @property
    def statuses(self) -> list[int]:
        return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", self.received)]

    @property
    def error(self) -> dict[str, Any]:
        """The error of the last response."""
        body = self.received.rpartition(b"\r\n\r\n")[2]
        error: dict[str, Any] = json.loads(body)["error"]
        return error

    def header(self, name: str) -> bytes | None:
        """A header of the last response."""
        head = self.received.rpartition(b"\r\n\r\n")[0].rpartition(b"HTTP/1.1 ")[2]
        for line in head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b": ")
            if key.lower() == name.encode():
                return value
        return None


def connect(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def talk(url: str, data: bytes, responses: int = 0) -> Answer:
    """Send `data` and read until the server closes; or, if given, that many whole responses."""
    with connect(url) as connection:
        try:
            connection.sendall(data)
        except OSError:
            pass  # It may have heard enough.
        received = b""
        while not (responses and _whole(received) >= responses):
            try:
                piece = connection.recv(65536)
            except ConnectionResetError:
                return Answer(received, True)
            if not piece:
                return Answer(received, True)
            received += piece
        return Answer(received, False)


def post(path: str, body: object) -> bytes:
    """A request with a JSON body."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(content) + content


def talk_at_once(url: str, requests: Sequence[bytes]) -> list[tuple[Answer, float]]:
    """Send each on a connection of its own before any answer is read; how long it took, in s.

    One thread without a library: that of many threads is the library's time, not the server's.
    """
    answers: list[tuple[Answer, float]] = []
    with selectors.DefaultSelector() as selector:
        for data in requests:
            connection = connect(url)
            connection.sendall(data)
            selector.register(connection, selectors.EVENT_READ, [time.monotonic(), b""])
        while selector.get_map():
            for key, _ in selector.select():
                assert isinstance(key.fileobj, socket.socket)
                piece = key.fileobj.recv(65536)
                key.data[1] += piece
                if not piece or _whole(key.data[1]):
                    took = time.monotonic() - key.data[0]
                    answers.append((Answer(key.data[1], not piece), took))
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
    return answers


def _whole(received: bytes) -> int:
    """How many complete responses with a declared length there are."""
    count = 0
    while True:
        head, end, rest = received.partition(b"\r\n\r\n")
        if not end:
            return count
        length = next(
            int(line[16:])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length: ")
        )
        if len(rest) < length:
            return count
        count, received = count + 1, rest[length:]
