"""Requests that wait for the disk: what is told of them, and for how long they wait.

The end of a request that asks to `persist` its prompt is held back until that is stored; a thread
waits for it, so that nobody else does. All other methods belong to the worker's main thread.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from llm_server.cache.disk import DiskTier
from llm_server.engine.sequence import Prompt
from llm_server.worker.messages import Event, Failed, Finished, Progress

logger = logging.getLogger(__name__)

STORE_S = 30.0
"""How long an end waits for its prompt to be stored, and as long again as `STORE_RATE` takes."""
STORE_RATE = 5e6
"""Bytes a second: a bad SD card."""
READ_S = 120.0
"""How long one read may take: a whole state, on a bad SD card. What gives nothing for longer is
stuck, and nothing more is said of it."""


@dataclass(frozen=True, slots=True)
class _Held:
    """The end of a request that waits for `prompt` to be stored, as chunks with these keys, and
    until when."""

    end: Finished
    prompt: Prompt
    keys: list[bytes]
    deadline: float


class Storing:
    """Holds ends back until the disk has their prompts; it calls `done`, from its thread, with each
    that need wait no longer. Where nothing is stored (`disk` None), none waits."""

    def __init__(
        self,
        disk: DiskTier | None,
        done: Callable[[Finished], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._disk = disk
        self._done = done
        self._clock = clock
        self._prompts: dict[int, Prompt] = {}
        self._held: dict[int, _Held] = {}
        self._to_copy: list[_Held] = []
        self._copied: queue.SimpleQueue[_Held] = queue.SimpleQueue()
        if disk is not None:
            threading.Thread(target=self._wait, args=(disk,), name="flush", daemon=True).start()

    def expect(self, prompt: Prompt) -> None:
        """That request's end is to wait for its prompt."""
        self._prompts[prompt.id] = prompt

    def forget(self, id: int) -> None:
        """That request's end need not wait, unless it does so already. Unknown ids are fine."""
        self._prompts.pop(id, None)

    @property
    def holds(self) -> bool:
        """Whether an end waits."""
        return bool(self._held)

    def hold_back(self, events: Iterable[Event]) -> list[Event]:
        """`events` but for the ends that are to wait, and those that have waited for too long."""
        if self._disk is None:
            return list(events)
        told = [event for event in events if not self._is_held(event, self._disk)]
        for held in [held for held in self._to_copy if not self._disk.copying(held.keys)]:
            self._to_copy.remove(held)
            self._copied.put(held)
        now = self._clock()
        for late in [held for held in self._held.values() if held.deadline <= now]:
            stored = self._disk.store.wrote(late.keys, 0.0)
            if not stored:
                logger.warning("request %d ends, and its prompt is not stored yet", late.end.id)
            told += self.settle(late.end if stored else _stored_nothing(late.end))
        return told

    def settle(self, end: Finished) -> list[Event]:
        """That end, if it still waits."""
        return [end] if self._held.pop(end.id, None) else []

    @property
    def progress(self) -> list[Progress]:
        """What there is to be told of requests whose ends wait."""
        usages = {id: held.end.usage for id, held in self._held.items()}
        return [
            Progress(id, usage.prompt_tokens, usage.prompt_tokens, usage.cached_tokens)
            for id, usage in usages.items()
        ]

    def _is_held(self, event: Event, disk: DiskTier) -> bool:
        """Whether it is an end that waits from now on."""
        if not isinstance(event, Finished | Failed):
            return False
        prompt = self._prompts.pop(event.id, None)
        if prompt is None or isinstance(event, Failed) or not event.usage.state_bytes:
            return False
        seconds = STORE_S + event.usage.state_bytes / STORE_RATE
        keys = disk.keys(prompt.tokens, prompt.namespace)
        held = _Held(event, prompt, keys, self._clock() + seconds)
        self._held[event.id] = held
        self._to_copy.append(held)
        return True

    def _wait(self, disk: DiskTier) -> None:
        """The thread."""
        while True:
            held = self._copied.get()
            written = disk.store.wrote(held.keys, max(0.0, held.deadline - self._clock()))
            stored = written and disk.has(held.prompt.tokens, held.prompt.namespace)
            self._done(held.end if stored else _stored_nothing(held.end))


class Reading:
    """How far the prompts are that are read from the disk, but for those with which it is stuck."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[int, tuple[Progress, float]] = {}  # and since when it is so

    def progress(self, reading: Iterable[Progress]) -> list[Progress]:
        """Of `reading`, all that are being read, those that were seen to get on lately."""
        now, before = self._clock(), self._seen
        self._seen = {event.id: (event, now) for event in reading}
        for id, (event, since) in before.items():
            if id in self._seen and self._seen[id][0] == event:
                self._seen[id] = (event, since)
        return [event for event, since in self._seen.values() if now - since < READ_S]


def _stored_nothing(end: Finished) -> Finished:
    """That end of a request, with no bytes on the disk."""
    usage = msgspec.structs.replace(end.usage, state_bytes=0)
    return msgspec.structs.replace(end, usage=usage)
