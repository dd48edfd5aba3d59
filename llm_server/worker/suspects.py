"""Requests that were running when a worker died, so that one which kills every worker is refused.

Whoever runs beside the culprit is suspected too, until one of its requests comes to its end.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from llm_server.errors import CrashesWorker
from llm_server.worker.messages import Asked

MAX_CRASHES = 3
_MAX_REMEMBERED = 1024


class Suspects:
    """Crashes by request and model, since the server began; the oldest are forgotten first."""

    def __init__(self) -> None:
        self._crashes: OrderedDict[bytes, int] = OrderedDict()

    def check(self, model: str, request: Asked) -> None:
        """Raises CrashesWorker for a request that was there at too many deaths."""
        if self._crashes and self._crashes.get(_digest(model, request), 0) >= MAX_CRASHES:
            raise CrashesWorker(
                f"This request was running each of the {MAX_CRASHES} times that the model's worker "
                "process died of it, and is not tried again. Change it, or restart the server."
            )

    def died(self, model: str, requests: Iterable[Asked]) -> None:
        """A worker has died under these requests."""
        for digest in {_digest(model, request) for request in requests}:
            self._crashes[digest] = self._crashes.pop(digest, 0) + 1
            if len(self._crashes) > _MAX_REMEMBERED:
                self._crashes.popitem(last=False)

    def finished(self, model: str, request: Asked) -> None:
        """This request has come to its end, and so it was not the culprit."""
        if self._crashes:
            self._crashes.pop(_digest(model, request), None)


def _digest(model: str, request: Asked) -> bytes:
    body = msgspec.msgpack.encode([model, request])
    return hashlib.blake2b(body, digest_size=16).digest()
