"""What is said of a worker that is gone: to its requests, and in the log."""

from __future__ import annotations

import signal

from llm_server.errors import (
    InsufficientMemory,
    ModelLoadFailed,
    OutOfMemory,
    ServerError,
    ShuttingDown,
    WorkerCrashed,
)

RESTARTED = "It is being started again; after several crashes in a row the next request starts it."

CRASHED = f"The model's worker process ended unexpectedly. {RESTARTED}"

LEAVING_S = 2.0
"""Seconds that a process has to end by itself, once it says no more of the model it loads."""

OVERWRITTEN = (
    "The model's file was changed while it was in use, so the answer could not be trusted. The "
    "model is being loaded again."
)

STOPPED = ShuttingDown().info

MEMORY_RAN_OUT = (
    "The system has ended the model's worker process because memory ran out. Use a smaller model "
    "or a smaller n_ctx."
)


def describe_exit(status: int) -> str:
    """An exit status in words, naming the signal of a negative one."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def died(status: int, *, memory_ran_out: bool) -> ServerError:
    """Why requests have no answer, for a process that ended under them."""
    if status == -signal.SIGKILL and memory_ran_out:
        return OutOfMemory(MEMORY_RAN_OUT)
    return WorkerCrashed(CRASHED)


def died_loading(status: int, killed_by_us: bool) -> ServerError:
    """Why there is no model, for a process that ended while it was to load one."""
    if status == -signal.SIGKILL and not killed_by_us:
        return InsufficientMemory(
            "The system ended the worker while it was loading the model, which most likely does "
            "not fit into memory. Try a smaller n_ctx or a smaller model."
        )
    return ModelLoadFailed(
        "The worker process ended while it was loading the model; the server's log says more."
    )
