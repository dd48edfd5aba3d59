"""Facts that are kept: read once, and no more of them than one file could hold."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llm_server.gguf.header import MAX_TENSORS, InvalidGguf
from llm_server.models.facts import Facts
from llm_server.models.known import FactsCache, identity
from tests.gguf_bytes import TINY, gguf


def test_a_file_is_read_once_however_many_ask(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(TINY | {f"a{i}": list(range(1000)) for i in range(100)}))
    cache, together = FactsCache(), threading.Barrier(8)
    id = identity([path.stat()])

    def ask(_: int) -> Facts | InvalidGguf:
        together.wait()
        return cache.of(id, [path])

    with ThreadPoolExecutor(8) as threads:
        first, *others = threads.map(ask, range(8))
    assert isinstance(first, Facts)
    assert all(other is first for other in others)


def test_parts_together_may_have_as_many_tensors_as_one_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    n = MAX_TENSORS // 2 + 1
    path.write_bytes(gguf(TINY, [(str(i), (0,), 0) for i in range(n)], sizes=[0] * n))
    about = FactsCache().of(identity([path.stat()]), [path, path])
    assert isinstance(about, InvalidGguf) and "absurdly many" in str(about)
