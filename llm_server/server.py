"""Starting and stopping the server: `python -m llm_server.server`, and `app` for uvicorn.

What can be wrong is found first (settings, port, model); then `opening` makes the heavy imports
while the first model is loaded. On the first SIGINT or SIGTERM running answers get time to end; a
second one stops at once.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llm_server import __version__, config_environment, logs, places
from llm_server.api.keys import InvalidKey, Keyring
from llm_server.config import (
    Settings,
    cache_dir,
    make_registry,
    settings_from_args,
    settings_from_environment,
)
from llm_server.demo import demo_model_path
from llm_server.errors import ModelNotFound
from llm_server.machine import open_files
from llm_server.models.registry import Registry
from llm_server.programs import fill_standard_streams, pass_over_hangups

if TYPE_CHECKING:
    from starlette.types import ASGIApp

logger = logging.getLogger(__name__)

BACKLOG = 1024
"""Connections the kernel may keep waiting for us."""

FEWEST_FILES = 64
"""Open files that a server needs: some 20 for itself and a worker, and the rest for others."""


class CannotStart(Exception):
    """Why the server cannot start, in one line for the person at the terminal."""


def main(args: Sequence[str] | None = None, prog: str = "python -m llm_server.server") -> int:
    """Serve until told to stop. The exit status: 0, 1 cannot start or told twice, 2 bad usage."""
    fill_standard_streams()
    pass_over_hangups()
    settings = settings_from_args(sys.argv[1:] if args is None else args, prog)
    try:
        return serve(settings, stand_in=demo_model_path())
    except CannotStart as error:
        print(f"llm-server: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def serve(
    settings: Settings,
    *,
    worker_argv: Sequence[str] | None = None,
    stand_in: Path | None = None,
) -> int:
    """Serve with `settings`. The exit status. Raises CannotStart before anything is loaded.

    `worker_argv` is the command of worker processes, when it is not our own; `stand_in` the model
    that serves while the folder holds none.
    """
    check_open_files()
    registry = check_models(settings, stand_in)
    listener = listen(settings.host, settings.port)
    with listener:
        check_exposure(settings, listener)
        configure_logging(settings)
        from llm_server.opening import run

        logs.say(banner(settings, registry, listener))
        warn_of_unknown_models(settings, registry)
        warn_of_variables()
        warn_of_open_cache(settings)
        for name in registry.leading_out:
            logger.warning("%s is a link out of the models folder: see --follow-symlinks", name)
        return run(settings, listener, worker_argv, stand_in)


def check_open_files() -> None:
    """Raises CannotStart where too few files may be open for a server to be of use."""
    if (allowed := open_files(FEWEST_FILES)) < FEWEST_FILES:
        raise CannotStart(
            f"only {allowed} files may be open at once here, and a server needs {FEWEST_FILES} or "
            "more: raise the limit (ulimit -n), to 2048 for example"
        )


def check_exposure(settings: Settings, listener: socket.socket) -> None:
    """Raises CannotStart rather than serve everybody around without having been told to."""
    check_keys(settings)
    protected = settings.api_key or settings.api_key_file or settings.insecure_no_auth
    if not protected and not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        raise CannotStart(
            f"{settings.host} can be reached from other machines. Give a key with --api-key-file "
            "or LLM_SERVER_API_KEY, or allow everybody with --insecure-no-auth"
        )


def check_keys(settings: Settings) -> None:
    """Raises CannotStart when a key, or the file of keys, cannot be used."""
    try:
        Keyring((key.get_secret_value() for key in settings.api_key), settings.api_key_file)
    except InvalidKey as error:
        raise CannotStart(f"--api-key: {error}") from None


def check_models(settings: Settings, stand_in: Path | None) -> Registry:
    """The models folder, scanned. Raises CannotStart when the wanted model is not in it."""
    folder = settings.models_dir
    if "models_dir" in settings.model_fields_set and not places.is_folder(folder):
        raise CannotStart(f"--models-dir: there is no folder {folder}")
    registry = make_registry(settings, stand_in)
    registry.scan()
    if settings.model_name is not None:
        try:
            registry.find(settings.model_name)
        except ModelNotFound as error:
            if places.is_folder(settings.model_name):
                told = f"--models-dir {settings.model_name}"
                raise CannotStart(f"that is a folder: serve what is in it with {told}") from None
            raise CannotStart(f"--model-name: {error} The models folder is {folder}") from None
    return registry


def warn_of_unknown_models(settings: Settings, registry: Registry) -> None:
    """Tables for models that are not there have no effect: they may come, or be misspelt."""
    for name in settings.models:
        try:
            registry.find(name)
        except ModelNotFound as error:
            logger.warning("%s: [models.%s]: %s", settings.config, name, error)


def warn_of_variables() -> None:
    """Some have no effect, and whoever set them may expect one."""
    if config_environment.is_address("port", port := os.environ.get("LLM_SERVER_PORT")):
        logger.warning(
            "LLM_SERVER_PORT is %s, as Kubernetes sets it for a service called llm-server: that is "
            "ignored; the port can be told with --port",
            port,
        )
    for name, near in config_environment.unknown(os.environ, Settings).items():
        hint = f": did you mean {near}?" if near else ""
        logger.warning("%s in the environment is no setting%s", name, hint)


def warn_of_open_cache(settings: Settings) -> None:
    """Whoever may write to the folder could forge prompts in it."""
    folder = cache_dir(settings)
    if settings.cache_size != 0 and places.is_open_to_all(folder):
        logger.warning("Everybody may write to the cache folder %s: chmod 700 it", folder)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises CannotStart when the address is taken or not ours."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, ValueError):  # ValueError: no name could be like that
        raise CannotStart(f"--host: there is no address {host!r}") from None
    listener = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":
            # A restart must not wait for the last connections of its predecessor to time out.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise CannotStart(
                f"port {port} of {host} is in use; choose another one with --port"
            ) from None
        raise CannotStart(f"cannot listen on {host} port {port}: {error.strerror}") from None
    return listener


def banner(settings: Settings, registry: Registry, listener: socket.socket) -> str:
    """Where the server is and what it serves, in few lines; or what to do first."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    first = f"llm-server {__version__} on http://{shown}:{port} (page at /ui, OpenAI API under /v1)"
    if settings.config is not None:
        first += f"\nSettings of {settings.config}"
    names = [model.name for model in registry.models() if model.path != registry.given]
    if registry.given is not None:
        first += f"\nServing {registry.given}"
        if not names:
            return first
    if not names:
        return (
            f"{first}\nThere is no model yet. Download one in GGUF format and put the .gguf file "
            f"into {settings.models_dir}\n(create the folder if need be); it is served at once, "
            "without a restart. Stop with Ctrl-C."
        )
    if registry.is_stand_in(registry.models()[0]):
        return (
            f"{first}\nNo model in {settings.models_dir} yet: the small demo model of the package "
            "serves, until you put a .gguf file into that folder."
        )
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{first}\nModels in {settings.models_dir}: {', '.join(names[:5])}{more}"


def configure_logging(settings: Settings) -> None:
    """One log on stderr, shared with the workers."""
    logs.install(
        settings.log_level,
        "%(asctime)s %(levelname)s %(name)s: %(message)s",
        json_lines=settings.log_format == "json",
    )
    # At info these two narrate what our own lines already say.
    for name in ("uvicorn", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.root.level))


def _build_app() -> ASGIApp:
    """The app for `uvicorn llm_server.server:app`, from the environment."""
    settings = settings_from_environment()
    try:
        registry = check_models(settings, demo_model_path())
        check_keys(settings)
    except CannotStart as error:
        sys.exit(f"llm-server: {error}")
    configure_logging(settings)
    warn_of_unknown_models(settings, registry)
    warn_of_variables()
    warn_of_open_cache(settings)
    logger.warning(
        "This is not llm-server's own server but the app alone: slow clients meet no deadline, "
        "connections no limit, and a stop cuts answers off. `llm-server serve` has all of that."
    )
    from llm_server.api.app import create_app

    return create_app(settings, stand_in=demo_model_path())


def __getattr__(name: str) -> object:
    # Built when uvicorn asks for it: `python -m llm_server.server` must not pay for it first.
    if name == "app":
        globals()["app"] = app = _build_app()
        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    sys.exit(main())
