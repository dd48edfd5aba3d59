"""Chat, and the page as a whole, as people use it, on the real application with fake workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.fake_live import Live, add_models, live_server
from tests.web.browser import CHROMIUM, ask, hide, settings

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"


def messages_file(messages: Any) -> dict[str, Any]:
    return {
        "name": "x.json",
        "mimeType": "application/json",
        "buffer": json.dumps(messages).encode(),
    }


def test_a_streamed_answer_is_kept_over_a_reload(page: Page) -> None:
    ask(page, "some **bold** words")
    answer = page.locator(".message.assistant")
    expect(answer.locator("strong")).to_have_text("bold")
    for part in ("tokens/s", "first token", "3 tokens", "prompt 1: none from the cache"):
        expect(answer.locator(".stats")).to_contain_text(part)
    page.reload()
    expect(page.locator(".message.assistant strong")).to_have_text("bold")


def test_hostile_output_stays_inert(page: Page) -> None:
    call = {"id": "x", "type": "function", "function": {"name": HOSTILE, "arguments": HOSTILE}}
    before = [
        {"role": "user", "content": HOSTILE},
        {"role": "assistant", "content": HOSTILE, "reasoning": HOSTILE, "tool_calls": [call]},
    ]
    page.locator("input[type=file]").set_input_files(messages_file(before))
    expect(page.locator(".message")).to_have_count(2)
    expect(page.locator(".call b")).to_have_text(HOSTILE)
    assert page.locator(".thread img").count() == 0
    page.get_by_role("button", name="New conversation").click()
    hostile = f"{HOSTILE} [x](javascript:alert(1)) </script><script>document.title='owned'</script>"
    ask(page, hostile)
    answer = page.locator(".message.assistant .text").last
    expect(answer).to_contain_text("onerror")
    expect(page.locator(".message.assistant .stats").last).to_contain_text("tokens/s")
    assert page.locator(".thread").locator("img, script, a[href^=javascript]").count() == 0
    assert page.title() == "Chat · LLM Server"
    # Nor would HTML that came past the server's sanitiser run.
    assert (
        page.evaluate("""() => {
        try { document.body.innerHTML = '<img src=x onerror=alert(1)>'; return 'inserted'; }
        catch (error) { return error.name; }
    }""")
        == "TypeError"
    )


def test_a_link_of_an_answer_opens_beside_the_chat(page: Page, live: Live) -> None:
    ask(page, f"[health]({live.client.base_url}/health)")
    expect(page.locator(".message.assistant .stats")).to_contain_text("tokens/s")
    page.get_by_label("Message", exact=True).fill("not sent yet")
    with page.context.expect_page() as beside:
        page.get_by_role("link", name="health").click()
    expect(beside.value.locator("body")).to_contain_text("is loaded")
    assert beside.value.evaluate("window.opener") is None
    beside.value.close()
    expect(page.get_by_label("Message", exact=True)).to_have_value("not sent yet")


def test_a_call_is_a_card_and_its_result_goes_back(page: Page) -> None:
    settings(page, {"Tools": '{"name": "get_weather", "parameters": {"type": "object"}}'})
    ask(page, "tool")
    expect(page.locator(".call")).to_have_count(2)
    for result in page.get_by_label("Result of").all():
        result.fill("sunny")
    page.get_by_role("button", name="Send the results").click()
    expect(page.locator(".message.tool")).to_contain_text(["sunny"] * 2)
    expect(page.locator(".message.assistant")).to_have_count(2)
    expect(page.get_by_label("Result of")).to_have_count(0)


@pytest.mark.parametrize("broken", [{"error": "The worker died."}, {"finish": "stopped"}])
def test_a_call_that_broke_off_does_not_end_the_conversation(
    page: Page, broken: dict[str, str]
) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"c'}}
    before: list[dict[str, Any]] = [
        {"role": "user", "content": "tool"},
        {"role": "assistant", "content": "", "tool_calls": [call], **broken},
    ]
    page.locator("input[type=file]").set_input_files(messages_file(before))
    expect(page.locator(".call")).to_contain_text("weather")
    expect(page.get_by_label("Result of")).to_have_count(0)
    # As conversations were kept that offered to answer such a call.
    before += [{"role": "tool", "tool_call_id": "call_1", "content": "sunny"}]
    page.locator("input[type=file]").set_input_files(messages_file(before))
    expect(page.locator(".message.tool .text")).to_have_text("sunny")
    ask(page, "report")
    answer = page.locator(".message.assistant").last
    expect(answer.locator(".stats")).to_contain_text("tokens/s")
    expect(answer).not_to_contain_text("call_1")


def test_thoughts_are_folded(page: Page) -> None:
    ask(page, "think")
    thought = page.locator(".message.assistant details.thought")
    expect(thought.locator("summary")).to_have_text("Thoughts")
    expect(thought.locator(".thought-text")).not_to_be_visible()


def test_system_prompt_sampling_and_schema_go_along(page: Page) -> None:
    schema = '{"type": "object"}'
    settings(page, {"System prompt": "Be brief.", "temperature": "0.5", "JSON schema": schema})
    expect(page.get_by_label("top_p")).to_have_attribute("placeholder", "0.95")
    ask(page, "report")
    answer = page.locator(".message.assistant .text")
    expect(answer).to_contain_text('"content":"Be brief."')
    expect(answer).to_contain_text('"temperature":0.5')
    expect(answer).to_contain_text('"schema":{"type":"object"}')
    expect(page.locator(".message.assistant .stats")).to_contain_text("tokens/s")
    page.get_by_label("temperature").fill("3")
    ask(page, "report")
    expect(page.locator(".message .bad")).to_contain_text("(temperature)")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    page.get_by_label("temperature").fill("")
    page.get_by_label("JSON schema").fill("{")
    ask(page, "report")
    expect(page.locator(".message .bad").last).to_contain_text("The schema cannot be read as JSON")


def test_copy_export_and_import(page: Page, tmp_path: Path) -> None:
    settings(page, {"System prompt": "Be brief.", "top_k": "7"})
    ask(page, "some **bold** words")
    answer = page.locator(".message.assistant")
    answer.get_by_role("button", name="Copy").click()
    expect(answer.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "some **bold** words "
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    exported = tmp_path / "conversation.json"
    download.value.save_as(exported)
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete").click()
    expect(page.locator(".message")).to_have_count(0)
    expect(page.get_by_label("System prompt")).to_have_value("")
    page.locator("input[type=file]").set_input_files(exported)
    expect(answer.locator("strong")).to_have_text("bold")
    expect(page.get_by_label("System prompt")).to_have_value("Be brief.")
    expect(page.get_by_label("top_k")).to_have_value("7")
    page.locator("input[type=file]").set_input_files(messages_file([{"role": "root"}]))
    expect(page.locator("#chat .said")).to_contain_text("holds no conversation")
    expect(page.locator(".message")).to_have_count(2)
    # Browsers give scripts a clipboard over HTTPS and on this machine alone.
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.locator(".message.user").get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()


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


def test_a_model_chosen_while_one_streams_is_loaded_when_it_is_asked(
    page: Page, live: Live, tmp_path: Path
) -> None:
    gate, loading = tmp_path / "gate", live.models / "gate-c.gguf.open"
    before = live.loads()
    ask(page, f"gate:{gate}")
    expect(page.locator(".message.assistant .text")).not_to_be_empty()
    menu = page.get_by_role("combobox", name="Model")
    menu.focus()
    for passed_over in ("b.gguf", "broken.gguf", "gate-c.gguf"):
        page.keyboard.press("ArrowDown")
        expect(menu).to_have_value(passed_over)
    gate.touch()
    expect(page.locator(".message.assistant .stats")).to_contain_text("tokens/s")
    ask(page, "again")
    expect(page.locator("#chat .said")).to_have_text("Loading gate-c.gguf: 50 %")
    expect(page.locator(".message.live .stats")).to_have_text("loading gate-c.gguf, 50%")
    loading.touch()
    expect(page.locator(".message.assistant .stats").nth(1)).to_contain_text("tokens/s")
    loading.unlink()
    expect(page.locator(".message.assistant h2")).to_have_text(["a.gguf", "gate-c.gguf"])
    expect(page.locator("#chat .said")).to_be_empty()
    assert live.loads()[len(before) :] == ["gate-c.gguf n_ctx=4096"]


def test_a_load_that_fails_is_not_said_to_go_on(browser: Browser, tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "gate-broken.gguf")
    with live_server(tmp_path) as live:
        context = browser.new_context(base_url=str(live.client.base_url))
        page = context.new_page()
        page.goto("/ui")
        page.get_by_role("combobox", name="Model").select_option("gate-broken.gguf")
        live.post("/models/unload", {"model": "a.gguf"})
        ask(page, "hello")
        expect(page.locator("#chat .said")).to_contain_text("Loading gate-broken.gguf")
        (tmp_path / "gate-broken.gguf.open").touch()
        expect(page.locator(".message .bad")).to_have_text("It is broken.")
        expect(page.locator("#state")).to_have_text("failed")
        expect(page.locator("#chat .said")).to_be_empty()
        context.close()


def test_five_hundred_messages_come_back_and_stay_as_they_are(page: Page) -> None:
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": f"message *{i}*"} for i in range(500)
    ]
    page.locator("input[type=file]").set_input_files(messages_file({"messages": messages}))
    expect(page.locator(".message")).to_have_count(500)
    expect(page.locator(".message").last.locator("em")).to_have_text("499")
    expect(page.locator(".message").last).to_be_in_viewport()
    expect(page.locator(".message").nth(1).locator("em")).to_have_text("1")
    page.evaluate("document.querySelectorAll('.message').forEach((each) => { each.known = true; })")
    rendered: list[str] = []
    page.on("request", lambda request: rendered.append(request.post_data or ""))
    ask(page, "one more")
    expect(page.locator(".message")).to_have_count(502)
    expect(page.locator(".message").last.locator(".stats")).to_contain_text("tokens/s")
    # A new answer costs the same however many there are: none of the others is drawn again,
    # but for the last one, which is the last no more.
    known = "[...document.querySelectorAll('.message')].filter((each) => each.known).length"
    assert page.evaluate(known) == 499
    drawn = [body for body in rendered if body.startswith('{"texts"')]
    assert [body for body in drawn if "message *1*" in body or "message *497*" in body] == []


def test_the_server_goes_and_comes_back(browser: Browser, tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    context = browser.new_context()
    opened = context.new_page()
    with live_server(tmp_path) as live:
        url = str(live.client.base_url)
        opened.goto(f"{url}/ui")
        expect(opened.locator("#state")).to_contain_text("a.gguf")
    expect(opened.locator("#notice")).to_be_visible()
    ask(opened, "is anybody there")
    expect(opened.locator(".message .bad")).to_have_text("The server cannot be reached.")
    with live_server(tmp_path, listen_port=int(url.rpartition(":")[2])):
        expect(opened.locator("#notice")).to_be_hidden(timeout=15_000)
        opened.get_by_role("button", name="Regenerate", exact=True).click()
        expect(opened.locator(".message.assistant .text")).to_contain_text("is anybody there")
    context.close()


def test_tabs_that_are_not_seen_leave_the_connections_to_others(page: Page, live: Live) -> None:
    for _ in range(6):  # as many connections as browsers have for one server
        other = page.context.new_page()
        other.goto("/ui")
        expect(other.locator("#state")).to_contain_text("a.gguf")
        hide(other, True)
    ask(page, "hello")
    expect(page.locator(".message.assistant .stats")).to_contain_text("tokens/s")
    live.post("/models/unload", {"model": "a.gguf"})
    expect(page.locator("#state")).to_have_text("empty")
    expect(other.locator("#notice")).to_be_hidden()
    expect(other.locator("#state")).to_contain_text("a.gguf")
    hide(other, False)
    expect(other.locator("#state")).to_have_text("empty")
    for tab in page.context.pages:
        if tab != page:
            tab.close()


def test_the_key_is_asked_for_once(browser: Browser, tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    with live_server(tmp_path, wait=False, api_key=["the-right-key-of-this-test"]) as live:
        context = browser.new_context(base_url=str(live.client.base_url))
        opened = context.new_page()
        opened.goto("/")
        field = opened.locator("dialog input")
        field.fill("wrong")
        opened.keyboard.press("Enter")
        expect(opened.locator("dialog")).to_contain_text("does not accept this key")
        # A dash that no header carries, as some programs make it of a hyphen.
        field.fill("the\u2013right\u2013key")
        opened.keyboard.press("Enter")
        assert "visible ASCII" in field.evaluate("(input) => input.validationMessage")
        for _ in range(3):
            opened.keyboard.press("Escape")
        expect(field).to_be_visible()
        field.fill("the-right-key-of-this-test")
        opened.keyboard.press("Enter")
        expect(opened.locator("#state")).to_contain_text("a.gguf")
        opened.reload()
        expect(opened.locator("#state")).to_contain_text("a.gguf")
        assert opened.locator("dialog").count() == 0
        opened.evaluate("sessionStorage.setItem('llm-server.key', '\u2013')")
        opened.reload()
        expect(field).to_be_visible()
        context.close()


def test_it_works_from_the_keyboard_alone(page: Page, tmp_path: Path) -> None:
    def tab_to(name: str, key: str = "Tab") -> None:
        for _ in range(20):
            page.keyboard.press(key)
            focused = page.evaluate("""() => {
                const e = document.activeElement;
                return e.ariaLabel || e.textContent;
            }""")
            if focused == name:
                return
        raise AssertionError(f"{name} is not reached by the Tab key")

    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    tab_to("Models")
    page.keyboard.press("Enter")
    expect(page.locator("#models h1")).to_be_visible()
    tab_to("Chat", "Shift+Tab")
    page.keyboard.press("Enter")
    tab_to("Message")
    page.keyboard.type(f"gate:{tmp_path / 'never'}")
    page.keyboard.press("Enter")
    expect(page.locator(".message.assistant .text")).to_contain_text("one")
    page.keyboard.press("Escape")
    expect(page.locator(".message.assistant .stats")).to_contain_text("stopped")
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(page.locator(".message.user .text").last).to_have_text("one\ntwo")
