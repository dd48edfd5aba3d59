"""How llama.cpp is compiled for which processor."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llm_server.doctor import build


def test_most_processors_get_all_that_they_have() -> None:
    assert build.cmake_args({"avx2", "avx512f"}) == "-DGGML_NATIVE=ON"
    assert build.cmake_args(set()) == "-DGGML_NATIVE=ON"


@pytest.mark.parametrize("flag", sorted(build.AVOIDED))
def test_harmful_kernels_are_left_out(flag: str) -> None:
    arguments = build.cmake_args({"avx2", "avx512f", flag}).split()
    assert "-DGGML_NATIVE=OFF" in arguments and "-DGGML_AVX512=ON" in arguments
    assert not any("AMX" in argument or "FP16" in argument for argument in arguments)


def test_the_makefile_can_ask_before_anything_is_installed() -> None:
    # -S leaves out site-packages, -E what the environment adds.
    command = [sys.executable, "-S", "-E", "-m", "llm_server.doctor.build"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("-DGGML_NATIVE=")
