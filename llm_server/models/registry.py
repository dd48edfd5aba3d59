"""The models folder: which files can be served, and under which names.

A scan makes a dictionary, and names from clients are only ever looked up in it: they never become
part of a path. It looks at names, kinds and sizes of files and opens none of them, so a FIFO or a
broken model cannot hold it up. What is loaded is the pool's business.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from llm_server.errors import ModelNotFound

MAX_DEPTH = 4
"""Levels of subfolders that are looked into."""

_SPLIT = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model on disk. `path` is the file to load: the first one of a split model."""

    name: str
    """Path below the models folder with `/`, ending in `.gguf`; no part numbers."""
    path: Path
    size: int
    """Bytes, of all parts together."""
    modified: int
    """Seconds since the epoch, of the first part."""


class Registry:
    """The models of one folder as of the last scan. A missing folder is an empty one.

    While it is empty, the file `stand_in` is its one model, if that exists; it is not listed any
    more as soon as there is another.
    """

    def __init__(self, folder: Path, stand_in: Path | None = None) -> None:
        self.folder = folder
        self._stand_in = stand_in
        self._models: dict[str, ModelFile] = {}
        self._names: dict[str, ModelFile] = {}

    def scan(self) -> None:
        """Look at the folder anew. Blocks for the disk; safe in a thread."""
        models = {model.name: model for model in sorted(_models(self.folder), key=_by_name)}
        if not models and self._stand_in is not None and self._stand_in.is_file():
            info = self._stand_in.stat()
            name = self._stand_in.name
            models[name] = ModelFile(name, self._stand_in, info.st_size, int(info.st_mtime))
        names: dict[str, ModelFile] = {}
        ambiguous: set[str] = set()
        for model in models.values():
            for name in _spellings(model):
                if names.setdefault(name, model) is not model:
                    ambiguous.add(name)
        # An exact name always wins; a short one counts only while it means one model.
        self._names = {n: m for n, m in names.items() if n not in ambiguous} | models
        self._models = models

    def models(self) -> list[ModelFile]:
        """All models by name, as of the last scan."""
        return list(self._models.values())

    def is_stand_in(self, model: ModelFile) -> bool:
        """Whether that model is not of the folder, but serves for want of one."""
        return model.path == self._stand_in

    def means(self, name: str, model: ModelFile) -> bool:
        """Whether `name` is one of the names of `model`, as of the last scan."""
        found = self._names.get(name)
        return found is not None and found.path == model.path

    def find(self, name: str) -> ModelFile:
        """The model of that exact name, with or without `.gguf` and subfolder.

        Raises ModelNotFound, for a malformed name as for an unknown one, with near names.
        """
        model = self._names.get(name)
        if model is None:
            near = get_close_matches(name[:128], self._models, n=3, cutoff=0.7)
            raise ModelNotFound(name, f" Did you mean {' or '.join(near)}?" if near else "")
        return model


def _by_name(model: ModelFile) -> str:
    return model.name


def _spellings(model: ModelFile) -> Iterator[str]:
    """What else a model may be called: without suffix, without folder, by its first part."""
    base = model.name.rpartition("/")[2]
    yield model.name.removesuffix(".gguf")
    yield base
    yield base.removesuffix(".gguf")
    yield model.path.name


def _models(folder: Path) -> Iterator[ModelFile]:
    files = {path.relative_to(folder).as_posix(): (path, info) for path, info in _files(folder)}
    for name, (path, info) in files.items():
        if path.name.startswith("mmproj"):
            continue  # A projector belongs to a model and cannot answer by itself.
        if not name.isprintable():
            continue  # Such a name could not be written into JSON, or would spoil the log.
        split = _SPLIT.fullmatch(name)
        if split is None:
            yield ModelFile(name, path, info.st_size, int(info.st_mtime))
        elif int(split["part"]) == 1:
            n_parts = int(split["parts"])
            parts = [f"{split['stem']}-{i:05}-of-{n_parts:05}.gguf" for i in range(1, n_parts + 1)]
            if all(part in files for part in parts):
                size = sum(files[part][1].st_size for part in parts)
                yield ModelFile(f"{split['stem']}.gguf", path, size, int(info.st_mtime))


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Readable, regular, non-empty `*.gguf` files; links only where they stay inside."""
    root = folder.resolve()
    pending = [(folder, 0)]
    while pending:
        current, depth = pending.pop()
        try:
            entries = list(os.scandir(current))
        except OSError:
            continue  # Missing, or not ours to read: the same as empty.
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if depth < MAX_DEPTH and not entry.name.startswith("."):
                    pending.append((Path(entry.path), depth + 1))
            elif entry.name.endswith(".gguf") and (info := _servable(entry, root)):
                yield Path(entry.path), info


def _servable(entry: os.DirEntry[str], root: Path) -> os.stat_result | None:
    try:
        if entry.is_symlink() and not Path(entry.path).resolve(strict=True).is_relative_to(root):
            return None
        info = entry.stat()
        readable = os.access(entry.path, os.R_OK)
    except (OSError, RuntimeError):
        return None  # Gone in the meantime, or a loop of links.
    return info if stat.S_ISREG(info.st_mode) and info.st_size > 0 and readable else None
