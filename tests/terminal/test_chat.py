"""A conversation on the real application with fake workers; lines come from a list."""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_server.terminal.chat import HELP, Chat
from llm_server.terminal.client import ChatClient, ChatError
from llm_server.terminal.screen import Screen
from tests.fake_live import Live, add_models, live_server, until


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    add_models(tmp_path, "a.gguf", "b.gguf")
    with live_server(tmp_path) as live:
        yield live


class Talk:
    """What a person types, and what the terminal then shows."""

    def __init__(
        self,
        live: Live,
        styled: bool = False,
        system: str = "",
        out: io.StringIO | None = None,
    ) -> None:
        self.out = out or io.StringIO()
        self.client = ChatClient(str(live.client.base_url))
        self.prompts: list[str] = []
        self.chat = Chat(self.client, Screen(self.out, styled), "a.gguf", system)

    def __call__(self, *lines: str | BaseException) -> str:
        waiting: Iterator[str | BaseException] = iter([*lines, EOFError()])

        def read_line(prompt: str) -> str:
            self.prompts.append(prompt)
            line = next(waiting)
            if isinstance(line, BaseException):
                raise line
            return line

        start = len(self.out.getvalue())
        with self.client:
            self.chat.converse(read_line)
        return self.out.getvalue()[start:]


def test_an_answer_and_its_figures(live: Live) -> None:
    shown = Talk(live)("hello there")
    answer, figures, *_ = shown.splitlines()
    assert answer.strip() == "hello there"
    assert "2 tokens" in figures and "from the cache" in figures


def test_the_history_and_the_system_prompt_are_sent(live: Live) -> None:
    shown = Talk(live, system="be brief")("one", "report")
    for part in ('"be brief"', '"one"', '"one "', '"report"'):
        assert part in shown


def test_clear_forgets_the_conversation_alone(live: Live) -> None:
    shown = Talk(live)("/system a pirate", "secret word", "/clear", "report")
    report = shown.partition("forgotten")[2]
    assert "a pirate" in report and "secret" not in report


def test_lines_between_quotes_are_one_message(live: Live) -> None:
    talk = Talk(live)
    shown = talk('"""first', "second", 'third"""')
    assert "first\nsecond\nthird" in shown
    assert talk.prompts == [">>> ", "... ", "... ", ">>> "]


def test_ctrl_c_at_the_prompt_drops_the_line_and_goes_on(live: Live) -> None:
    assert "after all" in Talk(live)('"""never', KeyboardInterrupt(), "after all")


def test_bye_leaves(live: Live) -> None:
    assert Talk(live)("/bye", "unread") == ""


def test_help_and_unknown_commands(live: Live) -> None:
    assert HELP in Talk(live)("/help")
    assert "no /etc/passwd" in Talk(live)("/etc/passwd")
    assert Talk(live)(" /slash").startswith("/slash")


def test_another_model_answers_from_then_on(live: Live) -> None:
    shown = Talk(live)("/model", "/model b", "/model none", "/model")
    assert shown.count("Current model: a.gguf") == 1
    assert shown.count("Current model: b.gguf") == 2
    assert "`none` does not exist" in shown
    assert live.loads()[-1].startswith("b.gguf")


def test_thoughts_are_dim_and_apart(live: Live) -> None:
    talk = Talk(live, styled=True)
    with talk.client:
        talk.chat.ask("think")
    shown = talk.out.getvalue()
    thought, _, answer = shown.partition("\n\n")
    assert "\x1b[2m" in thought and "\x1b[0m" in thought
    assert answer.strip() and "\x1b[2m" not in answer.replace("\r\x1b[K", "")


def test_tool_calls_are_shown_and_not_run(live: Live) -> None:
    shown = Talk(live)("tool")
    assert 'calls weather {"city":"Oslo"}\ncalls time {}' in shown
    assert "tools are not run here" in shown


@pytest.mark.parametrize("text", ["fail:context_length_exceeded", "late-fail", "crash"])
def test_after_a_failure_the_conversation_is_as_before(live: Live, text: str) -> None:
    talk = Talk(live)
    report = talk("before", text, "report").rpartition("before")[2]
    assert text not in report


def test_a_model_cannot_steer_the_terminal(live: Live) -> None:
    shown = Talk(live)("\x1b[2J\x1b]0;title\x07 \x9b5A done")
    assert "\x1b" not in shown and "\x07" not in shown and "\x9b" not in shown
    assert "␛[2J" in shown


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(live: Live) -> None:
    talk = Talk(live)

    def interrupt() -> None:
        until(lambda: "one" in talk.out.getvalue())
        signal.pthread_kill(main, signal.SIGINT)

    main = threading.main_thread().ident
    assert main is not None
    thread = threading.Thread(target=interrupt)
    thread.start()
    shown = talk("hang", "report")
    thread.join()
    assert "stopped" in shown
    assert '"hang"' in shown and '"one "' in shown
    until(live.is_quiet)


def test_ctrl_c_again_while_the_answer_is_being_stopped_does_not_leave(live: Live) -> None:
    class Terminal(io.StringIO):
        """Where Ctrl-C is pressed once an answer begins, and again at the end of its line."""

        def write(self, text: str) -> int:
            written = super().write(text)
            if text in pressed:
                pressed.remove(text)
                raise KeyboardInterrupt
            return written

    pressed = ["one ", "\n"]
    talk = Talk(live, out=Terminal())
    assert '"report"' in talk("hang", "report")
    assert not pressed


def test_what_the_server_refuses_is_told_in_its_words(live: Live) -> None:
    with ChatClient(str(live.client.base_url)) as client:
        with pytest.raises(ChatError, match="does not exist"):
            list(client.answer([{"role": "user", "content": "x"}], "none"))
        with pytest.raises(ChatError, match="does not exist"):
            client.load("none")


def test_no_server_is_told(tmp_path: Path) -> None:
    with ChatClient("http://127.0.0.1:9") as client, pytest.raises(ChatError, match="no server"):
        client.wait_ready(lambda _: None)
