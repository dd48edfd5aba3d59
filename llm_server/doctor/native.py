"""Whether llama.cpp loads here, and whether it was built for this processor and these cards."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llm_server.doctor.build import AVOIDED, SUITED
from llm_server.doctor.finding import (
    Finding,
    buildable_backends,
    install_command,
    pinned_llama,
    rebuild_command,
)
from llm_server.programs import PYTHON, with_source

PROBE = (*PYTHON, "llm_server.doctor.probe")
_TIMEOUT_S = 60
_NO_SANDBOX = "export LLM_SERVER_NO_SANDBOX=true"

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
    """What llama.cpp says of itself: features it was built with, under its own names.

    `gpu`: it finds a card. `backends` for cards it was built with. `hidden`: it finds a card, but
    not in the sandbox of workers.
    """

    version: str
    features: frozenset[str]
    gpu: bool
    backends: frozenset[str] = frozenset()
    hidden: bool = False


def examine(command: Sequence[str] = PROBE, sandbox: bool = True) -> Native | Finding:
    """Ask llama.cpp in a process of its own; the finding is why that did not work.

    `sandbox`: in that of workers, and also outside where it does not load there or finds no card.
    """
    if not sandbox:
        return _ask(command)
    inside = _ask([*command, "sandbox"])
    if isinstance(inside, Native) and (inside.gpu or not inside.backends):
        return inside
    outside = _ask(command)
    if isinstance(outside, Finding):
        return inside
    if isinstance(inside, Finding):
        return replace(inside, detail=f"{inside.detail} (in the sandbox)", fix=_NO_SANDBOX)
    return replace(inside, hidden=outside.gpu)


def _ask(command: Sequence[str]) -> Native | Finding:
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
    backends = frozenset(said["backends"])
    return Native(said["version"], frozenset(features), said["gpu"], backends)


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
        detail = "is not installed"
    elif "libgomp" in last or "libomp" in last:
        detail, fix = f"misses OpenMP's library: {last}", install_command("gomp")
    elif "GLIBC" in last:
        detail = f"was built for a newer system: {last}"
    elif "libcuda" in last or "libcudart" in last or "libcublas" in last:
        detail = f"was built for CUDA, which is not installed: {last}"
        fix = rebuild_command(buildable_backends())
    elif "ELF" in last or "architecture" in last:
        detail = f"was built for another kind of processor: {last}"
    else:
        detail = f"does not load: {last}"
    return Finding("llama.cpp", "fail", detail, fix)


def version_finding(native: Native) -> Finding:
    """Whether it is the version this server was made for."""
    _, _, wanted = pinned_llama().partition("==")
    if wanted and native.version != wanted:
        detail = f"llama-cpp-python {native.version} is installed, {wanted} is needed"
        return Finding("llama.cpp", "fail", detail, rebuild_command())
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


_HIDING = (
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "GGML_VK_VISIBLE_DEVICES",
    "GGML_DISABLE_VULKAN",
)
_DRIVER_TOOLS = {"cuda": "nvidia-smi", "hip": "rocminfo", "vulkan": "vulkaninfo --summary"}


def gpu_finding(native: Native, cards: set[str]) -> Finding:
    """Whether there is a card that llama.cpp cannot use, or the other way round."""
    if native.gpu:
        detail = f"llama.cpp can use it; cards: {', '.join(sorted(cards)) or 'none found'}"
        return Finding("GPU", "ok", detail)
    if native.hidden:
        detail = "llama.cpp finds a card, but not in the sandbox of workers"
        return Finding("GPU", "warn", detail, _NO_SANDBOX)
    for maker, suited in SUITED.items():
        if maker not in cards:
            continue
        detail = f"there is a card by {maker}, and llama.cpp "
        if built := [name for name in suited if name in native.backends]:
            detail += (
                f"was built for it ({built[0]}), but finds none: hidden, or without its driver"
            )
            fix = _driver_fix(built[0])
        else:
            detail += f"was built for {', '.join(sorted(native.backends)) or 'the processor'} alone"
            fix = rebuild_command({suited[0]})
        # Usually the one inside the processor, which has no memory of its own.
        return Finding("GPU", "ok" if maker == "Intel" else "warn", detail, fix)
    return Finding("GPU", "ok", "none; the processor computes")


def _driver_fix(backend: str) -> str:
    if hiding := [name for name in _HIDING if name in os.environ]:
        return f"unset {' '.join(hiding)}"
    restart = "restart the machine if the driver was updated"
    return f"{restart}; else see {_DRIVER_TOOLS.get(backend, 'its manual')}"


def _names(features: set[str] | frozenset[str]) -> str:
    return ", ".join(name for name in FEATURES if name in features) or "nothing special"
