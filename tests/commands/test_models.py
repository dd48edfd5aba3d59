"""`llm-server pull`, `list`, `show` and `rm`, as they are typed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf import PoolingType
from typer.testing import CliRunner, Result

from llm_server import __version__
from llm_server.cli import app
from llm_server.commands.models import _progress_bar
from tests import tiny_encoders, tiny_models
from tests.fake_live import until
from tests.file_server import Fault, FileServer, file_server
from tests.gguf_bytes import TINY, gguf


def cli(folder: Path, *args: str, answer: str = "") -> Result:
    return CliRunner().invoke(app, [*args, "--models-dir", str(folder)], input=answer)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as served:
        yield served


@pytest.fixture
def folder(tmp_path: Path, attention_gguf: Path) -> Path:
    """A model, a model of two parts (of which nothing fits together), and a broken one."""
    (tmp_path / "whole.gguf").write_bytes(attention_gguf.read_bytes())
    for i in (1, 2):
        (tmp_path / f"split-0000{i}-of-00002.gguf").write_bytes(b"GGUF" + bytes(96))
    return tmp_path


def test_pull_from_the_hub_it_is_pointed_at(
    server: FileServer, tmp_path: Path, attention_gguf: Path
) -> None:
    data = attention_gguf.read_bytes()
    server.add_repo("o/r", {"m-Q4_K_M.gguf": data, "m-Q8_0.gguf": data})
    command = [sys.executable, "-c", "from llm_server.cli import main; main()", "pull"]
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_TOKEN": "hf_secret"}
    done = subprocess.run(
        [*command, "hf:o/r", "--models-dir", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1:] == [
        "(also there: Q8_0)",
        f"{tmp_path / 'm-Q4_K_M.gguf'} (SHA-256 as announced)",
        "Try it: llm-server run m-Q4_K_M",
    ]
    assert (tmp_path / "m-Q4_K_M.gguf").read_bytes() == data
    assert set(server.tokens) == {"Bearer hf_secret"}


def test_pull_an_address(server: FileServer, tmp_path: Path, attention_gguf: Path) -> None:
    server.files["/m.gguf"] = attention_gguf.read_bytes()
    result = cli(tmp_path, "pull", f"{server.url}/m.gguf")
    assert result.exit_code == 0, result.output
    assert "no hash was announced" in result.output
    assert "m.gguf" in cli(tmp_path, "list").output
    again = cli(tmp_path, "pull", f"{server.url}/m.gguf")
    assert f"{tmp_path / 'm.gguf'} (here already, no hash was announced)" in again.output
    (tmp_path / "m.gguf").write_bytes(b"GGUF of another")
    other = cli(tmp_path, "pull", f"{server.url}/m.gguf")
    assert other.exit_code == 1 and "exists and is another file" in other.stderr
    server.files["/style.gguf"] = tiny_models.build_lora(tmp_path / "x.gguf").read_bytes()
    result = cli(tmp_path, "pull", f"{server.url}/style.gguf")
    assert result.output.endswith("What it is for: llm-server show style\n"), result.output


@pytest.mark.parametrize("source", ["qwen", "{url}/missing.gguf", "{url}/page.gguf"])
def test_what_cannot_be_pulled_is_one_line_and_status_1(
    server: FileServer, tmp_path: Path, source: str
) -> None:
    server.files["/page.gguf"] = b"<html>"
    result = cli(tmp_path, "pull", source.format(url=server.url))
    assert result.exit_code == 1
    assert result.stderr.startswith("llm-server: ") and result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_pull_proposes_can_be_typed(
    server: FileServer, tmp_path: Path, attention_gguf: Path
) -> None:
    server.files["/-a%20b.gguf"] = attention_gguf.read_bytes()
    result = cli(tmp_path, "pull", f"{server.url}/-a%20b.gguf")
    assert "Try it: llm-server run -- '-a b'" in result.output


@pytest.mark.skipif(sys.platform == "win32", reason="about files as Unix has them")
def test_a_full_disk_for_the_output_is_not_that_of_the_models(
    server: FileServer, tmp_path: Path, attention_gguf: Path
) -> None:
    server.files["/m.gguf"] = attention_gguf.read_bytes()
    command = [sys.executable, "-u", "-c", "from llm_server.cli import main; main()", "pull"]
    with Path("/dev/full").open("w") as full:
        said = subprocess.run(
            [*command, f"{server.url}/m.gguf", "--models-dir", str(tmp_path)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (said.returncode, said.stderr) == (1, "llm-server: No space left on device\n")


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent otherwise there")
def test_ctrl_c_keeps_the_part(server: FileServer, tmp_path: Path, attention_gguf: Path) -> None:
    data = attention_gguf.read_bytes()
    server.add_repo("o/r", {"m.gguf": data})
    server.faults = [Fault(drop_after=50_000), Fault(status=503, headers={"Retry-After": "60"})]
    command = [sys.executable, "-c", "from llm_server.cli import main; main()", "pull", "hf:o/r"]
    pulling = subprocess.Popen(
        [*command, "--models-dir", str(tmp_path)],
        env={**os.environ, "HF_ENDPOINT": server.url},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: len(server.requests) == 2)
    pulling.send_signal(signal.SIGINT)
    _, said = pulling.communicate()
    assert pulling.returncode == 130
    assert said == "llm-server: stopped; the same command continues where this one ended\n"
    (part,) = tmp_path.iterdir()
    assert part.read_bytes() == data[:50_000]
    assert "m.gguf is not finished: 50 kB so far" in cli(tmp_path, "list").output
    assert cli(tmp_path, "rm", "m", "--yes").exit_code == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="about terminals as Unix has them")
def test_a_template_cannot_command_the_terminal_and_is_whole_in_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "evil.jinja").write_text("a\tb\n\x1b]0;title\x07 \x9b31m")
    ours, theirs = os.openpty()
    main = [sys.executable, "-c", "from llm_server.cli import main; main()"]
    subprocess.run(
        [*main, "show", "evil.jinja", "--models-dir", str(tmp_path)], stdout=theirs, check=True
    )
    shown = os.read(ours, 1000).decode()
    os.close(ours)
    os.close(theirs)
    assert shown.split() == ["a", "b", "?]0;title?", "?31m"]
    piped = cli(tmp_path, "show", "evil.jinja").stdout
    assert piped == "a\tb\n\x1b]0;title\x07 \x9b31m\n"


def test_json_holds_nothing_that_a_terminal_obeys(tmp_path: Path) -> None:
    title = "a\x9b31m\x7f\u202eb\N{SNOWMAN}"
    (tmp_path / "m.gguf").write_bytes(gguf(TINY | {"general.name": title}))
    said = cli(tmp_path, "show", "m", "--json").stdout
    assert said.replace("\n", "").isprintable() and "\N{SNOWMAN}" in said
    assert json.loads(said)["title"] == title


def test_the_name_of_a_download_cannot_command_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with _progress_bar("m\x1b]0;title.gguf") as progress:
        progress(1, 2)
    assert "m?]0;title.gguf" in capsys.readouterr().err


def test_list_shows_each_model_once_and_says_what_is_wrong(folder: Path) -> None:
    output = cli(folder, "list").output
    assert output.count("split.gguf") == 2 and "split-0000" not in output
    assert "split.gguf cannot be loaded" in output
    (row,) = [line for line in output.splitlines() if line.startswith("whole.gguf")]
    assert "F32" in row and "4096" in row


def test_in_a_pipe_each_row_is_a_line(folder: Path) -> None:
    name = f"{'Long-Name-' * 12}Instruct.gguf"
    (folder / "whole.gguf").rename(folder / name)
    listed = cli(folder, "list").output.splitlines()
    assert any(line.startswith(f"{name} ") and "F32" in line for line in listed)
    shown = cli(folder, "show", name).output.splitlines()
    assert ["files", str(folder / name)] in [line.split() for line in shown]


def test_list_tells_of_links_it_does_not_follow(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "linked.gguf").symlink_to(Path(__file__))
    assert "linked.gguf is a link out of this folder" in cli(folder, "list").output


@pytest.mark.skipif(sys.platform == "win32", reason="such names cannot be there")
def test_names_of_files_drive_no_terminal(folder: Path) -> None:
    name = "\x1b[31mred.jinja"
    (folder / name).write_text("{{ messages }}")
    (folder / f"\x1b[2J.gguf.{'0' * 12}.part").touch()
    listed = cli(folder, "list").output
    assert "?[31mred.jinja" in listed and "?[2J.gguf is not finished" in listed
    asked = cli(folder, "rm", name, answer="n\n").output
    assert "Delete ?[31mred.jinja" in asked and "\x1b" not in listed + asked


def test_list_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    result = cli(tmp_path / "nothing", "list")
    told = f"llm-server: --models-dir: there is no folder {tmp_path / 'nothing'}\n"
    assert (result.exit_code, result.output) == (1, told)


def test_list_for_programs(folder: Path) -> None:
    said = json.loads(cli(folder, "list", "--json").stdout)
    split, whole = said["models"]
    assert (split["model"], split["size"]) == ("split.gguf", 200)
    assert split["error"] and split["parameters"] is None
    assert whole["context"] == 4096 and whole["error"] is None
    assert said["unfinished"] == {}


def test_an_empty_folder_has_the_demo_model(tmp_path: Path) -> None:
    output = cli(tmp_path, "list").output
    assert "demo.gguf" in output and "the demo model serves instead" in output
    refused = cli(tmp_path, "rm", "demo", "--yes")
    assert refused.exit_code == 1 and "part of the package" in refused.stderr


def test_show(folder: Path) -> None:
    output = cli(folder, "show", "whole").output
    assert "4096 tokens" in output and "with n_ctx 4096" in output
    said = json.loads(cli(folder, "show", "whole", "--json").stdout)
    assert said["quantization"] == "F32" and said["chat_template"] is True
    assert said["memory"] > said["size"] and said["n_ctx"] == 4096
    assert said["files"] == [str(folder / "whole.gguf")]


def test_show_estimates_what_the_settings_say(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = folder / "llm-server.toml"
    config.write_text("[models.whole.load]\nn_ctx = 512\n")
    monkeypatch.setenv("LLM_SERVER_CONFIG", str(config))
    shown = json.loads(cli(folder, "show", "whole", "--json").stdout)
    fitting = json.loads(cli(folder, "fit", "whole", "--json").stdout)
    assert shown["n_ctx"] == fitting["n_ctx"] == 512
    assert shown["memory"] == fitting["memory"]["total"]


def test_show_tells_the_sampling_that_a_file_recommends(tmp_path: Path) -> None:
    said = {"general.sampling.temp": 0.7, "general.sampling.top_k": 20}
    (tmp_path / "a.gguf").write_bytes(gguf(TINY | said))
    assert "temperature 0.7, top_k 20" in cli(tmp_path, "show", "a").output


def test_show_tells_embedding_models_and_rerankers(tmp_path: Path) -> None:
    tiny_encoders.build_bert(tmp_path / "bert.gguf", PoolingType.CLS)
    tiny_encoders.build_bert(tmp_path / "rank.gguf", PoolingType.RANK, n_labels=1)
    shown = [line.split() for line in cli(tmp_path, "show", "bert").output.splitlines()]
    assert ["embeddings", "yes,", "pooling", "cls"] in shown
    shown = [line.split() for line in cli(tmp_path, "show", "rank").output.splitlines()]
    assert ["reranker", "yes"] in shown


def test_show_of_a_broken_and_of_an_unknown_model(folder: Path) -> None:
    assert "cannot be loaded" in cli(folder, "show", "split").stderr
    result = cli(folder, "show", "whol")
    assert result.exit_code == 1 and "Did you mean whole.gguf?" in result.stderr


def test_fit(folder: Path) -> None:
    result = cli(folder, "fit", "whole")
    assert result.exit_code == 0
    assert "weights" in result.output and "fits. Its longest context, 4096 tokens" in result.output
    tight = cli(folder, "fit", "whole", "--n-ctx", "4096", "--memory", "44MB", "--json")
    told = json.loads(tight.output)
    assert tight.exit_code == 1 and told["fits"] is False
    assert (told["n_ctx"], told["budget"]) == (4096, 44_000_000)
    assert 0 <= told["largest_n_ctx"] < 4096
    smaller = cli(folder, "fit", "whole", "--n-ctx", "4096", "--kv-type", "q4_0", "--json")
    assert json.loads(smaller.output)["memory"]["kv"] < told["memory"]["kv"]
    longer = cli(folder, "fit", "whole", "--n-ctx", "100000").output
    assert "no longer context than 4096 tokens" in longer
    assert cli(folder, "fit", "split").exit_code == cli(folder, "fit", "nope").exit_code == 1
    assert cli(folder, "fit", "whole", "--kv-type", "q3").exit_code == 2


@pytest.fixture
def with_companions(folder: Path) -> Path:
    tiny_models.build_lora(folder / "style.gguf")
    (folder / "torn.gguf").write_bytes(gguf({"general.type": "adapter"}))
    (folder / "short.jinja").write_text("{{ messages }}")
    (folder / "whole.jinja").write_text("{{ messages }}")
    return folder


def test_adapters_and_templates_are_listed_apart(with_companions: Path) -> None:
    output = cli(with_companions, "list").output
    models, apart = output.split("\nadapter ")
    assert "style" not in models and "whole.gguf" in models
    (row,) = [line for line in apart.splitlines() if line.startswith("style.gguf")]
    assert row.split()[1:3] == ["qwen2", "4"]
    assert "torn.gguf cannot be used: it is an adapter, but no LoRA." in apart
    assert "chat templates: short.jinja, whole.jinja" in apart
    said = json.loads(cli(with_companions, "list", "--json").stdout)
    assert [adapter["adapter"] for adapter in said["adapters"]] == ["style.gguf", "torn.gguf"]
    assert said["adapters"][0]["rank"] == 4
    assert said["chat_templates"] == ["short.jinja", "whole.jinja"]


def test_show_of_an_adapter_and_of_a_template(with_companions: Path) -> None:
    output = cli(with_companions, "show", "style").output
    assert "qwen2" in output and '{"lora": [{"name": "style.gguf"}]}' in output
    assert json.loads(cli(with_companions, "show", "style", "--json").stdout)["rank"] == 4
    assert cli(with_companions, "show", "torn").exit_code == 1
    assert cli(with_companions, "show", "short").output == "{{ messages }}\n"
    # A model's short name is the model's.
    assert "4096 tokens" in cli(with_companions, "show", "whole").output


def test_rm_of_what_the_configuration_needs_is_refused(
    with_companions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_companions / "llm-server.toml"
    config.write_text(
        '[models.whole.load]\nlora = [{name = "style"}]\n[models.x.load]\n'
        'lora = [{name = "style.gguf"}]\nchat_template = "short.jinja"\n'
    )
    monkeypatch.setenv("LLM_SERVER_CONFIG", str(config))
    refused = cli(with_companions, "rm", "style", "split", "--yes")
    assert refused.exit_code == 1 and "loads whole and x with" in refused.stderr
    assert cli(with_companions, "rm", "short", "--yes").exit_code == 1
    assert (with_companions / "style.gguf").exists() and (with_companions / "short.jinja").exists()
    assert (with_companions / "split-00001-of-00002.gguf").exists()
    monkeypatch.delenv("LLM_SERVER_CONFIG")
    assert cli(with_companions, "rm", "style", "short.jinja", "--yes").exit_code == 0
    assert not (with_companions / "style.gguf").exists()


def test_rm_asks_and_takes_all_parts(folder: Path) -> None:
    refused = cli(folder, "rm", "split", answer="n\n")
    assert refused.exit_code == 1 and "2 files, 200 B" in refused.output
    assert len(list(folder.iterdir())) == 3
    left = folder / f"whole.gguf.{hashlib.sha256().hexdigest()[:12]}.part"
    left.write_bytes(b"GGUF")
    assert cli(folder, "rm", "split", "whole", "--yes").exit_code == 0
    assert list(folder.iterdir()) == []


def test_rm_takes_what_is_there_of_a_model_that_is_not_whole(folder: Path) -> None:
    (folder / "split-00002-of-00002.gguf").unlink()
    left = folder / f"split-00002-of-00002.gguf.{hashlib.sha256().hexdigest()[:12]}.part"
    left.write_bytes(b"GGUF")
    assert "split.gguf is incomplete" in cli(folder, "list").output
    said = json.loads(cli(folder, "list", "--json").stdout)
    assert said["incomplete"] == {"split.gguf": [str(folder / "split-00001-of-00002.gguf")]}
    done = cli(folder, "rm", "split", answer="y\n")
    assert "Delete split.gguf (2 files, 104 B)?" in done.output
    assert [path.name for path in folder.iterdir()] == ["whole.gguf"]


def test_rm_names_the_file_and_counts_what_becomes_free(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = folder / "llm-server.toml"
    config.write_text('[models.link]\nalias = "gpt"\n')
    monkeypatch.setenv("LLM_SERVER_CONFIG", str(config))
    (folder / "link.gguf").symlink_to("whole.gguf")
    done = cli(folder, "rm", "gpt", answer="y\n")
    assert "Delete link.gguf (0 B)?" in done.output
    assert "link.gguf deleted, 0 B free again." in done.output
    assert (folder / "whole.gguf").exists() and not (folder / "link.gguf").exists()


def test_rm_deletes_nothing_outside_of_the_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    mine = elsewhere / "mine.gguf"
    mine.write_bytes(gguf())
    monkeypatch.setenv("LLM_SERVER_MODEL_NAME", str(mine))
    models = folder / "models"
    models.mkdir()
    refused = cli(models, "rm", "mine", "--yes")
    assert refused.exit_code == 1 and "is not in the models folder" in refused.stderr
    assert mine.exists()


def test_rm_of_a_model_that_is_named_twice(folder: Path) -> None:
    done = cli(folder, "rm", "--yes", "whole", "whole.gguf")
    assert (done.exit_code, done.output.count("deleted")) == (0, 1)


def test_rm_of_an_unknown_model_deletes_nothing(folder: Path) -> None:
    result = cli(folder, "rm", "whole", "nothing", "--yes")
    assert result.exit_code == 1 and "does not exist" in result.stderr
    assert len(list(folder.iterdir())) == 3


def test_the_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).output == f"llm-server {__version__}\n"


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    script = "import sys, llm_server.cli; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"pydantic", "rich", "httpx2", "huggingface_hub", "fastapi"}.isdisjoint(loaded)
    output = CliRunner().invoke(app, ["--help"]).output
    for command in ("serve", "run", "pull", "list", "show", "rm", "cache", "doctor"):
        assert f"\n  {command} " in output
