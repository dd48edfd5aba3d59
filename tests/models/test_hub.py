"""From what a person types to the files of a repository."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_server.models import hub
from llm_server.models.connection import DownloadError
from llm_server.models.download import Remote, fetch
from tests.file_server import FileServer, file_server


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as served:
        yield served


def names(choice: hub.Pick) -> list[str]:
    return [remote.name for remote in choice.files]


def choose(server: FileServer, source: str, *files: str) -> hub.Pick:
    server.add_repo("o/r", {name: name.encode() for name in files})
    return hub.choose(source, endpoint=server.url)


def test_the_preferred_quantization_is_taken_when_none_is_named(server: FileServer) -> None:
    files = ["m-Q2_K.gguf", "m-Q8_0.gguf", "m-Q4_K_S.gguf", "m.Q4_K_M.gguf", "README.md"]
    choice = choose(server, "hf:o/r", *files)
    assert names(choice) == ["m.Q4_K_M.gguf"]
    assert choice.others == ["Q2_K", "Q4_K_S", "Q8_0"]
    assert choice.model_name == "m.Q4_K_M"
    (remote,) = choice.files
    assert remote.url == f"{server.url}/o/r/resolve/{'c' * 40}/m.Q4_K_M.gguf"
    assert remote.size == len("m.Q4_K_M.gguf") and remote.sha256 is not None


def test_the_next_in_order_is_taken_where_the_first_is_missing(server: FileServer) -> None:
    files = ["m-F16.gguf", "m-Q8_0.gguf", "m-Q5_K_M.gguf"]
    assert names(choose(server, "hf:o/r", *files)) == ["m-Q5_K_M.gguf"]


@pytest.mark.parametrize("wanted", ["q8_0", "Q8_0", "m-Q8_0.gguf", "sub/m-Q8_0.gguf"])
def test_a_quantization_or_a_file_can_be_named(server: FileServer, wanted: str) -> None:
    files = ["m-Q4_K_M.gguf", "sub/m-Q8_0.gguf"]
    assert names(choose(server, f"hf:o/r:{wanted}", *files)) == ["m-Q8_0.gguf"]


def test_all_parts_of_a_split_file_are_taken(server: FileServer) -> None:
    files = [f"Q4_K_M/m-Q4_K_M-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    choice = choose(server, "hf:o/r", *files, "m-Q2_K.gguf")
    assert names(choice) == [file.rpartition("/")[2] for file in files]
    assert choice.model_name == "m-Q4_K_M"
    with pytest.raises(DownloadError, match="only 2 of the 3 parts"):
        choose(server, "hf:o/r", *files[:2])


def test_a_name_in_capitals_becomes_that_of_a_model(server: FileServer) -> None:
    choice = choose(server, "hf:o/r", "M-Q4_K_M.GGUF")
    assert names(choice) == ["M-Q4_K_M.gguf"] and choice.model_name == "M-Q4_K_M"
    assert choice.files[0].url.endswith("/M-Q4_K_M.GGUF")


def test_projectors_and_matrices_are_no_models(server: FileServer) -> None:
    choice = choose(server, "hf:o/r", "mmproj-m-F16.gguf", "imatrix.gguf", "m-Q8_0.gguf")
    assert names(choice) == ["m-Q8_0.gguf"] and choice.others == []
    with pytest.raises(DownloadError, match="no GGUF file"):
        choose(server, "hf:o/r", "mmproj-m-F16.gguf", "model.safetensors")


def test_a_name_that_a_terminal_would_obey_is_no_models(server: FileServer) -> None:
    choice = choose(server, "hf:o/r", "m\x1b[2J-Q8_0.gguf", "m-Q8_0.gguf")
    assert names(choice) == ["m-Q8_0.gguf"] and choice.others == []


def test_several_models_of_one_quantization_have_to_be_named(server: FileServer) -> None:
    files = ["big-Q4_K_M.gguf", "small-Q4_K_M.gguf"]
    with pytest.raises(DownloadError, match=r"name one of: big-Q4_K_M.gguf, small-Q4_K_M.gguf"):
        choose(server, "hf:o/r", *files)
    assert names(choose(server, "hf:o/r:small-Q4_K_M.gguf", *files)) == ["small-Q4_K_M.gguf"]


def test_an_unknown_quantization_is_told_with_what_there_is(server: FileServer) -> None:
    with pytest.raises(DownloadError, match="o/r has no Q3_K_M; it has Q4_0, Q8_0"):
        choose(server, "hf:o/r:Q3_K_M", "m-Q4_0.gguf", "m-Q8_0.gguf")


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (401, "RepoNotFound", "for a private one set HF_TOKEN"),
        (404, "RepoNotFound", "no repository o/r"),
        (403, "GatedRepo", "accept its terms"),
        (500, "", "the hub answered 500"),
    ],
)
def test_refusals_of_the_hub_are_one_line(
    server: FileServer, status: int, code: str, said: str
) -> None:
    server.repo_status = (status, code)
    with pytest.raises(DownloadError, match=said) as error:
        hub.choose("hf:o/r", endpoint=server.url)
    assert "\n" not in str(error.value)


def test_a_hub_out_of_reach_is_one_line() -> None:
    with pytest.raises(DownloadError, match="cannot be reached"):
        hub.choose("hf:o/r", endpoint="http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HTTPS_PROXY", "no:port"),
        ("ALL_PROXY", "gopher://here:1"),
        ("SSL_CERT_FILE", "/no/such/file"),
    ],
)
def test_a_variable_that_cannot_be_followed_is_named(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(DownloadError, match=rf"{variable}\b.* cannot be used"):
        hub.choose("hf:o/r")
    with pytest.raises(DownloadError, match=rf"{variable}\b.* cannot be used"):
        fetch(Remote("https://host/m.gguf", "m.gguf"), tmp_path, lambda *_: None)


def test_the_token_goes_to_the_hub_alone(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    choice = choose(server, "hf:o/r", "m.gguf")
    assert server.tokens == ["Bearer hf_secret"]
    assert choice.files[0].headers["Authorization"] == "Bearer hf_secret"
    assert hub.choose(f"{server.url}/m.gguf").files[0].headers == {}


def test_an_address_is_taken_as_it_is(server: FileServer) -> None:
    choice = hub.choose("https://host/a%20b/my%20m.gguf?key=1#x")
    assert [(r.url, r.name) for r in choice.files] == [
        ("https://host/a%20b/my%20m.gguf?key=1#x", "my m.gguf")
    ]


def test_an_address_of_one_part_means_all(server: FileServer) -> None:
    choice = hub.choose("https://host/m-00002-of-00002.gguf")
    assert names(choice) == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    assert choice.model_name == "m"


@pytest.mark.parametrize(
    "page",
    [
        "https://huggingface.co/o/r",
        "https://huggingface.co/o/r/tree/main",
        "https://huggingface.co/o/r/blob/main/m-Q4_K_M.gguf",
        "https://hf.co/o/r/resolve/main/m-Q4_K_M.gguf?download=true",
    ],
)
def test_a_page_of_the_hub_means_its_repository(server: FileServer, page: str) -> None:
    choice = choose(server, page, "m-Q4_K_M.gguf")
    assert choice.files[0].url.startswith(f"{server.url}/o/r/resolve/")
    assert choice.files[0].sha256 is not None


@pytest.mark.parametrize(
    "source",
    ["qwen", "hf:qwen", "ftp://host/m.gguf", "https://host/", "https://host/..%2Fm.gguf"]
    + [
        "https://[::1/m.gguf",
        "https://host/m.bin",
        "https://host/.gguf",
        "https://host/a%5Cb.gguf",
    ],
)
def test_anything_else_is_refused(source: str) -> None:
    with pytest.raises(DownloadError):
        hub.choose(source)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen2.5-0.5B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-0.5b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("Meta-Llama-3.1-8B-Instruct-IQ4_XS.gguf", "IQ4_XS"),
        ("gemma-3-1b-it-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("llama-2-7b.Q5_0.gguf", "Q5_0"),
        ("model-bf16.gguf", "BF16"),
        ("q4_0/plain.gguf", None),
        ("Q8x7B.gguf", None),
    ],
)
def test_the_quantization_is_read_off_a_name(name: str, expected: str | None) -> None:
    assert hub.quantization(name) == expected
