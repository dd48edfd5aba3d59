"""What a model's folder tells of itself: whose chunks lie in it, how often each head was a hit.

For people alone; nothing is decided by it. Nobody waits for the disk: a thread adds what was
counted to one small file, at most once a minute, for an SD card is not a log file. Any number of
processes add to the same file.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from pathlib import Path

import msgspec

from llm_server.cache.files import Files
from llm_server.cache.folder import LEDGER, LOCK, model_folder
from llm_server.cache.index import FUTURE_S

logger = logging.getLogger(__name__)

SAVE_S = 60.0
"""Seconds between two saves; a worker that is killed loses what it counted since the last one."""
MAX_HEADS = 1000
"""Heads that are counted, the last used ones; some 100 bytes each. Twice as many wait at most, for
a disk may take nothing for long."""
LAST_TRIES, LAST_TRY_S = 50, 0.02
"""How often, and after how many seconds, `close` tries again where others hold the lock."""
_MAX_BYTES = 1 << 20


class Use(msgspec.Struct, frozen=True):
    """How many requests found a head, and when the last one did, in seconds since the epoch."""

    hits: int
    used: float


class Record(msgspec.Struct, frozen=True):
    """The file: the name of the model when it was last loaded, and heads by their chunks' keys."""

    model: str = ""
    heads: dict[str, Use] = {}


class Ledger:
    """Counts hits of one model's heads. Thread-safe; `close` saves what is left."""

    def __init__(
        self,
        path: Path,
        fingerprint: bytes,
        model: str,
        *,
        save_s: float = SAVE_S,
        files: Files | None = None,
    ) -> None:
        """`path` is the cache folder; `model` is how people call the model."""
        self._root = str(path)
        self._path = f"{path}/{model_folder(fingerprint)}/{LEDGER}"
        self._model = model
        self._save_s = save_s
        self._files = files or Files()
        self._changed = threading.Condition()
        self._new: dict[str, Use] = {}
        self._unsaved = False
        self._closed = False
        self._failed = False
        self._thread: threading.Thread | None = None

    def hit(self, key: bytes) -> None:
        """A request found the head whose last chunk has this key."""
        with self._changed:
            _add(self._new, key.hex(), Use(1, self._files.now()))
            if len(self._new) > 2 * MAX_HEADS:
                self._new = _last(self._new)
            self._save_soon()

    def named(self) -> None:
        """There are chunks of the model, so that its name is worth writing down.

        Also where it was: who clears the folder takes the file along.
        """
        with self._changed:
            self._save_soon()

    def close(self, deadline_s: float) -> None:
        """Save what is not saved, for at most `deadline_s` seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(deadline_s)

    def _save_soon(self) -> None:
        self._unsaved = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="cache-hits", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._unsaved or self._closed)
                if not self._unsaved:
                    return
                new, self._new, self._unsaved = self._new, {}, False
            saved = self._saved(new)
            with self._changed:
                if not saved:
                    self._unsaved = True
                    for key, use in new.items():
                        _add(self._new, key, use)
                if self._closed and not saved:
                    return
                self._changed.wait_for(lambda: self._closed, self._save_s)

    def _saved(self, new: dict[str, Use]) -> bool:
        """Add to the file; False if that is to be tried again."""
        try:
            lock = self._lock()
            if lock is None:
                return False
            try:
                self._add_to_file(new)
            finally:
                self._files.close(lock)
        except FileNotFoundError:
            return False  # nothing of the model is stored, or not any more
        except OSError as error:
            if not self._failed:
                logger.warning("The hits of cached prompts cannot be noted (%s).", error.strerror)
            self._failed = True
            return False
        except Exception:  # the border of this thread: what is counted next may well be saved
            logger.exception("The hits of cached prompts were lost.")
        self._failed = False
        return True

    def _lock(self) -> int | None:
        """A descriptor that holds the folder's lock; None if somebody else has it.

        There is no later time at the end, when all workers of a server may come at once.
        """
        path = f"{self._root}/{LOCK}"
        lock = self._files.lock(path)
        for _ in range(LAST_TRIES):
            if lock is not None or not self._closed:
                break
            time.sleep(LAST_TRY_S)
            lock = self._files.lock(path)
        return lock

    def _add_to_file(self, new: dict[str, Use]) -> None:
        known = _read(self._path, self._files)
        if not new and known.model == self._model:
            return
        latest = self._files.now() + FUTURE_S
        # What a wrong clock has dated is the first to go, or it would outlast all that is used.
        heads = {k: u if u.used <= latest else Use(u.hits, 0.0) for k, u in known.heads.items()}
        for key, use in new.items():
            _add(heads, key, use)
        body = msgspec.json.encode(Record(self._model, _last(heads)))
        temporary = f"{self._path}.tmp"  # one writer at a time: it holds the lock
        with contextlib.suppress(FileNotFoundError):
            self._files.remove(temporary)
        descriptor = self._files.create(temporary)
        try:
            self._files.write_all(descriptor, body)
        finally:
            self._files.close(descriptor)
        self._files.rename(temporary, self._path)


def read_ledger(folder: Path, model: str) -> Record:
    """What the folder `model` of the cache folder tells; nothing of one that tells nothing."""
    try:
        return _read(f"{folder}/{model}/{LEDGER}", Files())
    except OSError as error:
        logger.warning("The hits of cached prompts cannot be read (%s).", error.strerror)
        return Record()


def _read(path: str, files: Files) -> Record:
    """The file; an empty record if there is none, or none that can be understood.

    Raises:
        OSError: it cannot be read.
    """
    try:
        descriptor, size, _ = files.open(path)
    except FileNotFoundError:
        return Record()
    try:
        data = bytearray(min(size, _MAX_BYTES))
        n = files.read_into(descriptor, memoryview(data))
    finally:
        files.close(descriptor)
    try:
        return msgspec.json.decode(data[:n], type=Record)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, too deep
        return Record()


def _add(heads: dict[str, Use], key: str, use: Use) -> None:
    """Add to what is counted; a clock that went back takes nothing away."""
    known = heads.get(key, Use(0, 0.0))
    heads[key] = Use(known.hits + use.hits, max(known.used, use.used))


def _last(heads: dict[str, Use]) -> dict[str, Use]:
    """Those that were used last."""
    return dict(sorted(heads.items(), key=lambda item: -item[1].used)[:MAX_HEADS])
