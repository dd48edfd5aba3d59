"""The process that renders: killable, started anew, and never the reason for an error."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from llm_server.web.renderer import Renderer


def test_texts_are_answered_in_order_by_one_process() -> None:
    async def ask() -> tuple[list[str], list[str]]:
        renderer = Renderer(deadline_s=60, wait_s=60)
        both = await asyncio.gather(renderer.render(["*a*", "b"]), renderer.render(["`c`"]))
        await renderer.close()
        return both

    first, second = asyncio.run(ask())
    assert first == ["<p><em>a</em></p>\n", "<p>b</p>\n"]
    assert second == ["<p><code>c</code></p>\n"]


def test_one_that_hangs_is_ended_and_the_text_shown_as_it_is() -> None:
    async def ask() -> list[str]:
        renderer = Renderer((sys.executable, "-c", "import time; time.sleep(60)"), deadline_s=0.05)
        answer = await renderer.render(["<b>"])
        await renderer.close()
        return answer

    assert asyncio.run(ask()) == ["<pre>&lt;b&gt;</pre>"]


def test_a_text_whose_turn_does_not_come_is_shown_as_it_is() -> None:
    async def ask() -> list[str]:
        hangs = (sys.executable, "-c", "import time; time.sleep(60)")
        renderer = Renderer(hangs, deadline_s=60, wait_s=0.05)
        first = asyncio.create_task(renderer.render(["a"]))
        second = asyncio.create_task(renderer.render(["<b>"]))
        answer = await second
        assert first.cancel()
        await asyncio.wait([first])
        await renderer.close()
        return answer

    assert asyncio.run(ask()) == ["<pre>&lt;b&gt;</pre>"]


def test_one_that_dies_is_replaced() -> None:
    async def ask() -> list[list[str]]:
        renderer = Renderer(deadline_s=60)
        answers = [await renderer.render(["a"])]
        assert renderer._process is not None
        renderer._process.kill()
        await renderer._gone.wait()
        answers.append(await renderer.render(["b"]))
        await renderer.close()
        return answers

    assert asyncio.run(ask()) == [["<p>a</p>\n"], ["<p>b</p>\n"]]


def test_one_that_cannot_start_costs_the_formatting_alone() -> None:
    async def ask() -> list[str]:
        return await Renderer(("/nonexistent/program",)).render(["a & b"])

    assert asyncio.run(ask()) == ["<pre>a &amp; b</pre>"]


def test_files_in_the_working_folder_are_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nh3.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)

    async def ask() -> list[str]:
        renderer = Renderer(deadline_s=60)
        answer = await renderer.render(["*a*"])
        await renderer.close()
        return answer

    assert asyncio.run(ask()) == ["<p><em>a</em></p>\n"]
    assert not (tmp_path / "ran").exists()
