"""The long runs, cut short: the same servers, requests and disasters for a few seconds."""

from __future__ import annotations

from pathlib import Path

from tests.endurance.chaos import chaos
from tests.endurance.load import load
from tests.endurance.soak import soak


def test_mixed_requests_leave_nothing_behind(tmp_path: Path) -> None:
    report = soak(tmp_path, requests=120, batch=30)
    assert report.faults == []
    assert set(report.outcomes) == {"answered", "aborted", "refused", "unloaded"}
    assert report.leaks == []
    first, last = report.samples[0], report.samples[-1]
    assert last.memory[0] - first.memory[0] < 20 << 20


def test_disasters_cost_errors_and_no_answers(tmp_path: Path) -> None:
    report = chaos(tmp_path, seconds=3, pause_s=0.3)
    assert report.wrong == []
    assert report.outcomes["answered"] > 0
    assert sum(report.disasters.values()) > 5


def test_too_much_is_refused_and_what_is_taken_is_answered(tmp_path: Path) -> None:
    report = load(tmp_path, idle=30, slow=5, switches=3)
    assert report.faults == []
    assert report.outcomes["queue_full"] > 0
    assert set(report.outcomes) == {"answered", "queue_full"}
