"""The OpenAPI document is complete and true, and nothing that fits it, or does not, is a 500."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

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


def body_schema(described: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = described["requestBody"]["content"]["application/json"]["schema"]
    return schema


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
    if method == "post":
        assert {"400", "404", "413", "415", "500", "503"} <= set(responses)
    if method == "post" and "parameters" not in described:
        media = described["requestBody"]["content"]["application/json"]
        assert media["schema"]["properties"]
        validate(media["example"], media["schema"])


def test_the_document_is_served(live: Live) -> None:
    assert live.client.get("/openapi.json").json() == DOCUMENT


def test_every_reference_leads_somewhere() -> None:
    assert set(references(DOCUMENT))
    for reference in references(DOCUMENT):
        target: Any = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]
        assert target.get("description"), reference


@pytest.mark.parametrize(("path", "described"), POSTS, ids=IDS)
def test_examples_are_answered_as_described(
    live: Live, path: str, described: dict[str, Any]
) -> None:
    example = described["requestBody"]["content"]["application/json"]["example"]
    if "model_name" in example:
        example = example | {"model_name": "a.gguf"}
    response = live.post(path, example)
    assert response.status_code == 200
    validate(response.json(), answer_schema(described))
    refused = live.post(path, {})
    assert refused.status_code == 400
    validate(refused.json(), SCHEMAS["Error"])


@pytest.mark.parametrize("path", ["/", "/health", "/models", "/v1/models", "/v1/models/a"])
def test_what_can_be_looked_at_is_as_described(live: Live, path: str) -> None:
    described = DOCUMENT["paths"][path.replace("/models/a", "/models/{name}")]["get"]
    response = live.client.get(path)
    assert response.status_code == 200
    validate(response.json(), answer_schema(described))


# ---- bodies made from the document ---------------------------------------------------------------

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)


def values(schema: dict[str, Any], depth: int = 0) -> st.SearchStrategy[Any]:
    """Mostly what fits a schema, and now and then something else in some place."""
    if "$ref" in schema:
        return values(SCHEMAS[schema["$ref"].rpartition("/")[2]], depth)
    if depth > 6:
        return anything
    usual = fitting(schema, depth)
    return st.one_of(usual, usual, usual, anything)


def fitting(schema: dict[str, Any], depth: int) -> st.SearchStrategy[Any]:
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return st.one_of([st.deferred(lambda o=o: values(o, depth + 1)) for o in options])  # type: ignore[misc]
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "object" if "properties" in schema:
            required = set(schema.get("required", ()))
            parts = {name: values(part, depth + 1) for name, part in schema["properties"].items()}
            return st.fixed_dictionaries(
                {name: part for name, part in parts.items() if name in required},
                optional={name: part for name, part in parts.items() if name not in required},
            )
        case "array":
            return st.lists(values(schema.get("items", {}), depth + 1), max_size=3)
        case "string":
            return st.text(max_size=20)
        case "integer":
            return st.integers(schema.get("minimum", -(2**31)), schema.get("maximum", 2**31))
        case "number":
            return st.floats(schema.get("minimum", -1e6), schema.get("maximum", 1e6))
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
    return anything


ONCE = [(path, described) for path, described in POSTS if path.removeprefix("/v1") == path]
ONCE += [(path, described) for path, described in POSTS if path.removeprefix("/v1") not in IDS]


@pytest.mark.parametrize(("path", "described"), ONCE, ids=[path for path, _ in ONCE])
@settings(
    max_examples=10,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # a body that hangs would hang for each smaller one
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_no_body_is_too_much(
    live: Live, path: str, described: dict[str, Any], data: st.DataObject
) -> None:
    body = data.draw(values(body_schema(described)))
    if isinstance(body, dict):
        body.pop("load_model_configs", None)  # each would load the model anew
    headers = {"content-type": "application/json"}
    response = live.client.post(path, content=json.dumps(body), headers=headers)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        validate(response.json(), SCHEMAS["Error"])
