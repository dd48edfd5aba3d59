"""Ollama's API for answers: `POST /api/chat`, `/api/generate`, `/api/embed`, `/api/embeddings`.

What is asked for is understood by `ollama_calls.py` and comes out by `ollama_events.py`; which
models there are is the business of `ollama_models.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llm_server.api import sse
from llm_server.api.context import Context, answer, context_of, read_call
from llm_server.api.embeddings import vectors_of
from llm_server.api.errors import json_response, ollama_envelope
from llm_server.api.ollama_calls import chat_call, embed_call, embeddings_call, generate_call
from llm_server.api.ollama_events import (
    ChatLine,
    End,
    GenerateLine,
    LineOf,
    OllamaLines,
    Piece,
    chat_line,
    generate_line,
)
from llm_server.api.ollama_wire import (
    GenerateBody,
    OllamaChatBody,
    OllamaEmbedBody,
    OllamaEmbeddingsBody,
)
from llm_server.api.requests import Call
from llm_server.api.schema import operation
from llm_server.api.traffic import passage_of
from llm_server.api.usage import Origin
from llm_server.errors import ErrorInfo
from llm_server.worker.messages import Embedded, Finished, RequestEvent

router = APIRouter(prefix="/api")

_CHAT: dict[str, Any] = {
    "model": "demo.gguf",
    "messages": [{"role": "user", "content": "Where do I put my models?"}],
    "options": {"temperature": 0, "num_predict": 64},
    "stream": False,
}
_GENERATE = {"model": "demo.gguf", "prompt": "Where do I put my models?", "stream": False}


class EmbedJson(msgspec.Struct):
    """The vectors of all inputs, in their order."""

    model: str
    embeddings: list[list[float]]
    prompt_eval_count: int


class OneEmbeddingJson(msgspec.Struct):
    """The vector of one text."""

    embedding: list[float]


@router.post(
    "/chat",
    openapi_extra=operation(
        ChatLine,
        body=OllamaChatBody,
        example=_CHAT,
        chunk=ChatLine,
        media_type=sse.LINES.media_type,
    ),
)
async def chat(request: Request) -> Response:
    """Answer a conversation, in Ollama's shape: lines of JSON unless `stream` is false."""
    return await _answer(request, await read_call(request, chat_call), chat_line)


@router.post(
    "/generate",
    openapi_extra=operation(
        GenerateLine,
        body=GenerateBody,
        example=_GENERATE,
        chunk=GenerateLine,
        media_type=sse.LINES.media_type,
    ),
)
async def generate(request: Request) -> Response:
    """Answer one prompt, or continue it, in Ollama's shape."""
    return await _answer(request, await read_call(request, generate_call), generate_line)


@router.post(
    "/embed",
    openapi_extra=operation(
        EmbedJson, body=OllamaEmbedBody, example={"model": "a.gguf", "input": ["Hello!"]}
    ),
)
async def embed(request: Request) -> Response:
    """Vectors of texts, in Ollama's shape."""
    call = _of_here(context_of(request), await read_call(request, embed_call))
    return answer(request, call, partial(VectorFold, EmbedJson))


@router.post(
    "/embeddings",
    openapi_extra=operation(
        OneEmbeddingJson,
        body=OllamaEmbeddingsBody,
        example={"model": "a.gguf", "prompt": "Hello!"},
    ),
)
async def embeddings(request: Request) -> Response:
    """The vector of one text, in Ollama's older shape."""
    call = _of_here(context_of(request), await read_call(request, embeddings_call))
    return answer(
        request, call, partial(VectorFold, lambda _, found, __: OneEmbeddingJson(found[0]))
    )


class VectorFold:
    """Folds vectors into what `shape` makes of model, vectors and tokens (`chat.Folder`)."""

    def __init__(self, shape: Callable[[str, list[Any], int], object], origin: Origin) -> None:
        self._shape = shape
        self._model = origin.model
        self._vectors: list[Any] = []  # JSON already
        self._n_tokens = 0

    def add(self, event: RequestEvent) -> None:
        """More vectors, or the end."""
        if isinstance(event, Embedded):
            self._vectors += [msgspec.Raw(msgspec.json.encode(v)) for v in vectors_of(event)]
        elif isinstance(event, Finished):
            self._n_tokens = event.usage.prompt_tokens

    def whole(self) -> object:
        """The answer, after the last event."""
        return self._shape(self._model, self._vectors, self._n_tokens)


async def _answer(request: Request, call: Call, line_of: LineOf) -> Response:
    context = context_of(request)
    call = _of_here(context, call)
    if not call.requests:
        return await _prepared(request, call, line_of)
    lines = partial(OllamaLines, line_of)
    return answer(request, call, lines, lines, sse.LINES, _early)


def _early(info: ErrorInfo) -> bytes:
    return sse.line(ollama_envelope(info))


async def _prepared(request: Request, call: Call, line_of: LineOf) -> Response:
    """Nothing is asked: the model is loaded, or not needed any more."""
    pool, owner = context_of(request).pool, passage_of(request.scope).owner
    if call.keep_alive_s == 0 and call.model is not None:
        name, reason = (await pool.unload(call.model)).model, "unload"
    else:
        lease = await pool.acquire(call.model, keep_alive_s=call.keep_alive_s, owner=owner)
        lease.release()
        name, reason = lease.model.name, "load"
    return json_response(line_of(name, Piece(end=End(reason))))


def _of_here(context: Context, call: Call) -> Call:
    """`call` with the model's name as it is here: Ollama's clients write a tag behind each."""
    return replace(call, model=name_here(context, call.model)) if call.model else call


def name_here(context: Context, name: str) -> str:
    """The name of a model, without the tag `:latest` if it is not part of it."""
    return name if context.registry.knows(name) else name.removesuffix(":latest")
