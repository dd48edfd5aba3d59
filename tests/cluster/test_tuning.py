"""What makes answers come soonest is said alike wherever it is said."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest
import yaml

from llm_server.cluster import tuning

ROOT = Path(__file__).parent.parent.parent


def test_the_guide_exports_it_all() -> None:
    guide = (ROOT / "docs/cluster.md").read_text()
    exports = re.findall(r"(?:^export| )\s*(RAY_\w+)=('[^']*'|\S+)", guide, re.MULTILINE)
    told = {name: value.strip("'") for name, value in exports}
    folders = {
        name: told.pop(name).removeprefix("$H/").removeprefix("$H") for name in tuning.PRIVATE
    }
    assert (told, folders) == (tuning.ENVIRONMENT, tuning.PRIVATE)


def test_only_this_user_commands_haproxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tuning.PRIVATE:
        monkeypatch.setenv(name, "")  # As it is now, afterwards.
        monkeypatch.delenv(name)
    monkeypatch.setenv(tuning.HAPROXY, "1")
    for name in tuning.ENVIRONMENT.keys() | tuning.PORTS.keys():
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    tuning.apply()
    (folder,) = {Path(os.environ[name]).parent for name, file in tuning.PRIVATE.items() if file}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder.stat().st_uid == os.getuid()
    socket = f"{folder}/{'n' * 56}/admin.sock.1234567.tmp"  # A node's, while HAProxy makes it.
    assert len(socket) <= 107, "longer than the kernel takes"
    monkeypatch.setenv("RAY_SERVE_HAPROXY_SOCKET_PATH", "/run/mine/admin.sock")
    tuning.apply()
    assert os.environ["RAY_SERVE_HAPROXY_SOCKET_PATH"] == "/run/mine/admin.sock"


def test_every_pod_has_it_all() -> None:
    service, _ = yaml.safe_load_all((ROOT / "deploy/rayservice.yaml").read_text())
    cluster = service["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert len(groups) > 1
    for group in groups:
        for container in group["template"]["spec"]["containers"]:
            pod = {variable["name"]: variable["value"] for variable in container["env"]}
            assert pod == tuning.ENVIRONMENT
