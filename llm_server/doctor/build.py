"""How llama.cpp is compiled for a processor and for graphics cards: CMake's arguments.

The Makefile asks before anything is installed (`python -m llm_server.doctor.build`), so nothing but
the standard library is imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.machinery import PathFinder
from pathlib import Path

from llm_server import machine

_NATIVE = "-DGGML_NATIVE=ON"
_WITHOUT_AMX = "-DGGML_NATIVE=OFF " + " ".join(
    f"-DGGML_{feature}=ON"
    for feature in ("AVX_VNNI", "AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16")
)
"""What else processors with `AVOIDED` have. AVX2 and what is older are on in builds that are not
native."""

AVOIDED = {"amx_int8", "avx512_fp16"}
"""What llama.cpp 0.3.36 uses to its harm where it is built for it, by the kernel's names.

GCC leaves out most of the configuration of AMX's tiles, which ends the process with SIGILL
(ggml-org/llama.cpp#26954). With half-precision AVX-512, attention takes numbers by 128
(GGML_F16_STEP, simd-mappings.h), so heads of 64 or 96 fall to scalar code: twelve rows behind 1,536
tokens take a 0.5B model 3.5 times as long. It also adds up in half precision."""


BACKENDS = {"cuda", "hip", "metal", "musa", "opencl", "sycl", "vulkan"}
"""What llama.cpp computes with on cards: libggml-NAME is the library, GGML_NAME CMake's option."""

SUITED = {
    "NVIDIA": ("cuda", "vulkan"),
    "AMD": ("vulkan", "hip"),
    "Apple": ("metal",),
    "Intel": ("vulkan", "sycl"),
}
"""Backends for cards by their makers, the one to build first."""


def cmake_args(flags: set[str], backends: Iterable[str] = ()) -> str:
    """Arguments for a build that suits a processor with these `flags` (the kernel's names), and
    has these `BACKENDS`."""
    native = _WITHOUT_AMX if flags & AVOIDED else _NATIVE
    return " ".join([native, *(f"-DGGML_{name.upper()}=ON" for name in sorted(backends))])


def completed(given: str, flags: set[str], backends: Iterable[str]) -> str:
    """`given`, behind what it leaves open; what is named twice is to CMake what it is last.

    Who names GGML_NATIVE builds for another processor.
    """
    return given if "GGML_NATIVE" in given else f"{cmake_args(flags, backends)} {given}".rstrip()


def installed_backends(folder: Path | None = None) -> set[str]:
    """Those of the llama.cpp in `folder`, by default the one that is installed, if any.

    By its files, for it may not load, and Vulkan's is registered only where its driver works.
    """
    if folder is None:
        spec = PathFinder.find_spec("llama_cpp")
        if spec is None or not spec.submodule_search_locations:
            return set()
        folder = Path(spec.submodule_search_locations[0], "lib")
    return {name for name in BACKENDS if any(folder.glob(f"*ggml-{name}.*"))}


if __name__ == "__main__":
    given = os.environ.get("CMAKE_ARGS", "")
    print(completed(given, machine.cpu_flags(), installed_backends()))
