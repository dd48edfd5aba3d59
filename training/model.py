"""The demo model in PyTorch: the Qwen3 architecture, small, with tied embeddings.

Names of weights are those of the GGUF file. Knows packed rows; does not know training or files.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

Mask: TypeAlias = Tensor | BlockMask
Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor, Mask], Tensor]


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes; the defaults are the model that ships, about 10.4 million weights."""

    vocab: int = 3072
    layers: int = 12
    width: int = 256
    heads: int = 6
    kv_heads: int = 2
    head_size: int = 64
    hidden: int = 704
    context: int = 4096
    rope_base: float = 50_000.0
    epsilon: float = 1e-6


@cache
def rotations(config: Config, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine for every position, each [context, head_size / 2]."""
    half = torch.arange(0, config.head_size, 2, device=device, dtype=torch.float32)
    speed = config.rope_base ** (-half / config.head_size)
    angle = torch.arange(config.context, device=device, dtype=torch.float32)[:, None] * speed
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [rows, heads, length, head_size] in the two-halves form."""
    low, high = x.float().chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).type_as(x)


class Block(nn.Module):
    """One transformer layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width, size = config.width, config.head_size
        self.attn_norm = nn.RMSNorm(width, config.epsilon)
        self.attn_q = nn.Linear(width, config.heads * size, bias=False)
        self.attn_k = nn.Linear(width, config.kv_heads * size, bias=False)
        self.attn_v = nn.Linear(width, config.kv_heads * size, bias=False)
        self.attn_q_norm = nn.RMSNorm(size, config.epsilon)
        self.attn_k_norm = nn.RMSNorm(size, config.epsilon)
        self.attn_output = nn.Linear(config.heads * size, width, bias=False)
        self.ffn_norm = nn.RMSNorm(width, config.epsilon)
        self.ffn_gate = nn.Linear(width, config.hidden, bias=False)
        self.ffn_up = nn.Linear(width, config.hidden, bias=False)
        self.ffn_down = nn.Linear(config.hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, mask: Mask) -> Tensor:
        """x [rows, length, width]; `attend` maps q, k, v and the mask to the attended values."""
        h = self.attn_norm(x)
        q = self.attn_q_norm(self._heads(self.attn_q(h)).float())
        k = self.attn_k_norm(self._heads(self.attn_k(h)).float())
        v = self._heads(self.attn_v(h))
        attended = attend(rotate(q, cos, sin).type_as(v), rotate(k, cos, sin).type_as(v), v, mask)
        x = x + self.attn_output(attended.transpose(1, 2).flatten(2))
        h = self.ffn_norm(x)
        gated: Tensor = self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))
        return x + gated

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.config.head_size).transpose(1, 2)


class DemoModel(nn.Module):
    """Token ids to logits."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.token_embd = nn.Embedding(config.vocab, config.width)
        self.blk = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.output_norm = nn.RMSNorm(config.width, config.epsilon)
        self.apply(self._init)

    def _init(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    def hidden(self, tokens: Tensor, positions: Tensor, attend: Attend, mask: Mask) -> Tensor:
        """States before the output matrix, [rows, length, width]."""
        cos, sin = rotations(self.config, tokens.device)
        cos, sin = cos[positions][:, None], sin[positions][:, None]
        x: Tensor = self.token_embd(tokens)
        for block in self.blk:
            x = block(x, cos, sin, attend, mask)
        normed: Tensor = self.output_norm(x)
        return normed

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits, [rows, length, vocab], by dense attention."""
        hidden = self.hidden(tokens, positions, dense_attention, dense_mask(positions))
        return F.linear(hidden, self.token_embd.weight)


def dense_mask(positions: Tensor) -> Tensor:
    """What a token may see: itself and what came before in its conversation."""
    document = (positions == 0).cumsum(-1)
    same = document[:, :, None] == document[:, None, :]
    return (same & torch.ones_like(same).tril())[:, None]


def dense_attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """Attention by a full mask: for processors and tests."""
    assert isinstance(mask, Tensor)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def short_attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """The same by plain matrix products: faster on a processor for rows of about 128 tokens."""
    assert isinstance(mask, Tensor)
    rows, heads, length, size = q.shape
    groups = k.shape[1]
    stacked = q.reshape(rows, groups, heads // groups * length, size)
    scores = (stacked @ k.mT).view(rows, groups, heads // groups, length, length).float()
    scores = (scores * size**-0.5).masked_fill(~mask[:, :, None], -math.inf)
    shares = scores.softmax(-1).to(v.dtype).view(rows, groups, heads // groups * length, length)
    attended: Tensor = (shares @ v).view(rows, heads, length, size)
    return attended
