"""OpenAI's endpoints: chat completions and models, under /v1, with Anthropic's beside them."""

from __future__ import annotations

from functools import partial

import msgspec
from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from llm_server.api import anthropic, completions, embeddings, rerank, responses, tokens
from llm_server.api.completion import Chunk, Chunks, Completion, Fold
from llm_server.api.context import answer, context_of, read_call
from llm_server.api.errors import json_response
from llm_server.api.models import ModelJson, all_models, one_model
from llm_server.api.requests import chat_call
from llm_server.api.schema import operation
from llm_server.api.wire import CHAT_EXAMPLE, ChatBody

shared = APIRouter()
"""What there is both at the root and under /v1."""
router = APIRouter(prefix="/v1")


class ModelListJson(msgspec.Struct):
    """All models."""

    data: list[ModelJson]
    object: str = "list"


@shared.post(
    "/chat/completions",
    openapi_extra=operation(Completion, body=ChatBody, example=CHAT_EXAMPLE, chunk=Chunk),
)
async def chat_completions(request: Request) -> Response:
    """Answer a conversation, at once or as a stream of server-sent events."""
    call = await read_call(request, chat_call)
    return answer(request, call, Fold, partial(Chunks, include_usage=call.include_usage))


@router.get("/models", openapi_extra=operation(ModelListJson, errors=()))
async def list_models(request: Request) -> Response:
    """The models of the models folder."""
    return json_response(ModelListJson(await all_models(context_of(request))))


@shared.get("/models/{name:path}", openapi_extra=operation(ModelJson, errors=(404,)))
async def get_model(request: Request, name: str) -> Response:
    """One model, by any of its names."""
    if not name:
        raise HTTPException(404)
    return json_response(await one_model(context_of(request), name))


shared.include_router(completions.router)
shared.include_router(embeddings.router)
shared.include_router(rerank.router)
shared.include_router(tokens.router)
shared.include_router(responses.router)
shared.include_router(anthropic.router)
router.include_router(shared)
