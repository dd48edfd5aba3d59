"""Settings: flags over environment over defaults, and where models lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_server.config import settings_from_args, user_data_dir


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_SERVER_PORT", "1234")
    monkeypatch.setenv("LLM_SERVER_N_CTX", "99")
    settings = settings_from_args(["--port", "5678"], "x")
    assert (settings.port, settings.n_ctx, settings.host) == (5678, 99, "127.0.0.1")


def test_both_spellings() -> None:
    for flag in ("--n-gpu-layers", "--n_gpu_layers"):
        assert settings_from_args([flag, "7"], "x").n_gpu_layers == 7
        assert settings_from_args([f"{flag}=-1"], "x").n_gpu_layers == -1


def test_models_lie_in_the_working_directory_or_in_the_users_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings_from_args([], "x").models_dir == user_data_dir() / "models"
    (tmp_path / "models").mkdir()
    assert settings_from_args([], "x").models_dir == tmp_path / "models"
    other = str(tmp_path / "other")
    assert settings_from_args(["--models_dir", other], "x").models_dir == tmp_path / "other"


def test_the_users_data_folder_follows_the_custom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert user_data_dir() == Path("/data/llm-server")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert user_data_dir() == Path.home() / ".local/share/llm-server"
