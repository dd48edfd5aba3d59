"""Questions about prompts: which tokens a text is, which text tokens are, how long a chat would be.

Requests and answers are spelled as llama-server spells them, counting as OpenAI does. They pick
and load models as chat does, and take no place in the worker among the requests that compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, TypeVar

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llm_server.api.anthropic import EXAMPLE as MESSAGES_EXAMPLE
from llm_server.api.anthropic import messages_call
from llm_server.api.anthropic_wire import MessagesBody
from llm_server.api.body import Json
from llm_server.api.context import answer, read_call
from llm_server.api.fields import check_names, keep_alive_of, validated
from llm_server.api.requests import Call, chat_call
from llm_server.api.response_wire import ResponsesBody
from llm_server.api.responses import EXAMPLE as RESPONSES_EXAMPLE
from llm_server.api.responses import responses_call
from llm_server.api.schema import operation
from llm_server.api.usage import Origin
from llm_server.api.wire import CHAT_EXAMPLE, ChatBody, DetokenizeBody, TokenizeBody
from llm_server.worker.messages import (
    ChatRequest,
    Detokenize,
    Question,
    Render,
    RequestEvent,
    Tokenize,
    Told,
)

router = APIRouter()

B = TypeVar("B", TokenizeBody, DetokenizeBody)


class PieceJson(msgspec.Struct):
    """A token and what it stands for: text, or the bytes of a part of a character."""

    id: int
    piece: str | list[int]


class TokensJson(msgspec.Struct):
    """The tokens of a text."""

    tokens: Sequence[int | PieceJson]


class ContentJson(msgspec.Struct):
    """The text of some tokens."""

    content: str


class PromptJson(msgspec.Struct):
    """The prompt that a chat would have."""

    prompt: str


class InputTokensJson(msgspec.Struct):
    """How many tokens that prompt has."""

    input_tokens: int
    object: Literal["response.input_tokens"] = "response.input_tokens"


class CountJson(msgspec.Struct):
    """The same as Anthropic has it."""

    input_tokens: int


@router.post(
    "/tokenize",
    openapi_extra=operation(
        TokensJson, body=TokenizeBody, example={"content": "Hello!", "add_special": False}
    ),
)
async def tokenize(request: Request) -> Response:
    """The tokens of a text. Markers in it are recognised unless `parse_special` is false."""
    body, ignored = await read_call(request, partial(_checked, TokenizeBody))
    with_pieces = bool(body.with_pieces)
    question = Tokenize(
        body.content, bool(body.add_special), body.parse_special is not False, with_pieces
    )
    call = _call(question, body, ignored)
    return _answer(request, call, _pieces_json if with_pieces else _tokens_json)


@router.post(
    "/detokenize",
    openapi_extra=operation(ContentJson, body=DetokenizeBody, example={"tokens": [1, 2, 3]}),
)
async def detokenize(request: Request) -> Response:
    """The text of some tokens, markers included."""
    body, ignored = await read_call(request, partial(_checked, DetokenizeBody))
    call = _call(Detokenize(body.tokens), body, ignored)
    return _answer(request, call, lambda told: ContentJson(told.text))


@router.post(
    "/apply-template", openapi_extra=operation(PromptJson, body=ChatBody, example=CHAT_EXAMPLE)
)
async def apply_template(request: Request) -> Response:
    """The prompt that the model's chat template makes of a chat request."""
    call = await read_call(request, render_call)
    return _answer(request, call, lambda told: PromptJson(told.text))


@router.post(
    "/chat/completions/input_tokens",
    openapi_extra=operation(InputTokensJson, body=ChatBody, example=CHAT_EXAMPLE),
)
async def input_tokens(request: Request) -> Response:
    """How many tokens the prompt of a chat request has, also if it is too long to be answered."""
    call = await read_call(request, render_call)
    return _answer(request, call, lambda told: InputTokensJson(told.n_tokens))


@router.post(
    "/responses/input_tokens",
    openapi_extra=operation(InputTokensJson, body=ResponsesBody, example=RESPONSES_EXAMPLE),
)
async def response_input_tokens(request: Request) -> Response:
    """How many tokens the prompt of a response has, also if it is too long to be answered."""
    call = await read_call(request, lambda body: _render(responses_call(body).call))
    return _answer(request, call, lambda told: InputTokensJson(told.n_tokens))


@router.post(
    "/messages/count_tokens",
    openapi_extra=operation(CountJson, body=MessagesBody, example=MESSAGES_EXAMPLE),
)
async def count_tokens(request: Request) -> Response:
    """How many tokens the prompt of a message has, also if it is too long to be answered."""
    call = await read_call(request, lambda body: _render(messages_call(body)))
    return _answer(request, call, lambda told: CountJson(told.n_tokens))


def render_call(body: dict[str, Json]) -> Call:
    """A chat request of which only the prompt is wanted. Raises InvalidRequest."""
    return _render(chat_call(body))


def _render(call: Call) -> Call:
    request = call.requests[0]
    assert isinstance(request, ChatRequest)
    return replace(call, requests=[Render(request)], n=1, stream=False)


def _checked(model: type[B], body: dict[str, Json]) -> tuple[B, list[str]]:
    ignored = check_names(body, model)
    return validated(model, body), ignored


def _call(question: Question, body: TokenizeBody | DetokenizeBody, ignored: list[str]) -> Call:
    keep_alive_s = keep_alive_of(body.keep_alive)
    return Call([question], model=body.model, ignored=ignored, keep_alive_s=keep_alive_s)


def _answer(request: Request, call: Call, shape: Callable[[Told], object]) -> Response:
    return answer(request, call, partial(_ToldFold, shape))


class _ToldFold:
    """Makes the answer of the one event that a question has (`chat.Folder`)."""

    def __init__(self, shape: Callable[[Told], object], origin: Origin) -> None:
        self._shape = shape
        self._told: Told | None = None

    def add(self, event: RequestEvent) -> None:
        if isinstance(event, Told):
            self._told = event

    def whole(self) -> object:
        assert self._told is not None, "a question is answered by Told or Failed"
        return self._shape(self._told)


def _tokens_json(told: Told) -> TokensJson:
    return TokensJson(told.tokens)


def _pieces_json(told: Told) -> TokensJson:
    pieces = zip(told.tokens, map(_readable, told.pieces), strict=True)
    return TokensJson([PieceJson(id, piece) for id, piece in pieces])


def _readable(piece: bytes) -> str | list[int]:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
