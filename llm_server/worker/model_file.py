"""Whether a model's files on disk are still those that were loaded.

llama.cpp maps the file: what is written into it changes the weights of a running model, silently.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, TypeAlias

from llm_server.gguf.parts import model_parts
from llm_server.worker.messages import Load

Change: TypeAlias = Literal["none", "replaced", "overwritten"]


def companions(load: Load) -> list[Path]:
    """The files beside the model's own: adapters and a template. Nothing is read after the load."""
    return [path for path in (*load.adapter_paths, load.template_path) if path]


class ModelFile:
    """The files of a load as they are at the moment; of a split model, all parts.

    Blocks for the disk when it is made; safe in a thread.
    """

    def __init__(self, load: Load) -> None:
        self._parts = [(part, _identity(part)) for part in model_parts(load.model_path)]
        self._companions = [(path, _identity(path)) for path in companions(load)]

    @property
    def size(self) -> int:
        """Bytes of all parts of the model."""
        return sum(identity[2] for _, identity in self._parts if identity)

    def change(self) -> Change:
        """What has happened to them since.

        `replaced`: another file has the name, and what was loaded is whole. `overwritten`: the
        loaded file itself has other bytes. A file that is gone does no harm. Blocks for the disk.
        """
        worst: Change = "none"
        if any(_identity(path) not in (None, before) for path, before in self._companions):
            worst = "replaced"
        for path, before in self._parts:
            now = _identity(path)
            if before is None or now is None or now == before:
                continue
            if now[:2] == before[:2]:
                return "overwritten"
            worst = "replaced"
        return worst


def _identity(path: Path) -> tuple[int, int, int, int] | None:
    """(device, inode, size, mtime in ns), or None if there is no such file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
