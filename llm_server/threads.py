"""Calls in threads that keep no process alive, for what may hang for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
_idle = threading.Semaphore(0)
"""Threads that wait for a call. Starting one takes longer than most looks at a disk."""


def start(call: Callable[[], T]) -> Future[T]:
    """What `call` comes to, in a thread that has nothing else to do."""
    coming: Future[T] = Future()
    coming.set_running_or_notify_cancel()  # From now on nobody can cancel it.
    _calls.put((call, coming))
    if not _idle.acquire(blocking=False):
        threading.Thread(target=_run, name="look", daemon=True).start()
    return coming


def _run() -> None:
    while True:
        _perform(*_calls.get())


def _perform(call: Callable[[], T], coming: Future[T]) -> None:
    try:
        result = call()
    except BaseException as error:
        _idle.release()
        coming.set_exception(error)
    else:
        _idle.release()  # Before: whoever hears of it may have another call at once.
        coming.set_result(result)
