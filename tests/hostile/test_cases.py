"""Every hostile body against a real server, and what must be as before after each of them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from llm_server.api.wire import ChatBody, SetModelBody
from tests.hostile.cases import CASES, OK, Case
from tests.live import LiveServer

GOLDEN = {
    "messages": [{"role": "user", "content": "golden"}],
    "temperature": 0,
    "max_tokens": 4,
}
SECRETS = re.compile(r"Traceback|/tmp/|site-packages|\.py\b|0x[0-9a-f]{6,}|\bstr\(")


class Guarded:
    """A server, what it was like before, and how to see that it still is."""

    def __init__(self, server: LiveServer, models: Path) -> None:
        self.server = server
        self.models = models
        self.process = psutil.Process(server.process.pid)
        self.golden = self.ask_golden()
        self.files = self._listing()
        self.worker = [worker.pid for worker in server.workers()]
        self.open_files, self.threads = self._held()

    def ask_golden(self) -> Any:
        response = self.server.client.post("/v1/chat/completions", json=GOLDEN)
        assert response.status_code == 200
        return response.json()["choices"][0]["message"]

    def post(self, path: str, body: bytes) -> httpx.Response:
        headers = {"content-type": "application/json"}
        response = self.server.client.post(path, content=body, headers=headers)
        assert response.headers["x-request-id"].startswith("req_")
        if response.status_code != 200:
            error = response.json()["error"]
            assert set(response.json()) == {"error"}
            assert {"message", "type", "param", "code"} <= set(error)
            assert isinstance(error["code"], str) and len(error["message"]) < 1000
            assert not SECRETS.search(response.text)
        return response

    def assert_unharmed(self) -> None:
        """I1 to I4 and I6 of the catalogue."""
        assert self.server.client.get("/health").status_code == 200
        assert self.server.process.poll() is None
        assert [worker.pid for worker in self.server.workers()] == self.worker
        assert self.ask_golden() == self.golden
        status = self.server.client.get("/").json()
        assert (status["running"], status["waiting"]) == (0, 0)
        open_files, threads = self._held()
        assert open_files <= self.open_files + 2  # Its one client, and a folder being read.
        assert threads <= self.threads + 8  # A pool of threads grows once, up to its bound.
        assert self._listing() == self.files

    def _held(self) -> tuple[int, int]:
        return self.process.num_fds(), self.process.num_threads()

    def _listing(self) -> list[tuple[str, int]]:
        return [(path.name, path.stat().st_mtime_ns) for path in sorted(self.models.iterdir())]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, attention_gguf: Path) -> Iterator[Guarded]:
    root = tmp_path_factory.mktemp("hostile")
    models = root / "models"
    models.mkdir()
    shutil.copy(attention_gguf, models / "a.gguf")
    server = LiveServer(models, ["--n-ctx", "2048", "--cache-dir", str(root / "cache")])
    try:
        server.wait_ready()
        yield Guarded(server, models)
    finally:
        server.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_hostile_body_is_refused_by_name_and_changes_nothing(
    guarded: Guarded, case: Case
) -> None:
    response = guarded.post(case.path, case.body)
    if response.status_code == 200:
        outcome = OK
    else:
        error = response.json()["error"]
        outcome = (response.status_code, error["code"], error["param"])
    assert outcome in case.expected
    guarded.assert_unharmed()


WRONG: dict[str, Any] = {
    "string": "x",
    "integer": 3,
    "number": 0.5,
    "boolean": True,
    "array": [],
    "object": {},
}


def _fields() -> Iterator[tuple[str, str, set[str]]]:
    """(path, field, JSON types it takes) of every field of the bodies, from their schemas."""
    for path, model in (("/v1/chat/completions", ChatBody), ("/setModel", SetModelBody)):
        schema = model.model_json_schema()
        for name, described in schema["properties"].items():
            yield path, name, set(_types(described, schema))


def _types(described: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    if "$ref" in described:
        described = schema["$defs"][described["$ref"].rpartition("/")[2]]
    for option in described.get("anyOf", []) + described.get("oneOf", []):
        yield from _types(option, schema)
    if kind := described.get("type"):
        yield kind
    if kind == "number":
        yield "integer"
    if "enum" in described or "const" in described:
        yield "string"


@pytest.mark.parametrize(
    ("path", "field", "takes"), list(_fields()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_every_field_refuses_every_wrong_type(
    guarded: Guarded, path: str, field: str, takes: set[str]
) -> None:
    required = {"model_name": "a.gguf"} if path == "/setModel" else {"messages": GOLDEN["messages"]}
    for kind, value in WRONG.items():
        if kind in takes:
            continue
        response = guarded.server.client.post(path, json=required | {field: value})
        assert response.status_code == 400, kind
        error = response.json()["error"]
        assert error["code"] in ("invalid_type", "invalid_value"), kind
        assert error["param"].startswith(field), kind


def test_after_all_of_them_nothing_has_changed(guarded: Guarded) -> None:
    guarded.assert_unharmed()
    log = guarded.server.log
    assert "Traceback" not in log
    assert not [line for line in log.splitlines() if line.startswith("ERROR forged")]
