"""The models folder: what is listed, what is not, and which names mean what."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from llm_server.errors import ModelNotFound
from llm_server.models.registry import Registry
from tests.fake_live import add_models
from tests.gguf_bytes import TINY, gguf


def scanned(folder: Path) -> Registry:
    registry = Registry(folder)
    registry.scan()
    return registry


def names(folder: Path) -> list[str]:
    return [model.name for model in scanned(folder).models()]


def test_files_and_subfolders_by_name(tmp_path: Path) -> None:
    add_models(tmp_path, "b.gguf", "a.gguf", "sub/deep/c.gguf", "a.txt", ".hidden/d.gguf")
    assert names(tmp_path) == ["a.gguf", "b.gguf", "sub/deep/c.gguf"]
    (model, *_) = scanned(tmp_path).models()
    assert (model.path, model.size) == (tmp_path / "a.gguf", len(gguf()))
    assert model.modified == int((tmp_path / "a.gguf").stat().st_mtime)


def test_a_missing_folder_is_empty(tmp_path: Path) -> None:
    assert names(tmp_path / "nothing") == []


def test_what_cannot_be_served_is_not_listed_and_blocks_nothing(tmp_path: Path) -> None:
    add_models(tmp_path / "in", "a.gguf", "mmproj-a.gguf", "bad\nname.gguf")
    folder = tmp_path / "in"
    outside = tmp_path / "outside.gguf"
    outside.write_bytes(b"GGUF")
    os.mkfifo(folder / "fifo.gguf")
    (folder / "folder.gguf").mkdir()
    (folder / "empty.gguf").touch()
    (folder / "out.gguf").symlink_to(outside)
    (folder / "zero.gguf").symlink_to("/dev/zero")
    (folder / "loop.gguf").symlink_to("loop.gguf")
    (folder / "dangling.gguf").symlink_to("nothing.gguf")
    (folder / "outside").symlink_to(tmp_path)
    (folder / "inside.gguf").symlink_to("a.gguf")
    assert names(folder) == ["a.gguf", "inside.gguf"]


def test_a_split_model_is_one_and_only_when_whole(tmp_path: Path) -> None:
    add_models(tmp_path, *(f"big-0000{i}-of-00003.gguf" for i in (1, 2, 3)))
    add_models(tmp_path, "torn-00001-of-00002.gguf")
    registry = scanned(tmp_path)
    (model,) = registry.models()
    assert (model.name, model.size) == ("big.gguf", 3 * len(gguf()))
    assert model.path == tmp_path / "big-00001-of-00003.gguf"
    for name in ("big", "big.gguf", "big-00001-of-00003.gguf"):
        assert registry.find(name) is model


@pytest.mark.parametrize("numbers", ["00001-of-00000", "00000-of-00002", "00003-of-00002"])
def test_a_name_whose_numbers_cannot_be_is_that_of_a_whole_model(
    tmp_path: Path, numbers: str
) -> None:
    add_models(tmp_path, "a.gguf", f"big-{numbers}.gguf")
    registry = scanned(tmp_path)
    assert [model.name for model in registry.models()] == ["a.gguf", f"big-{numbers}.gguf"]
    assert registry.incomplete == {}


def test_names_with_and_without_suffix_and_folder(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "sub/b.gguf")
    registry = scanned(tmp_path)
    for name in ("sub/b.gguf", "sub/b", "b.gguf", "b"):
        assert registry.find(name).name == "sub/b.gguf"
        assert registry.means(name, registry.find("b"))
    assert not registry.means("a", registry.find("b"))


def test_a_short_name_that_means_two_models_means_none(tmp_path: Path) -> None:
    add_models(tmp_path, "x/b.gguf", "y/b.gguf", "a.gguf", "x/a.gguf")
    registry = scanned(tmp_path)
    with pytest.raises(ModelNotFound):
        registry.find("b")
    assert registry.find("a.gguf").name == "a.gguf"  # An exact name wins.


@pytest.mark.parametrize(
    "name",
    [
        "../a.gguf",
        "./a.gguf",
        "/etc/passwd",
        "a\0",
        "C:\\a",
        "∕a",
        "x" * 5000,
        "",
        "A.GGUF",
        "sub/",
    ],
)
def test_nothing_but_a_listed_name_finds_a_model(tmp_path: Path, name: str) -> None:
    add_models(tmp_path, "a.gguf", "sub/b.gguf")
    with pytest.raises(ModelNotFound) as caught:
        scanned(tmp_path).find(name)
    assert len(caught.value.info.message) < 300


def test_near_names_are_offered(tmp_path: Path) -> None:
    add_models(tmp_path, "qwen-small.gguf", "other.gguf")
    with pytest.raises(ModelNotFound, match=r"Did you mean qwen-small\.gguf\?"):
        scanned(tmp_path).find("qwen-smal.gguf")


def test_near_names_are_near_however_they_are_capitalised(tmp_path: Path) -> None:
    add_models(tmp_path, "Qwen-Small.gguf", "other.gguf")
    with pytest.raises(ModelNotFound, match=r"Did you mean Qwen-Small\.gguf\?"):
        scanned(tmp_path).find("QWEN-SMALL")


def test_near_a_name_that_several_have_are_all_of_them(tmp_path: Path) -> None:
    add_models(tmp_path, "a/small.gguf", "b/small.gguf", "other.gguf")
    with pytest.raises(ModelNotFound, match=r"Did you mean a/small\.gguf or b/small\.gguf\?"):
        scanned(tmp_path).find("SMALL")


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ([], "The models folder is empty."),
        (["a.gguf"], "There is a.gguf."),
        (["a.gguf", "b.gguf"], "There are a.gguf, b.gguf."),
        ([f"{name}.gguf" for name in "abcde"], "There are a.gguf, b.gguf, c.gguf and 2 more."),
    ],
)
def test_without_a_near_name_some_of_those_that_are_there_are_told(
    tmp_path: Path, there: list[str], said: str
) -> None:
    add_models(tmp_path, *there)
    with pytest.raises(ModelNotFound) as caught:
        scanned(tmp_path).find("gpt-4o")
    assert str(caught.value) == f"The model `gpt-4o` does not exist. {said}"


def test_the_first_model_is_one_that_makes_text(tmp_path: Path) -> None:
    assert scanned(tmp_path).first() is None
    (tmp_path / "bge.gguf").write_bytes(gguf(TINY | {"llama.attention.causal": False}))
    (tmp_path / "broken.gguf").write_bytes(b"no model")
    registry = scanned(tmp_path)
    assert registry.first() == registry.find("bge")
    add_models(tmp_path, "qwen.gguf", "z.gguf")
    registry.scan()
    assert registry.first() == registry.find("qwen")


def test_links_out_of_the_folder_are_named(tmp_path: Path) -> None:
    add_models(tmp_path, "in/a.gguf", "x.gguf")
    (tmp_path / "in/sub").mkdir()
    (tmp_path / "in/sub/x.gguf").symlink_to(tmp_path / "x.gguf")
    (tmp_path / "in/same.gguf").symlink_to("a.gguf")
    (tmp_path / "in/dangling.gguf").symlink_to("nothing.gguf")
    (tmp_path / "in/nowhere").symlink_to("nothing")
    (tmp_path / "in/again").symlink_to("sub")
    add_models(tmp_path, "big/b.gguf")
    (tmp_path / "in/big").symlink_to(tmp_path / "big")
    registry = scanned(tmp_path / "in")
    assert [model.name for model in registry.models()] == ["a.gguf", "same.gguf"]
    assert registry.leading_out == ["big", "sub/x.gguf"]
    (tmp_path / "in/turning").symlink_to("turning")
    followed = Registry(tmp_path / "in", follow_symlinks=True)
    followed.scan()
    assert followed.leading_out == [] and followed.knows("x") and followed.knows("big/b.gguf")


def test_hidden_files_are_no_models(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf", "._a.gguf", ".hidden/b.gguf")
    assert [model.name for model in scanned(tmp_path).models()] == ["a.gguf"]


def test_a_scan_notices_changes(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    registry = scanned(tmp_path)
    (tmp_path / "a.gguf").unlink()
    add_models(tmp_path, "b.gguf")
    registry.scan()
    assert [model.name for model in registry.models()] == ["b.gguf"]
    with pytest.raises(ModelNotFound):
        registry.find("a.gguf")


def test_files_that_come_and_go_are_noticed_without_a_scan(tmp_path: Path) -> None:
    add_models(tmp_path, "sub/a.gguf")
    registry = scanned(tmp_path)
    assert not registry.is_current(), "the folders are too new to tell"
    for folder in (tmp_path, tmp_path / "sub"):
        os.utime(folder, (1, 1))
    registry.scan()
    assert registry.is_current()
    add_models(tmp_path, "sub/b.gguf")
    assert not registry.is_current()
    nothing = scanned(tmp_path / "nothing")
    assert nothing.is_current()
    add_models(tmp_path / "nothing", "a.gguf")
    assert not nothing.is_current()


def test_a_file_given_by_its_path_is_a_model_beside_those_of_the_folder(tmp_path: Path) -> None:
    add_models(tmp_path / "models", "a.gguf", "b.gguf")
    add_models(tmp_path / "loads", "b.gguf", "z-00001-of-00002.gguf", "z-00002-of-00002.gguf")
    given = tmp_path / "loads" / "b.gguf"
    registry = Registry(tmp_path / "models", given=str(given))
    registry.scan()
    assert [model.name for model in registry.models()] == ["a.gguf", "b.gguf"]
    assert registry.find("b").path == registry.find(str(given)).path == given
    split = tmp_path / "loads" / "z-00001-of-00002.gguf"
    registry = Registry(tmp_path / "nothing", tmp_path / "demo.gguf", given=str(split))
    registry.scan()
    (model,) = registry.models()
    assert (model.name, len(model.parts)) == ("z.gguf", 2)
    split.unlink()
    registry.scan()
    assert not registry.models(), "it is as gone as any other"


def test_an_empty_folder_has_a_stand_in_that_steps_aside(tmp_path: Path) -> None:
    stand_in = tmp_path / "package" / "demo.gguf"
    add_models(tmp_path, "package/demo.gguf")
    folder = tmp_path / "models"
    registry = Registry(folder, stand_in)
    registry.scan()
    (model,) = registry.models()
    assert (model.name, model.path) == ("demo.gguf", stand_in)
    assert registry.is_stand_in(model) and registry.find("demo") == model
    add_models(folder, "real.gguf")
    registry.scan()
    assert [m.name for m in registry.models()] == ["real.gguf"]
    with pytest.raises(ModelNotFound):
        registry.find("demo.gguf")


def test_without_a_stand_in_file_an_empty_folder_is_empty(tmp_path: Path) -> None:
    registry = Registry(tmp_path, tmp_path / "nothing.gguf")
    registry.scan()
    assert registry.models() == []


@pytest.mark.skipif(sys.platform == "win32", reason="links need privileges")
@pytest.mark.parametrize("follow", [False, True])
def test_a_folder_that_is_a_loop_of_links_is_an_empty_one(tmp_path: Path, follow: bool) -> None:
    folder = tmp_path / "models"
    folder.symlink_to(folder)
    registry = Registry(folder, follow_symlinks=follow)
    registry.scan()
    assert registry.models() == []
