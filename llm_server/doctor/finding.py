"""What a check says, and the commands that mend things here: of this system's package manager."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Set
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from typing import Literal

from llm_server import machine
from llm_server.doctor import build

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `fix` is a command, or what to do where no command does it.

    `warn` is slower or riskier than it need be, `fail` does not work.
    """

    check: str
    status: Status
    detail: str
    fix: str | None = None


_INSTALLERS = {
    "apt-get": (
        "sudo apt-get install -y",
        {"compiler": "build-essential cmake", "gomp": "libgomp1"},
    ),
    "dnf": ("sudo dnf install -y", {"compiler": "gcc-c++ make cmake", "gomp": "libgomp"}),
    "pacman": ("sudo pacman -S --needed", {"compiler": "base-devel cmake", "gomp": "gcc-libs"}),
    "zypper": ("sudo zypper install -y", {"compiler": "gcc-c++ make cmake", "gomp": "libgomp1"}),
    "apk": ("sudo apk add", {"compiler": "build-base cmake linux-headers", "gomp": "libgomp"}),
}


def install_command(what: Literal["compiler", "gomp"]) -> str:
    """The command that installs a C++ compiler, or OpenMP's runtime library."""
    if sys.platform == "darwin":
        return "xcode-select --install" if what == "compiler" else "brew install libomp"
    for name, (command, packages) in _INSTALLERS.items():
        if shutil.which(name):
            return f"{command} {packages[what]}"
    return f"install {'a C++ compiler and make' if what == 'compiler' else 'libgomp'}"


def pinned_llama() -> str:
    """The requirement for llama-cpp-python that this version of the server has."""
    try:
        needed = requires("llm-server") or []
    except PackageNotFoundError:
        needed = []
    pinned = [n.replace(" ", "") for n in needed if n.startswith("llama-cpp-python")]
    return pinned[0] if pinned else "llama-cpp-python"


_TOOLS = {"cuda": ("nvcc", "NVIDIA's CUDA toolkit"), "vulkan": ("glslc", "the Vulkan SDK")}
"""What compiles for cards, and what it comes with."""


def buildable_backends() -> set[str]:
    """For the cards of this machine, as far as what compiles them is here.

    None for Intel's: usually the one inside the processor, which has no memory of its own.
    """
    suited = {build.SUITED[maker][0] for maker in machine.graphics_cards() - {"Intel"}}
    return {name for name in suited if name not in _TOOLS or shutil.which(_TOOLS[name][0])}


def rebuild_command(backends: Set[str] | None = None) -> str:
    """The command that compiles llama.cpp, for this machine, and what it needs before.

    `backends` for cards are by default those that it has, so that none is lost, else
    `buildable_backends`.
    """
    if backends is None:
        backends = build.installed_backends() or buildable_backends()
    cmake_args = build.cmake_args(machine.cpu_flags(), backends)
    command = (
        f"CMAKE_ARGS={shlex.quote(cmake_args)} {shlex.quote(sys.executable)} -m pip install "
        f"--force-reinstall --no-cache-dir --no-deps --no-binary llama-cpp-python {pinned_llama()}"
    )
    if not has_compiler():
        command = f"{install_command('compiler')} && {command}"
    for tool, kit in (_TOOLS[name] for name in sorted(backends & _TOOLS.keys())):
        if not shutil.which(tool):
            command = f"with {kit} installed and {tool} in PATH: {command}"
    return command


def has_compiler() -> bool:
    """Whether there is a C++ compiler."""
    return any(shutil.which(name) for name in ("c++", "g++", "clang++"))
