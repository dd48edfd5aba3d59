"""The first lines of a worker process, `python -m llm_server.worker`: confined, then at work.

Spawned by `worker/client`. Imports nothing heavy before the sandbox is closed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import BinaryIO

from llm_server import logs
from llm_server.gguf.parts import model_parts
from llm_server.worker import sandbox
from llm_server.worker.frames import decode_command, read_frame
from llm_server.worker.messages import Load

logger = logging.getLogger("llm_server.worker")


def begin() -> tuple[Load, str, BinaryIO, BinaryIO] | None:
    """(what to load, what the sandbox came to, commands, events); None if the server has left."""
    sandbox.enter()
    source, out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # Whatever native code prints must not corrupt the frames.
    os.dup2(2, 1)
    first = read_frame(source)
    if first is None:
        return None
    command = decode_command(first)
    if not isinstance(command, Load):
        sys.exit("the first command must be Load")
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


def confine(command: Load) -> str:
    """Close the sandbox around what `command` names. What it came to."""
    if not command.sandbox:
        return "off"
    writable = []
    if command.cache is not None:
        folder = Path(command.cache.folder)
        with contextlib.suppress(OSError):  # The store says what comes of it.
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        writable.append(folder)
    named = [*command.adapter_paths, *([command.template_path] if command.template_path else [])]
    return sandbox.confine(
        readable=[*model_parts(Path(command.model_path)), *map(Path, named)],
        writable=writable,
        gpu=command.config.n_gpu_layers != 0,
    )


def main() -> None:
    """Be a worker on stdin and stdout."""
    begun = begin()
    if begun is not None:
        from llm_server.worker.main import serve

        serve(*begun)


if __name__ == "__main__":
    main()
