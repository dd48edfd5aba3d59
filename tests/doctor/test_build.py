"""How llama.cpp is compiled for which processor."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llm_server import machine
from llm_server.doctor import build


def test_most_processors_get_all_that_they_have() -> None:
    assert build.cmake_args({"avx2", "avx512f"}) == "-DGGML_NATIVE=ON"
    assert build.cmake_args(set()) == "-DGGML_NATIVE=ON"


@pytest.mark.parametrize("flag", sorted(build.AVOIDED))
def test_harmful_kernels_are_left_out(flag: str) -> None:
    arguments = build.cmake_args({"avx2", "avx512f", flag}).split()
    assert "-DGGML_NATIVE=OFF" in arguments and "-DGGML_AVX512=ON" in arguments
    assert not any("AMX" in argument or "FP16" in argument for argument in arguments)


def test_what_is_given_is_added_to_what_the_processor_needs() -> None:
    (avoided, *_) = build.AVOIDED
    native = build.cmake_args({avoided})
    assert build.completed("", {avoided}, ()) == native
    assert build.completed("-DGGML_CUDA=ON", {avoided}, ()) == f"{native} -DGGML_CUDA=ON"
    assert build.completed("-DGGML_NATIVE=OFF", {avoided}, {"cuda"}) == "-DGGML_NATIVE=OFF"


def test_a_later_build_keeps_the_cards(tmp_path: Path) -> None:
    assert build.installed_backends(tmp_path) == set()
    for name in ("libggml-base.so", "libggml-cpu.so", "libggml-cuda.so.0", "libggml-vulkan.so"):
        (tmp_path / name).touch()
    backends = build.installed_backends(tmp_path)
    assert backends == {"cuda", "vulkan"}
    assert build.completed("-DGGML_VULKAN=OFF", set(), backends) == (
        "-DGGML_NATIVE=ON -DGGML_CUDA=ON -DGGML_VULKAN=ON -DGGML_VULKAN=OFF"
    )


def test_the_makefile_can_ask_before_anything_is_installed() -> None:
    # -S leaves out site-packages, -E what the environment adds.
    command = [sys.executable, "-S", "-E", "-m", "llm_server.doctor.build"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("-DGGML_NATIVE=")


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("given", ["", "-DGGML_CUDA=ON"])
def test_the_makefile_adds_what_is_given(tmp_path: Path, given: str) -> None:
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    python.write_text(
        '#!/bin/sh\ncase "$*" in\n'
        f'*doctor.build) exec "{sys.executable}" "$@";;\n'
        f'*serve.txt) echo "$CMAKE_ARGS, $*" > "{tmp_path}/said";;\nesac\n'
    )
    python.chmod(0o755)
    root = Path(__file__).parents[2]
    command = ["make", "-C", str(root), f"VENV={tmp_path}", f"{tmp_path}/.serve"]
    subprocess.run(command, env=os.environ | {"CMAKE_ARGS": given}, check=True)
    said = (tmp_path / "said").read_text()
    expected = build.completed(given, machine.cpu_flags(), build.installed_backends())
    assert said.startswith(f"{expected}, -m pip install")
    # A wheel that pip kept of an earlier build has other arguments.
    assert ("--no-cache-dir" in said) == bool(given)
