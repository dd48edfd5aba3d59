"""The OpenAPI description of endpoints that parse and encode their own bodies."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts
from starlette.routing import BaseRoute

from llm_server.api.access import PUBLIC
from llm_server.api.parameters import Wire
from llm_server.api.sse import EVENTS

_REF = "#/components/schemas/"

ERRORS = {
    400: "The request is wrong: `code` and `param` say how and where.",
    404: "There is no such model.",
    413: "The body is too long.",
    415: "The body is not declared as plain JSON.",
    429: "This API key has its share of the queue: `retry-after` says when to try again.",
    500: "The server or the model's worker failed; `x-should-retry` says whether to try again.",
    503: "Not now: `retry-after` says when to try again.",
}
"""What each error status means, whatever the endpoint."""

ACCESS_ERRORS = {
    401: "The server wants an API key, and this is none of them.",
    403: "The `Host` or `Origin` of the request is not one that this server answers.",
}
"""What keeps a request from an endpoint, whichever it is; no key is asked for at public ones."""

KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
"""How an API key is sent, where the server wants one."""

_TOO_LONG = "Of `context_length_exceeded` alone."

ERROR = {
    "description": "An error, in this shape but for other dialects than OpenAI's.",
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": ["object", "string"],
            "description": "Ollama's endpoints have the message here, and the others beside it.",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "Where in the request."},
                "code": {"type": ["string", "null"], "description": "What is wrong, for programs."},
                "n_prompt_tokens": {"type": "integer", "description": _TOO_LONG},
                "n_ctx": {"type": "integer", "description": _TOO_LONG},
            },
        }
    },
}


_DEFINITIONS = "$defs"


def operation(
    answer: type[msgspec.Struct],
    *,
    body: type[Wire] | None = None,
    example: dict[str, Any] | None = None,
    chunk: Any = None,
    media_type: str = EVENTS,
    errors: tuple[int, ...] = tuple(ERRORS),
) -> dict[str, Any]:
    """What cannot be seen of an endpoint from outside: `openapi_extra` of its route.

    `answer` is sent with a 200, or a stream of `chunk`s where the body asks for one: a struct, or
    a union of several. `media_type` is that of the stream. A `body` is shown by an `example`.
    `errors` are the statuses of `ERRORS` that it may answer.
    """
    schema, definitions = _answer_schema(answer)
    content = {"application/json": {"schema": schema}}
    if chunk is not None:
        schema, more = _answer_schema(chunk)
        content[media_type] = {"schema": schema}
        definitions = definitions | more
    responses: dict[str, Any] = {"200": {"description": "The answer.", "content": content}}
    responses |= _responses(errors)
    described: dict[str, Any] = {"responses": responses}
    if body is not None:
        schema, more = _body_schema(body)
        media = {"schema": schema, "example": example}
        described["requestBody"] = {"required": True, "content": {"application/json": media}}
        definitions = definitions | more
    return described | {_DEFINITIONS: definitions}


def plain_text(description: str) -> dict[str, Any]:
    """The same of an endpoint whose answer is text."""
    content = {"text/plain": {"schema": {"type": "string"}}}
    return {"responses": {"200": {"description": description, "content": content}}}


def endpoints(routes: Sequence[BaseRoute]) -> list[str]:
    """Method and path of everything that the document describes."""
    return [
        f"{method} {route.path_format}"
        for route in _described(routes)
        for method in sorted(route.methods or ())
    ]


def document(title: str, version: str, routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """The OpenAPI document.

    FastAPI's own function checks and copies every schema in it: a tenth of a second in which
    nothing else happens.
    """
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {"Error": ERROR}
    for route in _described(routes):
        path = route.path_format or ""
        described = {
            "summary": str(route.name).replace("_", " ").title(),
            "description": route.description,
            "operationId": route.unique_id,
        }
        if names := re.findall(r"{(\w+)}", path):
            described["parameters"] = [_path_parameter(name) for name in names]
        schemas |= route.openapi_extra.get(_DEFINITIONS, {})
        described |= {k: v for k, v in route.openapi_extra.items() if k != _DEFINITIONS}
        keeping_out = [status for status in ACCESS_ERRORS if status != 401 or path not in PUBLIC]
        described["responses"] = described["responses"] | _responses(keeping_out)
        for method in route.methods or ():
            paths.setdefault(path, {})[method.lower()] = described
    error = {"application/json": {"schema": {"$ref": _REF + "Error"}}}
    responses = {
        str(status): {"description": text, "content": error}
        for status, text in (ERRORS | ACCESS_ERRORS).items()
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {"schemas": schemas, "responses": responses, "securitySchemes": KEYS},
        "security": [{}, *({name: []} for name in KEYS)],
    }


def _responses(statuses: Iterable[int]) -> dict[str, Any]:
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in statuses}


def _described(routes: Sequence[BaseRoute]) -> Iterator[RouteContext]:
    """The routes of endpoints, as they are reached from outside."""
    for route in iter_route_contexts(routes):
        if isinstance(route.original_route, APIRoute):
            yield route


def _path_parameter(name: str) -> dict[str, Any]:
    schema = {"type": "string", "title": name.title()}
    return {"name": name, "in": "path", "required": True, "schema": schema}


@functools.cache
def _body_schema(body: type[Wire]) -> tuple[dict[str, Any], dict[str, Any]]:
    schema = body.model_json_schema(ref_template=_REF + "{model}")
    return schema, schema.pop(_DEFINITIONS, {})


@functools.cache
def _answer_schema(answer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    (schema,), definitions = msgspec.json.schema_components([answer], ref_template=_REF + "{name}")
    return schema, definitions
