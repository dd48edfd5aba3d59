"""The real application on a Ray cluster of this machine, with fake or real workers."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from llm_server.cluster import tuning
from llm_server.config import Settings
from tests.fake_live import FAKE_WORKER, Live, until

if "TEST_ON_CLUSTER" in os.environ:  # Many applications, and nobody asks one that goes.
    os.environ["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] = "0.1"
tuning.apply()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own are not ours to mend.
    ray = pytest.importorskip("ray", reason="Ray is not installed: make test-cluster")
    from ray import serve
    from ray.cluster_utils import Cluster

    # Some for tests: they import Ray.
    from llm_server.cluster.backend import Deployments as Deployments
    from llm_server.cluster.build import app as app
    from llm_server.cluster.build import build
    from llm_server.cluster.ingress import from_proxy as from_proxy
    from llm_server.cluster.remote import RemoteWorker as RemoteWorker
    from llm_server.cluster.running import address as address

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
        self.port = tuning.first_free(18000)  # Below those that Ray's own connections take.
        # All nodes are this machine: proxies of several would share one port.
        serve.start(
            proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": self.port}
        )

    def close(self) -> None:
        """End all processes."""
        serve.shutdown()
        ray.shutdown()
        self.cluster.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)


@functools.cache
def shared_nodes() -> Nodes:
    """One cluster for all tests of this process, ended with it."""
    nodes = Nodes()
    atexit.register(nodes.close)
    return nodes


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
    _stack.append(build(told, stand_in=stand_in, **argv))
    serve.run(_stack[-1], name=APPLICATION)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{nodes.port}", timeout=60) as client:
            if wait:
                until(lambda: client.get("/health").status_code == 200)
            yield Live(client, models)
    finally:
        _stack.pop()
        if _stack:  # The one around this one, as it was.
            serve.run(_stack[-1], name=APPLICATION)
        else:
            serve.delete(APPLICATION)


_stack: list[Any] = []
"""The applications that are to be served, one inside the other; the last one is."""


def serve_again(models: Path, **settings: Any) -> None:
    """Deploy the application anew, with other settings, while it is serving."""
    told = Settings(models_dir=models, **({"parallel": 4, "threads": 1} | settings))
    _stack[-1] = build(told, worker_argv=FAKE_WORKER)
    serve.run(_stack[-1], name=APPLICATION)


def replicas(deployment: str) -> list[psutil.Process]:
    """The replicas of a model on this machine, dead ones left out."""
    title = f"ray::ServeReplica:{APPLICATION}:{deployment}"
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] and process.cmdline()[0].startswith(title):
                found.append(process)
    return found
