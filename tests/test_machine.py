"""What is read of /proc and /sys, on trees like those of real machines."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from llm_server import machine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these are Linux's files")


def test_a_machine_that_says_nothing(tmp_path: Path) -> None:
    assert machine.cpu_flags(tmp_path) == set()
    assert machine.core_classes(tmp_path) == []
    assert machine.cpu_quota(tmp_path) is None
    assert machine.memory_limit(tmp_path) is None
    assert machine.graphics_cards(tmp_path) == set()


@pytest.mark.parametrize("name", ["flags\t\t", "Features\t"])
def test_instruction_sets(tmp_path: Path, name: str) -> None:
    (tmp_path / "proc").mkdir()
    text = f"processor\t: 0\n{name}: fpu avx2 asimd\n\nprocessor\t: 1\n"
    (tmp_path / "proc/cpuinfo").write_text(text)
    assert machine.cpu_flags(tmp_path) == {"fpu", "avx2", "asimd"}


def cpus(root: Path, name: str, values: list[int]) -> None:
    for i, value in enumerate(values):
        path = root / f"sys/devices/system/cpu/cpu{i}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    (root / "sys/devices/system/cpu/cpuidle").mkdir()


def test_big_and_little_cores(tmp_path: Path) -> None:
    cpus(tmp_path, "cpu_capacity", [414, 414, 414, 414, 1024, 1024])
    assert machine.core_classes(tmp_path) == [2, 4]


def test_performance_and_efficiency_cores(tmp_path: Path) -> None:
    cpus(tmp_path, "cpufreq/cpuinfo_max_freq", [5_200_000, 5_200_000, 5_000_000, 3_800_000])
    assert machine.core_classes(tmp_path) == [3, 1]


def test_equal_cores(tmp_path: Path) -> None:
    cpus(tmp_path, "cpufreq/cpuinfo_max_freq", [2_400_000] * 4)
    assert machine.core_classes(tmp_path) == [4]


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


def test_this_machine_has_cores() -> None:
    assert machine.physical_cores() >= 1
