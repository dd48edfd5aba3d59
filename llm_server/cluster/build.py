"""From the settings of the single-machine server to an application of Ray Serve."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.schema import LoggingConfig

from llm_server.cluster import tuning
from llm_server.cluster.ingress import Ingress
from llm_server.cluster.placement import Placement, placement
from llm_server.cluster.replica import Replica
from llm_server.cluster.router import PrefixRouter
from llm_server.config import Settings, make_planner, make_registry, settings_from_environment
from llm_server.config_file import ReplicaFields
from llm_server.demo import demo_model_path
from llm_server.errors import ErrorInfo, ServerError
from llm_server.machine import physical_cores
from llm_server.models.plan import Plan, Planner
from llm_server.models.registry import ModelFile
from llm_server.server import check_keys, check_models, warn_of_unknown_models, warn_of_variables
from llm_server.worker.process import WORKER_ARGV

logger = logging.getLogger(__name__)

QUIET = LoggingConfig(enable_access_log=False)
"""The server writes a line for each request itself."""

INGRESS = "api"
MAX_ONGOING_INGRESS = 10_000
"""Requests one ingress may have: most of them only wait for an answer to go on."""


def app(args: Mapping[str, Any]) -> Application:
    """The builder: `args` are settings by name, such as `config`; the others as everywhere.

    Raises CannotStart.
    """
    settings = settings_from_environment(args)
    check(settings, demo_model_path())
    return build(settings, stand_in=demo_model_path())


def check(settings: Settings, stand_in: Path | None) -> None:
    """What a server on one machine checks and warns of at its start. Raises CannotStart."""
    registry = check_models(settings, stand_in)
    check_keys(settings)
    warn_of_unknown_models(settings, registry)
    warn_of_variables()


def build(
    settings: Settings,
    *,
    worker_argv: Sequence[str] = WORKER_ARGV,
    stand_in: Path | None = None,
) -> Application:
    """An ingress before one deployment for each model of the folder.

    Raises InsufficientMemory for a model that would not fit into what its replicas may take.
    """
    settings = _absolute(settings)
    registry = make_registry(settings, stand_in)
    registry.scan()
    planner = make_planner(settings, registry)
    plans: dict[str, Plan] = {}
    deployments: dict[str, Application] = {}
    stays: dict[str, float] = {}
    refused: dict[str, ErrorInfo] = {}
    for model in registry.models():
        told = _told(settings, planner, model)
        try:
            plan, place = _place(planner, settings, model, told)
        except ServerError as error:
            logger.error("%s is not deployed: %s", model.name, error)
            refused[model.name] = error.info
            continue
        plans[model.name] = plan
        stays[model.name] = -1.0 if told.min_replicas else told.downscale_delay_s
        deployments[model.name] = _deployment(settings, plan, place, told).bind(
            settings, model.name, _load(plan), plan.memory.total, tuple(worker_argv), stand_in
        )
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name=INGRESS,
        num_replicas=settings.cluster.ingress_replicas,
        max_ongoing_requests=MAX_ONGOING_INGRESS,
        graceful_shutdown_timeout_s=settings.cluster.graceful_shutdown_timeout_s,
        request_router_config=_session_router(),
        logging_config=QUIET,
        # It waits more than it computes, and must find a place beside models that take all cores.
        ray_actor_options={"num_cpus": 0},
    )
    # The same at all ingresses, also at one that starts when the folder has changed.
    first = registry.first()
    return ingress.bind(
        settings,
        plans,
        deployments,
        stays,
        refused,
        settings.model_name or (first.name if first else None),
        stand_in,
    )


def _absolute(settings: Settings) -> Settings:
    """The same with whole paths: Ray's processes have working folders of their own."""
    paths = {
        "models_dir": settings.models_dir,
        "cache_dir": settings.cache_dir,
        "api_key_file": settings.api_key_file,
    }
    update: dict[str, object] = {name: path.absolute() for name, path in paths.items() if path}
    given = make_registry(settings, None).given
    if given is not None:
        update["model_name"] = str(given.absolute())
    return settings.model_copy(update=update)


def _told(settings: Settings, planner: Planner, model: ModelFile) -> ReplicaFields:
    """What `[cluster]` and `[models.NAME.cluster]` say of a model."""
    means = planner.registry.means
    own = (table.cluster for name, table in settings.models.items() if means(name, model))
    return settings.cluster.of(next(own, ReplicaFields()))


def _place(
    planner: Planner, settings: Settings, model: ModelFile, told: ReplicaFields
) -> tuple[Plan, Placement]:
    """How all replicas of a model are loaded, with every number settled, and what they ask for.

    Settled here, because replicas on different nodes must not differ.
    """
    asked = planner.asked(model, {})
    plan = planner.plan(model, asked)
    place = placement(plan, told, cores=physical_cores(), gpu_memory=settings.cluster.gpu_memory)
    config = plan.config
    asked = msgspec.structs.replace(
        asked, n_ctx=config.n_ctx, parallel=config.parallel, n_threads=place.n_threads
    )
    return planner.plan(model, asked), place


def _load(plan: Plan) -> dict[str, object]:
    """What was settled, as a request for a load would say it."""
    return {name: getattr(plan.config, name) for name in ("n_ctx", "parallel", "n_threads")}


def _deployment(
    settings: Settings, plan: Plan, place: Placement, told: ReplicaFields
) -> serve.Deployment:
    # A few wait inside, so that no step goes half empty; the others may still go elsewhere.
    most = plan.config.parallel + max(1, plan.config.parallel // 4)
    return serve.deployment(
        Replica,
        name=deployment_name(plan.model.name),
        autoscaling_config=AutoscalingConfig(
            min_replicas=told.min_replicas,
            max_replicas=told.max_replicas,
            target_ongoing_requests=told.target_ongoing_requests or plan.config.parallel,
            upscale_delay_s=told.upscale_delay_s,
            downscale_delay_s=told.downscale_delay_s,
        ),
        max_ongoing_requests=most,
        # The ingress counts itself, by the pool's rule; this is for when its count is behind.
        max_queued_requests=settings.queue_size + most * told.max_replicas,
        graceful_shutdown_timeout_s=told.graceful_shutdown_timeout_s,
        request_router_config=_router(settings),
        logging_config=QUIET,
        ray_actor_options={
            "num_cpus": place.num_cpus,
            "num_gpus": place.num_gpus,
            "memory": place.memory,
            "resources": dict(place.resources),
        },
    )


def _session_router() -> RequestRouterConfig:
    """A session stays at one ingress, which knows where its prompts were computed."""
    if tuning.behind_haproxy():  # It takes no other word than its own, which `tuning` has.
        return RequestRouterConfig()
    return RequestRouterConfig(request_router_class=ConsistentHashRouter)


def _router(settings: Settings) -> RequestRouterConfig:
    if settings.cluster.routing == "load":
        return RequestRouterConfig()
    return RequestRouterConfig(request_router_class=PrefixRouter)


def deployment_name(model: str) -> str:
    """A model's name as Ray Serve takes it, and as it is seen in its status and metrics."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", model)
    digest = blake2b(model.encode(), digest_size=4).hexdigest()
    return plain if plain == model else f"{plain}-{digest}"
