"""Ollama's API for models: `/api/tags`, `/api/ps`, `/api/show`, `/api/pull`, `/api/version`."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llm_server.api.body import read_body
from llm_server.api.context import Context, context_of
from llm_server.api.errors import json_response
from llm_server.api.fields import missing, validated
from llm_server.api.models import ModelJson, all_models, one_model
from llm_server.api.ollama import name_here
from llm_server.api.ollama_events import moment
from llm_server.api.ollama_wire import ModelBody
from llm_server.api.schema import operation
from llm_server.errors import ModelNotFound, UnsupportedParameter
from llm_server.gguf.header import read_header
from llm_server.looks import ask
from llm_server.models.backend import LoadedModel

router = APIRouter(prefix="/api")

VERSION = "0.12.11"
"""Of the Ollama that has what this API has, as clients look whether it is new enough."""
_FOR_EVER = "9999-12-31T23:59:59Z"
_PULL = (
    "This server connects to nowhere. On its machine, `llm-server pull hf:OWNER/REPO` gets a model."
)


class VersionJson(msgspec.Struct):
    """Which Ollama this is like."""

    version: str = VERSION


class DetailsJson(msgspec.Struct):
    """What a model is."""

    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str
    parent_model: str = ""
    format: str = "gguf"


class TagJson(msgspec.Struct):
    """One model. The `digest` is of its name, size and time, and tells only that they changed."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: DetailsJson


class TagsJson(msgspec.Struct):
    """All models that can be loaded."""

    models: list[TagJson]


class RunningModelJson(msgspec.Struct):
    """One loaded model. `size_vram` is its share of layers on cards, of the memory it takes."""

    name: str
    model: str
    size: int
    digest: str
    details: DetailsJson
    expires_at: str
    size_vram: int
    context_length: int


class RunningModelsJson(msgspec.Struct):
    """All loaded models."""

    models: list[RunningModelJson]


class ShowJson(msgspec.Struct):
    """What a model's file says; `model_info` is its metadata, lists left out."""

    details: DetailsJson
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str
    template: str = ""
    license: str = ""
    modelfile: str = ""
    parameters: str = ""


class PulledJson(msgspec.Struct):
    """There is nothing to be pulled."""

    status: str = "success"


@router.get("/version", openapi_extra=operation(VersionJson, errors=()))
async def version(request: Request) -> Response:
    """The version of Ollama whose API this is."""
    return json_response(VersionJson())


@router.get("/tags", openapi_extra=operation(TagsJson, errors=()))
async def tags(request: Request) -> Response:
    """The models of the models folder, in Ollama's shape."""
    models = await all_models(context_of(request))
    return json_response(
        TagsJson(
            [
                TagJson(m.id, m.id, _at(m.created), m.size, _digest(m), _details(m))
                for m in models
                if m.problem is None
            ]
        )
    )


@router.get("/ps", openapi_extra=operation(RunningModelsJson, errors=()))
async def ps(request: Request) -> Response:
    """The models that are loaded, in Ollama's shape."""
    context = context_of(request)
    described = {model.id: model for model in await all_models(context)}
    return json_response(
        RunningModelsJson(
            [
                _running(resident, described[resident.model.name])
                for resident in context.pool.loaded
                if resident.model.name in described
            ]
        )
    )


@router.post(
    "/show", openapi_extra=operation(ShowJson, body=ModelBody, example={"model": "demo.gguf"})
)
async def show(request: Request) -> Response:
    """What a model's file says, in Ollama's shape."""
    context = context_of(request)
    model = await _asked_for(request, context)
    file = context.registry.find(model.id)
    metadata = (await ask(file.path, partial(read_header, file.parts[0]))).metadata
    template = str(metadata.get("tokenizer.chat_template", ""))
    return json_response(
        ShowJson(
            _details(model),
            {name: value for name, value in metadata.items() if not isinstance(value, list)},
            _capabilities(model, template),
            _at(model.created),
            template,
            str(metadata.get("general.license", "")),
            f"FROM {model.id}\n",
            "\n".join(f"{name:<30} {value}" for name, value in model.sampling.items()),
        )
    )


@router.post(
    "/pull", openapi_extra=operation(PulledJson, body=ModelBody, example={"model": "demo.gguf"})
)
async def pull(request: Request) -> Response:
    """Whether a model is there: some clients pull what they want to use."""
    try:
        await _asked_for(request, context_of(request))
    except ModelNotFound:
        raise UnsupportedParameter(_PULL, param="model") from None
    return json_response(PulledJson())


async def _asked_for(request: Request, context: Context) -> ModelJson:
    """The model that a body names. Raises ModelNotFound and, if it cannot be loaded, the reason."""
    body = await read_body(request, partial(validated, ModelBody))
    name = body.model or body.name
    if name is None:
        raise missing("model")
    return await one_model(context, name_here(context, name))


def _running(resident: LoadedModel, model: ModelJson) -> RunningModelJson:
    loaded, expires_in_s = resident.worker.loaded, resident.expires_in_s
    if expires_in_s is None:
        expires_in_s = resident.keep_alive_s
    expires = datetime.now(UTC) + timedelta(seconds=max(0.0, expires_in_s))
    share = loaded.n_gpu_layers / loaded.max_gpu_layers if loaded.max_gpu_layers else 0
    return RunningModelJson(
        model.id,
        model.id,
        resident.memory,
        _digest(model),
        _details(model),
        moment(expires) if resident.keep_alive_s >= 0 else _FOR_EVER,
        int(share * resident.memory),
        loaded.n_ctx,
    )


def _capabilities(model: ModelJson, template: str) -> list[str]:
    """What clients ask for before they use it. Tools work with any model that has a template."""
    if model.pooling is not None:
        return [] if model.pooling == "rank" else ["embedding"]
    found = ["completion"]
    if template:
        found.append("tools")
    if "<think>" in template or "enable_thinking" in template:
        found.append("thinking")
    return found


def _details(model: ModelJson) -> DetailsJson:
    family = model.architecture or ""
    size = _parameters(model.n_params or 0)
    return DetailsJson(family, [family], size, model.quantization or "")


def _parameters(n: int) -> str:
    """A number of weights as Ollama writes it: 494.03M, 7.6B."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if n >= size:
            return f"{n / size:.4g}{unit}"
    return str(n)


def _digest(model: ModelJson) -> str:
    return hashlib.sha256(f"{model.id} {model.size} {model.created}".encode()).hexdigest()


def _at(seconds: int) -> str:
    return moment(datetime.fromtimestamp(seconds, UTC))
