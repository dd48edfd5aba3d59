"""Looks at disks that hang: who has to wait, for what, and who has not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llm_server.errors import DiskTimeout
from llm_server.looks import Look, ask, give_up, in_thread


class Disk:
    """It answers how often it was asked, as long as it does not hang."""

    def __init__(self) -> None:
        self.works = threading.Event()
        self.n_asked = 0

    def look(self) -> int:
        self.n_asked += 1
        n = self.n_asked
        self.works.wait()
        return n


def test_who_asks_is_told_what_is_so_from_then_on() -> None:
    async def run() -> None:
        disk = Disk()
        look = Look(disk.look, 0)
        earlier = look.begin()
        asking = [asyncio.create_task(look.again(60)) for _ in range(5)]
        await asyncio.sleep(0)  # They wait now.
        disk.works.set()
        # The one under way may have looked before they asked; one more is for all of them.
        assert await asyncio.gather(*asking) == [2] * 5
        assert await earlier == 1

    asyncio.run(run())


def test_a_disk_that_hangs_is_asked_once_and_what_was_known_goes_on() -> None:
    async def run() -> None:
        disk, heard = Disk(), asyncio.Queue[int]()
        look = Look(disk.look, 7, heard.put_nowait)
        for _ in range(5):
            assert await look.again(0.01) == 7
        assert disk.n_asked == 1
        disk.works.set()
        assert await heard.get() == look.known == 1
        assert await look.again(60) == 2

    asyncio.run(run())


def test_what_needs_an_answer_is_refused_while_the_disk_hangs(tmp_path: Path) -> None:
    async def run() -> None:
        disk, other = Disk(), Disk()
        for _ in range(5):
            with pytest.raises(DiskTimeout):
                await ask(tmp_path, disk.look, 0.01)
        assert disk.n_asked == 1
        other.works.set()
        assert await ask(tmp_path / "other", other.look) == 1
        disk.works.set()
        while True:  # As soon as the one that hung has come back, it is asked again.
            try:
                assert await ask(tmp_path, disk.look, 1e-9 + 60) > 1
            except DiskTimeout:
                continue
            break

    asyncio.run(run())


def test_nobody_waits_into_the_end_of_the_server(tmp_path: Path) -> None:
    async def run() -> None:
        disk = Disk()
        look = Look(disk.look, 7)
        asking = asyncio.create_task(look.again(60))
        others = [asyncio.create_task(ask(tmp_path, disk.look)) for _ in range(2)]
        others.append(asyncio.create_task(in_thread(disk.look)))
        await asyncio.sleep(0)
        give_up()
        assert await asking == await look.again(60) == 7
        for other in others:
            with pytest.raises(DiskTimeout):
                await other
        disk.works.set()

    asyncio.run(run())


def test_what_goes_wrong_is_told_who_asks() -> None:
    def fails() -> None:
        raise FileNotFoundError("no such thing")

    with pytest.raises(FileNotFoundError, match="no such thing"):
        asyncio.run(in_thread(fails))


def test_a_process_ends_whatever_its_threads_hang_in() -> None:
    script = (
        "import asyncio, threading; from llm_server.looks import Look;"
        "asyncio.run(Look(threading.Event().wait, None).again(0.01))"
    )
    subprocess.run([sys.executable, "-c", script], timeout=60, check=True)
