"""The disk tier of the prompt cache: KV memory by prefix, kept across restarts.

It finds, loads and keeps payloads whose meaning only llama.cpp knows. Whatever happens to the
disk, a caller sees a hit that is exact, or a miss: nothing here raises into a request. What is kept
is written later; every question about what is stored may wait for the disk. Thread-safe.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

import msgspec

from llm_server.cache.chunkfile import PARENT_BYTES, BadChunk, Chunk, Header
from llm_server.cache.counts import Stats
from llm_server.cache.files import Files
from llm_server.cache.folder import ChunkFolder, Scan
from llm_server.cache.health import Health
from llm_server.cache.index import Hit, Index
from llm_server.cache.keys import Chain, Kind
from llm_server.cache.writer import Write, Writer

logger = logging.getLogger(__name__)

QUEUE_BYTES = 64 << 20
"""Payloads that may wait for the disk; more are dropped, for requests never wait for a write."""
RESCAN_SHARE = 64
"""The folder is looked through again whenever this part of the budget has been written, for other
processes write there too."""
RESCAN_S = 60.0
"""Seconds after which it is looked through again before the next write in any case."""
RESCAN_REST = 50
"""Looking through a folder takes at most one part in so many of the time, however slow it is."""
MAX_NEW_SIBLINGS = 64
"""Headers that are read at once to learn tokens; further siblings have their turn later."""

_T = TypeVar("_T")


class ChunkStore:
    """The chunks of one model, in a folder that all models and several processes may share."""

    def __init__(
        self,
        path: Path,
        fingerprint: bytes,
        budget_bytes: int,
        *,
        queue_bytes: int = QUEUE_BYTES,
        files: Files | None = None,
    ) -> None:
        """Look through the folder; some 0.1 s for 10,000 chunks.

        `fingerprint` (32 bytes, see `fingerprint.py`) says which chunks are this model's;
        `budget_bytes` is for all models together. A folder that cannot be used is a warning and a
        store without hits.
        """
        self._files = files or Files()
        self._folder = ChunkFolder(path, fingerprint, self._files)
        self._fingerprint = fingerprint
        self._budget = budget_bytes
        count = functools.partial(self._count, errors=1)
        self._reading = Health("read", self._files, count)
        self._writing = Health("write to", self._files, count)
        self._lock = threading.Lock()
        self._index = Index()
        self._bad: set[bytes] = set()
        self._stats = Stats()
        self._unscanned = 0
        self._rescan_at = 0.0
        self._writer = Writer(self._perform, queue_bytes)
        self._writing.attempt(self._folder.create)
        self.refresh()

    def refresh(self) -> None:
        """Look through the folder again, for what other processes stored or evicted."""
        began = self._files.monotonic()
        found = self._reading.attempt(self._folder.scan)
        if found is not None:
            self._adopt(found, began)
            self._folder.sweep(found)

    def stats(self) -> Stats:
        """The counters as they are now."""
        with self._lock:
            return msgspec.structs.replace(self._stats, chunks=len(self._index))

    # ---- finding and loading ---------------------------------------------------------------

    def match(self, chain: Chain, head: int = 0) -> list[Hit]:
        """The chunks that hold the longest stored prefix of `chain`, in order of position.

        All but the last are used whole; of the last one, maybe only the beginning (`n_used`).
        What another process has stored since this one looked through the folder is found if it is
        a full chunk, or ends with the first `head` tokens as a head's last chunk does.
        """
        with self._lock:
            whole = self._index.whole(chain)
        for stop in range((len(whole) + 1) * chain.size, chain.n_tokens + 1, chain.size):
            chunk = self._look_for(chain, Kind.RANGE, stop)
            if chunk is None:
                break
            whole.append(chunk)
        if 0 < head - len(whole) * chain.size < chain.size and head <= chain.n_tokens:
            self._look_for(chain, Kind.RANGE, head)
        hits = [
            Hit(chunk, parent, chain.slice(chunk.start, chunk.start + chunk.n_tokens))
            for chunk, parent in zip(whole, chain.keys, strict=False)
        ]
        at = len(whole) * chain.size
        if at < chain.n_tokens:
            self.learn(chain)
            with self._lock:
                partial = self._index.partial(chain, len(whole))
            if partial and partial[0].start == at:
                chunk, n = partial
                hits.append(Hit(chunk, chain.keys[len(whole)], chain.slice(at, at + n)))
        return hits

    def checkpoint(self, chain: Chain, n_max: int, head: int = 0) -> Hit | None:
        """The stored state after the longest prefix of `chain` of at most `n_max` tokens.

        The one after the first `head` tokens may be as new as a chunk that `match` finds.
        """
        if 0 < head <= min(n_max, chain.n_tokens):
            self._look_for(chain, Kind.CHECKPOINT, head)
        with self._lock:
            chunk = self._index.checkpoint(chain, n_max)
        if chunk is None:
            return None
        stop = chunk.start + chunk.n_tokens
        return Hit(chunk, chain.keys[chunk.start // chain.size], chain.slice(chunk.start, stop))

    def _look_for(self, chain: Chain, kind: Kind, stop: int) -> Chunk | None:
        """The chunk of `chain` that ends at `stop`; if it is not known, by its name on the disk."""
        start = chain.chunk_start(stop)
        key, parent = chain.key(kind, start, stop), chain.keys[start // chain.size]
        known = self._known(key)
        if known is not None or key in self._bad:
            return known
        wanted = Chunk(key, parent[:PARENT_BYTES], kind, start, stop - start)
        found = self._reading.attempt(lambda: self._folder.find(wanted))
        if found is not None:
            with self._lock:
                self._index.add(found)
                self._index.learn(key, chain.slice(start, stop))
        return found

    def holds(self, chain: Chain, start: int, stop: int, kind: Kind = Kind.RANGE) -> bool:
        """Whether that chunk is stored or about to be: ask before copying cells out.

        Others may have evicted or cleared it, so the folder is asked, too.

        Raises:
            ValueError: [start, stop) is not a chunk of `chain`.
        """
        key = chain.key(kind, start, stop)
        # In this order: what the writer is done with meanwhile is in the index.
        if key in self._writer:
            return True
        known = self._known(key)
        if known is not None and self._reading.attempt(lambda: self._folder.has_lost(known)):
            self._forget(known)
            return False
        return known is not None

    def knows(self, key: bytes) -> bool:
        """Whether that chunk was stored when it was looked at last, or is about to be."""
        return key in self._writer or self._known(key) is not None

    def touch(self, chain: Chain, start: int, stop: int, kind: Kind = Kind.RANGE) -> bool:
        """Note a use of a chunk that was not read; False if it is not stored (any more).

        Raises:
            ValueError: [start, stop) is not a chunk of `chain`.
        """
        key = chain.key(kind, start, stop)
        if key in self._writer:
            return True
        known = self._known(key)
        if known is None:
            return False
        try:
            self._folder.touch(known)
        except FileNotFoundError:
            self._forget(known)
            return False
        except OSError:
            pass  # a read-only folder still gives hits
        return True

    def load(self, hit: Hit) -> memoryview | None:
        """The payload, read and verified, or None: then it is a miss, whatever `match` said."""
        read = self._guarded(hit.chunk, lambda: self._folder.read(hit.chunk))
        if read is not None:
            header, payload = read
            if header.parent == hit.parent and header.packed.startswith(hit.packed):
                self._count(hits=1, read_bytes=header.n_bytes)
                return payload
        self._count(misses=1)
        return None

    def is_damaged(self, hit: Hit) -> bool:
        """Whether that chunk was read and not believed, and is not stored anew yet."""
        return hit.chunk.key in self._bad

    def learn(self, chain: Chain) -> bool:
        """Read the tokens of chunks that `chain` may go on with; whether any were unknown."""
        with self._lock:
            unknown = self._index.unknown(chain, MAX_NEW_SIBLINGS)
        for chunk in unknown:
            packed = self._guarded(chunk, functools.partial(self._folder.read_tokens, chunk))
            if packed is not None:
                with self._lock:
                    self._index.learn(chunk.key, packed)
        return bool(unknown)

    def _guarded(self, chunk: Chunk, read: Callable[[], _T]) -> _T | None:
        """What `read` gives, or None and the chunk forgotten: it may be stored anew."""
        try:
            value = read()
        except FileNotFoundError:  # evicted by another process, or the whole folder vanished
            self._forget(chunk)
            with self._lock:
                self._unscanned = self._budget
            return None
        except BadChunk as error:
            logger.warning("The prompt cache drops %s: %s.", chunk.key.hex()[:16], error)
            self._count(corrupt=1)
            self._forget(chunk)
            self._bad.add(chunk.key)  # never looked at again, if it cannot be deleted
            self._writing.attempt(lambda: self._folder.discard(chunk))
            return None
        except (OSError, MemoryError) as error:
            self._reading.failed(error)
            self._forget(chunk)
            return None
        self._reading.worked()
        return value

    # ---- keeping ---------------------------------------------------------------------------

    def put(
        self,
        chain: Chain,
        start: int,
        stop: int,
        payload: bytes | memoryview,
        *,
        kind: Kind = Kind.RANGE,
        head: bool = False,
    ) -> bool:
        """Keep `payload` as the memory of positions [start, stop), or the state after them.

        Returns at once; the payload must not change any more. `head` marks a part of a system
        prompt and tools, also of a chunk that is stored already. False if it is dropped: the
        queue is full, the disk fails or the store is closed.

        Raises:
            ValueError: [start, stop) is not a chunk of `chain` (`Chain.chunk_start`).
        """
        key = chain.key(kind, start, stop)
        if key in self._writer or self._known(key):
            return not head or self.mark_head(chain, start, stop, kind)
        header = self._header(chain, start, stop, kind, memoryview(payload).nbytes)
        return self._offer(Write(key, header, payload, head))

    def mark_head(self, chain: Chain, start: int, stop: int, kind: Kind = Kind.RANGE) -> bool:
        """Let a chunk that is stored, or about to be, be part of a head; returns as `put` does.

        Raises:
            ValueError: [start, stop) is not a chunk of `chain`.
        """
        key = chain.key(kind, start, stop)
        known = self._known(key)
        if known and known.head:
            return True
        return self._offer(Write(key, self._header(chain, start, stop, kind), None, head=True))

    def _header(self, chain: Chain, start: int, stop: int, kind: Kind, size: int = 0) -> Header:
        parent, packed = chain.keys[start // chain.size], chain.slice(start, stop)
        return Header(self._fingerprint, parent, kind, start, packed, size)

    def _offer(self, write: Write) -> bool:
        usable = self._writing.usable and write.n_bytes <= self._budget
        if usable and self._writer.offer(write):
            return True
        self._count(dropped=1)
        return False

    def refuse(self, n: int) -> None:
        """So many chunks are not put, for there is no room for them: they count as dropped."""
        self._count(dropped=n)

    @property
    def busy(self) -> bool:
        """Whether the disk is behind: what is put now may be dropped."""
        return self._writer.busy

    @property
    def writing(self) -> bool:
        """Whether something that was put is not on the disk yet."""
        return self._writer.pending

    def flush(self, deadline_s: float) -> bool:
        """Wait for what was put, at most `deadline_s` seconds; whether all of it is done."""
        return self._writer.flush(deadline_s)

    def wrote(self, keys: Collection[bytes], deadline_s: float) -> bool:
        """Wait until these chunks are not to be written any more, at most `deadline_s` seconds;
        whether all are stored, as far as that is known without asking the disk."""
        return self._writer.flush(deadline_s, keys) and all(map(self._known, keys))

    def close(self, deadline_s: float) -> bool:
        """Flush and take no more; look-ups still work. Whether all that was put is done."""
        return self._writer.close(deadline_s)

    def _perform(self, write: Write) -> None:
        """Do one write, on the writer's thread."""
        chunk = self._writing.attempt(lambda: self._write(write))
        if chunk is None:
            self._forget(write.header.chunk)
            self._count(dropped=1)
            return
        with self._lock:
            self._index.add(chunk)
            self._index.learn(chunk.key, write.header.packed)
            self._bad.discard(chunk.key)
        if self._writing.worked():
            self.refresh()

    def _write(self, write: Write) -> Chunk | None:
        """The chunk that is on the disk now; None if there is no room, or no payload, for it.

        Raises:
            OSError: it could not be written.
        """
        there = None if write.key in self._bad else self._folder.find(write.header.chunk)
        if there is not None:  # it is to become a head, or another process was faster
            with contextlib.suppress(FileNotFoundError):
                return self._folder.mark_head(there) if write.head and not there.head else there
        if write.payload is None or not self._make_room(write.n_bytes):
            return None
        chunk = self._folder.write(write.header, write.payload, head=write.head)
        with self._lock:
            self._stats.used_bytes += write.n_bytes
            self._unscanned += write.n_bytes
        self._count(written=1, written_bytes=write.n_bytes)
        return chunk

    def _make_room(self, n_bytes: int) -> bool:
        """Evict if need be; whether the budget has room for `n_bytes` now.

        Raises:
            OSError: the folder cannot be read or changed.
        """
        with self._lock:
            full = self._stats.used_bytes + n_bytes > self._budget
            overdue = self._unscanned + n_bytes > self._budget // RESCAN_SHARE
        began = self._files.monotonic()
        if full or overdue or began >= self._rescan_at:
            found, n_evicted = self._folder.make_room(n_bytes, self._budget)
            self._count(evicted=n_evicted)
            self._adopt(found, began)
        with self._lock:
            return self._stats.used_bytes + n_bytes <= self._budget

    # ---- shared state ----------------------------------------------------------------------

    def _adopt(self, found: Scan, began: float) -> None:
        """Take over what a scan found that began then."""
        now = self._files.monotonic()
        with self._lock:
            before = self._index
            self._index = Index(f.chunk for f in found.mine if f.chunk.key not in self._bad)
            self._index.learn_from(before)
            self._stats.used_bytes = found.n_bytes
            self._unscanned = 0
            self._rescan_at = now + max(RESCAN_S, RESCAN_REST * (now - began))

    def _known(self, key: bytes) -> Chunk | None:
        with self._lock:
            return self._index.get(key)

    def _forget(self, chunk: Chunk) -> None:
        with self._lock:
            self._index.discard(chunk.key)

    def _count(self, **increments: int) -> None:
        with self._lock:
            for name, n in increments.items():
                setattr(self._stats, name, getattr(self._stats, name) + n)
