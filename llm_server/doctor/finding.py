"""What a check says, and the commands that mend things here: of this system's package manager."""

from __future__ import annotations

import shlex
import shutil
import sys
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


def rebuild_command(cmake_args: str | None = None) -> str:
    """The command that compiles llama.cpp anew, for this machine, and what it needs before."""
    cmake_args = cmake_args or build.cmake_args(machine.cpu_flags())
    command = (
        f"CMAKE_ARGS={shlex.quote(cmake_args)} {shlex.quote(sys.executable)} -m pip install "
        f"--force-reinstall --no-cache-dir --no-deps --no-binary llama-cpp-python {pinned_llama()}"
    )
    return command if has_compiler() else f"{install_command('compiler')} && {command}"


def has_compiler() -> bool:
    """Whether there is a C++ compiler."""
    return any(shutil.which(name) for name in ("c++", "g++", "clang++"))
