"""Looks at disks, by threads that nobody has to wait for.

A disk may hang: one of a network that is gone, one that spins up, a card that takes seconds. Who
looks at it then hangs with it and cannot be told to stop, so that is never the event loop, nor one
of a few threads that others need, and the end of the process does not wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from llm_server.errors import DiskTimeout
from llm_server.threads import start

PATIENCE_S = 1.0
"""How long somebody waits for news who can do without."""
HUNG_S = 30.0
"""A disk that has not answered for so long hangs: a big one takes ten seconds to spin up."""

T = TypeVar("T")

_asked: dict[Hashable, float] = {}
"""Places that `ask` has no answer of yet, and when it asked there first."""
_waiting: WeakKeyDictionary[asyncio.AbstractEventLoop, set[asyncio.Timeout]] = WeakKeyDictionary()
_ending: WeakSet[asyncio.AbstractEventLoop] = WeakSet()


async def in_thread(call: Callable[[], T], patience_s: float | None = None) -> T:
    """What `call` comes to; cancelled, the thread goes on, and nobody hears of it.

    Raises DiskTimeout when it takes longer, or the server ends.
    """
    coming = asyncio.wrap_future(start(call))
    if not await _comes(coming, patience_s):
        raise DiskTimeout()
    return coming.result()


async def ask(place: Hashable, call: Callable[[], T], patience_s: float = HUNG_S) -> T:
    """What `call` comes to, which looks at `place`, as whatever stands for that.

    Raises DiskTimeout when it takes longer, and at once while an earlier one does: however often
    somebody asks, few threads hang.
    """
    now = time.monotonic()
    since = _asked.setdefault(place, now)
    if now - since > patience_s:
        raise DiskTimeout()

    def first() -> T:
        try:
            return call()
        finally:
            del _asked[place]

    return await in_thread(first if since == now else call, patience_s)


def give_up() -> None:
    """The server ends: nobody of this event loop waits for a disk any more."""
    loop = asyncio.get_running_loop()
    _ending.add(loop)
    for waiting in _waiting.get(loop, ()):
        waiting.reschedule(loop.time())


class Look(Generic[T]):
    """What a question about a disk was answered last; one thread at a time asks it.

    `heed` is told each answer. All methods belong to the loop's thread.
    """

    def __init__(
        self, question: Callable[[], T], known: T, heed: Callable[[T], None] | None = None
    ) -> None:
        self.known = known
        self._question = question
        self._heed = heed
        self._asking: asyncio.Future[T] | None = None
        self._since = 0.0

    def begin(self) -> asyncio.Future[T]:
        """Ask, unless that is being done."""
        if self._asking is None or self._asking.done():
            self._since = time.monotonic()
            self._asking = asyncio.wrap_future(start(self._question))
            self._asking.add_done_callback(self._answered)
        return self._asking

    async def again(self, patience_s: float = PATIENCE_S) -> T:
        """The answer as of now; the last one if the disk takes longer, or does so already."""
        earlier = self._asking
        if earlier is not None and not earlier.done():
            # It may have looked before that came which is asked about, and does not count.
            if not await _comes(earlier, self._since + patience_s - time.monotonic()):
                return self.known
        asking = self.begin()
        return asking.result() if await _comes(asking, patience_s) else self.known

    def _answered(self, asking: asyncio.Future[T]) -> None:
        self.known = asking.result()
        if self._heed is not None:
            self._heed(self.known)


async def _comes(coming: asyncio.Future[T], patience_s: float | None) -> bool:
    """Whether it does within so many seconds, and before the server ends."""
    loop = asyncio.get_running_loop()
    waits = _waiting.setdefault(loop, set())
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.0 if loop in _ending else patience_s) as waiting:
            waits.add(waiting)
            try:
                await asyncio.wait([coming])
            finally:
                waits.remove(waiting)
    return coming.done()
