"""A log that nobody reads holds nobody up, and says afterwards what was lost."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator

import pytest

from llm_server.logs import JsonLines, OneLine, StderrLog, settle


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("name", logging.INFO, __file__, 1, text, None, None)


def test_lines_come_out_whole_and_in_order(pipe: tuple[int, int]) -> None:
    log = StderrLog(pipe[1])
    for i in range(100):
        log.emit(record(f"line {i} \udc80"))
    assert log.drain(10)
    text = os.read(pipe[0], 1 << 16).decode()
    assert text.splitlines() == [f"line {i} \\udc80" for i in range(100)]


def test_a_stalled_reader_costs_lines_and_no_time(pipe: tuple[int, int]) -> None:
    log = StderrLog(pipe[1], max_waiting=10)
    for i in range(200):  # 2 MB into a pipe of 64 KB
        log.emit(record(f"line {i} " + "x" * 10_000))
    assert not log.drain(0)
    text = ""
    while "dropped" not in text:  # The reader comes back.
        text += os.read(pipe[0], 1 << 16).decode()
        log.emit(record("later"))
    while not log.drain(0.05):
        text += os.read(pipe[0], 1 << 16).decode()
    assert "log lines were dropped: nobody read them in time" in text


def test_the_log_is_settled_once_all_is_written(pipe: tuple[int, int]) -> None:
    log, root = StderrLog(pipe[1]), logging.getLogger()
    root.addHandler(log)
    try:
        for _ in range(10):  # more than the pipe takes
            log.emit(record("x" * 10_000))
        assert not settle(0)
        while not settle(0.05):
            os.read(pipe[0], 1 << 16)
    finally:
        root.removeHandler(log)


def test_a_closed_reader_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    log = StderrLog(writing)
    log.emit(record("into the void"))
    assert log.drain(10)
    os.close(writing)


def _record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    record = logging.makeLogRecord({"name": "x", "msg": message, "args": args, "levelname": "INFO"})
    record.__dict__.update(extra)
    return record


def test_a_message_is_one_line_whatever_is_in_it() -> None:
    hostile = "a\r\nERROR root: forged\x1b[2J\u2028\u202e"
    line = OneLine("%(levelname)s %(message)s").format(_record("%s", hostile))
    assert line == r"INFO a\r\nERROR root: forged\x1b[2J\u2028\u202e"
    parsed = json.loads(JsonLines().format(_record("%s", hostile, request={"status": 200})))
    assert parsed["message"] == hostile
    assert parsed["request"] == {"status": 200}


def test_json_lines_carry_the_traceback() -> None:
    try:
        raise RuntimeError("x")
    except RuntimeError:
        text = JsonLines().format(_record("failed", exc_info=sys.exc_info()))
    assert len(text.splitlines()) == 1
    assert "RuntimeError: x" in json.loads(text)["traceback"]
