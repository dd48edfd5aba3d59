"""Starting workers: one load at a time, its progress, and the pause that crashes earn a model."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import msgspec

from llm_server.errors import (
    DiskTimeout,
    ErrorInfo,
    InvalidRequest,
    ModelLoadFailed,
    RemoteError,
    ServerError,
)
from llm_server.looks import HUNG_S, ask
from llm_server.models.lease import Overrides
from llm_server.models.memory import embeds
from llm_server.models.plan import Plan
from llm_server.models.policy import Crashes
from llm_server.models.registry import ModelFile
from llm_server.worker.client import Worker
from llm_server.worker.config import CacheConfig
from llm_server.worker.messages import Load
from llm_server.worker.standby import Standby
from llm_server.worker.totals import Totals

logger = logging.getLogger(__name__)


class StartWorker(Protocol):
    """`Worker.start`, as far as it is needed here."""

    def __call__(
        self,
        load: Load,
        *,
        on_progress: Callable[[float], None] | None = None,
        totals: Totals | None = None,
    ) -> Awaitable[Worker]: ...


@dataclass(slots=True)
class Loader:
    """Makes workers of plans."""

    cache: CacheConfig | None = None
    log_level: str = "info"
    log_format: str = "text"
    sandbox: bool = True
    start_worker: StartWorker = Worker.start
    standby: Standby | None = None
    """Where `start_worker` gets its processes from, if one of them is to wait."""
    cache_patience_s: float = HUNG_S
    """How long the disk of the cache folder is waited for, before a model is loaded without it."""
    totals: Totals = field(default_factory=Totals)
    """What all workers have done."""
    loading: ModelFile | None = None
    """What is being loaded, or about to be after a pause."""
    pausing: bool = False
    loads_text: bool = False
    """Whether `loading` will write texts, and no vectors."""
    fraction: float = 0.0
    """How much of `loading` has been read, 0 to 1."""
    last_error: ErrorInfo | None = None
    """Why the last load failed, if it did."""
    _crashes: dict[str, Crashes] = field(default_factory=dict)

    def pause_s(self, model: ModelFile) -> float:
        """Seconds that earlier crashes of a model still hold its next load up."""
        crashes = self._crashes.get(model.name)
        return max(0.0, crashes.not_before - time.monotonic()) if crashes else 0.0

    async def pause(self, model: ModelFile) -> None:
        """Let that time pass. May be cancelled for the load of another model."""
        if not (seconds := self.pause_s(model)):
            return
        self.loading, self.fraction, self.loads_text = model, 0.0, False
        self.pausing = True
        try:
            await asyncio.sleep(seconds)
        finally:
            self.loading, self.pausing = None, False

    async def load(self, plan: Plan) -> Worker:
        """A new worker with the model loaded."""
        self.loading, self.fraction = plan.model, 0.0
        self.loads_text = not embeds(plan.facts, plan.config)
        started = time.monotonic()
        try:
            worker = await self._start(plan)
        except ServerError as error:
            if not isinstance(error, RemoteError):
                # One that was refused in good order may be tried again at once: it costs little.
                crashes = self._crashes.setdefault(plan.model.name, Crashes())
                crashes.note(time.monotonic(), 0.0, answered=False)
            self.refused(plan.model, error)
            raise
        finally:
            self.loading = None
        self.last_error = None
        loaded = worker.loaded
        logger.info(
            "loaded %s in %.1f s: %s, n_ctx %d, parallel %d%s",
            plan.model.name,
            time.monotonic() - started,
            loaded.description,
            loaded.n_ctx,
            loaded.parallel,
            f", {loaded.n_gpu_layers} of {loaded.max_gpu_layers} layers on graphics cards"
            if loaded.max_gpu_layers
            else "",
        )
        return worker

    def refused(
        self, model: ModelFile, error: ServerError, wanted: Overrides | None = None
    ) -> None:
        """Log and keep why `model` could not be loaded.

        That somebody `wanted` in vain what cannot be says nothing of the model.
        """
        in_vain = isinstance(error, InvalidRequest) and not isinstance(error, ModelLoadFailed)
        if not (wanted and in_vain):
            self.last_error = error.info
            logger.error("cannot load %s: %s", model.name, error)

    def note_crash(self, model: ModelFile, worker: Worker, since: float) -> int:
        """A worker that was loaded at `since` is dead. How many crashes in a row that makes."""
        if worker.crashed_at is None:
            return 0
        crashes = self._crashes.setdefault(model.name, Crashes())
        crashes.note(worker.crashed_at, worker.crashed_at - since, answered=worker.answered)
        return crashes.count

    def make_ready(self, busy: Callable[[], bool]) -> None:
        """Another load is to be expected: have a process wait for it, once nothing is `busy`."""
        if self.standby is not None:
            self.standby.refill(busy)

    async def close(self) -> None:
        """Nothing will be loaded any more."""
        if self.standby is not None:
            await self.standby.close()

    def kill(self) -> None:
        """End what is ready, at once."""
        if self.standby is not None:
            self.standby.kill()

    async def _start(self, plan: Plan) -> Worker:
        load = Load(
            model_path=plan.model.path,
            config=plan.effect,
            cache=await self._cache_of(plan.model),
            log_level=self.log_level,
            log_format=self.log_format,
            sandbox=self.sandbox,
            adapter_paths=tuple(adapter.path for adapter in plan.adapters),
            template_path=plan.template.path if plan.template else None,
            layer_bytes=plan.layer_bytes,
            compute_bytes=plan.memory.compute,
            n_idle=plan.n_idle,
            smaller_n_ctx=plan.smaller_n_ctx,
        )
        try:
            return await self.start_worker(load, on_progress=self._progress, totals=self.totals)
        except ServerError:
            raise
        except Exception as error:
            # The border of a process: whatever it was, those who made room must come back.
            unexpected = not isinstance(error, OSError)
            logger.error("cannot start a worker: %s", error, exc_info=unexpected)
            raise ServerError("A worker process could not be started.") from error

    async def _cache_of(self, model: ModelFile) -> CacheConfig | None:
        """Where its prompts are kept: nowhere while that disk hangs, and so would the load."""
        if self.cache is None:
            return None
        folder = self.cache.folder
        try:
            await ask(("load", folder), partial(os.path.isdir, folder), self.cache_patience_s)
        except DiskTimeout:
            logger.warning(
                "The cache folder's disk hangs, so %s keeps prompts in memory alone until it is "
                "loaded again.",
                model.name,
            )
            return None
        return msgspec.structs.replace(self.cache, model=model.name)

    def _progress(self, fraction: float) -> None:
        self.fraction = fraction
