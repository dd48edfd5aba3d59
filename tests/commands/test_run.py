"""`llm-server run` as its users run it: in a terminal, in a pipe, with and without a server."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from typer.testing import CliRunner, Result

from llm_server.cli import app
from llm_server.terminal.client import ChatClient, Text
from tests.fake_live import add_models, live_server, until

COMMAND = [sys.executable, "-c", "from llm_server.cli import main; main()", "run"]
"""`llm-server run` as a process."""
USER = {"role": "user", "content": "hi"}


def run(*args: str, text: str = "") -> Result:
    return CliRunner().invoke(app, ["run", *args], input=text)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    add_models(tmp_path, "a.gguf", "b.gguf")
    with live_server(tmp_path) as live:
        yield str(live.client.base_url)


def test_standard_input_is_one_message(url: str) -> None:
    result = run("--url", url, text="several\nlines\n")
    assert (result.exit_code, result.output) == (0, "several\nlines \n")


def test_bytes_that_are_no_text_are_marked(url: str) -> None:
    said = subprocess.run(
        [*COMMAND, "--url", url], input=b"caf\xe9", capture_output=True, check=True
    )
    assert said.stdout.decode().split() == ["caf\ufffd"]
    said = subprocess.run(
        [*COMMAND, "--url", url, "--system", b"caf\xe9"],
        input=b"report",
        capture_output=True,
        check=True,
    )
    assert '"caf\ufffd"' in said.stdout.decode()


def test_an_address_as_people_write_it(url: str) -> None:
    for written in (f"{url}/v1", f"{url}/ui/", url.removeprefix("http://")):
        assert run("--url", written, text="hi").output == "hi \n"


@pytest.mark.parametrize("written", ["http://a:b", "http://[::1", "a..b"])
def test_what_cannot_be_an_address_is_one_line(written: str) -> None:
    result = run("--url", written, text="hi")
    assert result.exit_code == 1
    assert "that is no address of a server" in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="about files as Unix has them")
def test_without_standard_input_and_with_a_full_disk_for_the_answer(url: str) -> None:
    closed = ["sh", "-c", 'exec "$@" <&-', "sh", *COMMAND]
    said = subprocess.run([*closed, "--url", url], capture_output=True, text=True)
    assert (said.returncode, said.stderr.count("\n")) == (2, 1)
    assert "there is no message on standard input" in said.stderr
    with Path("/dev/full").open("w") as full:
        said = subprocess.run(
            [*COMMAND, "--url", url], input="hi", stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (said.returncode, said.stderr.count("\n")) == (1, 1)
    assert "llm-server: No space left on device" in said.stderr


def test_a_model_of_a_running_server(url: str) -> None:
    assert run("b", "--url", url, "--system", "Short.", text="report").exit_code == 0
    result = run("c", "--url", url, text="hi")
    assert result.exit_code == 1
    assert result.stderr.startswith("llm-server: The model `c` does not exist.")


def test_a_server_that_has_unloaded_its_model_loads_one(url: str) -> None:
    httpx.post(f"{url}/models/unload", json={"model": "a"}).raise_for_status()
    assert httpx.get(f"{url}/health").json()["status"] == "empty"
    assert run("--url", url, text="hi").output == "hi \n"


def test_a_server_whose_models_do_not_stay_loaded(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    with live_server(tmp_path, wait=False, keep_alive="0") as live:
        until(lambda: live.client.get("/health").json()["status"] == "empty")
        assert run("--url", str(live.client.base_url), text="hi").output == "hi \n"
        until(lambda: live.client.get("/health").json()["status"] == "empty")
        talk = ChatClient(str(live.client.base_url))
        with talk:
            assert talk.wait_ready(lambda told: None) in ("", "a.gguf")
            assert [p.text for p in talk.answer([USER], "") if isinstance(p, Text)] == ["hi "]


@pytest.mark.skipif(sys.platform == "win32", reason="about signals as Unix has them")
def test_an_answer_that_ctrl_c_cut_off_in_a_pipe_is_no_success(url: str) -> None:
    with subprocess.Popen(
        [*COMMAND, "--url", url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"hang")
        process.stdin.close()
        assert process.stdout.read(4) == b"one "
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130


def test_a_server_that_asks_for_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_models(tmp_path, "a.gguf")
    (tmp_path / "keys").write_text("# mine\none\n")
    with live_server(tmp_path, wait=False, api_key=("one",)) as live:
        url = str(live.client.base_url)
        assert "API key" in run("a", "--url", url, text="hi").stderr
        assert run("a", "--url", url, "--api-key", "two", text="hi").exit_code == 1
        assert run("a", "--url", url, "--api-key", "one", text="hi").output == "hi \n"
        monkeypatch.setenv("LLM_SERVER_API_KEY", "one,two")
        assert run("a", "--url", url, text="hi").output == "hi \n"
        monkeypatch.delenv("LLM_SERVER_API_KEY")
        monkeypatch.setenv("LLM_SERVER_API_KEY_FILE", str(tmp_path / "keys"))
        assert run("a", "--url", url, text="hi").output == "hi \n"
    assert run("a", "--api-key", "one", text="hi").exit_code == 2
    result = run("a", "--url", url, "--api-key", "k\u00e9y", text="hi")
    assert (result.exit_code, result.stderr.count("\n")) == (
        2,
        1,
    ) and "k\u00e9y" not in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="about files as Unix has them")
def test_more_to_say_than_a_server_takes(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_SERVER_MAX_BODY_BYTES", "1024")
    with Path("/dev/zero").open("rb") as endless:
        said = subprocess.run(
            [*COMMAND, "--url", url], stdin=endless, capture_output=True, text=True
        )
    told = "llm-server: the message on standard input is longer than 1024 bytes\n"
    assert (said.returncode, said.stderr) == (2, told)


def test_a_model_whose_name_looks_like_an_option(tmp_path: Path) -> None:
    result = run("--models-dir", str(tmp_path), "--", "-n", text="hi")
    assert (result.exit_code, "`-n` does not exist" in result.stderr) == (1, True)


def test_nothing_to_say_and_nobody_to_say_it_to() -> None:
    assert run(text=" \n").exit_code == 2
    result = run("--url", "http://127.0.0.1:9", text="hi")
    assert (result.exit_code, result.output.count("\n")) == (1, 1)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    result = run("none", "--models-dir", str(tmp_path), text="hi")
    assert result.exit_code == 1
    assert "`none` does not exist" in result.stderr and result.stdout == ""


def test_a_model_that_cannot_be_loaded_is_told_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"no model")
    result = run("broken", "--models-dir", str(tmp_path), text="hi")
    assert result.exit_code == 1 and result.stdout == ""
    assert "broken.gguf cannot be loaded: it is not a GGUF file." in result.stderr


class Terminal:
    """`llm-server run` on a pseudo-terminal."""

    def __init__(self, *args: str) -> None:
        import pty

        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            os.execv(sys.executable, [*COMMAND, *args])
        self.shown = b""

    def wait_for(self, text: str) -> None:
        """Until `text` is shown after what was waited for before."""
        while text.encode() not in self.shown:
            self.shown += os.read(self._fd, 4096)
        self.shown = self.shown.partition(text.encode())[2]

    def type(self, text: str | bytes) -> None:
        os.write(self._fd, text.encode() if isinstance(text, str) else text)

    def press(self, key: str, text: str) -> None:
        """Press a key until `text` is shown: a terminal that changes its mode may drop keys."""
        self.type(key)
        while text.encode() not in self.shown:
            if select.select([self._fd], [], [], 1.0)[0]:
                self.shown += os.read(self._fd, 4096)
            else:
                self.type(key)
        self.wait_for(text)

    def leave(self) -> int:
        """Press Ctrl-D until the program ends; its exit status."""
        ended, status = 0, 0
        while not ended:
            with contextlib.suppress(OSError):  # the other side is closed
                self.type("\x04")
                if select.select([self._fd], [], [], 1.0)[0]:
                    os.read(self._fd, 4096)
            ended, status = os.waitpid(self.pid, os.WNOHANG)
        os.close(self._fd)
        return os.waitstatus_to_exitcode(status)

    def end(self) -> int:
        """The exit status, of a program that ends by itself."""
        status = os.waitpid(self.pid, 0)[1]
        os.close(self._fd)
        return os.waitstatus_to_exitcode(status)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_a_conversation_on_an_own_server(tmp_path: Path) -> None:
    terminal = Terminal("--models-dir", str(tmp_path))
    terminal.wait_for("demo.gguf")
    terminal.wait_for(">>> ")
    children = psutil.Process(terminal.pid).children(recursive=True)
    assert len(children) == 2  # The server and its worker.
    terminal.type("Where do I put my models?\n")
    terminal.wait_for("GGUF")  # However its answer is drawn.
    terminal.wait_for("from the cache")
    terminal.wait_for(">>> ")
    terminal.press("\x03", ">>> ")
    assert terminal.leave() == 0
    until(lambda: not any(child.is_running() for child in children))


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_an_own_server_that_dies_ends_the_conversation(tmp_path: Path) -> None:
    terminal = Terminal("--models-dir", str(tmp_path))
    terminal.wait_for(">>> ")
    (server,) = psutil.Process(terminal.pid).children()
    server.kill()
    terminal.type("hi\n")
    terminal.wait_for("the server has ended")
    assert terminal.end() == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_what_is_typed_and_is_no_text_is_marked(url: str) -> None:
    terminal = Terminal("--url", url)
    terminal.wait_for(">>> ")
    terminal.type(b"caf\xe9\n")
    terminal.wait_for("tokens,")
    terminal.wait_for(">>> ")
    assert terminal.leave() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_its_server_goes_even_when_it_is_killed(tmp_path: Path) -> None:
    terminal = Terminal("--models-dir", str(tmp_path))
    terminal.wait_for(">>> ")
    children = psutil.Process(terminal.pid).children(recursive=True)
    os.kill(terminal.pid, signal.SIGKILL)
    assert terminal.end() == -signal.SIGKILL
    until(lambda: not any(child.is_running() for child in children), 30)
