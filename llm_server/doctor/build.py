"""How llama.cpp is compiled for a processor: CMake's arguments.

The Makefile asks before anything is installed (`python -m llm_server.doctor.build`), so nothing but
the standard library is imported.
"""

from __future__ import annotations

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


def cmake_args(flags: set[str]) -> str:
    """Arguments for a build that suits a processor with these `flags` (the kernel's names)."""
    return _WITHOUT_AMX if flags & AVOIDED else _NATIVE


if __name__ == "__main__":
    print(cmake_args(machine.cpu_flags()))
