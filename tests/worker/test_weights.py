"""Why a model file is refused, from llama.cpp's words. What it really refuses: `test_main.py`."""

from __future__ import annotations

import pytest

from llm_server.worker.weights import refused


@pytest.mark.parametrize(
    ("told", "n_gpu_layers", "code", "param"),
    [
        ("unable to allocate CUDA0 buffer", -1, "insufficient_memory", "n_gpu_layers"),
        ("vk::Device::allocateMemory: ErrorOutOfDeviceMemory", 7, "insufficient_memory", "n_gpu"),
        ("std::bad_alloc", 0, "insufficient_memory", "model"),
        ("mmap failed: Cannot allocate memory", 0, "insufficient_memory", "model"),
        ("unknown model architecture: 'x'", -1, "model_load_failed", "model"),
        ("failed to load model from memory-alloc-7b.gguf", -1, "model_load_failed", "model"),
    ],
)
def test_want_of_memory_is_told_from_a_file_that_is_wrong(
    told: str, n_gpu_layers: int, code: str, param: str
) -> None:
    info = refused(f"llama.cpp cannot load this model: {told}", n_gpu_layers).info
    assert info.code == code and info.param is not None and param in info.param
    assert told in info.message
    assert ('"auto"' in info.message) == (code == "insufficient_memory" and n_gpu_layers != 0)
