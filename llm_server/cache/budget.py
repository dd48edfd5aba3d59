"""How much disk the prompts may take where nobody has said it. Knows no settings."""

from __future__ import annotations

import contextlib
from pathlib import Path

from llm_server import places

MAX_BYTES = 10 * 10**9
SHARE = 10
"""They may take a tenth of the disk."""


def default_budget(folder: Path) -> int:
    """Bytes: a share of what is free and of what they take already, so that a cache which fills
    the disk has at the next start the budget that it had at this one."""
    usable = places.free_bytes(folder)
    if usable < MAX_BYTES * SHARE:
        # Imported and looked through only where it matters: the start waits for it.
        from llm_server.cache.survey import stored_chunks

        with contextlib.suppress(OSError):
            usable += sum(file.size for file in stored_chunks(folder))
    return min(MAX_BYTES, usable // SHARE)
