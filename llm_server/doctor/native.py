"""Whether llama.cpp loads here, and whether it was built for this processor and these cards."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llm_server.doctor.build import AVOIDED
from llm_server.doctor.finding import (
    Finding,
    has_compiler,
    install_command,
    pinned_llama,
    rebuild_command,
)
from llm_server.programs import PYTHON, with_source

PROBE = (*PYTHON, "llm_server.doctor.probe")
_TIMEOUT_S = 60

FEATURES = {
    "SSE3": "pni",
    "SSSE3": "ssse3",
    "AVX": "avx",
    "AVX2": "avx2",
    "F16C": "f16c",
    "FMA": "fma",
    "BMI2": "bmi2",
    "AVX_VNNI": "avx_vnni",
    "AVX512": "avx512f",
    "AVX512_VBMI": "avx512vbmi",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8",
    "NEON": "asimd",
    "FP16_VA": "asimdhp",
    "DOTPROD": "asimddp",
    "MATMUL_INT8": "i8mm",
    "SVE": "sve",
    "SME": "sme",
}
"""llama_print_system_info's names (ggml-cpu.cpp), and the kernel's for the same."""
ESSENTIAL = {"AVX", "AVX2", "F16C", "FMA", "NEON", "DOTPROD"}
"""Without these quantized models are several times slower; the others are worth some per cent."""


@dataclass(frozen=True, slots=True)
class Native:
    """What llama.cpp says of itself: features it was built with, under its own names."""

    version: str
    features: frozenset[str]
    gpu: bool


def examine(command: Sequence[str] = PROBE) -> Native | Finding:
    """Ask llama.cpp in a process of its own; the finding is why that did not work."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            env=with_source(os.environ),
        )
    except subprocess.TimeoutExpired:
        return Finding("llama.cpp", "fail", "does not load in a minute", rebuild_command())
    if done.returncode:
        return broken(done.returncode, done.stderr)
    said = json.loads(done.stdout.splitlines()[-1])
    features = re.findall(r"(\w+) = 1", said["system_info"])
    return Native(said["version"], frozenset(features), said["gpu"])


def broken(returncode: int, stderr: str) -> Finding:
    """Why llama.cpp did not load, by how its process ended and the last line it wrote."""
    lines = stderr.strip().splitlines()
    last = lines[-1].strip() if lines else "it said nothing"
    fix = rebuild_command()
    if returncode == -signal.SIGILL:
        detail = "was built for a processor with more instructions than this one (SIGILL)"
    elif returncode < 0:
        detail = f"crashes when it is loaded ({signal.Signals(-returncode).name})"
    elif "llama-cpp-python is not installed" in stderr or "PackageNotFoundError" in stderr:
        detail, fix = "is not installed", _plain_install()
    elif "libgomp" in last or "libomp" in last:
        detail, fix = f"misses OpenMP's library: {last}", install_command("gomp")
    elif "GLIBC" in last:
        detail = f"was built for a newer system: {last}"
    elif "libcuda" in last or "libcudart" in last or "libcublas" in last:
        detail = f"was built for CUDA, which is not installed: {last}"
    elif "ELF" in last or "architecture" in last:
        detail = f"was built for another kind of processor: {last}"
    else:
        detail = f"does not load: {last}"
    return Finding("llama.cpp", "fail", detail, fix)


def _plain_install() -> str:
    build = f"{sys.executable} -m pip install {pinned_llama()}"
    return build if has_compiler() else f"{install_command('compiler')} && {build}"


def version_finding(native: Native) -> Finding:
    """Whether it is the version this server was made for."""
    _, _, wanted = pinned_llama().partition("==")
    if wanted and native.version != wanted:
        detail = f"llama-cpp-python {native.version} is installed, {wanted} is needed"
        return Finding("llama.cpp", "fail", detail, _plain_install())
    return Finding("llama.cpp", "ok", f"loads (llama-cpp-python {native.version})")


def feature_finding(native: Native, flags: set[str]) -> Finding:
    """Whether it uses what the processor has; `flags` are the kernel's names, empty if unknown."""
    built = native.features & FEATURES.keys()
    if not flags:
        detail = f"this system does not say what it has; built with {_names(built)}"
        return Finding("processor", "ok", detail)
    has = {name for name, flag in FEATURES.items() if flag in flags}
    if built - has:
        detail = f"llama.cpp uses {_names(built - has)}, which this processor does not have"
        return Finding("processor", "fail", detail, rebuild_command())
    if avoided := {name for name in built if FEATURES[name] in AVOIDED}:
        detail = f"llama.cpp was built with {_names(avoided)}, which makes it slower than without"
        return Finding("processor", "warn", detail, rebuild_command())
    unused = has - built
    if unused & ESSENTIAL:
        detail = f"llama.cpp was built without {_names(unused)}: several times slower than it can"
        return Finding("processor", "warn", detail, rebuild_command())
    # AVX512 is off in generic builds on purpose, and worth little where it lowers the clock.
    detail = f"llama.cpp uses {_names(built)}"
    unused = {name for name in unused if FEATURES[name] not in AVOIDED}
    return Finding("processor", "ok", detail + (f"; not {_names(unused)}" if unused else ""))


_GPU_BUILDS: dict[str, tuple[Literal["ok", "warn"], str]] = {
    "NVIDIA": ("warn", "-DGGML_CUDA=ON"),
    "AMD": ("warn", "-DGGML_VULKAN=ON"),
    "Apple": ("warn", "-DGGML_METAL=ON"),
    # Usually the one inside the processor, which has no memory of its own.
    "Intel": ("ok", "-DGGML_VULKAN=ON"),
}


def gpu_finding(native: Native, cards: set[str]) -> Finding:
    """Whether there is a card that llama.cpp cannot use, or the other way round."""
    if native.gpu:
        detail = f"llama.cpp can use it; cards: {', '.join(sorted(cards)) or 'none found'}"
        return Finding("GPU", "ok", detail)
    for maker, (status, arguments) in _GPU_BUILDS.items():
        if maker in cards:
            detail = f"there is a card by {maker}, and llama.cpp was built for the processor alone"
            return Finding("GPU", status, detail, rebuild_command(arguments))
    return Finding("GPU", "ok", "none; the processor computes")


def _names(features: set[str] | frozenset[str]) -> str:
    return ", ".join(name for name in FEATURES if name in features) or "nothing special"
