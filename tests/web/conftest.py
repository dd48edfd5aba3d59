"""A browser and a server on fake workers for all tests of a file, and a fresh page for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.fake_live import Live, add_models, live_server
from tests.web.browser import chromium, opened

# Playwright's own limit of 5 s is soon reached where other tests share two cores.
expect.set_options(timeout=30_000)


LONG = "qwen2.5-coder-32b-instruct-abliterated-q4_k_m.gguf"
"""As long as names of models are."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache folder of the server that most tests share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Live]:
    models = tmp_path_factory.mktemp("models")
    add_models(models, "a.gguf", "b.gguf", "broken.gguf", "gate-c.gguf", LONG)
    with live_server(models, cache_dir=cache, cache_size="1GB") as running:
        yield running


@pytest.fixture
def live(server: Live) -> Live:
    """The server, with one model loaded again."""
    for model in ("b.gguf", "gate-c.gguf"):
        server.post("/models/unload", {"model": model})
    server.post("/setModel", {"model_name": "a.gguf"})
    return server


@pytest.fixture(scope="module")
def context(browser: Browser, server: Live) -> Iterator[BrowserContext]:
    """One for most tests: a new one costs a process."""
    url = str(server.client.base_url)
    shared = browser.new_context(base_url=url, permissions=["clipboard-read", "clipboard-write"])
    yield shared
    shared.close()


@pytest.fixture
def page(context: BrowserContext, live: Live) -> Iterator[Page]:
    with opened(context) as page:
        yield page
