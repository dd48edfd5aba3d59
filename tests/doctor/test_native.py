"""What is said of a llama.cpp that loads, and of one that does not: each by a real process."""

from __future__ import annotations

import sys

import pytest

from llm_server.doctor import finding, native
from llm_server.doctor.finding import Finding
from llm_server.doctor.native import FEATURES, Native

X86 = {"pni", "ssse3", "avx", "avx2", "f16c", "fma", "bmi2"}
X86_BUILT = frozenset({"SSE3", "SSSE3", "AVX", "AVX2", "F16C", "FMA", "BMI2"})


def built(features: frozenset[str], gpu: bool = False) -> Native:
    return Native("0.3.36", features, gpu)


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
        ("llama-cpp-python is not installed", "not installed", "install llama-cpp-python"),
        ("something new", "does not load: OSError: something new", "--no-binary"),
    ],
)
def test_known_faults_have_their_command(message: str, said: str, fix: str) -> None:
    found = died(f"raise OSError({message!r})")
    assert said in found.detail
    assert found.fix is not None and fix in found.fix


def test_without_a_compiler_that_is_installed_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert " && CMAKE_ARGS=" in finding.rebuild_command()


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


def test_another_version_than_the_pinned_one_is_a_fault() -> None:
    found = native.version_finding(Native("0.2.0", X86_BUILT, False))
    assert found.status == "fail" and "0.2.0" in found.detail
