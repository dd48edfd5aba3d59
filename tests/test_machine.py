"""What is read of /proc and /sys, on trees like those of real machines."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from llm_server import machine
from llm_server.machine import Cores

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these are Linux's files")


def test_a_machine_that_says_nothing(tmp_path: Path) -> None:
    assert machine.cpu_flags(tmp_path) == set()
    assert machine.cpu_quota(tmp_path) is None
    assert machine.memory_limit(tmp_path) is None
    assert machine.graphics_cards(tmp_path) == set()


@pytest.mark.parametrize("name", ["flags\t\t", "Features\t"])
def test_instruction_sets(tmp_path: Path, name: str) -> None:
    (tmp_path / "proc").mkdir()
    text = f"processor\t: 0\n{name}: fpu avx2 asimd\n\nprocessor\t: 1\n"
    (tmp_path / "proc/cpuinfo").write_text(text)
    assert machine.cpu_flags(tmp_path) == {"fpu", "avx2", "asimd"}


FREQUENCY = "cpufreq/cpuinfo_max_freq"


def cpus(root: Path, name: str, by_core: list[list[int]]) -> set[int]:
    """Logical processors with what `name` says of each, core by core; their numbers."""
    folder = root / "sys/devices/system/cpu"
    (folder / "cpuidle").mkdir(parents=True)
    number = 0
    for values in by_core:
        siblings = f"{number}-{number + len(values) - 1}"
        for value in values:
            said = {name: value, "topology/core_cpus_list": siblings}
            for file, text in said.items():
                path = folder / f"cpu{number}" / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{text}\n")
            number += 1
    return set(range(number))


def intel(root: Path, performance: list[list[int]], efficiency: list[list[int]]) -> set[int]:
    found = cpus(root, FREQUENCY, performance + efficiency)
    border = sum(map(len, performance))
    for name, span in [("core", (0, border - 1)), ("atom", (border, len(found) - 1))]:
        (root / f"sys/devices/cpu_{name}").mkdir()
        (root / f"sys/devices/cpu_{name}/cpus").write_text("{}-{}\n".format(*span))
    return found


@pytest.mark.parametrize(
    ("by_core", "fast", "slow"),
    [
        ([414] * 4 + [1024] * 4, 4, 4),
        ([300] * 4 + [740] * 3 + [1024], 4, 4),
        ([1024] * 8, 8, 0),
    ],
)
def test_big_and_little_cores(tmp_path: Path, by_core: list[int], fast: int, slow: int) -> None:
    allowed = cpus(tmp_path, "cpu_capacity", [[value] for value in by_core])
    assert machine.cores(tmp_path, allowed) == Cores(fast, slow)


@pytest.mark.parametrize(
    ("performance", "efficiency", "fast", "slow"),
    [
        pytest.param([[5.8] * 2] * 2 + [[5.5] * 2] * 6, [[4.3]] * 16, 8, 16, id="i9-13900K"),
        pytest.param([[5.4] * 2] * 2 + [[5.3] * 2] * 6, [[4.2]] * 8, 8, 8, id="i7-13700K"),
        pytest.param([[5.0] * 2] * 2 + [[4.9] * 2] * 6, [[3.8]] * 4, 8, 4, id="i7-12700K"),
        pytest.param([[5.7]] * 8, [[4.6]] * 16, 8, 16, id="Ultra 9 285K"),
    ],
)
def test_performance_and_efficiency_cores(
    tmp_path: Path,
    performance: list[list[float]],
    efficiency: list[list[float]],
    fast: int,
    slow: int,
) -> None:
    def hertz(cores: list[list[float]]) -> list[list[int]]:
        return [[int(value * 1e6) for value in core] for core in cores]

    allowed = intel(tmp_path, hertz(performance), hertz(efficiency))
    assert machine.cores(tmp_path, allowed) == Cores(fast, slow)


def test_cores_that_this_process_may_not_use_do_not_count(tmp_path: Path) -> None:
    intel(tmp_path, [[5_000_000] * 2] * 4, [[3_800_000]] * 4)
    assert machine.cores(tmp_path, {0, 1, 2}) == Cores(2, 0)
    assert machine.cores(tmp_path, {0, 8, 9}) == Cores(1, 2)
    assert machine.cores(tmp_path, {8, 9}) == Cores(2, 0)


@pytest.mark.parametrize(
    ("by_core", "count"),
    [
        pytest.param([[5_100_000] * 2] * 4 + [[3_300_000] * 2] * 8, 12, id="Zen 5 and Zen 5c"),
        pytest.param([[5_700_000] * 2] * 2 + [[5_200_000] * 2] * 6, 8, id="boosts differ"),
    ],
)
def test_cores_that_differ_too_little_to_be_left_out(
    tmp_path: Path, by_core: list[list[int]], count: int
) -> None:
    allowed = cpus(tmp_path, FREQUENCY, by_core)
    assert machine.cores(tmp_path, allowed) == Cores(count, 0)


def test_limits_of_a_container(tmp_path: Path) -> None:
    folder = tmp_path / "sys/fs/cgroup"
    folder.mkdir(parents=True)
    (folder / "cpu.max").write_text("150000 100000\n")
    (folder / "memory.max").write_text("2147483648\n")
    assert machine.cpu_quota(tmp_path) == 1.5
    assert machine.memory_limit(tmp_path) == 2 << 30
    (folder / "cpu.max").write_text("max 100000\n")
    (folder / "memory.max").write_text("max\n")
    assert machine.cpu_quota(tmp_path) is None
    assert machine.memory_limit(tmp_path) is None


def test_memory_in_a_container(tmp_path: Path) -> None:
    folder = tmp_path / "sys/fs/cgroup"
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text("2000000\n")
    (folder / "memory.current").write_text("1500000\n")
    (folder / "memory.stat").write_text("anon 900000\ninactive_file 600000\n")
    assert machine.memory(tmp_path) == machine.Memory(2_000_000, 1_100_000)
    (folder / "memory.max").write_text("max\n")
    assert machine.memory(tmp_path).total == psutil.virtual_memory().total


def group(root: Path, name: str, **said: str) -> None:
    folder = root / "sys/fs/cgroup" / name
    folder.mkdir(parents=True)
    for file, text in said.items():
        (folder / file.replace("_", ".")).write_text(text)


def in_group(root: Path, line: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"1:memory:/not/this\n{line}\n")


def test_limits_of_a_service(tmp_path: Path) -> None:
    in_group(tmp_path, "0::/system.slice/llm.service")
    group(tmp_path, "system.slice", memory_max="1000000\n", memory_current="400000\n")
    group(
        tmp_path,
        "system.slice/llm.service",
        cpu_max="250000 100000\n",
        memory_max="800000\n",
        memory_current="100000\n",
    )
    assert machine.memory_limit(tmp_path) == 800_000
    assert machine.memory(tmp_path) == machine.Memory(800_000, 600_000)
    assert machine.cpu_quota(tmp_path) == 2.5


def test_limits_of_what_a_service_is_in(tmp_path: Path) -> None:
    in_group(tmp_path, "0::/system.slice/llm.service")
    group(tmp_path, "system.slice", memory_max="500000\n", cpu_max="100000 100000\n")
    group(tmp_path, "system.slice/llm.service", memory_max="900000\n", cpu_max="max 100000\n")
    assert machine.memory(tmp_path) == machine.Memory(500_000, 500_000)
    assert machine.memory_limit(tmp_path) == 500_000
    assert machine.cpu_quota(tmp_path) == 1.0


@pytest.mark.parametrize("line", ["0::/", "0::/../elsewhere", "0::/docker/of-the-host"])
def test_a_container_sees_its_own_group_at_the_top(tmp_path: Path, line: str) -> None:
    in_group(tmp_path, line)
    group(tmp_path, "", memory_max="500000\n")
    assert machine.memory_limit(tmp_path) == 500_000


def test_graphics_cards(tmp_path: Path) -> None:
    for i, (vendor, kind) in enumerate(
        [("0x10de", "0x030200"), ("0x10de", "0x040300"), ("0x1002", "0x020000")]
    ):
        device = tmp_path / f"sys/bus/pci/devices/0000:0{i}:00.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text(vendor + "\n")
        (device / "class").write_text(kind + "\n")
    assert machine.graphics_cards(tmp_path) == {"NVIDIA"}


def test_this_machine_has_cores(tmp_path: Path) -> None:
    assert 1 <= machine.physical_cores() <= machine.cores(tmp_path).fast
