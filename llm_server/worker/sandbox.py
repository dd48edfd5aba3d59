"""What a worker process gives up before it touches a model file; most of it on Linux alone.

A model is a hostile file until proven otherwise, and a crash inside llama.cpp must cost this
process alone.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_OOM_SCORE = 500  # the kernel should end a worker before it ends the server


def enter() -> None:
    """Die with the parent, dump no core, be the first to go when memory runs out."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # llama.cpp forks a debugger on abort if one is installed: seconds of delay, and a core's worth
    # of private data on stderr.
    os.environ["GGML_NO_BACKTRACE"] = "1"
    # Ctrl-C reaches the whole process group; the parent decides when workers stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if os.getppid() == 1:
            sys.exit("the server is gone")
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
