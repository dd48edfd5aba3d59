"""The sampling that a model's file recommends, in `general.sampling.*`.

Conversion takes it from the publisher's `generation_config.json` (llama.cpp's
gguf-py/gguf/metadata.py), and llama.cpp's own programs go by it, too.
"""

from __future__ import annotations

from collections.abc import Mapping

from llm_server.gguf.header import Value

_INT32 = 2**31 - 1
_FIELDS = {
    "temp": ("temperature", 0, 2),
    "top_k": ("top_k", -1, _INT32),
    "top_p": ("top_p", 1e-6, 1),
    "min_p": ("min_p", 0, 1),
    "xtc_probability": ("xtc_probability", 0, 1),
    "xtc_threshold": ("xtc_threshold", 0, 1),
    "penalty_last_n": ("repeat_last_n", -1, _INT32),
    "penalty_repeat": ("repeat_penalty", 1e-6, 10),
    "mirostat": ("mirostat", 0, 2),
    "mirostat_tau": ("mirostat_tau", 1e-6, 100),
    "mirostat_eta": ("mirostat_eta", 1e-6, 1),
}
"""The file's names, those of `Sampling`, and between which values requests may set them."""
_WHOLE = {"top_k", "repeat_last_n", "mirostat"}


def recommended_sampling(metadata: Mapping[str, Value]) -> dict[str, float]:
    """Fields of `Sampling` by what the file says, without what cannot be meant."""
    found: dict[str, float] = {}
    for key, (name, least, most) in _FIELDS.items():
        value = metadata.get(f"general.sampling.{key}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if least <= value <= most:
            found[name] = int(value) if name in _WHOLE else round(value, 6)  # From 32 bits.
    return found
