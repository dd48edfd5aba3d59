"""What a replica asks of a node, from what its model is estimated to take: plain arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from llm_server.config_file import ReplicaFields
from llm_server.models.plan import Plan

GPU_STEPS = 20
"""Shares of a card are rounded up to a twentieth, so that estimates leave a little."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Ray's resources for one replica. `memory` in bytes; `num_gpus` may be a share of one."""

    num_cpus: float
    num_gpus: float
    memory: int
    resources: Mapping[str, float] = field(default_factory=dict)

    @property
    def n_threads(self) -> int:
        """Threads the worker computes with."""
        return max(1, math.floor(self.num_cpus))


def placement(plan: Plan, told: ReplicaFields, *, cores: int, gpu_memory: int | None) -> Placement:
    """Where a replica fits: as told, else by the plan.

    A model on the processor takes the threads it was told, else all of `cores`, because llama.cpp
    is fastest with one thread on each. Of a card with `gpu_memory` bytes it takes the share of its
    layers and of what computing needs there; then one processor is enough. Without `gpu_memory`
    nothing is known of cards, and none is asked for.
    """
    on_gpu = _on_gpu(plan) if gpu_memory else 0
    num_gpus = told.num_gpus
    if num_gpus is None:
        num_gpus = _share(on_gpu, gpu_memory) if gpu_memory and on_gpu else 0.0
    num_cpus = told.num_cpus
    if num_cpus is None:
        num_cpus = plan.asked.n_threads or (1 if num_gpus else cores)
    if told.memory is not None:
        memory = int(told.memory)
    else:
        memory = plan.memory.total - (on_gpu if num_gpus else 0)
    return Placement(num_cpus, num_gpus, memory, told.resources)


def _on_gpu(plan: Plan) -> int:
    """Bytes on a graphics card if there is one."""
    layers = plan.config.n_gpu_layers
    if layers == 0:
        return 0
    sizes = plan.layer_bytes
    # The output layer is the last one, and the first to move.
    chosen = sizes if not isinstance(layers, int) or layers < 0 else sizes[-layers:]
    return sum(chosen) + plan.memory.compute


def _share(needed: int, card: int) -> float:
    """Cards for so many bytes: whole ones, or a part of one."""
    if needed > card:
        return float(math.ceil(needed / card))
    return math.ceil(needed * GPU_STEPS / card) / GPU_STEPS
