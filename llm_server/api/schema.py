"""The OpenAPI description of bodies that the endpoints parse themselves."""

from __future__ import annotations

from typing import Any

from llm_server.api.wire import Wire


def body_of(model: type[Wire]) -> dict[str, Any]:
    """An operation's `requestBody`: JSON of that model."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def hoist_definitions(document: dict[str, Any]) -> None:
    """Move the definitions inside request bodies to `components/schemas`, where refs point."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for operations in document["paths"].values():
        for operation in operations.values():
            for media in operation.get("requestBody", {}).get("content", {}).values():
                schemas.update(media["schema"].pop("$defs", {}))
