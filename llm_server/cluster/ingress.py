"""The ingress: the application of the single-machine server, before models that live elsewhere."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from llm_server.api.app import create_app
from llm_server.cluster import remote, tuning
from llm_server.cluster.backend import Deployments, counted
from llm_server.config import Settings, make_planner, make_registry
from llm_server.errors import ErrorInfo
from llm_server.models.plan import Plan
from llm_server.server import configure_logging

logger = logging.getLogger(__name__)

COUNT_S = 1.0
"""How old may be what is told of replicas, in seconds. It decides nothing."""


class Ingress:
    """The class of the ingress deployment, for `serve.ingress()`."""

    def __init__(
        self,
        settings: Settings,
        plans: Mapping[str, Plan],
        handles: Mapping[str, DeploymentHandle],
        stays: Mapping[str, float],
        refused: Mapping[str, ErrorInfo],
        first_model: str | None,
        stand_in: Path | None,
    ) -> None:
        """What the models and their deployments are, by name (`Deployments`)."""
        configure_logging(settings)
        registry = make_registry(settings, stand_in)
        registry.scan()
        self._names = {handle.deployment_name: name for name, handle in handles.items()}
        self._backend = Deployments(
            make_planner(settings, registry),
            plans,
            handles,
            stays,
            refused,
            self._share,
            settings.queue_size,
            first_model,
        )
        self._app = create_app(settings, backend=self._backend, ids_given=tuning.ids_given())
        self._tasks: set[asyncio.Task[object]] = set()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The application, as Ray Serve asks for it."""
        self._spawn(self._count())
        self._spawn(self._ask_default())
        return from_proxy(self._app, listens_on() if tuning.behind_haproxy() else None)

    # ---- what ingresses tell each other --------------------------------------------------------

    async def take_default(self, name: str) -> None:
        """Somebody has set the default model."""
        self._backend.take_default(name)

    async def take_resting(self, name: str, resting: bool) -> None:
        """Somebody has unloaded a model, or asks for it again."""
        self._backend.take_resting(name, resting)

    async def tell_default(self) -> str | None:
        """The default model that somebody has set."""
        return self._backend.chosen

    def _share(self, method: str, *args: object) -> None:
        getattr(self._backend, method)(*args)
        self._spawn(self._ask_all(method, *args))

    async def _ask_default(self) -> None:
        for name in await self._ask_all("tell_default"):
            if isinstance(name, str):
                self._backend.take_default(name)

    async def _ask_all(self, method: str, *args: object) -> list[object]:
        """What all ingresses answer, this one too."""
        here = serve.get_replica_context()
        handle = serve.get_deployment_handle(here.deployment, here.app_name)
        try:
            answers = await handle.broadcast(method, *args).results_async(return_exceptions=True)
        except (RayError, RayServeException) as error:
            # The first ingress asks before it is one; later ones ask those that are there.
            logger.debug("no ingress was asked for %s: %s", method, error)
            return []
        return list(answers)

    # ---- what is there -------------------------------------------------------------------------

    async def _count(self) -> None:
        """Keep count of the models' replicas."""
        app = serve.get_replica_context().app_name
        while True:
            try:
                status = await asyncio.to_thread(serve.status)
                deployments = status.applications[app].deployments
                await self._backend.count(
                    {
                        name: counted(deployments[deployment].replica_states)
                        for deployment, name in self._names.items()
                        if deployment in deployments
                    }
                )
            except Exception:
                # Display alone: the controller may be on its way to another node.
                logger.warning("the replicas could not be counted", exc_info=True)
            await asyncio.sleep(COUNT_S)

    def _spawn(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def from_proxy(app: ASGIApp, host: str | None) -> ASGIApp:
    """Remembers the session, as Ray Serve spells its header, and where requests come in.

    `host` is the address that HAProxy listens on, which comes here from the next process: without
    it all that comes would seem to come to this machine alone.
    """

    async def serve_one(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            remote.session.set(Headers(scope=scope).get("x-session-id", ""))
            if host is not None:
                scope["server"] = (host, scope["server"][1])
        await app(scope, receive, send)

    return serve_one


def listens_on() -> str:
    """The IP address that Ray Serve listens on, on each node."""
    host = _get_global_client().http_config.host or "0.0.0.0"
    return str(socket.getaddrinfo(host, None)[0][4][0])
