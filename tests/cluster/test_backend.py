"""Who is given a place in the queue of an ingress; a fake handle stands for Ray's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from llm_server.config import Settings, make_planner, make_registry
from llm_server.errors import QueueFull, RateLimitExceeded
from llm_server.worker.messages import ChatRequest, Message
from tests.cluster.fake_handle import Handle, opening
from tests.cluster.live import Deployments
from tests.fake_live import add_models

pytestmark = pytest.mark.filterwarnings("default")

REQUEST = ChatRequest([Message("user", "hi")])


async def never_ends() -> AsyncIterator[bytes]:
    yield opening()
    await asyncio.Event().wait()


def deployments_of(folder: Path, queue_size: int) -> Deployments:
    """One model that computes one request at once."""
    add_models(folder, "a.gguf")
    settings = Settings(models_dir=folder, parallel=1, n_ctx=512)
    registry = make_registry(settings, None)
    registry.scan()
    planner = make_planner(settings, registry)
    (model,) = registry.models()
    handle: Any = Handle(never_ends)
    return Deployments(
        planner,
        {model.name: planner.plan(model, planner.asked(model, {}))},
        {model.name: handle},
        {model.name: -1.0},
        {},
        lambda method, *args: None,
        queue_size,
        model.name,
    )


async def ask(backend: Deployments, owner: str) -> None:
    """One more request that is not answered."""
    (await backend.acquire(None, owner=owner)).worker.submit(REQUEST, owner=owner)


def test_one_owner_leaves_room_in_the_queue_for_others(tmp_path: Path) -> None:
    async def fill() -> None:
        backend = deployments_of(tmp_path, queue_size=8)
        with pytest.raises(RateLimitExceeded):
            for _ in range(10):
                await ask(backend, "many")
        for owner in ("one", "other"):
            await ask(backend, owner)
        await backend.close()

    asyncio.run(fill())


def test_without_keys_the_queue_is_filled_to_its_end(tmp_path: Path) -> None:
    async def fill() -> None:
        backend = deployments_of(tmp_path, queue_size=3)
        for _ in range(4):
            await ask(backend, "")
        with pytest.raises(QueueFull):
            await ask(backend, "")
        await backend.close()

    asyncio.run(fill())


def test_those_who_wait_for_the_first_replica_count_too(tmp_path: Path) -> None:
    async def fill() -> None:
        backend = deployments_of(tmp_path, queue_size=4)
        asked = [backend.acquire(None, owner="many") for _ in range(6)]
        leases = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(lease, RateLimitExceeded) for lease in leases) > 1
        await ask(backend, "one")
        await backend.close()

    asyncio.run(fill())
