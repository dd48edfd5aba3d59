"""The cache folder's disk hangs: requests are answered, and the worker comes to its end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_server.cache.files import Files
from tests.engine.test_disk_tier import HEAD, SIZE, Server, prompt


class Hanging(Files):
    """Files whose operation of the name `hangs` does not come back before it `works` again."""

    def __init__(self) -> None:
        self.hangs = ""
        self.works = threading.Event()

    def _wait(self, name: str) -> None:
        if name == self.hangs:
            self.works.wait()

    def size(self, path: str) -> int | None:
        self._wait("size")
        return super().size(path)

    def open(self, path: str) -> tuple[int, int, float]:
        self._wait("open")
        return super().open(path)

    def read_into(self, descriptor: int, buffer: memoryview) -> int:
        self._wait("read_into")
        return super().read_into(descriptor, buffer)

    def create(self, path: str) -> int:
        self._wait("create")
        return super().create(path)


@pytest.fixture
def files() -> Iterator[Hanging]:
    files = Hanging()
    yield files
    files.works.set()


@pytest.fixture(params=[False, True], ids=["ranges", "whole_state"])
def server(request: pytest.FixtureRequest, tmp_path: Path, files: Hanging) -> Server:
    server = Server(tmp_path, whole_state=request.param, files=files, hung_s=0.1)
    server.ask(1, HEAD, max_tokens=0, persist=True)
    server.restart()
    return server


@pytest.mark.parametrize("operation", ["size", "open", "read_into"])
def test_a_prompt_that_cannot_be_read_is_computed(
    server: Server, files: Hanging, operation: str
) -> None:
    files.hangs = operation
    # With a head that is not known, so that it is looked for by its name.
    assert server.ask(2, HEAD + prompt(2, 3 * SIZE), head=len(HEAD) + 4).disk_tokens == 0
    assert server.ask(3, prompt(3, 100)).disk_tokens == 0
    files.works.set()
    server.restart()
    assert server.ask(5, HEAD + prompt(5)).disk_tokens >= len(HEAD) - SIZE, "it is read again"


def test_what_is_read_already_is_used_and_the_rest_computed(tmp_path: Path) -> None:
    class Second(Hanging):
        n_read = 0

        def open(self, path: str) -> tuple[int, int, float]:
            self.n_read += 1
            self._wait(f"open {self.n_read}")
            return super().open(path)

    files = Second()
    server = Server(tmp_path, files=files, hung_s=0.1, read_ahead=1)
    server.ask(1, HEAD, max_tokens=0, persist=True)
    server.restart()
    files.hangs, files.n_read = "open 3", 0
    assert 0 < server.ask(2, HEAD + prompt(2)).disk_tokens < len(HEAD)
    files.works.set()


def test_what_is_known_to_be_stored_is_not_waited_for(server: Server, files: Hanging) -> None:
    server.ask(2, HEAD + prompt(2))
    files.hangs = "size"
    server.bench.engine._cache.persist(HEAD, "")  # which asks whether it still is
    assert not server.disk.pending
    assert server.ask(3, HEAD + prompt(3)).cached_tokens >= len(HEAD) - SIZE
    server.bench.engine.close(0.2)


def test_a_write_that_hangs_holds_up_neither_answers_nor_the_end(
    server: Server, files: Hanging
) -> None:
    files.hangs = "create"
    for id in range(2, 6):
        server.bench.submit(id, prompt(id, 100), max_tokens=4, persist=True)
    while len(server.bench.ends) < 4:
        server.bench.step()
    assert server.store.writing
    server.bench.engine.close(0.2)
    assert server.store.writing, "what hangs is left behind"
