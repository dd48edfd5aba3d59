"""`POST /rerank`, as Jina, Cohere and llama-server have it: from its JSON to a `Rerank`, and from
scores to its answer."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from pydantic import Discriminator, Field, Tag
from starlette.requests import Request
from starlette.responses import Response

from llm_server.api.body import Json
from llm_server.api.context import answer, read_call
from llm_server.api.embeddings import EmbeddingUsageJson, numbers
from llm_server.api.fields import check_names, keep_alive_of, validated
from llm_server.api.parameters import LoadFields, Wire, choice_kind, overrides_of
from llm_server.api.requests import Call
from llm_server.api.schema import operation
from llm_server.api.usage import Origin
from llm_server.api.wire import MAX_INPUTS, KeepAlive, ModelName
from llm_server.worker.messages import Embedded, Finished, RequestEvent, Rerank

router = APIRouter()


class WireDocument(Wire):
    """A document as an object. Only its text counts."""

    text: str


class RerankBody(Wire):
    """`POST /rerank`."""

    query: Annotated[str, Field(min_length=1)]
    documents: Annotated[
        list[
            Annotated[
                Annotated[str, Tag("(text)")] | Annotated[WireDocument, Tag("(object)")],
                Discriminator(choice_kind),
            ]
        ],
        Field(fail_fast=True, min_length=1, max_length=MAX_INPUTS),
    ]
    model: ModelName | None = None
    top_n: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Most results to answer with; all unless it is given."
    )
    return_documents: bool | None = None
    load_model_configs: LoadFields | None = None
    keep_alive: KeepAlive | None = None


class DocumentJson(msgspec.Struct):
    """A document, where they are wanted back."""

    text: str


class RankJson(msgspec.Struct):
    """How well the document at that place of the request answers the query: more is better.

    The score is what the model makes of the two; with many models that is no probability.
    """

    index: int
    relevance_score: float
    document: DocumentJson | UnsetType = UNSET


class RerankJson(msgspec.Struct, kw_only=True):
    """The documents, best first."""

    object: Literal["list"] = "list"
    model: str
    results: list[RankJson]
    usage: EmbeddingUsageJson


_DESCRIBED: dict[str, Any] = operation(
    RerankJson,
    body=RerankBody,
    example={"query": "How warm is it?", "documents": ["It is 20 °C.", "Cats sleep a lot."]},
)


@router.post("/rerank", openapi_extra=_DESCRIBED)
@router.post("/reranking", openapi_extra=_DESCRIBED)
async def rerank(request: Request) -> Response:
    """Documents in the order in which they answer a query, from a reranker."""
    call, make_fold = await read_call(request, rerank_call)
    return answer(request, call, make_fold)


def rerank_call(body: dict[str, Json]) -> tuple[Call, partial[RerankFold]]:
    """The body of a rerank request, understood, and what folds its scores.

    Raises:
        InvalidRequest: it is wrong.
    """
    ignored = check_names(body, RerankBody)
    wanted = validated(RerankBody, body)
    documents = [d if isinstance(d, str) else d.text for d in wanted.documents]
    call = Call(
        [Rerank(wanted.query, documents)],
        model=wanted.model,
        overrides=overrides_of(wanted.load_model_configs),
        ignored=ignored,
        keep_alive_s=keep_alive_of(wanted.keep_alive),
    )
    return call, partial(RerankFold, documents if wanted.return_documents else None, wanted.top_n)


class RerankFold:
    """Folds scores into one list (`chat.Folder`), with the documents if they are given."""

    def __init__(self, documents: list[str] | None, top_n: int | None, origin: Origin) -> None:
        self._documents = documents
        self._top_n = top_n
        self._origin = origin
        self._scores: list[float] = []
        self._finished: Finished | None = None

    def add(self, event: RequestEvent) -> None:
        """More scores, in the order of the documents, or the end."""
        if isinstance(event, Embedded):
            self._scores += numbers(event.vectors)
        elif isinstance(event, Finished):
            self._finished = event

    def whole(self) -> RerankJson:
        """The list."""
        assert self._finished is not None, "events end in Finished or Failed"
        n_tokens = self._finished.usage.prompt_tokens
        best = sorted(enumerate(self._scores), key=lambda ranked: ranked[1], reverse=True)
        return RerankJson(
            model=self._origin.model,
            results=[self._rank(index, score) for index, score in best[: self._top_n]],
            usage=EmbeddingUsageJson(n_tokens, n_tokens),
        )

    def _rank(self, index: int, score: float) -> RankJson:
        document = DocumentJson(self._documents[index]) if self._documents is not None else UNSET
        return RankJson(index, score, document)
