"""Where tokens seem to stand: RoPE as configured, put into a context's parameters."""

from __future__ import annotations

from typing import Any

from llm_server.llama.lib import lib
from llm_server.worker.config import ROPE_FIELDS, LoadConfig, RopeScaling

SCALING: dict[RopeScaling, int] = {
    "auto": lib.LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED,
    "none": lib.LLAMA_ROPE_SCALING_TYPE_NONE,
    "linear": lib.LLAMA_ROPE_SCALING_TYPE_LINEAR,
    "yarn": lib.LLAMA_ROPE_SCALING_TYPE_YARN,
    "longrope": lib.LLAMA_ROPE_SCALING_TYPE_LONGROPE,
}
"""enum llama_rope_scaling_type."""


def configure(params: Any, config: LoadConfig) -> None:
    """Set the fields of `llama_context_params` that `config` does not leave to the model."""
    for name, value in overrides(config).items():
        setattr(params, name, SCALING[value] if name == "rope_scaling_type" else value)


def overrides(config: LoadConfig) -> dict[str, Any]:
    """The fields that are not left to the model."""
    usual = LoadConfig()
    values = {name: getattr(config, name) for name in ROPE_FIELDS}
    return {name: value for name, value in values.items() if value != getattr(usual, name)}
