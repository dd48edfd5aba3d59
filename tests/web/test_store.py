"""Conversations as the browser keeps them: over reloads, between tabs, from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.web.browser import CHROMIUM, ask

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def kept(page: Page) -> list[dict[str, Any]]:
    found = page.evaluate("Object.values(localStorage)")
    return [json.loads(each) for each in found]


def begin_to_answer(page: Page, gate: Path) -> None:
    """Ask for an answer of which one word comes before `gate` exists."""
    ask(page, f"gate:{gate}")
    expect(page.locator(".message.live .text")).to_contain_text("one")


def test_what_is_deleted_during_an_answer_stays_deleted(page: Page, tmp_path: Path) -> None:
    page.on("dialog", lambda dialog: dialog.accept())
    begin_to_answer(page, tmp_path / "never")
    page.get_by_role("button", name="Delete").click()
    expect(page.locator(".message")).to_have_count(0)
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    assert kept(page) == []


def test_the_title_of_what_is_open_disturbs_no_answer(page: Page, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    begin_to_answer(page, gate)
    page.locator(".drawer li button").click()
    gate.touch()
    expect(page.locator(".message.assistant .stats")).to_contain_text("tokens/s")


def test_another_conversation_is_opened_during_an_answer(page: Page, tmp_path: Path) -> None:
    begin_to_answer(page, tmp_path / "never")
    page.locator(".drawer .primary").click()
    page.locator(".drawer li button").last.click()
    expect(page.locator(".message.assistant .text")).to_contain_text("one")
    expect(page.locator(".message.assistant .stats")).to_contain_text("stopped")
    ask(page, "again")
    expect(page.locator(".message.assistant .stats").last).to_contain_text("tokens/s")
    assert [len(each["messages"]) for each in kept(page)] == [4]


def test_what_has_come_of_an_answer_is_kept_over_a_reload(page: Page, tmp_path: Path) -> None:
    begin_to_answer(page, tmp_path / "never")
    page.reload()
    expect(page.locator(".message.assistant .text")).to_contain_text("one")
    expect(page.locator(".message.assistant .stats")).to_have_text("stopped")


def test_two_tabs_lose_nothing_of_each_other(page: Page, tmp_path: Path) -> None:
    ask(page, "first")
    expect(page.locator(".message.assistant .stats")).to_contain_text("tokens/s")
    other = page.context.new_page()
    other.goto("/ui")
    ask(other, "second")
    expect(page.locator(".message.assistant .text")).to_contain_text(["first", "second"])
    # Both at once: what has come so far is seen, and then each goes its own way.
    gate = tmp_path / "gate"
    begin_to_answer(page, gate)
    expect(other.locator(".message.assistant .text").last).to_contain_text("one")
    ask(other, "third")
    expect(other.locator(".message.assistant .stats").last).to_contain_text("tokens/s")
    gate.touch()
    expect(page.locator(".message.assistant .stats").last).to_contain_text("tokens/s")
    ends = {each["messages"][-1]["content"].strip() for each in kept(page)}
    assert len(ends) == 2
    assert "third" in ends
    # What one of them deletes, the other one does not bring back.
    other.on("dialog", lambda dialog: dialog.accept())
    for _ in ends:
        other.get_by_role("button", name="Delete").click()
    expect(page.locator(".message")).to_have_count(0)
    assert kept(page) == []
    other.close()


@pytest.mark.parametrize(
    "message",
    [
        {"role": "root", "content": "x"},
        {"role": "user", "content": None},
        {"role": "assistant", "content": None, "tool_calls": "x"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "assistant", "content": "x", "stats": {"timings": {}}},
    ],
)
def test_a_file_with_what_cannot_be_shown_is_refused(page: Page, message: dict[str, Any]) -> None:
    file = {"name": "x.json", "mimeType": "application/json"}
    page.locator("input[type=file]").set_input_files(
        {**file, "buffer": json.dumps([message]).encode()}
    )
    expect(page.locator("#chat .said")).to_contain_text("holds no conversation")
    expect(page.locator(".message")).to_have_count(0)
