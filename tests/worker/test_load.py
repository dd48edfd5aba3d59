"""What a worker says of its own memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llm_server.llama import log
from llm_server.llama.model import Model
from llm_server.worker.load import memory_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_cells_that_were_not_given_back_count_once(
    attention_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(attention_gguf)
    kept, given_back = memory_bytes(model, False), memory_bytes(model, True)
    monkeypatch.setitem(log.buffers(), ("CPU", "KV"), 1 << 40)
    # Those that were kept are pages of the process already.
    assert abs(memory_bytes(model, False) - kept) < 1 << 39
    assert memory_bytes(model, True) - given_back > 1 << 39
    model.close()
