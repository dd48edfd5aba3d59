"""The real server in this process, while a disk that it looks at hangs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from llm_server.models.loader import Loader
from llm_server.models.pool import Pool
from llm_server.worker.client import Worker
from llm_server.worker.config import CacheConfig
from llm_server.worker.messages import Load
from tests.fake_live import Live, add_models, chat_body, events, live_server, until
from tests.models.test_pool import FAKE_START, with_pool


class Disk:
    """Whatever looks below `folder` hangs until it works again."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.folder: Path | None = None
        self.works = threading.Event()
        self.threads: set[int] = set()
        """Those that hang, or did."""
        for name in ("stat", "scandir", "open", "access"):
            patch.setattr(os, name, self._slow(getattr(os, name)))

    def hangs_below(self, folder: Path) -> None:
        self.folder = folder

    def _slow(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wait(path: Any, *args: Any, **kwargs: Any) -> Any:
            if self.folder is not None and not isinstance(path, int):
                if Path(os.fsdecode(getattr(path, "path", path))).is_relative_to(self.folder):
                    self.threads.add(threading.get_ident())
                    self.works.wait()
            return call(path, *args, **kwargs)

        return wait


@pytest.fixture
def disk() -> Iterator[Disk]:
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        yield disk
        disk.works.set()


@pytest.fixture
def live(tmp_path: Path, disk: Disk) -> Iterator[Live]:
    models = tmp_path / "models"
    add_models(models, "a.gguf", "b.gguf", "nas/c.gguf", "nas/d.gguf")
    with live_server(models, cache_dir=tmp_path / "cache") as live:
        assert live.chat("hello", model="a.gguf").status_code == 200
        yield live


def answers(live: Live, model: str | None) -> bool:
    named = {"model": model} if model else {}
    return live.chat("hello", **named).status_code == 200


@pytest.mark.parametrize("place", ["models", "cache"])
def test_what_is_loaded_goes_on(live: Live, disk: Disk, tmp_path: Path, place: str) -> None:
    asked = chat_body(f"gate:{tmp_path / 'on'}", stream=True, model="a.gguf")
    with live.client.stream("POST", "/chat/completions", json=asked) as response:
        lines = response.iter_lines()
        while "one" not in next(lines):
            pass
        disk.hangs_below(tmp_path / place)
        # By its whole name, by a short one, for which files may have come, and by none.
        assert all(answers(live, name) for name in ("a.gguf", "a", None))
        assert live.client.get("/health").status_code == 200
        assert live.client.get("/metrics").status_code == 200
        n_hung = len(disk.threads)
        assert all(answers(live, name) for name in ("a.gguf", "a", None) * 5)
        assert len(disk.threads) == n_hung <= 2, "one look at a time"
        (tmp_path / "on").touch()
        assert events("\n".join(lines))[-1] == "[DONE]"
    # The server ends with the test, though the disk still hangs.


def test_another_folders_models_are_loaded(live: Live, disk: Disk) -> None:
    disk.hangs_below(live.models / "nas")
    with ThreadPoolExecutor(1) as threads:
        hanging = threads.submit(answers, live, "nas/c")
        until(lambda: bool(disk.threads))
        assert answers(live, "b.gguf")
        assert not hanging.done()
        disk.works.set()
        assert hanging.result()


def test_a_request_that_waits_for_a_disk_holds_no_end_up(tmp_path: Path, disk: Disk) -> None:
    add_models(tmp_path, "a.gguf", "nas/c.gguf")
    with ThreadPoolExecutor(1) as threads:
        with live_server(tmp_path) as live:
            disk.hangs_below(tmp_path / "nas")
            url = str(live.client.base_url.join("/chat/completions"))
            body = chat_body("hello", model="nas/c")
            hanging = threads.submit(httpx.post, url, json=body, timeout=60)
            until(lambda: bool(disk.threads))
        refused = hanging.result()
        assert refused.status_code == 503, refused.text


def test_a_model_is_loaded_without_a_cache_folder_that_hangs(tmp_path: Path, disk: Disk) -> None:
    add_models(tmp_path / "models", "a.gguf")
    disk.hangs_below(tmp_path / "cache")
    loads: list[Load] = []

    async def start(load: Load, **kwargs: Any) -> Worker:
        loads.append(load)
        return await FAKE_START(load, **kwargs)

    async def test(pool: Pool) -> None:
        while not loads or loads[-1].cache is None:
            (await pool.acquire("a")).release()
            await pool.unload("a")
            if len(loads) == 2:
                disk.works.set()

    cache = CacheConfig(tmp_path / "cache", 1 << 20)
    loader = Loader(cache, cache_patience_s=0.1, start_worker=start)
    with_pool(tmp_path / "models", test, loader=loader)
    assert len(loads) > 2


def test_what_came_and_went_meanwhile_is_known_afterwards(live: Live, disk: Disk) -> None:
    (first,) = live.notes("loads.log")
    disk.hangs_below(live.models)
    assert answers(live, "a.gguf")
    with (live.models / "a.gguf").open("ab") as file:
        file.write(b"more")
    assert answers(live, "a.gguf")
    disk.works.set()
    assert answers(live, "a.gguf")
    loads = live.notes("loads.log")
    assert loads[0] == first and len(loads) == 2, "once more, and not before"
