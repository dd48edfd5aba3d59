"""The models of a cluster as the API sees them: deployments behind the contract of the pool.

Which replica answers is the router's business, how many there are Ray Serve's. A call whose
replica dies before anything of its answer was seen is made again elsewhere.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ray.serve.handle import DeploymentHandle

from llm_server.cluster.remote import RemoteWorker
from llm_server.errors import (
    ErrorInfo,
    InvalidRequest,
    ModelLoading,
    ModelNotFound,
    RemoteError,
    ServerError,
    ShuttingDown,
)
from llm_server.models.lease import Overrides
from llm_server.models.plan import Plan, Planner
from llm_server.models.policy import check_room
from llm_server.models.registry import ModelFile
from llm_server.models.status import ModelState, Status, Unloaded, state_of
from llm_server.worker.messages import Cells, Loaded
from llm_server.worker.totals import Totals

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Counted:
    """How many replicas of a deployment there are."""

    running: int = 0
    starting: int = 0


def counted(states: Mapping[str, int]) -> Counted:
    """The replicas of a deployment by their states, as Ray Serve's status tells them."""
    by_name = {str(getattr(state, "value", state)): n for state, n in states.items()}
    return Counted(by_name.get("RUNNING", 0), by_name.get("STARTING", 0))


@dataclass(frozen=True, slots=True)
class RemoteLease:
    """A lease without books: replicas count their own requests."""

    plan: Plan
    worker: RemoteWorker

    @property
    def model(self) -> ModelFile:
        """Its model."""
        return self.plan.model

    def release(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class Deployed:
    """A model with running replicas, for display."""

    plan: Plan
    worker: RemoteWorker
    memory: int
    keep_alive_s: float
    """For ever, -1, if there is always a replica; else as long as Ray Serve waits at least."""

    @property
    def model(self) -> ModelFile:
        """The model."""
        return self.plan.model

    @property
    def n_running(self) -> int:
        """The requests of this ingress that replicas have begun with."""
        return self.worker.n_running

    @property
    def state(self) -> ModelState:
        """Replicas that are ended take no calls."""
        return "ready"

    @property
    def cells(self) -> Cells | None:
        """Each replica has its own."""
        return None

    @property
    def expires_in_s(self) -> float | None:
        """Ray Serve decides."""
        return None


class Deployments:
    """The backend of an ingress.

    By name: `plans` are the models that are deployed, `handles` their deployments, `stays` the
    seconds for which an idle one has a replica at least, -1 for ever, and `refused` says why others
    are not deployed. `share` has a method of this class called at all ingresses, this one first.
    `first_model` serves who names none while `setModel` has chosen no other.
    """

    def __init__(
        self,
        planner: Planner,
        plans: Mapping[str, Plan],
        handles: Mapping[str, DeploymentHandle],
        stays: Mapping[str, float],
        refused: Mapping[str, ErrorInfo],
        share: Callable[..., None],
        queue_size: int,
        first_model: str | None,
    ) -> None:
        self.planner = planner
        self.totals = Totals()
        self._plans = plans
        self._workers = {
            name: RemoteWorker(handle, plans[name].model, self.totals)
            for name, handle in handles.items()
        }
        self._stays = stays
        self._refused = refused
        self._share = share
        self._queue_size = queue_size
        self._first_model = first_model
        self._default: str | None = None
        self._counted: Mapping[str, Counted] = {}
        self._resting: set[str] = set()  # Unloaded, and not asked since.
        self._problems: dict[str, str] = {}  # Why replicas could not load their models.
        self._closing = False

    @property
    def default(self) -> ModelFile | None:
        """The model that requests get which name none."""
        with contextlib.suppress(ServerError):
            return self._unnamed()
        return None

    @property
    def loaded(self) -> Sequence[Deployed]:
        """The models with running replicas; those in use first."""
        running = [
            Deployed(
                self._plans[name],
                self._workers[name],
                self._plans[name].memory.total * counted.running,
                self._stays[name],
            )
            for name, counted in self._counted.items()
            if counted.running and self._workers[name].described and name not in self._resting
        ]
        return sorted(running, key=lambda deployed: -len(deployed.worker.streams))

    @property
    def waiting(self) -> Mapping[str, int]:
        """The calls that no replica has begun with, by model."""
        return {name: w.n_waiting for name, w in self._workers.items() if w.n_waiting}

    @property
    def pids(self) -> Sequence[int]:
        """Workers are elsewhere."""
        return ()

    def check_room(self, owner: str = "") -> None:
        """Raises ShuttingDown alone: each model has room of its own, and which one is meant is in
        the body. Turns between owners are taken in the replicas."""
        if self._closing:
            raise ShuttingDown

    async def acquire(
        self,
        model: str | None,
        overrides: Overrides | None = None,
        *,
        keep_alive_s: float | None = None,
        make_default: bool | None = None,
        owner: str = "",
    ) -> RemoteLease:
        """The right to ask a model, None for the default one, once it has a replica.

        Raises ModelNotFound, QueueFull, RateLimitExceeded, ShuttingDown, InvalidRequest for a way
        to load it that is not that of the deployment or a longer stay, and whatever its load fails
        with.
        """
        self.check_room()
        file = self._unnamed() if model is None else self._named(model)
        worker = self._workers[file.name]
        self._check_stay(file.name, keep_alive_s)
        self._check_room_for(file.name, owner)
        if file.name in self._resting:
            self._share("take_resting", file.name, False)
        running = self._counted.get(file.name, Counted()).running
        if not worker.described or (make_default and not running):
            await worker.describe(owner)
            # It is there, as the next count will say.
            self._counted = {**self._counted, file.name: Counted(max(1, running))}
        self._check(self._plans[file.name], worker.loaded, overrides or {})
        if make_default:
            self._share("take_default", file.name)
        return RemoteLease(self._plans[file.name], worker)

    async def unload(self, model: str) -> Unloaded:
        """Have all replicas end their workers after their requests; the next request starts one.

        The replicas themselves go when Ray Serve finds them idle. Raises ModelNotFound.
        """
        name = self._named(model).name
        if not self._counted.get(name, Counted()).running:
            return Unloaded(name, was_loaded=False)
        # Before it is so: whoever asks meanwhile takes it back.
        self._share("take_resting", name, True)
        return Unloaded(name, await self._workers[name].unload())

    def status(self) -> Status:
        """What there is to show: requests are those of this ingress."""
        loaded = self.loaded
        shown = next((d for d in loaded if d.model == self.default), loaded[0] if loaded else None)
        loading = next(
            (name for name, c in self._counted.items() if c.starting and not c.running), None
        )
        workers = self._workers.values()
        error = None if loaded else next(iter(self._problems.values()), None)
        return Status(
            state=state_of(self._closing, bool(loaded), loading, error),
            model=shown.model.name if shown else loading,
            n_ctx=shown.worker.loaded.n_ctx if shown else 0,
            parallel=sum(
                d.worker.loaded.parallel * self._counted[d.model.name].running for d in loaded
            ),
            running=sum(worker.n_running for worker in workers),
            waiting=sum(worker.n_waiting for worker in workers),
            loading=loading,
            fraction=0.0,
            error=error,
            sandbox=shown.worker.loaded.sandbox if shown else None,
        )

    async def count(self, counted: Mapping[str, Counted]) -> None:
        """Take note of how many replicas there are, by model."""
        self._counted = counted
        for name, worker in self._workers.items():
            if worker.described or not counted.get(name, Counted()).running:
                self._problems.pop(name, None)
            elif name not in self._problems:  # Once: it would load the model again.
                try:
                    await worker.describe()
                except ServerError as error:
                    self._problems[name] = error.info.message

    @property
    def chosen(self) -> str | None:
        """The model that `setModel` made the default one."""
        return self._default

    def take_default(self, name: str) -> None:
        """`setModel` was called at some ingress."""
        if name in self._plans:
            self._default = name

    def take_resting(self, name: str, resting: bool) -> None:
        """A model was unloaded, or is asked for again, at some ingress."""
        (self._resting.add if resting else self._resting.discard)(name)

    async def close(self) -> None:
        """Fail what runs: this ingress ends. Replicas stay."""
        self._closing = True
        error = ShuttingDown().info
        for worker in self._workers.values():
            for stream in list(worker.streams):
                worker.fail(stream, error)

    def _unnamed(self) -> ModelFile:
        name = self._default or self._first_model
        if name is None:
            raise ModelLoading("No model is loaded, and the models folder is empty.")
        return self._named(name)

    def _named(self, name: str) -> ModelFile:
        for plan in self._plans.values():
            if self.planner.registry.means(name, plan.model):
                return plan.model
        # For the hint; a file that came later is not deployed.
        file = self.planner.registry.find(name)
        if file.name in self._refused:
            raise RemoteError(self._refused[file.name])
        raise ModelNotFound(
            file.name,
            " It came into the models folder after the deployment: deploy again.",
        )

    def _check_room_for(self, name: str, owner: str) -> None:
        """Raises QueueFull and RateLimitExceeded, for what this ingress has and what may wait."""
        replicas = max(1, self._counted.get(name, Counted()).running)
        at_once = replicas * self._plans[name].config.parallel
        worker = self._workers[name]
        n_taken = worker.n_running + worker.n_waiting
        n_owned = worker.held_by(owner) if owner else 0
        check_room(n_taken, n_owned, at_once, self._queue_size)

    def _check_stay(self, name: str, keep_alive_s: float | None) -> None:
        """Raises InvalidRequest if the model may go sooner than that after the request."""
        stay = self._stays[name]
        if keep_alive_s is None or stay < 0 or 0 <= keep_alive_s <= stay:
            return
        raise InvalidRequest(
            f"In a cluster models stay as llm-server.toml says: {name} for {stay:g} s after its "
            "last request at least (downscale_delay_s), or for ever with min_replicas 1.",
            param="keep_alive",
        )

    def _check(self, plan: Plan, loaded: Loaded, overrides: Overrides) -> None:
        """Raises InvalidRequest unless all replicas are loaded like that, or with more room."""
        room = {"n_ctx": loaded.n_ctx, "parallel": loaded.parallel, "n_threads": 0}
        wanted = {
            name: value
            for name, value in self.planner.named(overrides).items()
            if name not in room or value > room[name]
        }
        if self.planner.in_force(plan, loaded, wanted):
            return
        for name, value in wanted.items():
            if not self.planner.in_force(plan, loaded, {name: value}):
                has = room.get(name) or getattr(plan.config, name)
                raise InvalidRequest(
                    f"In a cluster models are loaded as llm-server.toml says: {name} of "
                    f"{plan.model.name} is {has}. Set it there, and deploy again.",
                    param=f"load_model_configs.{name}",
                )
        raise InvalidRequest(
            "In a cluster models are loaded as llm-server.toml says, and not with these settings "
            "together.",
            param="load_model_configs",
        )
