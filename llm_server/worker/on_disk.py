"""What a worker has on disks, as it was seen last: the files of its model, and the cache folder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from llm_server.looks import Look
from llm_server.worker.cache_folder import CacheFolder
from llm_server.worker.messages import Load
from llm_server.worker.model_file import Change, ModelFile


class OnDisk:
    """Each has a `Look` of its own, as they may be on different disks; `heed` is told what has
    become of the `file`."""

    def __init__(self, load: Load, file: ModelFile, heed: Callable[[Change], None]) -> None:
        folder = CacheFolder(load.cache if load.sandbox else None)
        self.change: Look[Change] = Look(file.change, "none", heed)
        self._folder_lost = Look(folder.lost, False)

    @property
    def outdated(self) -> bool:
        """Whether the model, an adapter or its template is another by now."""
        return self.change.known != "none"

    @property
    def cache_lost(self) -> bool:
        """Whether the cache folder is gone, or another one."""
        return self._folder_lost.known

    async def look(self) -> None:
        """See what is so now; not longer than `Look.again` waits for a disk."""
        await asyncio.gather(self.change.again(), self._folder_lost.again())
