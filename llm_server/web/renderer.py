"""The process that renders Markdown, as the API process sees it: started when needed, and killable.

Parsing and highlighting are regular expressions over hostile text, and a slow one would hold the
interpreter of whoever runs it. Here it holds a process that is ended at a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import Sequence
from html import escape

import msgspec

from llm_server.programs import PYTHON
from llm_server.worker.process import worker_environment

DEADLINE_S = 5.0
"""For one request; beyond it the text is shown as it is. Starting the process counts too."""
IDLE_S = 120.0
"""Unused for so long the process ends: a page that is closed should cost nothing."""

_LENGTH = struct.Struct("<I")
_ARGV = (*PYTHON, "llm_server.web")


class Renderer:
    """Renders texts one request after the other. Belongs to one event loop."""

    def __init__(self, argv: Sequence[str] = _ARGV, deadline_s: float = DEADLINE_S) -> None:
        self._argv = argv
        self._deadline_s = deadline_s
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._idle: asyncio.TimerHandle | None = None

    async def render(self, texts: list[str]) -> list[str]:
        """HTML that is safe to insert, a piece for each text; plain text where that takes long."""
        async with self._turn:
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

    async def close(self) -> None:
        """End the process."""
        if self._idle is not None:
            self._idle.cancel()
        await self._end()

    async def _ask(self, texts: list[str]) -> list[str]:
        process = self._process
        if process is None or process.returncode is not None:
            process = self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=worker_environment(dict(os.environ)),
            )
        assert process.stdin is not None and process.stdout is not None
        body = msgspec.json.encode(texts)
        process.stdin.write(_LENGTH.pack(len(body)) + body)
        await process.stdin.drain()
        (length,) = _LENGTH.unpack(await process.stdout.readexactly(_LENGTH.size))
        return msgspec.json.decode(await process.stdout.readexactly(length), type=list[str])

    async def _end(self) -> None:
        self._kill()
        if self._process is not None:
            process, self._process = self._process, None
            await process.wait()

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()


def plain(text: str) -> str:
    """The text itself, as HTML."""
    return f"<pre>{escape(text)}</pre>"
