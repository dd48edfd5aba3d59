"""A person's way to start the cluster's server: Ray if there is none yet, then the application."""

from __future__ import annotations

import signal
import sys
import threading

import ray
from ray import serve

from llm_server import __version__
from llm_server.cluster.build import build
from llm_server.config import Settings
from llm_server.demo import demo_model_path
from llm_server.server import (
    CannotStart,
    check_exposure,
    check_models,
    configure_logging,
    listen,
    warn_of_unknown_models,
)

APPLICATION = "llm-server"


def main(settings: Settings) -> int:
    """Serve until told to stop. The exit status: 0, or 1 if it cannot start."""
    try:
        return run(settings)
    except CannotStart as error:
        print(f"llm-server: {error}", file=sys.stderr)
        return 1


def run(settings: Settings) -> int:
    """Deploy, wait for Ctrl-C, and take down what was deployed. Raises CannotStart."""
    registry = check_models(settings, demo_model_path())
    with listen(settings.host, settings.port) as listener:
        check_exposure(settings, listener)
        host, port = listener.getsockname()[:2]
    configure_logging(settings)
    warn_of_unknown_models(settings, registry)
    application = build(settings, stand_in=demo_model_path())
    ray.init(include_dashboard=False, log_to_driver=True)
    serve.start(http_options={"host": host, "port": port})
    try:
        serve.run(application, name=APPLICATION, route_prefix="/")
        print(
            f"llm-server {__version__} on http://{host}:{port}, on {len(ray.nodes())} nodes "
            "(page at /ui, OpenAI API under /v1)",
            file=sys.stderr,
            flush=True,
        )
        _wait_for_signal()
    finally:
        serve.delete(APPLICATION)
        ray.shutdown()
    return 0


def _wait_for_signal() -> None:
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    told.wait()
