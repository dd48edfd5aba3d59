"""The JavaScript clients. Each script checks for itself; `make clients` fetches the packages."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent / "javascript"


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.skipif(not (SCRIPTS / "node_modules" / "ai").is_dir(), reason="make clients")
@pytest.mark.parametrize("script", ["openai.mjs", "ai_sdk.mjs"])
def test_a_script(base_url: str, script: str) -> None:
    done = subprocess.run(
        ["node", script, base_url], cwd=SCRIPTS, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
