"""Debian's chromium, driven by Playwright, and what people do first on the page.

Playwright's own browsers would have to be downloaded.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    expect,
    sync_playwright,
)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        with contextlib.closing(browser):
            yield browser


@contextlib.contextmanager
def opened(context: BrowserContext) -> Iterator[Page]:
    """The page, opened without conversations; none of its scripts may fail."""
    page = context.new_page()
    reported: list[str] = []

    def note(message: ConsoleMessage) -> None:
        expected = ("Failed to load resource", "TrustedHTML")
        if message.type == "error" and not any(text in message.text for text in expected):
            reported.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: reported.append(str(error)))
    page.goto("/")
    expect(page.locator("#state")).to_have_attribute("data-kind", "ready")
    yield page
    # Its scripts end with the document: an answer that comes now would be kept after the clearing.
    page.goto("/health")
    page.evaluate("localStorage.clear()")
    page.close()
    assert reported == []


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def settings(page: Page, fields: dict[str, str]) -> None:
    page.get_by_role("button", name="Settings").click()
    for label, value in fields.items():
        page.locator("#chat").get_by_label(label).fill(value)


def hide(page: Page, hidden: bool) -> None:
    """What a browser does with tabs behind others; one without a screen shows all of them."""
    page.evaluate(
        """(hidden) => {
            Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});
            document.dispatchEvent(new Event('visibilitychange'));
        }""",
        hidden,
    )
