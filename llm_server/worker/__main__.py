"""The first lines of a worker process, `python -m llm_server.worker`: confined, then at work.

Spawned by `worker/client`. Imports nothing heavy before the sandbox is closed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import TYPE_CHECKING, BinaryIO

from llm_server import logs
from llm_server.errors import ModelLoadFailed, ServerError
from llm_server.gguf.parts import model_parts
from llm_server.worker import sandbox
from llm_server.worker.frames import decode_command, encode_events, read_frame, write_frame
from llm_server.worker.messages import Load, LoadFailed, LoadProgress, StandBy
from llm_server.worker.model_file import companions

if TYPE_CHECKING:
    from llm_server.worker.load import Ready

logger = logging.getLogger("llm_server.worker")

_PROGRESS_S = 0.2  # a load reports at most this often
_SWITCH_S = 1e-4  # how long a thread waits for the interpreter while another holds it


def begin() -> tuple[Load, str, BinaryIO, BinaryIO] | None:
    """(what to load, what the sandbox came to, commands, events); None if the server has left."""
    sandbox.enter()
    source, out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # Whatever native code prints must not corrupt the frames.
    os.dup2(2, 1)
    command = first_command(source)
    if command is None:
        return None
    confinement = confine(command)
    # Only now: the log has a thread.
    logs.install(
        command.log_level,
        f"%(asctime)s %(levelname)s worker[{os.getpid()}] %(name)s: %(message)s",
        json_lines=command.log_format == "json",
    )
    level = logging.INFO if confinement.startswith("full") else logging.WARNING
    logger.log(level, "sandbox: %s", confinement)
    return command, confinement, source, out


def first_command(source: BinaryIO) -> Load | None:
    """What to load, also after a time of standing by; None if the server has left."""
    while (frame := read_frame(source)) is not None:
        match decode_command(frame):
            case Load() as command:
                return command
            case StandBy():
                import_module("llm_server.worker.main")
                import_module("llm_server.worker.weights")
            case _:
                sys.exit("the first command must be Load")
    return None


def confine(command: Load) -> str:
    """Close the sandbox around what `command` names. What it came to."""
    if not command.sandbox:
        return "off"
    writable = []
    if command.cache is not None:
        folder = command.cache.folder
        with contextlib.suppress(OSError):  # The store says what comes of it.
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        writable.append(folder)
    return sandbox.confine(
        readable=[*model_parts(command.model_path), *companions(command)],
        writable=writable,
        gpu=command.config.n_gpu_layers != 0,
    )


def load(command: Load, on_progress: Callable[[float], None]) -> Ready:
    """The model, and all that serves it.

    llama.cpp needs no more of this process than its own library; what else a worker is made of is
    imported while it reads.

    Raises:
        ServerError: it cannot be loaded.
    """
    interval = sys.getswitchinterval()
    # llama.cpp calls back some hundred times, and waits for the interpreter each time.
    sys.setswitchinterval(_SWITCH_S)
    with ThreadPoolExecutor(1, "meanwhile") as meanwhile:
        meanwhile.submit(import_module, "llm_server.worker.main")
        digest = meanwhile.submit(_digest, command)
        from llm_server.worker import weights

        settled, model = weights.read(command, on_progress)
    from llm_server.worker.load import make_ready

    try:
        return make_ready(settled, model, digest.result())
    finally:
        sys.setswitchinterval(interval)


def _digest(command: Load) -> bytes:
    """The fingerprint of the model. Raises ModelLoadFailed if its file is gone by now."""
    from llm_server.cache.fingerprint import model_fingerprint

    try:
        return model_fingerprint(command.model_path)
    except (OSError, ValueError):  # ValueError: it is empty
        said = "The model's file was taken away while it was being loaded."
        raise ModelLoadFailed(said, param="model") from None


class Reporter:
    """Sends `LoadProgress`, not too often."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._last = 0.0

    def __call__(self, fraction: float) -> None:
        now = time.monotonic()
        if now - self._last >= _PROGRESS_S:
            self._last = now
            write_frame(self._out, encode_events([LoadProgress(fraction)]))


def main() -> None:
    """Be a worker on stdin and stdout."""
    begun = begin()
    if begun is None:
        return
    command, confinement, source, out = begun
    try:
        ready = load(command, Reporter(out))
    except ServerError as error:
        write_frame(out, encode_events([LoadFailed(error.info)]))
        return
    from llm_server.worker.main import serve

    serve(ready, confinement, source, out)


if __name__ == "__main__":
    main()
