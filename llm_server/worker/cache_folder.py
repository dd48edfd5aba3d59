"""Whether the cache folder is still the one that a confined worker may write to.

Landlock's rule is for the folder that was there when the worker began, not for its name: one that
is made again in its place is out of the worker's reach.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from llm_server.worker.config import CacheConfig

logger = logging.getLogger(__name__)


class CacheFolder:
    """The folder that a confined worker was given, or none. For one thread at a time."""

    def __init__(self, given: CacheConfig | None) -> None:
        self._path = given.folder if given is not None else None
        self._given: tuple[int, int] | None = None
        self._told = False

    def lost(self) -> bool:
        """Whether it is gone, or another one than the first time. Blocks for the disk.

        To be called once when the worker has it. Says so once in the log.
        """
        now = _identity(self._path)
        self._given = self._given or now
        lost = now != self._given
        if lost and not self._told:
            self._told = True
            logger.warning(
                "The cache folder is gone. A model that is asked for while it is idle is loaded "
                "anew, which makes it again; until then prompts are cached in memory alone."
            )
        return lost


def _identity(path: Path | None) -> tuple[int, int] | None:
    """(device, inode), or None if there is no such folder."""
    if path is None:
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISDIR(status.st_mode) else None
