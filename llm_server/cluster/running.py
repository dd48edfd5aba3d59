"""A person's way to start the cluster's server: Ray if there is none yet, then the application."""

from __future__ import annotations

import signal
import sys
import threading

import ray
from ray import serve
from ray.serve import Application
from ray.serve.context import _get_global_client

from llm_server import __version__
from llm_server.cluster.build import build, check
from llm_server.cluster.ingress import listens_on
from llm_server.config import Settings
from llm_server.demo import demo_model_path
from llm_server.server import CannotStart, check_exposure, configure_logging, listen

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
    configure_logging(settings)
    check(settings, demo_model_path())
    application = build(settings, stand_in=demo_model_path())
    ray.init(include_dashboard=False, log_to_driver=True)
    try:
        host, port = address(settings)
        _serve(application, f"http://{host}:{port}")
    finally:
        ray.shutdown()
    return 0


def address(settings: Settings) -> tuple[str, int]:
    """Where Ray Serve listens, which is started there if it is not running yet.

    One that runs listens where it did: what this is told may not differ. Raises CannotStart.
    """
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is not None:
        return _address_of_running(settings, client.http_config.port)
    with listen(settings.host, settings.port) as listener:
        check_exposure(settings, listener)
        host, port = listener.getsockname()[:2]
    serve.start(http_options={"host": host, "port": port})
    return host, port


def _address_of_running(settings: Settings, port: int) -> tuple[str, int]:
    told = settings.model_fields_set
    host = listens_on()
    # On any port, for what a name means: that of Ray Serve is in use.
    with listen(settings.host if "host" in told else host, 0) as listener:
        elsewhere = listener.getsockname()[0] != host
        if elsewhere or ("port" in told and settings.port not in (0, port)):
            raise CannotStart(
                f"Ray Serve is running and listens on {host} port {port}: leave out --host and "
                "--port, or end it first with `serve shutdown`"
            )
        check_exposure(settings.model_copy(update={"host": host}), listener)
    return host, port


def _serve(application: Application, url: str) -> None:
    try:
        serve.run(application, name=APPLICATION, route_prefix="/")
        print(
            f"llm-server {__version__} on {url}, on {len(ray.nodes())} nodes "
            "(page at /ui, OpenAI API under /v1)",
            file=sys.stderr,
            flush=True,
        )
        _wait_for_signal()
    finally:
        serve.delete(APPLICATION)


def _wait_for_signal() -> None:
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    told.wait()
