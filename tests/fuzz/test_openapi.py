"""No request made from the OpenAPI document, whether it fits or not, is a 500 or says untruths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.generation import GenerationMode

from llm_server.api.app import create_app
from llm_server.config import Settings
from tests.fake_live import Live, add_models, live_server

DOCUMENT = create_app(Settings(models_dir=Path("/nonexistent"))).openapi()
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = {
    operation.label: operation
    for operation in (result.ok() for result in SCHEMA.get_all_operations())
    if operation.path.startswith("/v1/") or "/v1" + operation.path not in DOCUMENT["paths"]
}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
ABOUT_LOADING = ("POST /models/fit", "POST /setModel")
STREAM_CHECKS = CHECKS[:3]
"""schemathesis takes the schema of a stream for that of an event's fields, not of its data."""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    models = tmp_path_factory.mktemp("models")
    add_models(models, "a.gguf")
    with live_server(models) as server:
        yield server


def test_operations_about_loading_are_there() -> None:
    assert set(ABOUT_LOADING) <= OPERATIONS.keys()


@pytest.mark.parametrize("label", OPERATIONS)
@settings(
    max_examples=settings.default.max_examples // 25,
    phases=[Phase.explicit, Phase.generate],  # a body that hangs would hang for each smaller one
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.filter_too_much,
    ],
)
@given(data=st.data())
def test_no_request_is_too_much(live: Live, label: str, data: st.DataObject) -> None:
    mode = data.draw(st.sampled_from(GenerationMode))
    case = data.draw(OPERATIONS[label].as_strategy(mode))
    if isinstance(case.body, dict) and label not in ABOUT_LOADING:
        case.body.pop("load_model_configs", None)  # each would load the model anew
    response = case.call(base_url=str(live.client.base_url))
    is_stream = response.headers["content-type"][0].startswith("text/event-stream")
    case.validate_response(response, checks=STREAM_CHECKS if is_stream else CHECKS)
