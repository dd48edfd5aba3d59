"""The OpenAPI document is complete and true; `tests/fuzz/test_openapi.py` sends what it says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from llm_server.api.app import create_app
from llm_server.config import Settings
from tests.fake_live import Live

DOCUMENT: dict[str, Any] = create_app(Settings(models_dir=Path("/nonexistent"))).openapi()
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
OPERATIONS = [
    (method, path, described)
    for path, methods in DOCUMENT["paths"].items()
    for method, described in methods.items()
]
POSTS = [(path, described) for _, path, described in OPERATIONS if "requestBody" in described]
IDS = [path for path, _ in POSTS]


def answer_schema(described: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = described["responses"]["200"]["content"]["application/json"]["schema"]
    return schema


def validate(value: object, schema: dict[str, Any]) -> None:
    whole = {**schema, "components": {"schemas": SCHEMAS}}
    jsonschema.Draft202012Validator(whole).validate(value)


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from references(item)


@pytest.mark.parametrize(
    ("method", "path", "described"), OPERATIONS, ids=[f"{m} {p}" for m, p, _ in OPERATIONS]
)
def test_every_operation_is_described(method: str, path: str, described: dict[str, Any]) -> None:
    assert described["summary"] and described["description"]
    responses = described["responses"]
    for media in responses["200"]["content"].values():
        assert media["schema"]
    assert "422" not in responses
    assert "403" in responses and ("401" in responses) == (path != "/health")
    if method == "post":
        assert {"400", "404", "413", "415", "429", "500", "503"} <= set(responses)
    if method == "post" and "parameters" not in described:
        media = described["requestBody"]["content"]["application/json"]
        assert media["schema"]["properties"]
        validate(media["example"], media["schema"])


def test_the_document_is_served(live: Live) -> None:
    assert live.client.get("/openapi.json").json() == DOCUMENT
    listed = live.client.get("/").json()["endpoints"]
    assert listed == [f"{method.upper()} {path}" for method, path, _ in OPERATIONS]


def test_ways_to_send_a_key_are_described_and_none_is_needed_without_keys() -> None:
    schemes = DOCUMENT["components"]["securitySchemes"]
    assert DOCUMENT["security"] == [{}, *({name: []} for name in schemes)]


def test_every_reference_leads_somewhere() -> None:
    assert set(references(DOCUMENT))
    for reference in references(DOCUMENT):
        target: Any = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]
        assert target.get("description"), reference


def patterns(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("pattern"), str):
            yield value["pattern"]
        yield from value.get("patternProperties", {})
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from patterns(item)


def test_patterns_are_ecma_script() -> None:
    assert len(set(patterns(DOCUMENT))) >= 2
    for pattern in patterns(DOCUMENT):
        assert set(re.findall(r"\\([A-Za-z])", pattern)) <= set("bBdDsSwWfnrtv"), pattern


@pytest.mark.parametrize(("path", "described"), POSTS, ids=IDS)
def test_examples_are_answered_as_described(
    live: Live, path: str, described: dict[str, Any]
) -> None:
    example = described["requestBody"]["content"]["application/json"]["example"]
    example = example | {key: "a.gguf" for key in ("model", "model_name") if key in example}
    response = live.post(path, example)
    assert response.status_code == 200
    validate(response.json(), answer_schema(described))
    refused = live.post(path, {})
    assert refused.status_code == 400
    validate(refused.json(), SCHEMAS["Error"])


@pytest.mark.parametrize(
    "path", ["/", "/health", "/models", "/v1/models", "/v1/models/a", "/props"]
)
def test_what_can_be_looked_at_is_as_described(live: Live, path: str) -> None:
    described = DOCUMENT["paths"][path.replace("/models/a", "/models/{name}")]["get"]
    response = live.client.get(path)
    assert response.status_code == 200
    validate(response.json(), answer_schema(described))
