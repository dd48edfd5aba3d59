"""llama.cpp's log lines, handed to `logging` under the name `llama`."""

from __future__ import annotations

import ctypes
import logging
import re
from collections import Counter

from llm_server.llama.lib import lib

logger = logging.getLogger("llama")

# enum ggml_log_level; llama.cpp's INFO is a page a load, which belongs to our DEBUG.
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}
_GGML_CONT = 5

_BUFFER = re.compile(r"\s(\S+)\s+(model|KV|RS|compute|output) buffer size = +([\d.]+) MiB")
_FLASH_ATTENTION = re.compile(r"(?:Flash Attention|flash_attn +=) enabled$")
"""Found to be possible, or taken before a context was made, as quantized values need it."""
_REFUSAL = re.compile(
    r"(?:error loading model|failed to apply lora adapter"
    r"|llama_init_from_model(?:: failed to initialize the context)?): (.+)"
)


class _Lines:
    """Joins the pieces that llama.cpp prints into whole lines."""

    def __init__(self) -> None:
        self.level = logging.DEBUG
        self.pending = ""
        self.buffers: Counter[tuple[str, str]] = Counter()
        self.flash_attention = False
        self.refusal = ""

    def write(self, level: int, text: str) -> None:
        if level != _GGML_CONT:
            self.level = _LEVELS.get(level, logging.DEBUG)
        *lines, self.pending = (self.pending + text).split("\n")
        for line in lines:
            if "buffer size" in line and (found := _BUFFER.search(line)):
                where, kind, mib = found.groups()
                if kind == "compute":
                    self.buffers[where, kind] = 0  # Made anew when there are adapters.
                self.buffers[where, kind] += int(float(mib) * (1 << 20))
            if _FLASH_ATTENTION.search(line):
                self.flash_attention = True
            if self.level == logging.ERROR and (refused := _REFUSAL.search(line)):
                self.refusal = refused[1]
            if line.strip(" ."):
                logger.log(self.level, "%s", line)


_lines = _Lines()


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _callback(level: int, text: bytes, _user_data: object) -> None:
    _lines.write(level, text.decode("utf-8", "replace"))


def buffers() -> Counter[tuple[str, str]]:
    """Bytes of each buffer that llama.cpp has said to make, by (where it is, what is in it).

    Its C API has no other way to ask.
    """
    return _lines.buffers


def forget_context() -> None:
    """Forget the buffers of a context that came to nothing."""
    for where, kind in list(_lines.buffers):
        if kind != "model":
            del _lines.buffers[where, kind]


def flash_attention() -> bool:
    """Whether llama.cpp has said that a context computes so, where that was left to it."""
    return _lines.flash_attention


def refusal() -> str:
    """Why llama.cpp last refused a file or settings, in its own words; "" if it has not said."""
    return _lines.refusal


def install() -> None:
    """Route llama.cpp's log into `logging` for the rest of the process."""
    lib.llama_log_set(_callback, ctypes.c_void_p(0))
