"""The names of a model that is split into several files: llama.cpp's pattern, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_SPLIT = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf")


class Split(NamedTuple):
    """What the name of one part says."""

    stem: str
    part: int
    n_parts: int

    @property
    def names(self) -> Iterator[str]:
        """The names of all parts, the first one first, each made when it is asked for."""
        parts = range(1, self.n_parts + 1)
        return (f"{self.stem}-{i:05}-of-{self.n_parts:05}.gguf" for i in parts)


def split_of(name: str) -> Split | None:
    """What a file's name says of the model it is a part of; None if it is whole.

    So is one whose numbers cannot be: a part before the first or behind the last.
    """
    match = _SPLIT.fullmatch(name)
    if match is None or not 1 <= int(match["part"]) <= int(match["parts"]):
        return None
    return Split(match["stem"], int(match["part"]), int(match["parts"]))


def model_parts(path: Path) -> list[Path]:
    """All files of a split model, given its first; the one file of another."""
    split = split_of(path.name)
    return [path] if split is None else [path.with_name(name) for name in split.names]
