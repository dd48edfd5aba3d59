"""How parts of this package run as programs of their own: in any folder, whatever lies in it."""

from __future__ import annotations

import os
import signal
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


def fill_standard_streams() -> None:
    """Put /dev/null where this process was started without stdin, stdout or stderr.

    What is opened next would get the number of the missing one, and programs that are started from
    here would take it for theirs.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # the lowest number that is free, which is this one
            os.set_inheritable(number, True)
            setattr(sys, name, stream)


def pass_over_hangups() -> None:
    """Have SIGHUP do nothing until this process is ready for it."""
    if hasattr(signal, "SIGHUP"):
        # A handler, for programs that are started from here would go on ignoring it.
        signal.signal(signal.SIGHUP, lambda *_: None)


def exit_on_signals() -> None:
    """Have SIGTERM, and a terminal that is closed, end this process as `sys.exit(1)` does."""
    for name in ("SIGHUP", "SIGTERM"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: sys.exit(1))
