"""What the store's tests share: payloads that prove what they belong to, and hits put together."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from llm_server.cache.chunkfile import PARENT_BYTES, Chunk
from llm_server.cache.files import Files
from llm_server.cache.folder import LEDGER, model_folder
from llm_server.cache.keys import Chain, Kind, root_key
from llm_server.cache.ledger import Record, Use
from llm_server.cache.store import ChunkStore

FINGERPRINT = bytes(range(32))
MODEL = model_folder(FINGERPRINT)
ROOT = root_key(FINGERPRINT)
SIZE = 4
BUDGET = 1 << 20


def chain_of(tokens: list[int]) -> Chain:
    return Chain.of(ROOT, tokens, SIZE)


def payload_of(chain: Chain, start: int, stop: int) -> bytes:
    """Bytes that depend on every token up to `stop`, as KV memory does."""
    return hashlib.sha256(chain.slice(0, stop) + bytes([start])).digest()


def open_store(folder: Path, files: Files | None = None, **options: int) -> ChunkStore:
    return ChunkStore(folder, FINGERPRINT, **{"budget_bytes": BUDGET, **options}, files=files)


def keep(store: ChunkStore, tokens: list[int], *, head: bool = False) -> list[bool]:
    """Put every chunk of a prompt; which of them were accepted."""
    chain = chain_of(tokens)
    cuts = [*range(0, len(tokens), SIZE), len(tokens)]
    return [
        store.put(chain, start, stop, payload_of(chain, start, stop), head=head)
        for start, stop in zip(cuts, cuts[1:], strict=False)
    ]


def recall(store: ChunkStore, tokens: list[int]) -> int:
    """How many tokens of a prompt the store restores; checks every payload on the way."""
    chain, n = chain_of(tokens), 0
    for hit in store.match(chain):
        payload = store.load(hit)
        if payload is None:
            break
        assert hit.start == n
        stored = [*tokens[: n + hit.n_used]]
        if hit.n_used == hit.n_tokens:
            assert payload == payload_of(chain_of(stored), n, len(stored))
        n += hit.n_used
    return n


def chunk_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.kv"))


def add_chunk(folder: Path, chunk: Chunk, n_bytes: int) -> None:
    """A file that has the name of a chunk."""
    path = folder / MODEL / chunk.key.hex()[:2] / chunk.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(n_bytes))


def add_head(folder: Path, *, model: str, n_tokens: int = 256, hits: int = 0) -> None:
    """A file that has the name of a head, and a ledger that tells of it."""
    key = root_key(FINGERPRINT, model)
    add_chunk(folder, Chunk(key, bytes(PARENT_BYTES), Kind.RANGE, 0, n_tokens, True), 1000)
    record = Record(model, {key.hex(): Use(hits, 0.0)})
    (folder / MODEL / LEDGER).write_bytes(msgspec.json.encode(record))


CHECKPOINT = Kind.CHECKPOINT
