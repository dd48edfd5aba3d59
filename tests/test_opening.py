"""What goes wrong with the first model, which nobody waits for, is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_server.models.pool import Pool
from llm_server.models.registry import Registry
from llm_server.opening import preload
from tests.fake_live import add_models
from tests.models.test_pool import with_pool


@pytest.mark.parametrize("n_models", [0, 1])
def test_only_what_nobody_expects_is_told(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    n_models: int,
) -> None:
    add_models(tmp_path, *["a.gguf"][:n_models])
    with_pool(tmp_path, preload)
    assert "the first model" not in caplog.text

    def broken(_: Registry) -> None:
        raise ValueError("not enough values")

    async def preloads(pool: Pool) -> None:
        monkeypatch.setattr(Registry, "scan", broken)
        await preload(pool)

    with_pool(tmp_path, preloads)
    assert "the first model was not loaded" in caplog.text and "not enough values" in caplog.text
