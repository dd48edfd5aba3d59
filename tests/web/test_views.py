"""Models, Now and Cache as people use them, and every view for everybody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.cache.scenario import add_head
from tests.fake_live import Live, add_models, chat_body, live_server
from tests.web.browser import CHROMIUM, ask, opened, settings

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def test_models_are_loaded_with_settings_beside_each_other_and_unloaded(page: Page) -> None:
    page.goto("/ui#models")
    a, b = (page.locator("#models .rows > li", has_text=f"{name}.gguf") for name in "ab")
    expect(a).to_contain_text("default")
    b.get_by_role("button", name="Load with settings").click()
    expect(b).to_contain_text("Fits:")
    b.locator("input[name=n_ctx]").fill("99999999")
    expect(b).to_contain_text("should be less than or equal to")
    b.locator("input[name=n_ctx]").fill("1024")
    b.locator("select[name=type_k]").select_option("q8_0")
    expect(b).to_contain_text("with a context of 1,024")
    b.get_by_role("button", name="Load so").click()
    expect(b).to_contain_text("context 1,024 of 4,096")
    expect(b).to_contain_text("default")
    expect(a).to_contain_text("loaded")
    # Each model has its parts in the bar.
    expect(page.locator("#models .bar .group")).to_have_count(2)
    expect(page.locator("#models .bar .group").first.locator(".part")).to_have_count(5)
    a.get_by_role("button", name="Make default").click()
    expect(a).to_contain_text("default")
    b.get_by_role("button", name="Unload").click()
    expect(b).not_to_contain_text("loaded")
    expect(b).to_contain_text("would take")


def test_a_form_stays_as_it_is_while_models_come_and_go(page: Page, live: Live) -> None:
    page.goto("/ui#models")
    a, b = (page.locator("#models .rows > li", has_text=f"{name}.gguf") for name in "ab")
    b.get_by_role("button", name="Load with settings").click()
    n_ctx = b.locator("input[name=n_ctx]")
    n_ctx.fill("1792")
    live.post("/models/unload", {"model": "a.gguf"})
    add_models(live.models, "another.gguf")
    expect(a).to_contain_text("would take")
    expect(n_ctx).to_be_focused()
    expect(n_ctx).to_have_value("1792")
    page.keyboard.press("Enter")
    expect(page.locator("#models .said").first).to_contain_text("b.gguf could not be loaded.")
    expect(page.locator("#models .rows > li b").nth(1)).to_have_text("another.gguf")
    expect(n_ctx).to_be_focused()
    expect(n_ctx).to_have_value("1792")
    (live.models / "another.gguf").unlink()
    b.get_by_role("button", name="Load", exact=True).click()
    expect(page.locator("#models .said").first).to_have_text(
        "b.gguf is loaded: context 4,096, 4 at once."
    )
    expect(page.locator("#models .rows > li b").nth(1)).to_have_text("b.gguf")
    expect(n_ctx).to_have_value("1792")


def test_menus_have_the_models_that_make_text(browser: Browser, tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    add_models(tmp_path, "vectors.gguf", metadata={"llama.pooling_type": 1})
    (tmp_path / "torn.gguf").write_bytes(b"GGUF")
    with live_server(tmp_path) as live:
        context = browser.new_context(base_url=str(live.client.base_url))
        with opened(context) as page:
            for view in ("chat", "cache"):
                page.goto(f"/ui#{view}")
                expect(page.locator(f"#{view} select option")).to_have_text(["a.gguf"])
            page.goto("/ui#models")
            expect(page.locator("#models .rows > li")).to_have_count(3)
        context.close()


def test_what_a_loaded_model_does_and_how_long_it_stays(page: Page, live: Live) -> None:
    live.post("/setModel", {"model_name": "b.gguf", "keep_alive": "1h"})
    live.chat("one two", model="a.gguf")
    page.goto("/ui#models")
    a, b = (page.locator("#models .rows > li", has_text=f"{name}.gguf") for name in "ab")
    expect(a).to_contain_text("0 running · cells: 0 in use, 2 cached, 4,094 free · stays loaded")
    expect(b).to_contain_text("goes in 60 min if nobody asks")


def test_why_a_load_failed_is_said_in_words(page: Page) -> None:
    page.get_by_role("link", name="Models").click()
    row = page.locator("#models .rows > li", has_text="broken.gguf")
    row.get_by_role("button", name="Load", exact=True).click()
    expect(page.locator("#models .said").first).to_contain_text("could not be loaded.")
    expect(page.locator("#models .bad")).to_have_text("The last load failed: It is broken.")


def test_a_running_request_is_cancelled(page: Page, tmp_path: Path) -> None:
    ask(page, f"gate:{tmp_path / 'never'}")
    page.get_by_role("link", name="Now").click()
    expect(page.locator("#now .facts")).to_contain_text("a.gguf (1 running)")
    page.get_by_role("button", name="Cancel req_").click()
    page.get_by_role("link", name="Chat").click()
    expect(page.locator(".message .bad")).to_contain_text("cancelled on the server")


def test_heads_with_their_hits_warming_and_clearing_the_cache(page: Page, cache: Path) -> None:
    add_head(cache, model="an-old-one.gguf", n_tokens=300, hits=1234)
    page.get_by_role("link", name="Cache").click()
    heads = page.get_by_role("region", name="Heads").locator("tbody tr")
    expect(heads).to_contain_text(["an-old-one.gguf3001,234"])
    expect(page.get_by_role("region", name="Models")).to_contain_text("an-old-one.gguf")
    expect(page.locator("#cache select")).to_have_value("a.gguf")
    page.locator("#cache select").select_option("b.gguf")
    page.get_by_label("Messages").fill(json.dumps([{"role": "system", "content": "Be brief."}]))
    page.get_by_role("button", name="Warm").click()
    expect(page.locator("#cache .said")).to_contain_text("b.gguf: 1 tokens")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Clear an-old-one.gguf").click()
    expect(page.locator("#cache .said")).to_contain_text("1 chunks deleted")
    expect(heads).to_have_count(0)


LOOK = """() => {
    const bad = [];
    for (const e of document.querySelectorAll(
        'button, input, select, textarea, a[href], summary')) {
        if (!e.checkVisibility()) continue;
        const name = e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent;
        if (!name.trim()) bad.push(e.outerHTML.slice(0, 80));
    }
    for (const e of document.querySelectorAll('.plot figcaption, .plot output, .facts dd')) {
        if (e.scrollWidth > e.clientWidth) bad.push('cut off: ' + e.textContent);
    }
    for (const e of document.querySelectorAll('.rows .grow')) {
        if (e.checkVisibility() && e.clientWidth < 200) bad.push('squeezed: ' + e.textContent);
    }
    for (const e of [document.documentElement, document.querySelector('.view:not([hidden])')]) {
        if (e.scrollWidth > innerWidth) bad.push('wider than the screen: ' + e.id);
    }
    return bad;
}"""

AXE = """(rules) => axe.run(rules.length ? {runOnly: rules} : {}).then(({violations}) =>
    violations.map(({id, nodes}) => [id, nodes[0].html]))"""

MUCH = (
    "word " * 30
    + "a" * 300
    + "\n\n```python\n"
    + "x = 1; " * 40
    + "\n```\n| a | b |\n|-|-|\n| 1 | 2 |"
)


SIGNS = {"chat": ".call", "models": ".legend", "now": "[id^=row-]", "cache": "table"}
"""What each view shows when it is full."""

ASK = """(body) => { fetch('/chat/completions', {method: 'POST', body: JSON.stringify(body),
    headers: {'content-type': 'application/json'}}); }"""


def fill(page: Page, tmp_path: Path) -> None:
    """Have something of everything in every view, and a request that runs."""
    for text in ("think", MUCH, "tool"):
        ask(page, text)
        done = page.locator(".message.assistant:not(.live) .stats").last
        expect(done).to_contain_text("tokens/s")
        expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    page.evaluate(ASK, chat_body(f"gate:{tmp_path / 'never'}"))
    settings(page, {})


@pytest.mark.parametrize(
    ("width", "scheme", "rules"),
    # What the colours change, contrast aside, is nothing.
    [(1280, "light", []), (1280, "dark", ["color-contrast"]), (360, "light", [])],
)
def test_every_view_is_for_everybody(
    browser: Browser,
    live: Live,
    cache: Path,
    tmp_path: Path,
    width: int,
    scheme: Literal["light", "dark"],
    rules: list[str],
) -> None:
    axe = pytest.importorskip("axe_playwright_python.base").AXE_SCRIPT
    # The page's own policy would refuse the script that looks at it.
    context = browser.new_context(
        base_url=str(live.client.base_url),
        viewport={"width": width, "height": 740},
        color_scheme=scheme,
        bypass_csp=True,
    )
    add_head(cache, model="a-model-with-quite-a-long-name-Q4_K_M.gguf")
    live.chat("fail:as_asked")
    live.post("/setModel", {"model_name": "b.gguf"})
    with opened(context) as page:
        fill(page, tmp_path)
        page.evaluate(axe)
        for view, sign in SIGNS.items():
            page.goto(f"/ui#{view}")
            expect(page.locator(f"#{view} {sign}").first).to_be_visible()
            if view == "models":
                page.get_by_role("button", name="Load with settings").first.click()
                expect(page.locator("#models .load-form").first).to_contain_text("Fits:")
            assert page.evaluate(LOOK) == [], view
            assert page.evaluate(AXE, rules) == [], view
    context.close()
