"""The files people deploy with: checked by their own tools where those are installed."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from llm_server.config import Settings
from llm_server.models.residents import STOP_DEADLINE_S

DEPLOY = Path(__file__).parent.parent / "deploy"
UNIT = DEPLOY / "llm-server.service"
DOCKERFILE = DEPLOY / "Dockerfile"
MAX_EXPOSURE = 2.0
"""systemd's own score, 0 (nothing exposed) to 10; under 2 it says OK."""


class _Repeated(dict):  # type: ignore[type-arg]
    """systemd's keys may stand several times: their values add up."""

    def __setitem__(self, key: str, value: object) -> None:
        if isinstance(value, list) and isinstance(self.get(key), list):
            self[key].extend(value)
        else:
            super().__setitem__(key, value)


@pytest.fixture(scope="module")
def service() -> dict[str, list[str]]:
    parser = configparser.RawConfigParser(strict=False, dict_type=_Repeated, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return {key: value.split() for key, value in parser["Service"].items()}


def test_the_unit_gives_nothing_away(service: dict[str, list[str]]) -> None:
    for key, value in {
        "Type": "notify",
        "Restart": "on-failure",
        "OOMPolicy": "continue",
        "KillMode": "mixed",
        "DynamicUser": "yes",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "PrivateTmp": "yes",
        "RestrictNamespaces": "yes",
        "LockPersonality": "yes",
        "IPAddressDeny": "any",
        "CacheDirectoryMode": "0700",
        "LimitCORE": "0",
    }.items():
        assert service[key] == [value], key
    assert service["CapabilityBoundingSet"] == []
    assert int(service["OOMScoreAdjust"][0]) < 0


def test_the_unit_lets_workers_confine_themselves(service: dict[str, list[str]]) -> None:
    calls = set(service["SystemCallFilter"])
    assert {"seccomp", "landlock_create_ruleset", "landlock_restrict_self"} <= calls


def test_stopping_takes_no_longer_than_the_unit_allows(service: dict[str, list[str]]) -> None:
    needed = Settings.model_fields["grace_seconds"].default + 5 + STOP_DEADLINE_S
    assert int(service["TimeoutStopSec"][0]) > needed


def test_the_units_variables_are_settings(service: dict[str, list[str]]) -> None:
    for assignment in service["Environment"]:
        name = assignment.partition("=")[0].removeprefix("LLM_SERVER_").lower()
        assert name in Settings.model_fields


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_the_unit_and_finds_it_safe() -> None:
    seen = subprocess.run(
        ["systemd-analyze", "verify", str(UNIT)], capture_output=True, text=True
    ).stderr
    # The server is not installed on this machine.
    assert [line for line in seen.splitlines() if "is not executable" not in line] == []
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNIT)]
    report = subprocess.run(command, capture_output=True, text=True)
    if "Overall exposure" not in report.stdout:
        pytest.skip("this systemd-analyze cannot judge files")
    score = re.search(r"exposure level for \S+: ([\d.]+)", report.stdout)
    assert score is not None and float(score[1]) <= MAX_EXPOSURE


# ---- the image ---------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line]


def test_the_image_is_small_and_its_user_is_nobody() -> None:
    steps = instructions()
    stages = [i for i, (word, _) in enumerate(steps) if word == "FROM"]
    assert len(stages) == 2, "what builds is left behind"
    last = steps[stages[-1] :]
    users = [text for word, text in last if word == "USER"]
    assert users and int(users[-1]) > 0
    assert not any("build-essential" in text for _, text in last)
    assert any(word == "HEALTHCHECK" for word, _ in last)
    assert any("--require-hashes" in text for _, text in steps)
    assert not any("ADD" == word or "curl" in text for word, text in steps)


def test_the_image_copies_files_that_are_there() -> None:
    allowed = (DEPLOY.parent / ".dockerignore").read_text().split()
    for word, text in instructions():
        if word == "COPY" and "--from" not in text:
            *sources, _ = shlex.split(text)
            for source in sources:
                assert (DEPLOY.parent / source).exists()
                assert f"!{source.split('/')[0]}" in allowed


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="needs hadolint")
def test_hadolint_finds_nothing() -> None:
    result = subprocess.run(["hadolint", str(DOCKERFILE)], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")
