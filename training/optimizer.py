"""Muon for the matrices inside the layers, AdamW for the rest.

Muon (https://kellerjordan.github.io/posts/muon/) orthogonalises the momentum; the scale that lets
it share AdamW's learning rate is from https://arxiv.org/abs/2502.16982. Does not know the schedule.
"""

from collections import defaultdict

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_MOMENTUM = 0.95


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration on a stack [n, rows, columns]: singular values towards 1."""
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16()
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result


class Optimizer:
    """Both optimizers behind one `step`."""

    def __init__(self, model: nn.Module, weight_decay: float = 0.1) -> None:
        self._decay = weight_decay
        self._groups: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        rest: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and name.startswith("blk."):
                self._groups[parameter.shape].append(parameter)
            else:
                rest.append(parameter)
        self._momentum = {
            shape: torch.zeros(len(group), *shape, device=group[0].device)
            for shape, group in self._groups.items()
        }
        fused = rest[0].is_cuda
        self._adam = torch.optim.AdamW(rest, betas=(0.9, 0.97), weight_decay=0.0, fused=fused)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update with this learning rate; clears the gradients."""
        for shape, group in self._groups.items():
            gradient = torch.stack(
                [parameter.grad for parameter in group if parameter.grad is not None]
            )
            momentum = self._momentum[shape]
            momentum.lerp_(gradient, 1 - _MOMENTUM)
            update = orthogonalize(gradient.lerp(momentum, _MOMENTUM)).float()
            scale = 0.2 * max(shape) ** 0.5
            tensors: list[Tensor] = [parameter.data for parameter in group]
            torch._foreach_mul_(tensors, 1 - rate * self._decay)
            torch._foreach_add_(tensors, list(update.unbind()), alpha=-rate * scale)
            for parameter in group:
                parameter.grad = None
        for settings in self._adam.param_groups:
            settings["lr"] = rate
        self._adam.step()
        self._adam.zero_grad()
