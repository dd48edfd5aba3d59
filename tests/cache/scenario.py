"""What the store's tests share: payloads that prove what they belong to, and hits put together."""

from __future__ import annotations

import hashlib
from pathlib import Path

from llm_server.cache.files import Files
from llm_server.cache.keys import Chain, Kind, root_key
from llm_server.cache.store import ChunkStore

FINGERPRINT = bytes(range(32))
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


CHECKPOINT = Kind.CHECKPOINT
