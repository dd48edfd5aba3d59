"""The models as clients see them: what there is, what is loaded and how, and what fits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llm_server.api.body import read_body
from llm_server.api.context import Context, context_of
from llm_server.api.errors import json_response
from llm_server.api.fields import validated
from llm_server.api.parameters import overrides_of
from llm_server.api.schema import operation
from llm_server.api.wire import FitBody, UnloadBody
from llm_server.errors import ServerError
from llm_server.looks import HUNG_S, in_thread
from llm_server.models.backend import LoadedModel
from llm_server.models.effect import in_force
from llm_server.models.memory import Memory, pooling
from llm_server.models.plan import Fit, Planner, Source
from llm_server.models.registry import ModelFile, Registry

router = APIRouter()


class ModelJson(msgspec.Struct):
    """One model, in OpenAI's fields and in ours.

    `n_ctx` is the context in force, or the one it would be loaded with; `memory` the bytes it
    takes, or would; `pooling` how it makes a vector of a text, `rank` for a reranker, null for one
    that makes text; `sampling` what requests get that leave it out, where it is not the usual.
    What cannot be loaded has only a `problem`.
    """

    id: str
    created: int
    state: Literal["loaded", "loading", "available"]
    size: int
    aliases: list[str]
    object: str = "model"
    owned_by: str = "local"
    architecture: str | None = None
    n_params: int | None = None
    quantization: str | None = None
    n_ctx_train: int | None = None
    chat_template: bool | None = None
    n_ctx: int | None = None
    memory: int | None = None
    pooling: str | None = None
    sampling: dict[str, Any] = {}
    problem: str | None = None


class MemoryJson(msgspec.Struct):
    """Bytes by part, and all together."""

    weights: int
    kv: int
    compute: int
    prompt_cache: int
    process: int
    total: int


class FitJson(msgspec.Struct):
    """Whether a model runs here: `budget` is what all loaded models may take together.

    `n_ctx` is what was asked for, or what it would get; `largest_n_ctx` the longest that fits.
    The memory of graphics cards is not counted.
    """

    model: str
    fits: bool
    n_ctx: int
    largest_n_ctx: int
    n_ctx_train: int
    memory: MemoryJson
    budget: int


class SettingJson(msgspec.Struct):
    """A setting in force, and where it is from."""

    value: Any
    source: Source


class PropsModelJson(msgspec.Struct):
    """How one model is loaded, and what it takes; `sampling` is its own, over the usual."""

    model: str
    running: int
    keep_alive: float
    memory: int
    estimate: MemoryJson
    settings: dict[str, SettingJson]
    sampling: dict[str, Any]


class PropsJson(msgspec.Struct):
    """What is in force, and why."""

    default: str | None
    budget: int
    models: list[PropsModelJson]


class UnloadedJson(msgspec.Struct):
    """Whether the model was loaded before."""

    model: str
    unloaded: bool
    status: str = "ok"


@router.post(
    "/models/unload",
    openapi_extra=operation(UnloadedJson, body=UnloadBody, example={"model": "demo.gguf"}),
)
async def unload(request: Request) -> Response:
    """End the worker of a model, after the requests it has. The memory is free then."""
    wanted = await read_body(request, partial(validated, UnloadBody))
    unloaded = await context_of(request).pool.unload(wanted.model)
    return json_response(UnloadedJson(unloaded.model, unloaded.was_loaded))


@router.post(
    "/models/fit",
    openapi_extra=operation(FitJson, body=FitBody, example={"model": "demo.gguf"}),
)
async def fit(request: Request) -> Response:
    """Whether a model would run here, with what context, and what it would take by part."""
    wanted = await read_body(request, partial(validated, FitBody))
    context = context_of(request)
    planner = context.pool.planner

    await context.registry.scanned.again(HUNG_S)

    def answer() -> FitJson:
        model = context.registry.find(wanted.model)
        asked = planner.asked(model, overrides_of(wanted.load_model_configs))
        return fit_json(planner.fit(model, asked))

    return json_response(await in_thread(answer))


def fit_json(found: Fit) -> FitJson:
    """What is told of a fit, here and by the command."""
    return FitJson(
        found.plan.model.name,
        found.fits,
        found.plan.config.n_ctx,
        found.largest_n_ctx,
        found.plan.facts.n_ctx_train,
        _memory_json(found.plan.memory),
        found.budget,
    )


@router.get("/props", openapi_extra=operation(PropsJson, errors=()))
async def props(request: Request) -> Response:
    """How the loaded models are loaded, and where each setting comes from."""
    pool = context_of(request).pool
    default = pool.default
    return json_response(
        PropsJson(
            default.name if default is not None else None,
            pool.planner.budget,
            [_props_of(resident, pool.planner) for resident in pool.loaded],
        )
    )


def _props_of(resident: LoadedModel, planner: Planner) -> PropsModelJson:
    plan = resident.plan
    values = in_force(plan.config, plan.effect, resident.worker.loaded)
    sources = planner.sources(plan)
    return PropsModelJson(
        model=resident.model.name,
        running=resident.n_running,
        keep_alive=resident.keep_alive_s,
        memory=resident.memory,
        estimate=_memory_json(resident.plan.memory),
        settings={
            name: SettingJson(getattr(values, name), source) for name, source in sources.items()
        },
        sampling=planner.sampling(resident.plan),
    )


async def all_models(context: Context) -> list[ModelJson]:
    """Every model of the folder, as it is now."""
    return await _described(context, Registry.models)


async def one_model(context: Context, name: str) -> ModelJson:
    """One model, by any of its names. Raises ModelNotFound."""
    (described,) = await _described(context, lambda registry: [registry.find(name)])
    return described


async def _described(
    context: Context, find: Callable[[Registry], list[ModelFile]]
) -> list[ModelJson]:
    """The models that are found in the folder as it is now, with what the pool has of them."""
    registry, pool = context.registry, context.pool
    await registry.scanned.again(HUNG_S)
    loaded = {resident.model.name: resident for resident in pool.loaded}
    loading = pool.status().loading

    def describe() -> list[ModelJson]:
        return [
            _model_json(context, model, loaded.get(model.name), loading == model.name)
            for model in find(registry)
        ]

    return await in_thread(describe)


def _model_json(
    context: Context, model: ModelFile, resident: LoadedModel | None, loading: bool
) -> ModelJson:
    registry = context.registry
    described = ModelJson(
        id=model.name,
        created=model.modified,
        state="loaded" if resident is not None else "loading" if loading else "available",
        size=model.size,
        aliases=registry.aliases(model),
    )
    try:
        facts = registry.facts(model)
        plan = resident.plan if resident else context.pool.planner.weigh(model)
    except ServerError as error:
        described.problem = str(error)
        return described
    described.architecture = facts.architecture
    described.n_params = facts.n_params
    described.quantization = facts.quantization
    described.n_ctx_train = facts.n_ctx_train
    described.chat_template = facts.template_sha256 is not None
    described.n_ctx = plan.effect.n_ctx
    described.memory = resident.memory if resident else plan.memory.total
    described.pooling = pooling(facts, plan.config)
    described.sampling = context.pool.planner.sampling(plan)
    return described


def _memory_json(memory: Memory) -> MemoryJson:
    return msgspec.convert(memory, MemoryJson, from_attributes=True)
