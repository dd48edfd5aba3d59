"""When a worker that still exists has to be ended: it loads too long, is silent, or grows too big.

Judgements alone: whoever owns the process asks once a tick, and acts. Silence is counted in ticks
and not by a clock, so that a server which was itself stopped for an hour blames nobody.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path

from llm_server.errors import ModelLoadFailed, OutOfMemory, ServerError, WorkerCrashed
from llm_server.worker.deaths import RESTARTED

VMSTAT = Path("/proc/vmstat")

PAGING = 10
"""So many times the silence, beside it, while a worker's files come back into its memory: weights
that have left the page cache do so at an SD card's pace. (Few of these reads are major faults, for
the system reads ahead.) Who thrashes for ever is ended at last."""

LATELY_TICKS = 5
"""It takes a moment until a process of many gigabytes has ended."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much patience there is with a worker. Seconds, and bytes a second.

    A load may take `load_s` and its file's size at `load_rate` (a bad SD card). A worker with
    requests may say nothing for `silence_s` and the longest request's size at `text_rate`: the
    engine reports prompts piece by piece and tokens that show nothing, the worker says when it
    waits for the disk, and some tokenizers take 35 s for a megabyte on a PC.
    Texts for vectors are computed whole, without a word: they have `vector_rate`, which is some
    ten tokens a second.
    `memory` is the most a worker may have beside the mapped model file; None is no limit.
    """

    load_s: float = 120.0
    load_rate: float = 10e6
    silence_s: float = 60.0
    text_rate: float = 10e3
    vector_rate: float = 40.0
    memory: int | None = None
    tick_s: float = 1.0


class Watchdog:
    """Watches one worker from its spawn to its end."""

    def __init__(self, limits: Limits, model_bytes: int) -> None:
        self._limits = limits
        self._load_s = limits.load_s + model_bytes / limits.load_rate
        self._loading_for = 0.0
        self._silent_for = self._paging_for = 0.0
        self._mapped = 0

    def heard(self) -> None:
        """The worker has said something about a request, or was given its first one."""
        self._silent_for = self._paging_for = 0.0

    def tick(
        self,
        *,
        loaded: bool,
        longest: int | None,
        memory: int,
        mapped: int = 0,
        vectors: bool = False,
    ) -> ServerError | None:
        """A tick has passed. Why to end the worker now, or None.

        `longest` is the size of the longest running request in bytes, None when nothing runs;
        `memory` the bytes that are the worker's own; `mapped` those of files in its memory;
        `vectors`: it makes those of texts.
        """
        limits = self._limits
        reads_in, self._mapped = mapped > self._mapped, mapped
        if limits.memory is not None and memory > limits.memory:
            return OutOfMemory(
                "The worker has outgrown the memory it may use. Send a shorter prompt, or load the "
                "model with a smaller n_ctx."
            )
        if not loaded:
            self._loading_for += limits.tick_s
            if self._loading_for > self._load_s:
                return ModelLoadFailed(
                    f"The model was not loaded within {self._load_s:.0f} s, and the attempt was "
                    "given up.",
                    param="model",
                )
            return None
        if longest is None:
            self.heard()
        elif reads_in and self._paging_for < PAGING * limits.silence_s:
            self._paging_for += limits.tick_s
        else:
            self._silent_for += limits.tick_s
        rate = limits.vector_rate if vectors else limits.text_rate
        if self._silent_for > limits.silence_s + (longest or 0) / rate:
            return WorkerCrashed(
                "The model's worker process has not answered for "
                f"{self._silent_for + self._paging_for:.0f} s and was ended. {RESTARTED}"
            )
        return None


def own_memory(pid: int) -> int:
    """Bytes of memory that are a process's own, mapped files aside; 0 where it cannot be known."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = (line.split() for line in status.splitlines())
    return sum(int(words[1]) << 10 for words in lines if words[0] in ("RssAnon:", "RssShmem:"))


class OomKills:
    """Whether the system has ended a process for want of memory in the last few ticks."""

    def __init__(self) -> None:
        self._counts = deque([oom_kills()], maxlen=LATELY_TICKS)

    def tick(self) -> None:
        """A tick has passed."""
        self._counts.append(oom_kills())

    @property
    def lately(self) -> bool:
        """Whether it has."""
        return oom_kills() > self._counts[0]


def oom_kills() -> int:
    """How often this system has ended a process for want of memory; 0 where it does not say."""
    try:
        lines = VMSTAT.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
