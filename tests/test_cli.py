"""What ends every command in one line, and what none may stumble over."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_live import add_models

COMMAND = [sys.executable, "-c", "from llm_server.cli import main; main()"]


def llm_server(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *args],
        env=os.environ | environment,
        capture_output=True,
        encoding="utf-8",
    )


@pytest.mark.skipif(sys.platform == "win32", reason="names are shorter there")
def test_what_the_system_refuses_is_one_line(tmp_path: Path) -> None:
    said = llm_server("cache", "clear", "--yes", "--cache-dir", str(tmp_path / ("x" * 300)))
    assert (said.returncode, said.stderr.count("\n")) == (0, 0)
    in_no_folder = ["sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh", *COMMAND]
    command = [*in_no_folder, "cache", "ls", "--cache-dir", "cache"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "llm-server: No such file or directory\n")


def test_names_that_the_output_cannot_spell_are_marked(tmp_path: Path) -> None:
    add_models(tmp_path, "\u00e4.gguf")
    said = llm_server("list", "--models-dir", str(tmp_path), PYTHONIOENCODING="ascii")
    assert (said.returncode, said.stderr) == (0, "") and "?.gguf" in said.stdout
