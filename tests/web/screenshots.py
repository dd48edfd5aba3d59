"""`python -m tests.web.screenshots FOLDER`: each view, light and dark, on a desk and on a phone.

Two models are loaded, and there is a third one: the demo model twice, and a tiny random one.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from playwright.sync_api import Browser, Page

from tests.fake_live import until
from tests.live import LiveServer
from tests.tiny_models import build_sliding
from tests.web.browser import chromium

SIZES = {"desk": (1280, 800), "phone": (390, 844)}
SYSTEM = "You are the assistant of this server. Be brief."
TOOL = """[{"name": "get_weather",
  "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}]"""


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home, chromium() as browser:
        models = Path(home) / "models"  # with the cache beside it, and nobody else's
        models.mkdir()
        for name in ("demo.gguf", "helper.gguf"):
            shutil.copy(files("llm_server.demo") / "demo.gguf", models / name)
        build_sliding(models / "sliding.gguf")
        server = LiveServer(models, ["--memory", "400MB", "--model-name", "demo.gguf"])
        try:
            server.wait_ready()
            load = {"model_name": "helper.gguf", "keep_alive": "30m"}
            server.client.post("/setModel", json=load | {"load_model_configs": {"n_ctx": 2048}})
            server.client.post("/setModel", json={"model_name": "demo.gguf"})
            use_a_head(server)
            for size in SIZES:
                for scheme in ("light", "dark"):
                    take(browser, server.url, folder, size, scheme)
        finally:
            server.close()


def use_a_head(server: LiveServer) -> None:
    """Have requests that begin alike, and wait until they are counted: within a minute."""
    for question in ("Who are you?", "What is a model?", "Where are models?", "What is a cache?"):
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        server.client.post("/v1/chat/completions", json={"messages": messages})
    until(lambda: any(h["hits"] for h in server.client.get("/api/cache").json()["heads"]), 90)


def take(browser: Browser, url: str, folder: Path, size: str, scheme: str) -> None:
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    page = context.new_page()
    page.goto(url + "/ui")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill(SYSTEM)
    page.get_by_role("button", name="Settings").click()
    ask(page, "Where do I put my models?")
    ask(page, "Show me how to call you from Python.")
    if size == "desk":
        page.get_by_role("button", name="Settings").click()
        page.locator("#chat").get_by_label("Tools").fill(TOOL)
    ask(page, "What is the weather in Oslo?")
    for view in ("chat", "models", "now", "cache"):
        page.goto(f"{url}/ui#{view}")
        page.wait_for_timeout(1500)
        page.evaluate("document.activeElement.blur()")
        page.screenshot(path=folder / f"{view}-{size}-{scheme}.png")
    context.close()


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_role("button", name="Send", exact=True).click()
    page.get_by_role("button", name="Send", exact=True).wait_for(timeout=60_000)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
