"""The facts of models, read once for each state of their files on disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from llm_server.gguf.header import MAX_TENSORS, Header, InvalidGguf, read_header
from llm_server.looks import HUNG_S
from llm_server.models.facts import Facts, facts_of
from llm_server.threads import start

Identity: TypeAlias = tuple[tuple[int, int, int, int], ...]
"""Device, inode, size and time of the last change, of each file of a model."""


def identity(infos: Iterable[os.stat_result]) -> Identity:
    """What changes when the content of these files does."""
    return tuple((i.st_dev, i.st_ino, i.st_size, i.st_mtime_ns) for i in infos)


class FactsCache:
    """Facts, or what is wrong with a file, by the identity of files. Safe in threads.

    One thread reads a model's headers, however many ask: a hostile one costs memory, and on a disk
    that hangs nobody else hangs with it.
    """

    def __init__(self) -> None:
        self._known: dict[Identity, Facts | InvalidGguf] = {}
        self._reading: dict[Identity, Future[Facts | InvalidGguf]] = {}
        self._lock = threading.Lock()

    def of(self, id: Identity, paths: Sequence[Path]) -> Facts | InvalidGguf:
        """The facts of a model of these files, or why it has none. Blocks for the disk, at most
        `HUNG_S` seconds."""
        with self._lock:
            if (known := self._known.get(id)) is not None:
                return known
            if id not in self._reading:
                self._reading[id] = start(lambda: self._read(id, paths))
            reading = self._reading[id]
        try:
            return reading.result(HUNG_S)
        except TimeoutError:
            return InvalidGguf("its disk does not answer")

    def _read(self, id: Identity, paths: Sequence[Path]) -> Facts | InvalidGguf:
        facts, last = _facts(paths)
        with self._lock:
            del self._reading[id]
            if last:
                self._known[id] = facts
        return facts

    def keep_only(self, ids: Iterable[Identity]) -> None:
        """Forget files that are gone."""
        kept = set(ids)
        with self._lock:
            self._known = {id: facts for id, facts in self._known.items() if id in kept}


def _facts(paths: Sequence[Path]) -> tuple[Facts | InvalidGguf, bool]:
    """What these files say, and whether they would say it again."""
    try:
        return facts_of(_headers(paths)), True
    except InvalidGguf as error:
        return error, True
    except OSError as error:
        return InvalidGguf(f"it cannot be read: {error.strerror}"), False


def _headers(paths: Sequence[Path]) -> list[Header]:
    """Those of all parts, without metadata behind the first, which alone counts.

    Raises:
        InvalidGguf: one is damaged, or all together claim more than one file could.
        OSError: one cannot be read.
    """
    headers: list[Header] = []
    n_tensors = 0
    for path in paths:
        header = read_header(path)
        n_tensors += len(header.tensors)
        if n_tensors > MAX_TENSORS:
            raise InvalidGguf("its parts claim to hold absurdly many tensors")
        headers.append(replace(header, metadata={}) if headers else header)
    return headers
