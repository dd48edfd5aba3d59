"""What is deployed, as far as it is settled before Ray is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_server.config import Settings, make_registry
from llm_server.server import CannotStart
from tests.cluster.live import app, build
from tests.fake_live import add_models

pytestmark = pytest.mark.filterwarnings("default")


def deployed_with(settings: Settings) -> Settings:
    """The settings as the ingresses get them."""
    application: Any = build(settings)
    told = application._bound_deployment.init_args[0]
    assert isinstance(told, Settings)
    return told


def test_relative_paths_mean_the_same_in_processes_with_other_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_models(tmp_path, "models/a.gguf", "elsewhere/b.gguf")
    monkeypatch.chdir(tmp_path)
    told = deployed_with(
        Settings(
            models_dir=Path("models"),
            cache_dir=Path("cache"),
            api_key_file=Path("keys"),
            model_name="elsewhere/b.gguf",
        )
    )
    monkeypatch.chdir("/")
    assert told.models_dir == tmp_path / "models"
    assert (told.cache_dir, told.api_key_file) == (tmp_path / "cache", tmp_path / "keys")
    registry = make_registry(told, None)
    registry.scan()
    assert registry.find(told.model_name or "").path == tmp_path / "elsewhere/b.gguf"
    assert len(registry.models()) == 2


def test_a_name_in_the_folder_stays_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_models(tmp_path, "a.gguf")
    monkeypatch.chdir(tmp_path)
    told = deployed_with(Settings(models_dir=Path(), model_name="a.gguf"))
    assert (told.models_dir, told.model_name) == (tmp_path, "a.gguf")
    assert (told.cache_dir, told.api_key_file) == (None, None)


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"models_dir": "nowhere"}, "--models-dir: there is no folder nowhere"),
        ({"model_name": "missing"}, "--model-name"),
        ({"api_key_file": "no-keys"}, "--api-key"),
    ],
)
def test_what_cannot_be_served_is_told_to_who_deploys(
    told: dict[str, str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CannotStart, match=reason):
        app(told)


def test_settings_without_effect_are_told_to_who_deploys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_SERVER_PORT", "tcp://10.0.0.1:8000")
    (tmp_path / "own.toml").write_text("[models.missing.load]\nn_ctx = 512\n")
    app({"config": "own.toml"})
    assert "LLM_SERVER_PORT is tcp://10.0.0.1:8000" in caplog.text
    assert "[models.missing]" in caplog.text
