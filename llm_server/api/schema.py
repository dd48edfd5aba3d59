"""The OpenAPI description of bodies that the endpoints parse themselves."""

from __future__ import annotations

from typing import Any

from llm_server.api.wire import Wire


def body_of(model: type[Wire]) -> dict[str, Any]:
    """An operation's `requestBody`: JSON of that model."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
