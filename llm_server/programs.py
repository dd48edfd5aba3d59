"""How parts of this package run as programs of their own: in any folder, whatever lies in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import llm_server

PYTHON = (sys.executable, "-P", "-m")
"""-P: no file of the folder the server was started in shall pass for a library."""


def with_source(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which this package is found again, also where it is not installed."""
    source = Path(llm_server.__file__).parents[1]
    if source.name in ("site-packages", "dist-packages"):
        return dict(environment)
    paths = [environment["PYTHONPATH"]] if environment.get("PYTHONPATH") else []
    return {**environment, "PYTHONPATH": os.pathsep.join([*paths, str(source)])}
