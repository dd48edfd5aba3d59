"""Variables as settings: what stands for the file alone, and what is told of unknown ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_server.config import Settings, settings_from_args
from llm_server.config_environment import unknown


def test_tables_are_for_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_SERVER_MODELS", "/data/models")
    monkeypatch.setenv("LLM_SERVER_CLUSTER", "1")
    assert settings_from_args([], "x").models == {}


def test_unknown_names_are_told_with_the_nearest_one() -> None:
    names = ("MODELS", "MODEL_DIR", "N_CTXX", "ZZZ", "N_CTX", "API_KEYS", "API_KEY")
    variables = [f"LLM_SERVER_{name}" for name in names]
    # As Kubernetes sets them beside a service called llm-server.
    ports = ("SERVICE_HOST", "SERVICE_PORT_HTTP", "PORT_8000_TCP_ADDR")
    others = ["HOME", "llm_server_port", *(f"LLM_SERVER_{name}" for name in ports)]
    assert unknown([*variables, *others], Settings) == {
        "LLM_SERVER_MODELS": "LLM_SERVER_MODELS_DIR",
        "LLM_SERVER_MODEL_DIR": "LLM_SERVER_MODELS_DIR",
        "LLM_SERVER_N_CTXX": "LLM_SERVER_N_CTX",
        "LLM_SERVER_ZZZ": "",
    }


@pytest.mark.parametrize("address", ["tcp://10.0.0.1:8000", "udp://[fd00::1]:8000"])
def test_the_address_of_a_service_of_our_name_is_no_port(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    address: str,
) -> None:
    monkeypatch.setenv("LLM_SERVER_PORT", address)
    assert settings_from_args([], "x").port == 8000
    file = tmp_path / "llm-server.toml"
    file.write_text("port = 8100")
    assert settings_from_args(["--config", str(file)], "x").port == 8100
    file.write_text("port = 'tcp://10.0.0.1:8000'")
    with pytest.raises(SystemExit):
        settings_from_args(["--config", str(file)], "x")
    assert f"{file}: port" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["http://10.0.0.1:8000", "tcp://", "x", "70000", ""])
def test_other_ports_that_are_none_are_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("LLM_SERVER_PORT", value)
    with pytest.raises(SystemExit):
        settings_from_args([], "x")
