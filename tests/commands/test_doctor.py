"""`llm-server doctor`: what is printed, and the exit status."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from llm_server.cli import app
from llm_server.commands.doctor import examine
from llm_server.config import Settings


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_SERVER_PORT", "0")


def doctor(folder: Path, *args: str) -> Result:
    return CliRunner().invoke(app, ["doctor", "--models-dir", str(folder / "models"), *args])


def test_a_machine_on_which_it_works(tmp_path: Path, port: None) -> None:
    result = doctor(tmp_path)
    assert result.exit_code == 0, result.output
    for check in ("llama.cpp", "processor", "threads", "memory", "models", "cache", "disk", "port"):
        assert check in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
@pytest.mark.parametrize(("told", "coloured"), [("", True), ("1", False)])
def test_it_is_coloured_unless_that_is_not_wanted(
    tmp_path: Path, port: None, told: str, coloured: bool
) -> None:
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from llm_server.cli import main; main()", "doctor"]
    doing = subprocess.Popen(
        [*command, "--models-dir", str(tmp_path / "models")],
        env=os.environ | {"NO_COLOR": told, "TERM": "xterm"},
        stdout=theirs,
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError), open(ours, "rb", buffering=0) as terminal:
        while read := terminal.read(4096):
            shown += read
    assert doing.wait() == 0 and b"threads" in shown
    assert (b"\x1b" in shown) == coloured


def test_a_fault_ends_in_1_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setenv("LLM_SERVER_PORT", str(other.getsockname()[1]))
        result = doctor(tmp_path, "--json")
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert said["ok"] is False
    (fault,) = [finding for finding in said["findings"] if finding["status"] == "fail"]
    assert fault["check"] == "port" and fault["fix"].startswith("export LLM_SERVER_PORT=")


def test_what_a_full_container_has_left_is_told(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{10**8}\n")
    (group / "memory.current").write_text(f"{10**8}\n")
    settings = Settings(models_dir=tmp_path / "models", port=0)
    (memory,) = [found for found in examine(settings, tmp_path) if found.check == "memory"]
    assert memory.status == "warn" and "0.1 GB, 0.0 GB of it available" in memory.detail
