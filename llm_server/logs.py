"""The log on stderr, written by a thread: a reader that stalls, or a full disk, holds nobody up.

Both kinds of process use it. Lines wait in a bounded queue; those beyond it are dropped and
counted, which the log says once it moves again.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import queue
import threading
import time

MAX_WAITING = 10_000
"""Lines that may wait for a reader; some 2 MB."""

_LEAVE_S = 1.0  # how long the end of the process waits for the last lines
_MAX_LINE = 64 * 1024  # of one record, bytes: a traceback fits


class StderrLog(logging.Handler):
    """Writes to a file descriptor, stderr by default, and never waits for it."""

    def __init__(self, descriptor: int = 2, max_waiting: int = MAX_WAITING) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._waiting: queue.Queue[bytes] = queue.Queue(max_waiting)
        self._dropped = 0
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record; it is written soon, or dropped."""
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        self.say(line)

    def say(self, line: str) -> None:
        """Take a line as it is; it is written soon, or dropped."""
        try:
            self._waiting.put_nowait(line.encode("utf-8", "backslashreplace")[:_MAX_LINE] + b"\n")
        except queue.Full:
            self._dropped += 1

    def drain(self, deadline_s: float = _LEAVE_S) -> bool:
        """Wait until all lines are written, at most `deadline_s` seconds; whether they are."""
        deadline = time.monotonic() + deadline_s
        with self._waiting.all_tasks_done:
            while self._waiting.unfinished_tasks:
                left = deadline - time.monotonic()
                if left <= 0 or not self._waiting.all_tasks_done.wait(left):
                    return False
        return True

    def _run(self) -> None:
        while True:
            line = self._waiting.get()
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                line = b"%d log lines were dropped: nobody read them in time\n%s" % (dropped, line)
            self._write(line)
            self._waiting.task_done()

    def _write(self, line: bytes) -> None:
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError:
            self._dropped += 1  # No reader, no space: there is nowhere left to say so.


def say(text: str) -> None:
    """Have this process's log write `text` as it is, before anything else happens if it can."""
    for log in _installed():
        log.say(text)
    settle()


class OneLine(logging.Formatter):
    """Text in which a message stays one line, whatever came from outside is in it.

    Tracebacks, which are ours, follow on lines of their own.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, control characters written out."""
        line = super().formatMessage(record)
        return line if line.isprintable() else "".join(map(_visible, line))


class JsonLines(logging.Formatter):
    """One JSON object a record; a request's line carries its parts in `request`."""

    def format(self, record: logging.LogRecord) -> str:
        """The object, in one line."""
        line: dict[str, object] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request := getattr(record, "request", None)) is not None:
            line["request"] = request
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _visible(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


def settle(deadline_s: float = _LEAVE_S) -> bool:
    """Wait until this process's log is written, at most `deadline_s` seconds; whether it is.

    Its thread then does nothing until there is another line.
    """
    return all(log.drain(deadline_s) for log in _installed())


def _installed() -> list[StderrLog]:
    return [log for log in logging.getLogger().handlers if isinstance(log, StderrLog)]


def install(level: str, format: str, json_lines: bool = False) -> None:
    """Make stderr the one place that this process logs to."""
    handler = StderrLog()
    handler.setFormatter(JsonLines() if json_lines else OneLine(format))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    atexit.register(handler.drain)
