"""The page as people use it: Debian's chromium on the real application with fake workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from tests.fake_live import Live, add_models, live_server
from tests.web.browser import CHROMIUM, chromium

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    add_models(tmp_path, "a.gguf", "b.gguf", "broken.gguf")
    with live_server(tmp_path) as running:
        yield running


@pytest.fixture
def page(browser: Browser, live: Live) -> Iterator[Page]:
    """The page, opened; what the console reported is an error at the end."""
    context = browser.new_context(base_url=str(live.client.base_url))
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened = context.new_page()
    reported: list[str] = []

    def note(message: ConsoleMessage) -> None:
        expected = ("Failed to load resource", "TrustedHTML")
        if message.type == "error" and not any(text in message.text for text in expected):
            reported.append(message.text)

    opened.on("console", note)
    opened.on("pageerror", lambda error: reported.append(str(error)))
    opened.goto("/")
    expect(opened.locator("#state")).to_contain_text("a.gguf")
    yield opened
    context.close()
    assert reported == []


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def settings(page: Page, **fields: str) -> None:
    page.get_by_role("button", name="Settings").click()
    for label, value in fields.items():
        page.locator("#chat").get_by_label(label.replace("_", " ")).fill(value)


def test_a_streamed_answer_is_kept_over_a_reload(page: Page) -> None:
    ask(page, "some **bold** words")
    answer = page.locator(".message.assistant")
    expect(answer.locator("strong")).to_have_text("bold")
    expect(answer.locator(".stats")).to_contain_text("tokens/s")
    expect(answer.locator(".stats")).to_contain_text("first token")
    page.reload()
    expect(page.locator(".message.assistant strong")).to_have_text("bold")


def test_hostile_output_stays_inert(page: Page) -> None:
    hostile = (
        "<img src=x onerror=\"document.title='owned'\"> [x](javascript:alert(1)) </script>"
        "<script>document.title='owned'</script>"
    )
    ask(page, hostile)
    answer = page.locator(".message.assistant .text")
    expect(answer).to_contain_text("onerror")
    expect(page.locator(".message.assistant .stats")).to_contain_text("tokens/s")
    assert answer.locator("img, script, a[href^=javascript]").count() == 0
    assert page.title() == "Chat · LLM Server"
    # Nor would HTML that came past the server's sanitiser run.
    assert (
        page.evaluate("""() => {
        try { document.body.innerHTML = '<img src=x onerror=alert(1)>'; return 'inserted'; }
        catch (error) { return error.name; }
    }""")
        == "TypeError"
    )


def test_a_call_is_a_card_and_its_result_goes_back(page: Page) -> None:
    settings(page, Tools='{"name": "get_weather", "parameters": {"type": "object"}}')
    ask(page, "tool")
    expect(page.locator(".call")).to_have_count(2)
    for result in page.get_by_label("Result of").all():
        result.fill("sunny")
    page.get_by_role("button", name="Send the results").click()
    expect(page.locator(".message.tool")).to_contain_text(["sunny"] * 2)
    expect(page.locator(".message.assistant")).to_have_count(2)


def test_thoughts_are_folded(page: Page) -> None:
    ask(page, "think")
    thought = page.locator(".message.assistant details.thought")
    expect(thought.locator("summary")).to_have_text("Thoughts")
    expect(thought.locator(".thought-text")).not_to_be_visible()


def test_stop_regenerate_and_edit(page: Page, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    ask(page, f"gate:{gate}")
    stop = page.get_by_role("button", name="Stop", exact=True)
    expect(page.locator(".message.assistant .text")).not_to_be_empty()
    stop.click()
    expect(page.locator(".message.assistant .stats")).to_contain_text("stopped")
    gate.touch()
    page.get_by_role("button", name="Regenerate", exact=True).click()
    expect(page.locator(".message.assistant .stats")).to_contain_text("tokens/s")
    expect(page.locator(".message.assistant")).to_have_count(1)
    page.get_by_role("button", name="Edit", exact=True).click()
    page.get_by_label("Edit the message").fill("other words")
    page.get_by_role("button", name="Send again").click()
    expect(page.locator(".message.assistant .text")).to_contain_text("other words")


def test_switching_models_while_one_streams(page: Page, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    ask(page, f"gate:{gate}")
    expect(page.locator(".message.assistant .text")).not_to_be_empty()
    page.get_by_role("combobox", name="Model").select_option("b.gguf")
    gate.touch()
    expect(page.locator("#state")).to_contain_text("b.gguf")
    expect(page.locator(".message.assistant .stats")).to_contain_text("tokens/s")
    ask(page, "again")
    expect(page.locator(".message.assistant h2").nth(1)).to_have_text("b.gguf")


def test_models_are_loaded_with_settings_beside_each_other_and_unloaded(page: Page) -> None:
    page.goto("/ui#models")
    a, b = (page.locator("#models li", has_text=f"{name}.gguf") for name in "ab")
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
    memory = page.locator("#models .bar")
    expect(memory.locator(".part")).to_have_count(5)
    a.get_by_role("button", name="Make default").click()
    expect(a).to_contain_text("default")
    b.get_by_role("button", name="Unload").click()
    expect(b).not_to_contain_text("loaded")
    expect(b).to_contain_text("would take")


def test_why_a_load_failed_is_said_in_words(page: Page) -> None:
    page.get_by_role("link", name="Models").click()
    row = page.locator("#models li", has_text="broken.gguf")
    row.get_by_role("button", name="Load", exact=True).click()
    expect(page.locator("#models .said").first).to_contain_text("could not be loaded.")


def test_a_running_request_is_cancelled(page: Page, live: Live, tmp_path: Path) -> None:
    ask(page, f"gate:{tmp_path / 'never'}")
    page.get_by_role("link", name="Now").click()
    page.get_by_role("button", name="Cancel req_").click()
    page.get_by_role("link", name="Chat").click()
    expect(page.locator(".message .bad")).to_contain_text("cancelled on the server")


def test_warming_and_clearing_the_cache(page: Page) -> None:
    page.get_by_role("link", name="Cache").click()
    page.get_by_label("Messages").fill(json.dumps([{"role": "system", "content": "Be brief."}]))
    page.get_by_role("button", name="Warm").click()
    expect(page.locator("#cache .said")).to_contain_text("tokens")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Clear all").click()
    expect(page.locator("#cache .said")).to_contain_text("deleted")


def test_five_hundred_messages_come_back(page: Page) -> None:
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": f"message *{i}*"} for i in range(500)
    ]
    page.locator("input[type=file]").set_input_files(
        {
            "name": "long.json",
            "mimeType": "application/json",
            "buffer": json.dumps({"messages": messages}).encode(),
        }
    )
    expect(page.locator(".message")).to_have_count(500)
    expect(page.locator(".message").last.locator("em")).to_have_text("499")
    expect(page.locator(".message").last).to_be_in_viewport()
    ask(page, "one more")
    expect(page.locator(".message")).to_have_count(502)
    expect(page.locator(".message").last.locator(".stats")).to_contain_text("tokens/s")


def test_the_server_goes_and_comes_back(browser: Browser, tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    context = browser.new_context()
    opened = context.new_page()
    with live_server(tmp_path) as live:
        url = str(live.client.base_url)
        opened.goto(f"{url}/ui")
        expect(opened.locator("#state")).to_contain_text("a.gguf")
    expect(opened.locator("#notice")).to_be_visible()
    with live_server(tmp_path, listen_port=int(url.rpartition(":")[2])):
        expect(opened.locator("#notice")).to_be_hidden(timeout=15_000)
        ask(opened, "back again")
        expect(opened.locator(".message.assistant .text")).to_contain_text("back again")
    context.close()


def test_the_key_is_asked_for_once(browser: Browser, tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    with live_server(tmp_path, wait=False, api_key=["the-right-key-of-this-test"]) as live:
        context = browser.new_context(base_url=str(live.client.base_url))
        opened = context.new_page()
        opened.goto("/")
        for key in ("wrong", "the-right-key-of-this-test"):
            opened.locator("dialog input").fill(key)
            opened.keyboard.press("Enter")
        expect(opened.locator("#state")).to_contain_text("a.gguf")
        opened.reload()
        expect(opened.locator("#state")).to_contain_text("a.gguf")
        assert opened.locator("dialog").count() == 0
        context.close()


LOOK = """() => {
    const bad = [];
    for (const e of document.querySelectorAll(
        'button, input, select, textarea, a[href], summary')) {
        if (!e.checkVisibility()) continue;
        const name = e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent;
        if (!name.trim()) bad.push(e.outerHTML.slice(0, 80));
    }
    const wide = document.documentElement.scrollWidth > innerWidth;
    return [bad, wide, document.querySelectorAll('h1, h2').length];
}"""


@pytest.mark.parametrize("width", [360, 1280])
def test_controls_have_names_and_nothing_is_wider_than_the_screen(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 740})
    ask(page, "word " * 30 + "a" * 300)
    expect(page.locator(".message.assistant .stats")).to_contain_text("tokens/s")
    for view in ("Chat", "Models", "Now", "Cache"):
        page.get_by_role("link", name=view).click()
        assert page.evaluate(LOOK)[:2] == [[], False], view


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier(
    browser: Browser, live: Live, scheme: Literal["light", "dark"]
) -> None:
    # The page's own policy would refuse the script that looks at it.
    context = browser.new_context(
        base_url=str(live.client.base_url), color_scheme=scheme, bypass_csp=True
    )
    page = context.new_page()
    page.goto("/ui")
    expect(page.locator("#state")).to_contain_text("a.gguf")
    settings(page)
    ask(page, "some **bold** words and `code`")
    expect(page.locator(".message.assistant .stats")).to_contain_text("tokens/s")
    for view in ("chat", "models", "now", "cache"):
        page.goto(f"/ui#{view}")
        expect(page.locator(f"#{view} h1, #{view} textarea").first).to_be_visible()
        found = Axe().run(page).response["violations"]
        assert [(barrier["id"], barrier["nodes"][0]["html"]) for barrier in found] == [], view
    context.close()


def test_it_works_from_the_keyboard_alone(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#models h1")).to_be_visible()
