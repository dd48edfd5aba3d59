"""Loads llama.cpp's C API and nothing else of llama-cpp-python.

`import llama_cpp` would run the package's own `__init__`, which imports its high-level classes and
diskcache (unpickles files, CVE-2025-69872). The ctypes module alone is all we use.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any


def version() -> str:
    """Version of llama-cpp-python, and with it of llama.cpp and of its state format."""
    from importlib import metadata  # Takes longer to import than a worker has until it loads.

    return metadata.version("llama-cpp-python")


def _load() -> Any:
    if "llama_cpp" not in sys.modules:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError("llama-cpp-python is not installed")
        package = ModuleType("llama_cpp")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


lib: Any = _load()
"""The ctypes functions and structures of `llama.h`, named as there."""


_held = ctypes.PyDLL(lib._lib._name, handle=lib._lib._handle)


def held(name: str) -> Any:
    """A function of `lib` that keeps the interpreter's lock while it runs.

    For those that are called by the hundred thousand and take less time than giving the lock away
    and waiting for it again. Addresses of buffers are passed as numbers.
    """
    given = getattr(lib, name)
    function = getattr(_held, name)
    function.restype = given.restype
    function.argtypes = [
        ctypes.c_void_p if kind is ctypes.c_char_p else kind for kind in given.argtypes
    ]
    return function
