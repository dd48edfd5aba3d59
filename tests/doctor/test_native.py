"""What is said of a llama.cpp that loads, and of one that does not: each by a real process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llm_server import machine
from llm_server.doctor import build, finding, native
from llm_server.doctor.finding import Finding
from llm_server.doctor.native import FEATURES, Native

X86 = {"pni", "ssse3", "avx", "avx2", "f16c", "fma", "bmi2"}
X86_BUILT = frozenset({"SSE3", "SSSE3", "AVX", "AVX2", "F16C", "FMA", "BMI2"})


def built(features: frozenset[str], gpu: bool = False, backends: tuple[str, ...] = ()) -> Native:
    return Native("0.3.36", features, gpu, frozenset(backends))


def test_the_installed_one_loads() -> None:
    said = native.examine()
    assert isinstance(said, Native)
    assert said.features & FEATURES.keys()
    assert native.version_finding(said).status == "ok"


def died(script: str) -> Finding:
    said = native.examine([sys.executable, "-c", script])
    assert isinstance(said, Finding)
    assert said.status == "fail" and said.fix is not None
    return said


@pytest.mark.skipif(sys.platform == "win32", reason="processes end otherwise there")
@pytest.mark.parametrize(
    ("name", "said"), [("SIGILL", "more instructions"), ("SIGSEGV", "SIGSEGV")]
)
def test_a_crash_is_a_finding(name: str, said: str) -> None:
    found = died(f"import os, signal; os.kill(os.getpid(), signal.{name})")
    assert said in found.detail and found.fix and "--no-binary" in found.fix


@pytest.mark.parametrize(
    ("message", "said", "fix"),
    [
        ("libgomp.so.1: cannot open shared object file", "OpenMP", "gomp"),
        ("/lib/libc.so.6: version `GLIBC_2.38' not found", "newer system", "--no-binary"),
        ("libcudart.so.12: cannot open shared object file", "CUDA", "--no-binary"),
        ("libllama.so: invalid ELF header", "another kind of processor", "--no-binary"),
        ("llama-cpp-python is not installed", "not installed", "CMAKE_ARGS="),
        ("something new", "does not load: OSError: something new", "--no-binary"),
    ],
)
def test_known_faults_have_their_command(message: str, said: str, fix: str) -> None:
    found = died(f"raise OSError({message!r})")
    assert said in found.detail
    assert found.fix is not None and fix in found.fix


def test_without_a_compiler_that_is_installed_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert " && CMAKE_ARGS=" in finding.rebuild_command()


def test_what_compiles_for_cards_is_needed_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("c++", "nvcc"):
        (tmp_path / name).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert finding.rebuild_command({"cuda"}).startswith("CMAKE_ARGS=")
    (tmp_path / "nvcc").unlink()
    command = finding.rebuild_command({"cuda"})
    assert command.startswith("with NVIDIA's CUDA toolkit installed and nvcc in PATH: CMAKE_ARGS=")


def test_a_rebuild_for_cards_suits_the_processor_too() -> None:
    native_args = build.cmake_args(machine.cpu_flags())
    assert f"{native_args} -DGGML_CUDA=ON" in finding.rebuild_command({"cuda"})


def test_a_build_for_this_processor_is_fine() -> None:
    found = native.feature_finding(built(X86_BUILT), X86 | {"sse4_1"})
    assert (found.status, found.fix) == ("ok", None)


def test_a_build_without_avx2_is_slow() -> None:
    found = native.feature_finding(built(X86_BUILT - {"AVX2", "FMA"}), X86)
    assert found.status == "warn" and "AVX2, FMA" in found.detail
    assert found.fix is not None and "GGML_NATIVE=" in found.fix


def test_a_build_for_another_processor_will_crash() -> None:
    found = native.feature_finding(built(X86_BUILT | {"AVX512"}), X86)
    assert found.status == "fail" and "AVX512" in found.detail


def test_a_build_with_harmful_kernels_is_slower_than_one_without() -> None:
    flags = X86 | {"avx512f", "amx_int8"}
    found = native.feature_finding(built(X86_BUILT | {"AVX512", "AMX_INT8"}), flags)
    assert found.status == "warn" and "AMX_INT8" in found.detail and found.fix is not None
    found = native.feature_finding(built(X86_BUILT | {"AVX512"}), flags)
    assert (found.status, found.fix) == ("ok", None) and "AMX" not in found.detail


def test_wider_vectors_left_out_are_only_told() -> None:
    found = native.feature_finding(built(X86_BUILT), X86 | {"avx512f"})
    assert found.status == "ok" and "not AVX512" in found.detail


def test_a_system_that_says_nothing_accuses_nobody() -> None:
    assert native.feature_finding(built(X86_BUILT), set()).status == "ok"


@pytest.mark.parametrize(
    ("gpu", "cards", "status", "fix"),
    [
        (False, set(), "ok", None),
        (False, {"NVIDIA"}, "warn", "GGML_CUDA=ON"),
        (False, {"NVIDIA", "Intel"}, "warn", "GGML_CUDA=ON"),
        (False, {"AMD"}, "warn", "GGML_VULKAN=ON"),
        (False, {"Intel"}, "ok", "GGML_VULKAN=ON"),
        (True, {"NVIDIA"}, "ok", None),
    ],
)
def test_cards(gpu: bool, cards: set[str], status: str, fix: str | None) -> None:
    found = native.gpu_finding(built(X86_BUILT, gpu), cards)
    assert found.status == status
    assert found.fix is None if fix is None else found.fix is not None and fix in found.fix


@pytest.mark.parametrize(
    ("backend", "cards", "fix"),
    [
        ("cuda", {"NVIDIA", "Intel"}, "nvidia-smi"),
        ("vulkan", {"NVIDIA"}, "vulkaninfo"),
        ("hip", {"AMD"}, "rocminfo"),
        ("cuda", {"AMD"}, "GGML_VULKAN=ON"),
    ],
)
def test_a_build_for_cards_that_finds_none_is_not_built_again(
    monkeypatch: pytest.MonkeyPatch, backend: str, cards: set[str], fix: str
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    found = native.gpu_finding(built(X86_BUILT, backends=(backend,)), cards)
    assert found.status == "warn" and backend in found.detail
    assert found.fix is not None and fix in found.fix


def test_cards_that_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = native.gpu_finding(built(X86_BUILT, backends=("cuda",)), {"NVIDIA"})
    assert (found.status, found.fix) == ("warn", "unset CUDA_VISIBLE_DEVICES")


PROBE_OF_A_CARD = """
import json, sys
gpu = "sandbox" not in sys.argv
print(json.dumps({"version": "1", "system_info": "", "gpu": gpu, "backends": ["cuda"]}))
"""


def test_a_card_that_the_sandbox_hides() -> None:
    said = native.examine([sys.executable, "-c", PROBE_OF_A_CARD])
    assert isinstance(said, Native) and said.hidden and not said.gpu
    found = native.gpu_finding(said, {"NVIDIA"})
    assert (found.status, found.fix) == ("warn", "export LLM_SERVER_NO_SANDBOX=true")
    said = native.examine([sys.executable, "-c", PROBE_OF_A_CARD], sandbox=False)
    assert isinstance(said, Native) and said.gpu


def test_a_build_that_the_sandbox_keeps_from_loading() -> None:
    script = f"import sys\nif 'sandbox' in sys.argv: sys.exit('libx.so: denied'){PROBE_OF_A_CARD}"
    found = died(script)
    assert found.detail == "does not load: libx.so: denied (in the sandbox)"
    assert found.fix == "export LLM_SERVER_NO_SANDBOX=true"


def test_another_version_than_the_pinned_one_is_a_fault() -> None:
    found = native.version_finding(Native("0.2.0", X86_BUILT, False))
    assert found.status == "fail" and "0.2.0" in found.detail
