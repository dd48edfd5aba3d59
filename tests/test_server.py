"""The server as a process: bad starts, banner, signals, and no worker left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import httpx
import psutil
import pytest

from llm_server.config import Settings
from llm_server.models.registry import Registry
from llm_server.server import FEWEST_FILES, banner, listen, main
from tests.fake_live import add_models, chat_body, until

FAKE_SERVER = [sys.executable, str(Path(__file__).with_name("serve_fake.py"))]
HTTP = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))
"""A connection for each request; httpx's own 5 s are few on a machine with other things to do."""
REAL_SERVERS = [
    [sys.executable, "-m", "llm_server.server"],
    [str(Path(sys.executable).with_name("llm-server")), "serve"],
]


class Running:
    """A server process that has said where it listens."""

    def __init__(self, process: subprocess.Popen[str], stderr: IO[str]) -> None:
        self.process = process
        self.banner = [stderr.readline()]
        self.url = next(w for w in self.banner[0].split() if w.startswith("http://"))
        self._rest: list[str] = []
        self._reader = threading.Thread(target=lambda: self._rest.extend(stderr))
        self._reader.start()

    def worker(self) -> psutil.Process:
        # A later one may wait for the next model.
        children = psutil.Process(self.process.pid).children()
        return min(children, key=psutil.Process.create_time)

    def healthy(self) -> bool:
        return HTTP.get(self.url + "/health").status_code == 200

    def wait(self) -> int:
        status = self.process.wait(timeout=60)
        self._reader.join()
        return status

    @property
    def log(self) -> str:
        return "".join(self._rest)


@contextlib.contextmanager
def running(models: Path, *options: str) -> Iterator[Running]:
    command = [*FAKE_SERVER, "--models-dir", str(models), "--port", "0", *options]
    with process_of(command) as server:
        yield server


@contextlib.contextmanager
def process_of(command: list[str]) -> Iterator[Running]:
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        server = Running(process, process.stderr)
        try:
            yield server
        finally:
            process.kill()
            server.wait()


def failing(
    command: list[str], *options: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *options],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )


def started_here(*options: str) -> int:
    """The exit status of a server that cannot start, without a process of its own."""
    try:
        return main(options)
    except SystemExit as exit_:
        assert isinstance(exit_.code, int)
        return exit_.code


# ---- starts that fail ----------------------------------------------------------------------------


@pytest.mark.parametrize("command", REAL_SERVERS)
def test_a_port_in_use_is_one_line_before_any_model_is_loaded(
    command: list[str], tmp_path: Path
) -> None:
    add_models(tmp_path, "a.gguf")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = failing(command, "--models-dir", str(tmp_path), "--port", port)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert f"port {port}" in line and "in use" in line
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--model-name", "nope"], 1, "`nope` does not exist"),
        (["--model_name=nope"], 1, "`nope` does not exist"),
        (["nope"], 1, "`nope` does not exist"),
        (["/"], 1, "a folder: serve what is in it with --models-dir /"),
        (["--host", "no.such.host.invalid"], 1, "--host"),
        (["--host", "dots..between"], 1, "--host"),
        (["--host", "x" * 64], 1, "--host"),
        (["--port", "70000"], 2, "--port"),
        (["--n_ctx", "-1"], 2, "--n-ctx"),
        (["--parallel", "many"], 2, "--parallel"),
        (["--log-level", "loud"], 2, "--log-level"),
    ],
)
def test_a_wrong_option_is_one_clear_line(
    options: list[str], status: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_models(tmp_path, "a.gguf")
    assert started_here("--models-dir", str(tmp_path), *options) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_other_bad_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert started_here("--models-dir", str(tmp_path / "nothing")) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert started_here("--nonsense") == 2
    assert "--nonsense" in capsys.readouterr().err
    monkeypatch.setenv("LLM_SERVER_N_CTX", "x")
    assert started_here() == 2
    assert "LLM_SERVER_N_CTX" in capsys.readouterr().err


@pytest.mark.parametrize("command", REAL_SERVERS)
def test_help_lists_the_options(command: list[str]) -> None:
    result = failing(command, "--help")
    assert result.returncode == 0
    for (
        option
    ) in "host port model-name models-dir n-ctx parallel threads n-gpu-layers log-level".split():
        assert f"--{option}" in result.stdout


def limited(soft: int, hard: int) -> list[str]:
    """What starts a server with these limits on open files."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))"
    served = "from llm_server.server import main; import sys; sys.exit(main())"
    return [sys.executable, "-c", f"{limit}; {served}"]


@pytest.mark.parametrize("n_files", [12, 20, FEWEST_FILES - 1])
def test_too_few_open_files_are_one_line(n_files: int, tmp_path: Path) -> None:
    result = failing(limited(n_files, n_files), "--models-dir", str(tmp_path), "--port", "0")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert f"only {n_files} files" in line and "ulimit -n" in line


def test_few_open_files_are_shared_with_connections_and_told(tmp_path: Path) -> None:
    limits = limited(12, FEWEST_FILES)
    with process_of([*limits, "--models-dir", str(tmp_path), "--port", "0"]) as server:
        until(server.healthy)
        server.process.terminate()
        assert server.wait() == 0
    assert f"{FEWEST_FILES // 4} connections at once, not 1024" in server.log


# ---- starts that succeed -------------------------------------------------------------------------


def test_the_banner_and_the_options(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")
    with running(tmp_path, "--model_name", "b", "--n_ctx", "512", "--parallel", "2") as server:
        until(server.healthy)
        status = HTTP.get(server.url).json()
        assert (status["model"], status["n_ctx"], status["parallel"]) == ("b.gguf", 512, 2)
        server.process.terminate()
        assert server.wait() == 0
    assert "OpenAI API under /v1" in server.banner[0]
    assert "a.gguf, b.gguf" in server.log


def test_a_file_is_served_wherever_it_lies(tmp_path: Path) -> None:
    add_models(tmp_path / "models", "a.gguf")
    add_models(tmp_path / "loads", "b.gguf")
    file = tmp_path / "loads" / "b.gguf"
    with running(tmp_path / "models", str(file)) as server:
        until(server.healthy)
        assert HTTP.get(server.url).json()["model"] == "b.gguf"
        listed = HTTP.get(server.url + "/v1/models").json()["data"]
        assert {model["id"] for model in listed} == {"a.gguf", "b.gguf"}
    assert f"Serving {file}" in server.log
    assert f"Models in {tmp_path / 'models'}: a.gguf\n" in server.log


def test_an_empty_folder_says_what_to_do_and_a_model_is_served_once_it_is_there(
    tmp_path: Path,
) -> None:
    with running(tmp_path) as server:
        assert HTTP.get(server.url + "/health").status_code == 503
        add_models(tmp_path, "a.gguf")
        response = HTTP.post(server.url + "/v1/chat/completions", json=chat_body("hi"))
        assert response.status_code == 200
    assert f"put the .gguf file into {tmp_path}" in server.log


def test_variables_without_effect_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_SERVER_MODELS", str(tmp_path))
    monkeypatch.setenv("LLM_SERVER_PORT", "tcp://10.0.0.1:8000")
    with running(tmp_path) as server:
        HTTP.get(server.url + "/health")
        server.process.terminate()
        server.wait()
    assert "LLM_SERVER_MODELS in the environment is no setting: did you mean" in server.log
    assert server.log.count("LLM_SERVER_PORT is tcp://10.0.0.1:8000, as Kubernetes sets it") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="about permissions as Unix has them")
def test_a_cache_folder_that_everybody_may_write_to_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    for mode, told in ((0o777, 1), (0o755, 0)):
        folder.chmod(mode)
        with running(tmp_path, "--cache-dir", str(folder)) as server:
            HTTP.get(server.url + "/health")
            server.process.terminate()
            server.wait()
        assert server.log.count(f"Everybody may write to the cache folder {folder}") == told


@pytest.mark.skipif(sys.platform == "win32", reason="about descriptors as Unix has them")
def test_without_standard_streams(tmp_path: Path) -> None:
    command = ["sh", "-c", 'exec "$@" <&- >&-', "sh", *REAL_SERVERS[0], "--port", "0"]
    with process_of([*command, "--models-dir", str(tmp_path)]) as server:
        until(lambda: HTTP.get(server.url + "/health").json()["status"] in ("ok", "failed"))
        assert server.healthy()


def test_uvicorn_finds_the_app(tmp_path: Path) -> None:
    # A socket of ours, so that nobody else can have its port meanwhile.
    with socket.create_server(("127.0.0.1", 0)) as listener, (tmp_path / "log").open("w+") as log:
        number = listener.fileno()
        command = [sys.executable, "-m", "uvicorn", "llm_server.server:app", "--fd", str(number)]
        environment = os.environ | {"LLM_SERVER_MODELS_DIR": str(tmp_path)}
        with subprocess.Popen(command, env=environment, stderr=log, pass_fds=[number]) as process:
            try:
                url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
                # The connection waits in the backlog until the server takes it.
                assert HTTP.get(url).json()["name"] == "llm-server"
                evil = HTTP.get(url, headers={"host": "evil.com"})
                assert (evil.status_code, evil.json()["error"]["code"]) == (
                    403,
                    "host_not_allowed",
                )
            finally:
                process.terminate()
        log.seek(0)
        assert "the app alone: slow clients meet no deadline" in log.read()


def test_uvicorn_with_a_missing_model_ends_with_one_line(tmp_path: Path) -> None:
    result = failing(
        [sys.executable, "-m", "uvicorn", "llm_server.server:app", "--port", "0"],
        LLM_SERVER_MODELS_DIR=str(tmp_path),
        LLM_SERVER_MODEL_NAME="nope",
    )
    assert result.returncode == 1
    assert "`nope` does not exist" in result.stderr and "Traceback" not in result.stderr


def test_the_api_process_never_imports_llama_cpp() -> None:
    code = (
        "import sys, llm_server.cli, llm_server.server, llm_server.opening, llm_server.running;"
        "sys.exit(any(m.split('.')[0] in ('llama_cpp', 'jinja2', 'numpy') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- the end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_answers_finish(tmp_path: Path, sent: signal.Signals) -> None:
    add_models(tmp_path, "a.gguf", "b.gguf")
    gate = tmp_path / "gate"
    with running(tmp_path, "--memory", "64MiB") as server:  # Room for one of the two.
        until(server.healthy)
        worker = server.worker()
        refused: list[httpx.Response] = []
        with HTTP.stream(
            "POST",
            server.url + "/chat/completions",
            json=chat_body(f"gate:{gate}", stream=True),
        ) as response:
            lines = response.iter_lines()
            assert any("one " in line for line in lines)
            # Waits for the other model, and so for the stream: it is refused.
            queued = threading.Thread(
                target=lambda: refused.append(
                    HTTP.post(server.url + "/setModel", json={"model_name": "b"})
                )
            )
            queued.start()
            until(lambda: HTTP.get(server.url).json()["waiting"] == 1)
            server.process.send_signal(sent)
            queued.join()
            assert refused[0].status_code == 503
            assert refused[0].json()["error"]["code"] == "shutting_down"
            with pytest.raises(httpx.TransportError):
                HTTP.get(server.url)  # The listener is closed.
            gate.touch()
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert server.wait() == 0
        assert not worker.is_running()


def test_an_answer_that_takes_too_long_ends_in_an_error(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    with running(tmp_path, "--grace-seconds", "0.1") as server:
        until(server.healthy)
        body = chat_body("hang", stream=True)
        with HTTP.stream("POST", server.url + "/chat/completions", json=body) as response:
            lines = response.iter_lines()
            assert any("one " in line for line in lines)
            server.process.terminate()
            (last,) = [line for line in lines if line]
        assert "shutting_down" in last
        assert server.wait() == 0


def test_a_second_signal_stops_now(tmp_path: Path) -> None:
    add_models(tmp_path, "stubborn.gguf")
    with running(tmp_path) as server:
        until(server.healthy)
        worker = server.worker()
        body = chat_body("hang", stream=True)
        with HTTP.stream("POST", server.url + "/chat/completions", json=body) as response:
            lines = response.iter_lines()
            assert any("one " in line for line in lines)
            server.process.send_signal(signal.SIGINT)
            until(lambda: not accepts(server.url))
            started = time.monotonic()
            server.process.send_signal(signal.SIGINT)
            assert server.wait() == 1
            assert time.monotonic() - started < 5  # The grace time is 20 s, the worker's 10.
        assert "Traceback" not in server.log
        until(lambda: not worker.is_running())


def test_a_client_that_has_not_sent_all_is_left_without_a_fault_in_the_log(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    with running(tmp_path, "--grace-seconds", "0.1") as server:
        until(server.healthy)
        url = httpx.URL(server.url)
        with socket.create_connection((url.host, url.port or 0)) as client:
            head = "POST /chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n"
            client.sendall(f"{head}content-type: application/json\r\n\r\n{{".encode())
            until(server.healthy)  # What was sent before is being answered.
            server.process.terminate()
            assert server.wait() == 0
        assert "ERROR" not in server.log and "Traceback" not in server.log


def accepts(url: str) -> bool:
    try:
        HTTP.get(url)
    except httpx.TransportError:
        return False
    return True


def test_no_worker_outlives_a_killed_server(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    with running(tmp_path) as server:
        until(server.healthy)
        worker = server.worker()
        server.process.kill()
        server.wait()
        until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


def test_the_banner_says_when_only_the_demo_model_serves(tmp_path: Path) -> None:
    add_models(tmp_path, "package/demo.gguf")
    settings = Settings(models_dir=tmp_path / "models")
    registry = Registry(settings.models_dir, tmp_path / "package" / "demo.gguf")
    registry.scan()
    with listen("127.0.0.1", 0) as listener:
        assert "demo model" in banner(settings, registry, listener)
        add_models(settings.models_dir, "real.gguf")
        registry.scan()
        assert banner(settings, registry, listener).endswith(": real.gguf")
