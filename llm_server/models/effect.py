"""What settings come to: two ways to load a model that are equal here load it the same.

Plain arithmetic over a header. What only a load can tell, the worker says in `Loaded`.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from llm_server.models.facts import Facts
from llm_server.models.memory import CTX_STEP, embeds
from llm_server.worker.config import ROPE_FIELDS, LoadConfig
from llm_server.worker.messages import Loaded

_USUAL = LoadConfig()
_OF_YARN = {"yarn_ext_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_orig_ctx"}
"""What llama.cpp reads only where YaRN stretches; its factor of attention counts anyway."""
_PLAIN = {"none", "linear"}
"""Ways of scaling that are the same as long as nothing is scaled."""


def effect(facts: Facts, config: LoadConfig) -> LoadConfig:
    """`config`, whose open numbers are settled, as llama.cpp and the worker will have it.

    `flash_attn` and `n_gpu_layers` may still be "auto".
    """
    same = {name: getattr(_USUAL, name) for name in _idle_rope(facts, config)}
    if config.pooling == facts.pooling:
        same["pooling"] = _USUAL.pooling
    if embeds(facts, config):
        # A batch is a text, nothing is guessed, and nothing is kept that could be quantized.
        for name in ("n_batch", "draft_max", "type_k", "type_v", "chat_template"):
            same[name] = getattr(_USUAL, name)
        return msgspec.structs.replace(config, n_ubatch=min(config.n_ubatch, config.n_ctx), **same)
    if not facts.shape.k_elements:
        for name in ("type_k", "type_v", "flash_attn"):
            same[name] = getattr(_USUAL, name)
    n_ctx = min(-(-config.n_ctx // CTX_STEP) * CTX_STEP, facts.max_n_ctx)
    n_batch = min(config.n_batch, n_ctx)
    return msgspec.structs.replace(
        config,
        n_ctx=n_ctx,
        n_batch=n_batch,
        n_ubatch=min(config.n_ubatch, n_batch),
        **same,
    )


def in_force(config: LoadConfig, effect: LoadConfig, loaded: Loaded) -> LoadConfig:
    """`config`, whose effect that is, with sizes as llama.cpp has them and what a load settles."""
    return msgspec.structs.replace(
        config,
        n_ctx=effect.n_ctx,
        n_batch=effect.n_batch,
        n_ubatch=effect.n_ubatch,
        n_gpu_layers=loaded.n_gpu_layers,
        flash_attn=loaded.flash_attn,
    )


def is_in_force(wanted: LoadConfig, effect: LoadConfig, loaded: Loaded) -> bool:
    """Whether `wanted` is what a model that was loaded with `effect` has. Both are effects."""
    layers, flash_attn = wanted.n_gpu_layers, wanted.flash_attn
    if _as_many_layers(layers, effect, loaded):
        layers = effect.n_gpu_layers
    if flash_attn == "auto" and not loaded.max_gpu_layers:
        flash_attn = "on"  # llama.cpp leaves it off only where a card cannot do it.
    if flash_attn == loaded.flash_attn or wanted.flash_attn == effect.flash_attn:
        flash_attn = effect.flash_attn
    return msgspec.structs.replace(wanted, n_gpu_layers=layers, flash_attn=flash_attn) == effect


def _as_many_layers(wanted: int | Literal["auto"], effect: LoadConfig, loaded: Loaded) -> bool:
    """Whether `wanted` puts as many layers on cards as a load with `effect` did."""
    if wanted == effect.n_gpu_layers:
        return True
    most = loaded.max_gpu_layers
    if most is None:
        if effect.n_gpu_layers == 0:
            return False  # The sandbox hid what cards there are; a load that looks settles it.
        most = 0
    if wanted == "auto":
        return not most
    return loaded.n_gpu_layers == (most if wanted < 0 else min(wanted, most))


def _idle_rope(facts: Facts, config: LoadConfig) -> set[str]:
    """The RoPE settings that change nothing: the model has them anyway, or nothing reads them.

    As llama.cpp reads them (llama-context.cpp, the constructor of `llama_context`).
    """
    own = facts.rope
    idle = {name for name in ROPE_FIELDS if _is_own(name, facts, config)}
    told = config.rope_scaling_type
    kind = own["rope_scaling_type"] if told == "auto" else told
    if kind != "yarn" and config.yarn_ext_factor <= 0 and "yarn_ext_factor" not in own:
        idle |= _OF_YARN
    if {kind, own["rope_scaling_type"]} <= _PLAIN and own["rope_freq_scale"] == 1.0:
        if kind == "none" or config.rope_freq_scale in (0.0, 1.0):
            idle |= {"rope_scaling_type", "rope_freq_scale"}
    return idle


def _is_own(name: str, facts: Facts, config: LoadConfig) -> bool:
    """Whether a RoPE setting is what the model has without it."""
    own = facts.rope.get(name)
    told = getattr(config, name)
    if own is None or isinstance(own, str) or isinstance(told, str):
        return bool(told == own)
    return math.isclose(told, own, rel_tol=1e-6)
