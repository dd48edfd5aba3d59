"""The disk's answers to questions of the engine, which waits for none that hangs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from llm_server.threads import start

PATIENCE_S = 0.5
"""How long everybody's tokens wait for an answer, once: who asks next while it is not there is
told what is known without it."""

_T = TypeVar("_T")


class Answers:
    """Asked by one thread, one question at a time."""

    def __init__(self) -> None:
        self._asked: Future[Any] | None = None

    def to(self, question: Callable[[], _T], *, otherwise: _T) -> _T:
        """The answer; `otherwise` if the disk takes too long over it, or over an earlier one."""
        if self._asked is not None and not self._asked.done():
            return otherwise
        self._asked = asked = start(question)
        try:
            return asked.result(PATIENCE_S)
        except TimeoutError:
            return otherwise
