"""Settings: flags over environment over defaults, and where models lie."""

from __future__ import annotations

import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from llm_server.cache.budget import MAX_BYTES, SHARE
from llm_server.cache.chunkfile import PARENT_BYTES, Chunk
from llm_server.cache.keys import Kind
from llm_server.config import cache_config, make_registry, settings_from_args
from llm_server.places import user_data_dir
from llm_server.worker.config import CacheConfig
from tests.cache.scenario import add_chunk
from tests.fake_live import add_models


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


def test_a_file_is_found_however_its_path_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    add_models(tmp_path, "a.gguf", "models/a.gguf", "models/b.gguf")
    monkeypatch.chdir(tmp_path)
    here, below = Path("a.gguf").absolute(), Path("models").absolute()
    for written, path in {
        "./a.gguf": here,
        ".//a.gguf": here,
        f"{tmp_path}/./a.gguf": here,
        "a.gguf": below / "a.gguf",
        "models/b.gguf": below / "b.gguf",
    }.items():
        registry = make_registry(settings_from_args([written], "x"), None)
        registry.scan()
        assert registry.find(written).path == path


def test_paths_in_variables_are_as_a_shell_would_have_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("LLM_SERVER_MODELS_DIR", "~/models")
    assert settings_from_args([], "x").models_dir == tmp_path / "models"
    (tmp_path / "mine.toml").write_text("port = 8100")
    assert settings_from_args(["--config", "~/mine.toml"], "x").port == 8100
    monkeypatch.setenv("LLM_SERVER_MODELS_DIR", "")
    with pytest.raises(SystemExit):
        settings_from_args([], "x")
    assert capsys.readouterr().err == "x: LLM_SERVER_MODELS_DIR: this is no path\n"


def test_where_nothing_can_be_looked_at_nothing_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", f"/{'x' * 300}")
    assert settings_from_args(["x" * 300 + ".gguf"], "x").config is None
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert settings_from_args([], "x").models_dir == user_data_dir() / "models"


@pytest.mark.skipif(sys.platform == "win32", reason="about users as Unix has them")
def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    def unknown(uid: int) -> object:
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert user_data_dir().is_absolute() and settings_from_args([], "x").config is None


def test_the_users_data_folder_follows_the_custom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert user_data_dir() == Path("/data/llm-server")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert user_data_dir() == Path.home() / ".local/share/llm-server"


def test_the_cache_is_beside_the_models_and_takes_a_share_of_the_disk(tmp_path: Path) -> None:
    settings = settings_from_args(["--models-dir", str(tmp_path / "models")], "x")
    cache = cache_config(settings)
    assert cache is not None
    assert cache.folder == tmp_path / "cache"
    assert 0 < cache.size_bytes <= MAX_BYTES
    assert cache.write == "auto"


def test_a_cache_that_fills_the_disk_keeps_its_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = Chunk(bytes(32), bytes(PARENT_BYTES), Kind.RANGE, 0, 256)
    add_chunk(tmp_path / "cache", chunk, 1_000_000)
    settings = settings_from_args(["--models-dir", str(tmp_path / "models")], "x")
    usage = namedtuple("usage", "free")
    for free, budget in ((9_000_000, 1_000_000), (0, 100_000), (MAX_BYTES * SHARE, MAX_BYTES)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage(free))
        cache = cache_config(settings)
        assert cache is not None and cache.size_bytes == budget


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("500MB", 500 * 10**6), ("2GiB", 2 << 30), ("1000", 1000)]
)
def test_cache_sizes_are_written_as_people_write_them(text: str, n_bytes: int) -> None:
    settings = settings_from_args(["--cache-size", text, "--cache-dir", "/c"], "x")
    assert cache_config(settings) == CacheConfig(Path("/c"), n_bytes, "auto")


def test_a_cache_of_no_size_is_none() -> None:
    assert cache_config(settings_from_args(["--cache-size", "0"], "x")) is None


@pytest.mark.parametrize("flags", [["--cache-size", "much"], ["--cache-write", "sometimes"]])
def test_a_wrong_cache_option_is_one_line(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        settings_from_args(flags, "x")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert flags[0] in error and error.count("\n") == 1


def test_keys_are_found_under_either_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LLM_SERVER_API_KEYS", "LLM_SERVER_API_KEY"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "one,two")
            keys = settings_from_args([], "x").api_key
            assert [key.get_secret_value() for key in keys] == ["one", "two"]
            (flag,) = settings_from_args(["--api-key", "three"], "x").api_key
            assert flag.get_secret_value() == "three"
