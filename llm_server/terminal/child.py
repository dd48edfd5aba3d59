"""A server that belongs to one terminal: started by it, on a free port, and gone when it is.

`python -m llm_server.terminal.child` is the server; it ends when its standard input does, which
happens however its parent ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from typing import Self

from llm_server import server
from llm_server.programs import PYTHON, with_source

_BANNER = re.compile(r"\bon (http://\S+)")
_LOG_LINES = 20
_ENDING_S = 1.0


class ServerEnded(Exception):
    """The server could not start or has ended; the message is the last it said."""


class OwnServer:
    """A server process for as long as the block is entered. `url` is where it listens."""

    def __init__(self, options: Sequence[str]) -> None:
        # A session of its own: Ctrl-C is for the answer, not for the server.
        self._process = subprocess.Popen(
            [*PYTHON, __name__, "--host", "127.0.0.1", "--port", "0", *options],
            env=with_source(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self.url = ""

    def __enter__(self) -> Self:
        """Wait until it listens. Raises ServerEnded when it does not."""
        try:
            assert self._process.stderr is not None
            for line in self._process.stderr:
                self._log.append(line)
                if match := _BANNER.search(line):
                    self.url = match[1]
                    self._reader.start()
                    return self
            self._process.wait()
            raise ServerEnded(self.last_words())
        except BaseException:
            self._process.kill()
            self._close()
            raise

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._reader.join()
        self._close()

    def require(self) -> None:
        """Raises ServerEnded where it has ended, which may come a moment after its connections."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_ENDING_S)
            self._reader.join(_ENDING_S)
            raise ServerEnded(f"the server has ended; its last words: {self.last_words()}")

    def last_words(self) -> str:
        """The last line of its log."""
        lines = [line.strip() for line in self._log if line.strip()]
        return lines[-1].removeprefix("llm-server: ") if lines else "the server said nothing"

    def _read(self) -> None:
        """Nobody reads the log, but a full pipe would stop the server."""
        assert self._process.stderr is not None
        self._log.extend(self._process.stderr)

    def _close(self) -> None:
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stderr):
            if pipe is not None:
                pipe.close()


def _end_with_parent() -> None:
    # Not through sys.stdin, whose lock would be in the way when the interpreter ends.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(server.main(prog="llm-server run"))
