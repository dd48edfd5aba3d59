"""Whether reading, or writing, works: told once when it stops and once when it is back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from llm_server.cache.files import Files

logger = logging.getLogger(__name__)

RETRY_S = 30.0
"""Seconds after a failed write until the next one is tried."""

_T = TypeVar("_T")


class Health:
    """Of one kind of use of the cache folder; `action` is what it is called in the log.

    `count` is called for each failure.
    """

    def __init__(self, action: str, files: Files, count: Callable[[], None]) -> None:
        self._action = action
        self._files = files
        self._count = count
        self._retry_at: float | None = None

    @property
    def usable(self) -> bool:
        """Whether it works, or it is time to try again."""
        return self._retry_at is None or self._files.monotonic() >= self._retry_at

    def failed(self, error: OSError | MemoryError) -> None:
        """Note a failure."""
        self._count()
        if self._retry_at is None:
            reason = getattr(error, "strerror", None) or type(error).__name__
            logger.warning(
                "The prompt cache cannot %s its folder (%s); requests go on without it.",
                self._action,
                reason,
            )
        self._retry_at = self._files.monotonic() + RETRY_S

    def worked(self) -> bool:
        """Note a success; whether it is the first one after a failure."""
        if self._retry_at is None:
            return False
        self._retry_at = None
        logger.info("The prompt cache can %s its folder again.", self._action)
        return True

    def attempt(self, action: Callable[[], _T]) -> _T | None:
        """Do it; a failure is noted and gives None."""
        try:
            return action()
        except (OSError, MemoryError) as error:
            self.failed(error)
            return None
