"""The OpenAPI description of endpoints that parse and encode their own bodies."""

from __future__ import annotations

import functools
from typing import Any

import msgspec

from llm_server.api.parameters import Wire

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

ERROR = {
    "description": "An error, always in this shape.",
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "Where in the request."},
                "code": {"type": ["string", "null"], "description": "What is wrong, for programs."},
            },
        }
    },
}


def operation(
    answer: type[msgspec.Struct],
    *,
    body: type[Wire] | None = None,
    example: dict[str, Any] | None = None,
    chunk: Any = None,
    errors: tuple[int, ...] = tuple(ERRORS),
) -> dict[str, Any]:
    """What FastAPI cannot see of an endpoint: `openapi_extra` of its route.

    `answer` is sent with a 200, or a stream of `chunk`s where the body asks for one: a struct, or
    a union of several. A `body` is shown by an `example`. `errors` are the statuses of `ERRORS`
    that it may answer.
    """
    content = {"application/json": {"schema": _answer_schema(answer)}}
    if chunk is not None:
        content["text/event-stream"] = {"schema": _answer_schema(chunk)}
    responses: dict[str, Any] = {"200": {"description": "The answer.", "content": content}}
    for status in errors:
        responses[str(status)] = {"$ref": f"#/components/responses/{status}"}
    described: dict[str, Any] = {"responses": responses}
    if body is not None:
        media = {"schema": _body_schema(body), "example": example}
        described["requestBody"] = {"required": True, "content": {"application/json": media}}
    return described


def complete(document: dict[str, Any]) -> None:
    """Put what all operations share where their references point."""
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for operations in document["paths"].values():
        for described in operations.values():
            described["responses"].pop("422", None)  # FastAPI's own, which nobody answers here
            for part in (described.get("requestBody", {}), *described["responses"].values()):
                for media in part.get("content", {}).values():
                    schemas.update(media["schema"].pop("$defs", {}))
    schemas["Error"] = ERROR
    error = {"application/json": {"schema": {"$ref": _REF + "Error"}}}
    components["responses"] = {
        str(status): {"description": text, "content": error} for status, text in ERRORS.items()
    }


@functools.cache
def _body_schema(body: type[Wire]) -> dict[str, Any]:
    return body.model_json_schema(ref_template=_REF + "{model}")


@functools.cache
def _answer_schema(answer: Any) -> dict[str, Any]:
    (schema,), definitions = msgspec.json.schema_components([answer], ref_template=_REF + "{name}")
    return {**schema, "$defs": definitions}
