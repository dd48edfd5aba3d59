"""The real application on a Ray cluster of this machine, with fake or real workers."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from llm_server.config import Settings
from tests.fake_live import FAKE_WORKER, Live, until

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own are not ours to mend.
    ray = pytest.importorskip("ray", reason="Ray is not installed: make test-cluster")
    from ray import serve
    from ray.cluster_utils import Cluster

    from llm_server.cluster.build import build

APPLICATION = "test"


class Nodes:
    """A Ray cluster of processes, each a node with processors that are numbers alone."""

    def __init__(self) -> None:
        # Ray's sockets have names of at most 107 bytes.
        self._folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
        os.environ["RAY_TMPDIR"] = self._folder
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 4,
                "include_dashboard": False,
                "object_store_memory": 80 * 1024 * 1024,
            },
        )
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="warning")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        serve.start(http_options={"host": "127.0.0.1", "port": self.port})

    def close(self) -> None:
        """End all processes."""
        serve.shutdown()
        ray.shutdown()
        self.cluster.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextlib.contextmanager
def deployed(
    nodes: Nodes,
    models: Path,
    /,
    *,
    fake: bool = True,
    wait: bool = True,
    stand_in: Path | None = None,
    **settings: Any,
) -> Iterator[Live]:
    """Deploy `models`; with `wait` the first one has a replica when the block is entered."""
    told = Settings(models_dir=models, **({"parallel": 4, "threads": 1} | settings))
    argv = {"worker_argv": FAKE_WORKER} if fake else {}
    serve.run(build(told, stand_in=stand_in, **argv), name=APPLICATION)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{nodes.port}", timeout=60) as client:
            if wait:
                until(lambda: client.get("/health").status_code == 200)
            yield Live(client, models)
    finally:
        serve.delete(APPLICATION)


def workers() -> list[psutil.Process]:
    """The worker processes of all replicas on this machine."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if FAKE_WORKER[1] in line or "llm_server.worker" in line:
            found.append(process)
    return found
