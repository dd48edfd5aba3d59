"""What a worker cannot do, asked from inside of one: after its first lines, with a model loaded.

`confined_probe.py` is the worker's process up to the point where requests would be read.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from llm_server.worker import landlock, sandbox, seccomp
from llm_server.worker.config import CacheConfig, LoadConfig
from llm_server.worker.frames import decode_events, encode_command, pack, read_frame
from llm_server.worker.messages import Load, Loaded, StandBy
from llm_server.worker.process import WORKER_ARGV, worker_environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")

PROBE = Path(__file__).with_name("confined_probe.py")
ENVIRONMENT = worker_environment(dict(os.environ) | {"OPENAI_API_KEY": "secret", "HOME": "/root"})

needs_landlock = pytest.mark.skipif(
    sys.platform != "linux" or landlock.abi() == 0, reason="this kernel has no Landlock"
)
needs_seccomp = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="no filter for this architecture"
)

EPERM, EACCES = "PermissionError 1", "PermissionError 13"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("confined")


@pytest.fixture(scope="module")
def seen(folder: Path, attention_gguf: Path) -> dict[str, str]:
    """What came of each probe: `ok`, or the exception's name and errno."""
    other = folder / "other.gguf"
    other.write_bytes(b"GGUF")
    load = Load(
        attention_gguf,
        LoadConfig(n_threads=1, n_ctx=512),
        cache=CacheConfig(folder / "cache", 10**6),
        log_level="warning",
    )
    result = subprocess.run(
        [sys.executable, "-P", str(PROBE), str(attention_gguf), str(other), str(folder)],
        input=pack(encode_command(load)),
        capture_output=True,
        env=ENVIRONMENT,
        cwd=folder,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr.decode()
    return msgspec.json.decode(result.stdout, type=dict[str, str])


def test_the_probe_has_what_a_worker_needs(seen: dict[str, str]) -> None:
    """Else the refusals below could come from a process that can do nothing at all."""
    for name in ("read model", "write cache", "rename in cache", "remove in cache", "thread"):
        assert seen[name] == "ok", name


@needs_landlock
@pytest.mark.parametrize(
    "name",
    [
        "read /etc/passwd",
        "read another model",
        "read the home folder",
        "write beside the cache",
        "write /tmp",
        "write the model",
        "read the parent's environment",
    ],
)
def test_no_other_files(seen: dict[str, str], name: str) -> None:
    assert seen[name] == EACCES


@needs_landlock
@pytest.mark.skipif(bool(sandbox.gpu_devices(Path("/dev"))), reason="drivers read all of /proc")
def test_without_a_graphics_card_nothing_is_left_open_for_one(seen: dict[str, str]) -> None:
    assert seen["read /proc/loadavg"] == EACCES


@needs_seccomp
@pytest.mark.parametrize(
    "name",
    [
        "socket inet",
        "socket unix",
        "exec",
        "fork",
        "signal the parent",
        "ptrace the parent",
        "mount",
        "unshare",
        "read the parent's memory",
    ],
)
@pytest.mark.parametrize("where", ["", " in a thread"])
def test_no_network_no_programs_no_other_processes(
    seen: dict[str, str], name: str, where: str
) -> None:
    assert seen[name + where] == EPERM


def test_nothing_secret_is_in_the_environment(seen: dict[str, str]) -> None:
    assert not re.search("KEY|TOKEN|SECRET|HOME", seen["environment"])


def test_no_core_is_dumped_and_descriptors_are_few(seen: dict[str, str]) -> None:
    assert seen["core limit"] == "0 0"
    assert seen["descriptors"] == "0 1 2 3 4", "stdio, and the two that carry the frames"


@pytest.fixture
def worker(attention_gguf: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        WORKER_ARGV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        yield process
        process.kill()


def load(worker: subprocess.Popen[bytes], command: Load) -> Loaded:
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write(pack(encode_command(command)))
    worker.stdin.flush()
    while (frame := read_frame(worker.stdout)) is not None:
        for event in decode_events(frame):
            if isinstance(event, Loaded):
                return event
    raise AssertionError("it did not load")


def statuses(pid: int) -> list[dict[str, str]]:
    """The kernel's word on every thread of a process."""
    texts = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return [dict(line.split(":\t", 1) for line in text.splitlines()) for text in texts]


@needs_landlock
@needs_seccomp
@pytest.mark.parametrize("stood_by", [False, True])
def test_every_thread_of_a_real_worker_is_confined(
    worker: subprocess.Popen[bytes], attention_gguf: Path, *, stood_by: bool
) -> None:
    if stood_by:
        assert worker.stdin is not None
        worker.stdin.write(pack(encode_command(StandBy())))
    loaded = load(worker, Load(attention_gguf, LoadConfig(n_threads=2, n_ctx=512)))
    assert loaded.sandbox.startswith("full (Landlock ABI ")
    threads = statuses(worker.pid)
    assert len(threads) > 4
    for status in threads:
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        # Reading and writing the files of other users, for a server that root runs; or nothing.
        assert int(status["CapEff"], 16) & ~0b1110 == 0
    assert Path(f"/proc/{worker.pid}/oom_score_adj").read_text() == "500\n"


def test_it_can_be_told_to_stay_open(worker: subprocess.Popen[bytes], attention_gguf: Path) -> None:
    command = Load(attention_gguf, LoadConfig(n_threads=1, n_ctx=512), sandbox=False)
    assert load(worker, command).sandbox == "off"
    assert {status["Seccomp"] for status in statuses(worker.pid)} == {
        statuses(os.getpid())[0]["Seccomp"]
    }


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_is_well_formed(machine: str) -> None:
    """Every path of the program ends in a verdict, within the kernel's limit of 4096."""
    code = b"".join(seccomp.program(machine, 1234))
    n = len(code) // 8
    assert n * 8 == len(code) and n < 4096
    for i in range(n):
        instruction = ctypes.c_uint16.from_buffer_copy(code, i * 8).value
        if instruction & 7 == 5:  # a jump: both targets lie inside
            assert i + 1 + max(code[i * 8 + 2], code[i * 8 + 3]) < n
    assert int.from_bytes(code[-4:], "little") == 0x7FFF0000
    numbers = list(seccomp.refused(machine).values())
    assert len(numbers) == len(set(numbers)) > 50


GPU_NODES = (
    "nvidia0 nvidia1 nvidiactl nvidia-uvm nvidia-uvm-tools nvidia-modeset nvidia-caps/nvidia-cap1 "
    "dri/card0 dri/renderD128 kfd dxg mali0"
).split()
OTHER_NODES = "sda nvme0n1 mem kvm tty0 input/event0 fuse net/tun shm/x snd/pcm nvram".split()


@pytest.fixture
def made_up_dev(tmp_path: Path) -> Path:
    for name in (*GPU_NODES, *OTHER_NODES):
        node = tmp_path / "dev" / name
        node.parent.mkdir(parents=True, exist_ok=True)
        node.write_text("node")
    return tmp_path / "dev"


def test_the_devices_of_graphics_cards_are_known_by_their_names(made_up_dev: Path) -> None:
    found = sandbox.gpu_devices(made_up_dev)
    granted = {
        name
        for name in (*GPU_NODES, *OTHER_NODES)
        if any((made_up_dev / name).is_relative_to(path) for path in found)
    }
    assert granted == set(GPU_NODES)
    assert sandbox.gpu_devices(made_up_dev / "nothing") == []


@pytest.mark.parametrize(
    "toolkit", ["opt/cuda", "usr/local/cuda", "usr/local/cuda-12.8", "opt/rocm", "opt/rocm-6.4.1"]
)
def test_toolkits_are_read_wherever_systems_put_them(tmp_path: Path, toolkit: str) -> None:
    for name in (toolkit, "opt/other", "usr/local/lib"):
        (tmp_path / name).mkdir(parents=True)
    assert list(sandbox.gpu_libraries(tmp_path)) == [tmp_path / toolkit]


@needs_landlock
def test_of_dev_only_graphics_cards_can_be_used(made_up_dev: Path) -> None:
    code = (
        "import ctypes, sys\n"
        "from pathlib import Path\n"
        "from llm_server.worker import landlock, sandbox\n"
        "dev = Path(sys.argv[1])\n"
        "ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)\n"
        "landlock.restrict(readable=[], devices=sandbox.gpu_devices(dev))\n"
        "for name in sys.argv[2:]:\n"
        "    try:\n"
        "        open(dev / name, 'r+').close()\n"
        "        print(name)\n"
        "    except PermissionError: pass\n"
    )
    command = [sys.executable, "-c", code, str(made_up_dev), *GPU_NODES, *OTHER_NODES]
    output = subprocess.run(command, capture_output=True, text=True)
    assert output.stdout.split() == GPU_NODES, output.stderr


def test_where_nothing_is_offered_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from llm_server.worker import landlock, sandbox, seccomp\n"
        "def refuse(**_): raise OSError(38, 'Function not implemented')\n"
        "landlock.restrict = seccomp.install = refuse\n"
        "print(sandbox.confine(readable=[], writable=[], gpu=True))\n"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert output.stdout == (
        "partial (no Landlock: Function not implemented; no seccomp: Function not implemented)\n"
    )


def test_a_worker_of_the_first_process_lives(tmp_path: Path) -> None:
    """In a container the server is often process 1, which adopts what has lost its parent."""
    alone = ["unshare", "--pid", "--fork", "--kill-child"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], check=False).returncode:
        pytest.skip("no namespace of processes can be had here")
    worker = (
        "import os; from llm_server.worker import sandbox; sandbox.enter(); print(os.getppid())"
    )
    first = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"
    )
    command = [*alone, sys.executable, "-c", first, worker]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr
