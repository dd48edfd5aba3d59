"""`llm-server.toml`: where it is found, what it means, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_server.config import (
    Settings,
    make_registry,
    settings_from_args,
    settings_from_environment,
)
from llm_server.places import user_config_dir
from tests.fake_live import add_models


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of the person who runs the tests is in the way."""
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "llm-server.toml"
    path.write_text(text)
    return path


def from_file(tmp_path: Path, text: str) -> Settings:
    return settings_from_args(["--config", str(write(tmp_path, text))], "x")


def test_flags_win_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "port = 1\nn_ctx = 1\nparallel = 1\n")
    monkeypatch.setenv("LLM_SERVER_N_CTX", "2")
    monkeypatch.setenv("LLM_SERVER_PORT", "2")
    settings = settings_from_args(["--config", str(path), "--port", "3"], "x")
    assert (settings.port, settings.n_ctx, settings.parallel) == (3, 2, 1)


def test_the_file_is_found_here_then_in_the_users_folder_and_can_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings_from_args([], "x").config is None
    assert user_config_dir() == tmp_path / "config/llm-server"
    of_user = write(user_config_dir(), "port = 1\n")
    assert settings_from_args([], "x").config == of_user
    here = write(tmp_path / "here", "port = 2\n")
    assert settings_from_environment().port == 2
    assert settings_from_environment().config == here
    monkeypatch.setenv("LLM_SERVER_CONFIG", str(of_user))
    assert settings_from_args([], "x").port == 1
    assert settings_from_args(["--config", str(here)], "x").port == 2


def test_values_are_written_as_people_write_them(tmp_path: Path) -> None:
    settings = from_file(
        tmp_path,
        'keep_alive = 300\nmemory = 8000000000\ncache_size = "500MB"\nno_sandbox = true\n'
        'allowed_hosts = ["a", "b"]\nmodels_dir = "gguf"\ncache_dir = "/c"\n',
    )
    assert (settings.keep_alive, settings.memory) == ("300", "8000000000")
    assert settings.cache_size == 500 * 10**6 and settings.no_sandbox
    assert settings.allowed_hosts == ("a", "b")
    # A path begins where the file is, and not where the server was started.
    assert settings.models_dir == tmp_path / "gguf"
    assert settings.cache_dir == Path("/c")


def test_tables_of_models(tmp_path: Path) -> None:
    add_models(tmp_path / "models", "big.gguf", "sub/small.gguf")
    settings = from_file(
        tmp_path,
        'models_dir = "models"\n[models.big]\nalias = "gpt-4o"\n[models.big.load]\nn_ctx = 512\n'
        'kv_type = "q8_0"\n[models."sub/small.gguf"]\naliases = ["a", "b"]\n'
        '[models."sub/small.gguf".sampling]\ntemperature = 0\nmax_completion_tokens = 9\n'
        'stop = "x"\n',
    )
    registry = make_registry(settings, None)
    registry.scan()
    assert registry.find("gpt-4o").name == "big.gguf"
    assert registry.find("b").name == "sub/small.gguf"
    big = settings.models["big"].defaults()
    assert big.load == {"n_ctx": 512, "type_k": "q8_0", "type_v": "q8_0"}
    small = settings.models["sub/small.gguf"].defaults()
    assert small.sampling == {"temperature": 0, "max_tokens": 9, "stop": ["x"]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("n_ctxx = 4", "unknown key n_ctxx; did you mean n_ctx"),
        ("n-ctx = 4", "unknown key n-ctx; did you mean n_ctx"),
        ("zzzzzzzz = 4", "unknown key zzzzzzzz\n"),
        ("[models.a]\nloda = {}", "unknown key models.a.loda; did you mean load?"),
        ("[models.a.load]\nn_thread = 4", "models.a.load.n_thread; did you mean n_threads"),
        ("[models.a.sampling]\ntemp = 1", "models.a.sampling.temp; did you mean temperature"),
        ("[models.a.sampling]\ntemperature = 9", "models.a.sampling.temperature: Input should"),
        ("[models.a.sampling]\nseed = 1", "models.a.sampling: a seed for all requests"),
        ('[models.a.load]\nn_ctx = "4096"', "models.a.load.n_ctx: Input should be a valid integer"),
        ("[models.a-0.5b.load]\nn_ctx = 4", 'names with dots need quotes: [models."..."]\n'),
        ("[models.a]\nn_ctx = 4", "models.a.n_ctx; did you mean models.a.load.n_ctx?"),
        ("[models.a]\ntop_k = 4", "models.a.top_k; did you mean models.a.sampling.top_k?"),
        ("models = 3", "models: Input should be a valid dictionary"),
        ('[models.a]\nalias = "x"\n[models.b]\nalias = "x"', "the alias x is given to a and to b"),
        ("port = 70000", "port: Input should be less than"),
        ('keep_alive = "soon"', "keep_alive: write seconds"),
        ('api_key = "secret-0815"', "api_key: keys do not belong into this file"),
        ('LLM_SERVER_API_KEYS = ["secret-0815"]', "keys do not belong into this file"),
        ('config = "x"', "config: this is the configuration file already"),
        ("port = =", "is no TOML: Invalid value (at line 1"),
    ],
)
def test_a_wrong_file_is_one_line(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        from_file(tmp_path, text)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"x: {tmp_path / 'llm-server.toml'}")
    assert words in error and error.count("\n") == 1
    assert "0815" not in error


def test_a_file_that_cannot_be_read_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "binary").write_bytes(b'host = "\xff"')
    for name, words in (("missing", "there is no file"), ("binary", "is not UTF-8 text")):
        with pytest.raises(SystemExit):
            settings_from_args(["--config", str(tmp_path / name)], "x")
        error = capsys.readouterr().err
        assert words in error and str(tmp_path / name) in error and error.count("\n") == 1


def test_what_a_cluster_is_told(tmp_path: Path) -> None:
    settings = from_file(
        tmp_path,
        "[cluster]\nmax_replicas = 4\ngpu_memory = '24GB'\n"
        "[models.a.cluster]\nmin_replicas = 2\nmemory = '3GB'\n",
    )
    shared, own = settings.cluster, settings.models["a"].cluster
    assert (shared.max_replicas, shared.gpu_memory, shared.ingress_replicas) == (4, 24 * 10**9, 1)
    both = shared.of(own)
    assert (both.min_replicas, both.max_replicas, both.memory) == (2, 4, 3 * 10**9)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[cluster]\nmax_replica = 1\n", "unknown key cluster.max_replica; did you mean max_repl"),
        ("[models.a.cluster]\nnum_cpu = 1\n", "unknown key models.a.cluster.num_cpu; did you me"),
        ("[cluster]\nmin_replicas = 2\n", "min_replicas is 2, more than max_replicas 1"),
        ("[models.a.cluster]\nmax_replicas = 0\n", "models.a.cluster.max_replicas"),
        ("[models.a.cluster]\nmin_replicas = 2\n", "with [models.a.cluster], min_replicas is 2"),
    ],
)
def test_what_is_wrong_with_the_tables_of_a_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    with pytest.raises(SystemExit):
        from_file(tmp_path, text)
    assert said in capsys.readouterr().err
