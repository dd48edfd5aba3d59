"""The process that renders Markdown, as the API process sees it: started when needed, and killable.

Parsing and highlighting are regular expressions over hostile text, and a slow one would hold the
interpreter of whoever runs it. Here it holds a process that is ended at a deadline.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from html import escape

import msgspec

from llm_server.programs import PYTHON
from llm_server.worker.process import Process, spawn

DEADLINE_S = 5.0
"""For one request; beyond it the text is shown as it is. Starting the process counts too."""
WAIT_S = 2.0
"""For a turn; beyond it the text is shown as it is, so that slow texts of one hold up no others."""
IDLE_S = 120.0
"""Unused for so long the process ends: a page that is closed should cost nothing."""

_LENGTH = struct.Struct("<I")
_ARGV = (*PYTHON, "llm_server.web")


class Renderer:
    """Renders texts one request after the other. Belongs to one event loop."""

    def __init__(
        self,
        argv: Sequence[str] = _ARGV,
        deadline_s: float = DEADLINE_S,
        wait_s: float = WAIT_S,
    ) -> None:
        self._argv = argv
        self._deadline_s = deadline_s
        self._wait_s = wait_s
        self._process: Process | None = None
        self._output: asyncio.StreamReader
        self._gone = asyncio.Event()
        self._turn = asyncio.Lock()
        self._idle: asyncio.TimerHandle | None = None

    async def render(self, texts: list[str]) -> list[str]:
        """HTML that is safe to insert, a piece for each text; plain text where that takes long."""
        try:
            async with asyncio.timeout(self._wait_s):
                await self._turn.acquire()
        except TimeoutError:
            return [plain(text) for text in texts]
        try:
            return await self._in_turn(texts)
        finally:
            self._turn.release()

    async def close(self) -> None:
        """End the process."""
        if self._idle is not None:
            self._idle.cancel()
        await self._end()

    async def _in_turn(self, texts: list[str]) -> list[str]:
        if self._idle is not None:
            self._idle.cancel()
        try:
            return await asyncio.wait_for(self._ask(texts), self._deadline_s)
        except (OSError, EOFError, TimeoutError):
            await self._end()
            return [plain(text) for text in texts]
        except BaseException:
            await self._end()  # Its answer would be taken for that to the next question.
            raise
        finally:
            self._idle = asyncio.get_running_loop().call_later(IDLE_S, self._kill)

    async def _ask(self, texts: list[str]) -> list[str]:
        if self._process is None:
            self._output = asyncio.StreamReader()
            await spawn(self, self._argv)
        assert self._process is not None
        body = msgspec.json.encode(texts)
        self._process.write(_LENGTH.pack(len(body)) + body, droppable=False)
        (length,) = _LENGTH.unpack(await self._output.readexactly(_LENGTH.size))
        return msgspec.json.decode(await self._output.readexactly(length), type=list[str])

    async def _end(self) -> None:
        self._kill()
        if self._process is not None:
            await self._gone.wait()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    # ---- what happens to the process -----------------------------------------------------------

    def connected(self, process: Process) -> None:
        """It runs."""
        self._process = process
        self._gone.clear()

    def received(self, data: bytes) -> None:
        """A part of an answer."""
        self._output.feed_data(data)

    def output_ended(self) -> None:
        """No answer can come any more."""
        self._output.feed_eof()

    def exited(self, status: int) -> None:
        """It has ended; the next request starts another."""
        assert self._process is not None
        self._process.close()
        self._process = None
        self._gone.set()


def plain(text: str) -> str:
    """The text itself, as HTML."""
    return f"<pre>{escape(text)}</pre>"
