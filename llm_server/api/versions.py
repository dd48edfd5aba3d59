"""HTTP's other versions: an offer of HTTP/2 is taken out of a head, HTTP/1.0 gets no chunks.

It knows messages, not connections: those are the business of `transport.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_OFFER = (b"upgrade", b"http2-settings")


def head_without_upgrade(
    method: bytes, url: bytes, version: str, headers: Iterable[tuple[bytes, bytes]]
) -> bytes:
    """The head of a request as it would be if it asked for no other protocol.

    Java's client asks for HTTP/2 with each request; the parser would skip their bodies.
    """
    lines = [b"%b %b HTTP/%b" % (method, url, version.encode())]
    for name, value in headers:
        if name not in _OFFER:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                value = b", ".join(token for token in tokens if token.lower() not in _OFFER)
            lines.append(name + b": " + value)
    return b"\r\n".join(lines) + b"\r\n\r\n"


def unframed(app: Any, cycle: RequestResponseCycle) -> Any:
    """`app`, whose answers without a length end with the connection: HTTP/1.0 has no chunks."""

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        endless = False

        async def send_unframed(message: Any) -> None:
            nonlocal endless
            if message["type"] == "http.response.start":
                endless = all(name != b"content-length" for name, _ in message["headers"])
                cycle.chunked_encoding = False if endless else None
            elif endless:
                cycle.expected_content_length = len(message["body"])
            await send(message)

        await app(scope, receive, send_unframed)

    return serve
