"""Errors as clients read them: envelope, status and the headers that SDKs obey."""

from __future__ import annotations

import json

import pytest

from llm_server.api.errors import INTERNAL, error_response
from llm_server.api.traffic import Passage, Traffic
from llm_server.chat.constraint import GrammarTooComplex
from llm_server.errors import (
    ContextLengthExceeded,
    InsufficientMemory,
    InvalidRequest,
    ModelLoadFailed,
    ModelLoading,
    ModelNotFound,
    OutOfMemory,
    QueueFull,
    RateLimitExceeded,
    RequestTooLarge,
    ServerError,
    ShuttingDown,
    UnsupportedMediaType,
    UnsupportedParameter,
    WorkerCrashed,
)

SCOPE = {"path": "/chat/completions", "state": {"passage": Passage(Traffic(), "req_1")}}
WRONG, BROKEN = "invalid_request_error", "server_error"


@pytest.mark.parametrize(
    ("error", "status", "type", "code", "param", "retry_after", "should_retry"),
    [
        (InvalidRequest("x", param="n"), 400, WRONG, "invalid_value", "n", None, None),
        (InvalidRequest("x", code="invalid_json"), 400, WRONG, "invalid_json", None, None, None),
        (UnsupportedParameter("x"), 400, WRONG, "unsupported_parameter", None, None, None),
        (ModelLoadFailed("x"), 400, WRONG, "model_load_failed", None, None, None),
        (ModelNotFound("m"), 404, WRONG, "model_not_found", "model", None, None),
        (RequestTooLarge("x"), 413, WRONG, "request_too_large", None, None, None),
        (UnsupportedMediaType("x"), 415, WRONG, "unsupported_media_type", None, None, None),
        (ServerError("x"), 500, BROKEN, "internal_error", None, None, None),
        (WorkerCrashed("x"), 500, BROKEN, "worker_crashed", None, None, "false"),
        (GrammarTooComplex("x"), 500, BROKEN, "grammar_too_complex", None, None, "false"),
        (QueueFull("x"), 503, BROKEN, "queue_full", None, "1", None),
        (RateLimitExceeded("x"), 429, "rate_limit_error", "rate_limit_exceeded", None, "1", None),
        (ModelLoading("x"), 503, BROKEN, "model_loading", None, "2", None),
        (OutOfMemory("x"), 503, BROKEN, "out_of_memory", None, "10", None),
        (InsufficientMemory("x"), 503, BROKEN, "insufficient_memory", None, "10", "false"),
        (ShuttingDown("x"), 503, BROKEN, "shutting_down", None, "5", None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ServerError) else "",
)
def test_errors_on_the_wire(
    error: ServerError,
    status: int,
    type: str,
    code: str,
    param: str | None,
    retry_after: str | None,
    should_retry: str | None,
) -> None:
    response = error_response(error.info, SCOPE)
    assert response.status_code == status
    expected = {"message": str(error), "type": type, "param": param, "code": code}
    assert json.loads(response.body) == {"error": expected}
    assert response.headers.get("retry-after") == retry_after
    assert response.headers.get("x-should-retry") == should_retry


@pytest.mark.parametrize("param", ["messages", "prompt"])
def test_a_prompt_that_is_too_long_is_told_in_openais_words(param: str) -> None:
    error = ContextLengthExceeded(9000, 4096, param=param)
    body = json.loads(error_response(error.info, SCOPE).body)
    assert body["error"] == {
        "message": "This model's maximum context length is 4096 tokens. However, your "
        f"{param} resulted in 9000 tokens. Please reduce the length of the {param}.",
        "type": WRONG,
        "param": param,
        "code": "context_length_exceeded",
        "n_prompt_tokens": 9000,
        "n_ctx": 4096,
    }


def test_what_nobody_expected_says_nothing_of_itself() -> None:
    response = error_response(INTERNAL, SCOPE)
    assert response.status_code == 500
    assert json.loads(response.body)["error"]["code"] == "internal_error"
