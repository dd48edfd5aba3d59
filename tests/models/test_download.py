"""Fetching a file from servers that behave, and from servers that do not."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from llm_server.gguf.header import MAX_HEADER
from llm_server.models import download
from llm_server.models.connection import DownloadError
from llm_server.models.download import Remote, Retry
from llm_server.models.registry import Registry
from tests.file_server import Fault, FileServer, file_server
from tests.gguf_bytes import TINY, gguf

NAME = "m.gguf"
PATIENCE = Retry(attempts=3, wait_s=0)


@pytest.fixture(scope="session")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A GGUF file of some 400 kB."""
    path = tmp_path_factory.mktemp("content") / NAME
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("t", np.random.default_rng(1).standard_normal(100_000, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture
def server(content: bytes) -> Iterator[FileServer]:
    with file_server() as served:
        served.files[f"/{NAME}"] = content
        yield served


def fetch(server: FileServer, folder: Path, **known: object) -> Path:
    remote = Remote(f"{server.url}/{NAME}", NAME, **known)  # type: ignore[arg-type]
    return download.fetch(remote, folder, lambda done, total: None, PATIENCE)


def hashed(content: bytes) -> dict[str, object]:
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


@pytest.mark.parametrize("known", [True, False])
def test_a_file_arrives_whole_and_under_its_name(
    server: FileServer, tmp_path: Path, content: bytes, known: bool
) -> None:
    seen: list[tuple[int, int | None]] = []
    facts = hashed(content) if known else {}
    remote = Remote(f"{server.url}/{NAME}", NAME, **facts)  # type: ignore[arg-type]
    path = download.fetch(remote, tmp_path / "new" / "folder", lambda *at: seen.append(at))
    assert path.read_bytes() == content
    assert only_file(path.parent) == path
    assert seen[0] == (0, len(content)) and seen[-1] == (len(content), len(content))


@pytest.mark.parametrize("known", [True, False])
def test_a_dropped_connection_is_continued(
    server: FileServer, tmp_path: Path, content: bytes, known: bool
) -> None:
    probe = [] if known else [Fault()]
    server.faults = [*probe, Fault(drop_after=100_000), Fault(drop_after=50_000)]
    path = fetch(server, tmp_path, **(hashed(content) if known else {}))
    assert path.read_bytes() == content
    assert server.ranges()[-2:] == ["bytes=100000-", "bytes=150000-"]


def test_the_next_run_continues_and_the_part_is_no_model(
    server: FileServer, tmp_path: Path, content: bytes
) -> None:
    server.faults = [Fault(drop_after=70_000), *[Fault(status=503)] * 3]
    with pytest.raises(DownloadError, match=r"503.*the same command continues"):
        fetch(server, tmp_path, **hashed(content))
    part = only_file(tmp_path)
    assert part.name.startswith(NAME) and part.suffix == ".part"
    assert part.read_bytes() == content[:70_000]
    registry = Registry(tmp_path)
    registry.scan()
    assert registry.models() == []

    server.requests.clear()
    assert fetch(server, tmp_path, **hashed(content)).read_bytes() == content
    assert server.ranges() == ["bytes=70000-"]


def test_attempts_that_bring_nothing_are_counted_anew_after_progress(
    server: FileServer, tmp_path: Path, content: bytes
) -> None:
    stall = [Fault(status=500), Fault(status=500)]
    server.faults = [Fault(drop_after=9), *stall, Fault(drop_after=9), *stall]
    assert fetch(server, tmp_path, **hashed(content)).read_bytes() == content


def test_a_server_without_ranges_starts_again(
    server: FileServer, tmp_path: Path, content: bytes
) -> None:
    server.faults = [Fault(drop_after=70_000), Fault(ignore_range=True)]
    assert fetch(server, tmp_path, **hashed(content)).read_bytes() == content


def test_a_server_that_always_drops_is_given_up(
    server: FileServer, tmp_path: Path, content: bytes
) -> None:
    server.faults = [Fault(drop_after=70_000, ignore_range=True)] * 10
    with pytest.raises(DownloadError, match="3 attempts failed"):
        fetch(server, tmp_path, **hashed(content))
    assert len(server.requests) == 4


def test_a_length_that_is_too_long_is_not_believed(
    server: FileServer, tmp_path: Path, content: bytes
) -> None:
    server.faults = [Fault(length=len(content) + 5)]
    with pytest.raises(DownloadError, match=f"offers {len(content) + 5} bytes"):
        fetch(server, tmp_path, **hashed(content))


def test_a_length_that_is_too_short_does_not_cut_the_file(
    server: FileServer, tmp_path: Path, content: bytes
) -> None:
    # Both the probe and the file itself: nothing but the header of the file tells.
    server.faults = [Fault(length=60_000), Fault(length=60_000)]
    with pytest.raises(DownloadError, match="shorter than its tensors"):
        fetch(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_corrupt_data_is_deleted(server: FileServer, tmp_path: Path, content: bytes) -> None:
    damaged = bytearray(content)
    damaged[-1] ^= 1
    server.files[f"/{NAME}"] = bytes(damaged)
    with pytest.raises(DownloadError, match="SHA-256"):
        fetch(server, tmp_path, **hashed(content))
    assert list(tmp_path.iterdir()) == []


def test_a_page_instead_of_a_model_ends_at_its_first_bytes(
    server: FileServer, tmp_path: Path
) -> None:
    server.files[f"/{NAME}"] = b"<!doctype html>\nPlease log in" + bytes(5_000_000)
    with pytest.raises(DownloadError, match="it begins with '<!doctype html>'"):
        fetch(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_header_ends_at_the_longest_that_there_are(
    server: FileServer, tmp_path: Path
) -> None:
    server.files[f"/{NAME}"] = b"GGUF" + bytes(MAX_HEADER + (8 << 20))
    server.faults = [Fault(unsized=True)] * 2
    seen = []
    remote = Remote(f"{server.url}/{NAME}", NAME)
    with pytest.raises(DownloadError, match="damaged and was deleted"):
        download.fetch(remote, tmp_path, lambda done, _: seen.append(done), PATIENCE)
    assert seen[-1] < MAX_HEADER
    assert list(tmp_path.iterdir()) == []


def test_a_long_file_with_a_right_header_goes_on(server: FileServer, tmp_path: Path) -> None:
    n = MAX_HEADER // 4
    server.files[f"/{NAME}"] = gguf(TINY, [("t", (n,), 0)], sizes=[4 * n])
    assert fetch(server, tmp_path).stat().st_size > MAX_HEADER


def test_a_file_of_unknown_size_ends_where_the_disk_is_full(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.faults = [Fault(unsized=True)] * 2

    def fills(done: int, _: int | None) -> None:
        if done:
            monkeypatch.setattr(download, "SPARE_BYTES", 1 << 60)

    remote = Remote(f"{server.url}/{NAME}", NAME)
    with pytest.raises(DownloadError, match="an unknown number of MB"):
        download.fetch(remote, tmp_path, fills, PATIENCE)


def test_a_file_of_unknown_size_arrives(server: FileServer, tmp_path: Path, content: bytes) -> None:
    server.faults = [Fault(unsized=True)] * 2
    assert fetch(server, tmp_path).read_bytes() == content


def test_a_range_of_absurd_numbers_is_refused(
    server: FileServer, tmp_path: Path, content: bytes
) -> None:
    absurd = {"Content-Range": f"bytes 70000-{len(content) - 1}/{'9' * 5000}"}
    server.faults = [Fault(drop_after=70_000), Fault(status=206, headers=absurd)]
    with pytest.raises(DownloadError, match="unreadable Content-Range"):
        fetch(server, tmp_path, **hashed(content))


def test_another_version_does_not_continue_the_old_one(
    server: FileServer, tmp_path: Path, content: bytes
) -> None:
    server.faults = [Fault(), Fault(drop_after=70_000), *[Fault(status=500)] * 3]
    with pytest.raises(DownloadError):
        fetch(server, tmp_path)
    changed = content[:-4] + b"new!"
    server.files[f"/{NAME}"] = changed
    assert fetch(server, tmp_path).read_bytes() == changed
    assert only_file(tmp_path).name == NAME


def test_a_version_that_changes_on_the_way_is_noticed(
    server: FileServer, tmp_path: Path, content: bytes
) -> None:
    server.faults = [Fault(), Fault(headers={"ETag": '"other"'})]
    with pytest.raises(DownloadError, match="another version"):
        fetch(server, tmp_path)


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "HF_TOKEN"), (403, "not allowed"), (404, "check the address")]
)
def test_refusals_are_not_repeated(
    server: FileServer, tmp_path: Path, content: bytes, status: int, hint: str
) -> None:
    server.faults = [Fault(status=status)] * 5
    with pytest.raises(DownloadError, match=rf"{status}.*{hint}"):
        fetch(server, tmp_path, **hashed(content))
    assert len(server.requests) == 1
    assert list(tmp_path.iterdir()) == []  # Nothing has arrived, so nothing is left.


def test_a_busy_server_is_asked_again_when_it_says(
    server: FileServer, tmp_path: Path, content: bytes
) -> None:
    server.faults = [Fault(status=429, headers={"Retry-After": "0"}), Fault(status=500)]
    remote = Remote(f"{server.url}/{NAME}", NAME)
    path = download.fetch(remote, tmp_path, lambda *_: None, Retry(attempts=3, wait_s=0))
    assert path.read_bytes() == content


def test_nothing_listening_is_one_line(tmp_path: Path) -> None:
    remote = Remote("http://127.0.0.1:9/x.gguf", "x.gguf")
    with pytest.raises(DownloadError, match="3 attempts failed"):
        download.fetch(remote, tmp_path, lambda *_: None, PATIENCE)


@pytest.mark.parametrize("host", ["a:b", "a..b", "x" * 64])
def test_an_address_that_cannot_be_is_not_asked_again(host: str, tmp_path: Path) -> None:
    remote = Remote(f"http://{host}/x.gguf", "x.gguf")
    with pytest.raises(DownloadError, match=r"x\.gguf: (?!\d attempts)"):
        download.fetch(remote, tmp_path, lambda *_: None, PATIENCE)


def test_a_file_that_is_here_is_checked_and_never_overwritten(
    server: FileServer, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / NAME).write_bytes(content)
    assert fetch(server, tmp_path, **hashed(content)) == tmp_path / NAME
    assert server.requests == []
    (tmp_path / NAME).write_bytes(content[:-1] + b"x")
    with pytest.raises(DownloadError, match="remove it first"):
        fetch(server, tmp_path, **hashed(content))


def test_a_full_disk_is_told_before_anything_is_asked(
    server: FileServer, tmp_path: Path, content: bytes
) -> None:
    free = shutil.disk_usage(tmp_path).free
    big = Remote(f"{server.url}/{NAME}", NAME, size=free)
    with pytest.raises(DownloadError, match="MB free"):
        download.check_space(tmp_path / "not yet there", [big])
    # What is here of one file makes no room for another.
    with (tmp_path / "other.gguf").open("wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(DownloadError, match=f"{free / 1e6:,.0f} MB are to be downloaded"):
        download.check_space(tmp_path, [Remote(f"{server.url}/other.gguf", "other.gguf"), big])
    assert server.requests == []


def test_nothing_is_said_to_be_kept_where_nothing_has_arrived(
    server: FileServer, tmp_path: Path, content: bytes
) -> None:
    server.faults = [Fault(status=503)] * 3
    with pytest.raises(DownloadError, match="503") as caught:
        fetch(server, tmp_path, **hashed(content))
    assert "kept" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_do_not_write_into_one_part(
    server: FileServer, tmp_path: Path, content: bytes
) -> None:
    refusals: list[str] = []

    def second(done: int, total: int | None) -> None:
        if done == 0:
            with pytest.raises(DownloadError) as error:
                fetch(server, tmp_path, **hashed(content))
            refusals.append(str(error.value))

    facts = hashed(content)
    remote = Remote(f"{server.url}/{NAME}", NAME, **facts)  # type: ignore[arg-type]
    assert download.fetch(remote, tmp_path, second, PATIENCE).read_bytes() == content
    assert refusals == [f"{NAME} is being pulled by another process"]


@pytest.mark.skipif(sys.platform == "win32", reason="has no flock")
def test_a_file_system_without_locks_is_no_other_process(
    server: FileServer, tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    assert fetch(server, tmp_path, **hashed(content)).read_bytes() == content


def test_another_version_that_is_on_its_way_is_left_alone(
    server: FileServer, tmp_path: Path, content: bytes
) -> None:
    refusals: list[str] = []

    def second(done: int, total: int | None) -> None:
        if done == 0:
            with pytest.raises(DownloadError) as error:
                fetch(server, tmp_path, sha256="0" * 64, size=len(content))
            refusals.append(str(error.value))

    remote = Remote(f"{server.url}/{NAME}", NAME, **hashed(content))  # type: ignore[arg-type]
    assert download.fetch(remote, tmp_path, second, PATIENCE).read_bytes() == content
    assert refusals == [f"{NAME} is being pulled by another process"]
