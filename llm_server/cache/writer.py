"""A thread that writes what it is offered, and a queue before it that never makes anyone wait.

Bounded in bytes: what does not fit is refused, but one job is always taken. It knows neither
files nor the format. The thread starts with the first job and does not keep the process alive.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

from llm_server.cache.chunkfile import Header

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Write:
    """A chunk on its way to the disk; without a payload, a stored one that becomes a head."""

    key: bytes
    header: Header
    payload: bytes | memoryview | None
    head: bool

    @property
    def n_bytes(self) -> int:
        """Length of the file to be written."""
        return 0 if self.payload is None else self.header.n_bytes


class Writer:
    """Performs writes one after another in the order of their offers."""

    def __init__(self, perform: Callable[[Write], None], limit_bytes: int) -> None:
        self._perform = perform
        self._limit = limit_bytes
        self._queue: deque[Write] = deque()
        self._pending: dict[bytes, Write] = {}
        self._n_bytes = 0
        self._closed = False
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()

    def __contains__(self, key: bytes) -> bool:
        """Whether the write of that key has been offered and is not done."""
        with self._changed:
            return key in self._pending

    @property
    def pending(self) -> bool:
        """Whether there is something that was offered and is not done."""
        return bool(self._pending)

    @property
    def busy(self) -> bool:
        """Whether more than half of the room is taken: offer no more than must be."""
        with self._changed:
            return self._n_bytes > self._limit // 2

    def offer(self, write: Write) -> bool:
        """Have it done some time soon; False if there is no room, or after `close`.

        A write of the same key that is not done counts as this one, unless only this makes a head.
        """
        with self._changed:
            waiting = self._pending.get(write.key)
            if waiting and (waiting.head or not write.head):
                return True
            full = self._pending and self._n_bytes + write.n_bytes > self._limit
            if self._closed or full:
                return False
            self._queue.append(write)
            self._pending[write.key] = write
            self._n_bytes += write.n_bytes
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="cache", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return True

    def flush(self, deadline_s: float, keys: Collection[bytes] | None = None) -> bool:
        """Wait until nothing is pending, or nothing of `keys`, for at most `deadline_s` seconds;
        whether that is so."""

        def done() -> bool:
            return self._pending.keys().isdisjoint(self._pending if keys is None else keys)

        with self._changed:
            return self._changed.wait_for(done, deadline_s)

    def close(self, deadline_s: float) -> bool:
        """Refuse further offers, flush, and end the thread; what is left then is dropped."""
        with self._changed:
            self._closed = True
        done = self.flush(deadline_s)
        with self._changed:
            for write in self._queue:
                self._pending.pop(write.key, None)
            self._queue.clear()
            self._changed.notify_all()
        if self._thread and done:
            self._thread.join(deadline_s)
        return done

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                write = self._queue.popleft()
            try:
                self._perform(write)
            except Exception:  # the border of this thread: the next write may well succeed
                logger.exception("The prompt cache could not write a chunk.")
            with self._changed:
                if self._pending.get(write.key) is write:
                    del self._pending[write.key]
                self._n_bytes -= write.n_bytes
                del write
                self._changed.notify_all()
