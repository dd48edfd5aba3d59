"""OpenAI's `POST /embeddings`: from its JSON to an `Embed`, and from vectors to its answer.

Vectors are encoded as they arrive, some at a time, so that a large answer holds nobody up.
"""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llm_server.api.body import Json
from llm_server.api.context import answer, read_call
from llm_server.api.fields import check_names, keep_alive_of, prompts_of, validated
from llm_server.api.parameters import overrides_of
from llm_server.api.requests import Call
from llm_server.api.schema import operation
from llm_server.api.usage import Origin
from llm_server.api.wire import EmbeddingBody
from llm_server.worker.messages import Embed, Embedded, Finished, RequestEvent

router = APIRouter()


class EmbeddingJson(msgspec.Struct):
    """The vector of one input: numbers, or the base64 of little-endian float32 bytes."""

    embedding: list[float] | str
    index: int
    object: Literal["embedding"] = "embedding"


class EmbeddingUsageJson(msgspec.Struct):
    """Tokens of all inputs, with those that the model has around every text."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingListJson(msgspec.Struct):
    """The vectors of all inputs, in their order."""

    data: list[EmbeddingJson]
    model: str
    usage: EmbeddingUsageJson
    object: Literal["list"] = "list"


@router.post(
    "/embeddings",
    openapi_extra=operation(
        EmbeddingListJson, body=EmbeddingBody, example={"input": ["Hello!", "Good morning."]}
    ),
)
async def embeddings(request: Request) -> Response:
    """Vectors of length 1 for one text or several, from a model that makes embeddings."""
    call, as_base64 = await read_call(request, embedding_call)
    return answer(request, call, partial(EmbeddingFold, as_base64))


def embedding_call(body: dict[str, Json]) -> tuple[Call, bool]:
    """The body of an embedding request, understood, and whether base64 is wanted.

    Raises:
        InvalidRequest: it is wrong.
    """
    ignored = check_names(body, EmbeddingBody)
    wanted = validated(EmbeddingBody, body)
    inputs = list(prompts_of(wanted.input))
    alone = isinstance(wanted.input, str) or isinstance(wanted.input[0], int)
    call = Call(
        [Embed(inputs, wanted.dimensions)],
        model=wanted.model,
        overrides=overrides_of(wanted.load_model_configs),
        ignored=ignored,
        keep_alive_s=keep_alive_of(wanted.keep_alive),
        place=(lambda param: param.replace("input[0]", "input")) if alone else str,
    )
    return call, wanted.encoding_format == "base64"


class EmbeddingFold:
    """Folds vectors into one list (`chat.Folder`)."""

    def __init__(self, as_base64: bool, origin: Origin) -> None:
        self._as_base64 = as_base64
        self._origin = origin
        self._data: list[Any] = []  # JSON already
        self._finished: Finished | None = None

    def add(self, event: RequestEvent) -> None:
        """More vectors, or the end."""
        if isinstance(event, Embedded):
            vectors = map(_base64, _split(event)) if self._as_base64 else vectors_of(event)
            for shown in vectors:
                item = EmbeddingJson(shown, len(self._data))
                self._data.append(msgspec.Raw(msgspec.json.encode(item)))
        elif isinstance(event, Finished):
            self._finished = event

    def whole(self) -> EmbeddingListJson:
        """The list."""
        assert self._finished is not None, "events end in Finished or Failed"
        n_tokens = self._finished.usage.prompt_tokens
        usage = EmbeddingUsageJson(n_tokens, n_tokens)
        return EmbeddingListJson(self._data, self._origin.model, usage)


def _split(event: Embedded) -> Iterator[bytes]:
    size = len(event.vectors) // event.n
    return (event.vectors[i * size : (i + 1) * size] for i in range(event.n))


def _base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()


def vectors_of(event: Embedded) -> Iterator[list[float]]:
    """The vectors of an event."""
    return map(numbers, _split(event))


def numbers(vector: bytes) -> list[float]:
    """The numbers of `Embedded.vectors`."""
    found = array("f", vector)
    if sys.byteorder == "big":
        found.byteswap()
    return found.tolist()
