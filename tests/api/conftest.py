"""Servers for the tests of the API."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fake_live import Live, add_models, live_server


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One server for all tests of a module, which must leave `a.gguf` loaded and quiet."""
    models = tmp_path_factory.mktemp("models")
    add_models(models, "a.gguf", "b.gguf", "sub/c.gguf")
    with live_server(models) as server:
        yield server
