"""What makes answers come soonest is said alike wherever it is said."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from llm_server.cluster import tuning

ROOT = Path(__file__).parent.parent.parent


def test_the_guide_exports_it_all() -> None:
    told = (ROOT / "docs/cluster.md").read_text()
    exports = re.findall(r"(?:^export| )\s*(RAY_\w+)=('[^']*'|\S+)", told, re.MULTILINE)
    assert {name: value.strip("'") for name, value in exports} == tuning.ENVIRONMENT


def test_every_pod_has_it_all() -> None:
    service, _ = yaml.safe_load_all((ROOT / "deploy/rayservice.yaml").read_text())
    cluster = service["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert len(groups) > 1
    for group in groups:
        for container in group["template"]["spec"]["containers"]:
            pod = {variable["name"]: variable["value"] for variable in container["env"]}
            assert pod == tuning.ENVIRONMENT
