"""What the pool tells of itself: for display, nothing is decided by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

State: TypeAlias = Literal["empty", "loading", "ready", "failed", "stopping"]

ModelState: TypeAlias = Literal["ready", "unloading"]
"""Of a loaded model: one that is unloading takes no more requests and ends those it has."""


@dataclass(frozen=True, slots=True)
class Unloaded:
    """A model that is not loaded any more, by its name, and whether it was."""

    model: str
    was_loaded: bool


@dataclass(frozen=True, slots=True)
class Status:
    """The pool at one moment."""

    state: State
    model: str | None
    """The default model if it is loaded, else another that is, else the one being loaded."""
    n_ctx: int
    parallel: int
    running: int
    waiting: int
    loading: str | None
    fraction: float
    """How much of `loading` has been read, 0 to 1."""
    error: str | None
    """Why the last load failed, if it is the last thing that happened."""
    sandbox: str | None = None
    """What the worker gave up: `full`, `partial (...)` or `off`; None while there is none."""


def state_of(closing: bool, usable: bool, loading: object, failed: object) -> State:
    """The pool in a word: whether a model is loaded, else what is being loaded, or has failed."""
    if closing:
        return "stopping"
    if usable:
        return "ready"
    if loading is not None:
        return "loading"
    return "failed" if failed is not None else "empty"
