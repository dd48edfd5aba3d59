"""The demo model in PyTorch: the Qwen3 architecture, small, with tied embeddings.

Names of weights are those of the GGUF file. Knows packed rows; does not know training or files.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

Mask: TypeAlias = Tensor | BlockMask
Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor, Mask], Tensor]

QUERY_BLOCK = 128
"""Queries of `blockwise_attention` that are computed together: the fastest of 128, 256 and 512."""


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

    def states(
        self, tokens: Tensor, positions: Tensor, attend: Attend, mask: Mask
    ) -> Iterator[Tensor]:
        """States behind each layer in turn, [rows, length, width]."""
        cos, sin = rotations(self.config, tokens.device)
        cos, sin = cos[positions][:, None], sin[positions][:, None]
        x: Tensor = self.token_embd(tokens)
        for block in self.blk:
            x = block(x, cos, sin, attend, mask)
            yield x

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits, [rows, length, vocab], by dense attention."""
        *_, last = self.states(tokens, positions, dense_attention, dense_mask(positions))
        return F.linear(self.output_norm(last), self.token_embd.weight)


def dense_mask(positions: Tensor) -> Tensor:
    """What a token may see: itself and what came before in its conversation."""
    document = (positions == 0).cumsum(-1)
    same = document[:, :, None] == document[:, None, :]
    return (same & torch.ones_like(same).tril())[:, None]


def dense_attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """Attention by a full mask: for processors and tests."""
    assert isinstance(mask, Tensor)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


class BlockwiseAttention(torch.autograd.Function):
    """Attention by plain matrix products, a block of queries at a time, which leaves out the keys
    behind the block. What a block gave to each key is kept for the way back."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """q [rows, heads, length, size]; k and v with fewer heads; mask as `dense_mask`."""
        rows, heads, length, size = q.shape
        groups = k.shape[1]
        ctx.shape = (rows, groups, heads // groups, min(length, QUERY_BLOCK), length, size)
        ctx.scale = size**-0.5
        keys, values = (k * ctx.scale).flatten(0, 1), v.flatten(0, 1)
        bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -math.inf)
        attended = q.new_empty(rows, length, heads, size)
        shares, queries = [], []
        for begin, end in _blocks(ctx.shape):
            query = _stacked(q[:, :, begin:end], ctx.shape)
            scores = (query @ keys[:, :end].mT).view(rows, heads, end - begin, end)
            share = (scores + bias[:, :, begin:end, :end]).softmax(-1).view(*query.shape[:2], end)
            attended[:, begin:end] = _spread(share @ values[:, :end], ctx.shape).transpose(1, 2)
            shares.append(share)
            queries.append(query)
        ctx.save_for_backward(keys, values, *shares, *queries)
        return attended.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """By the chain rule of softmax."""
        rows, groups, per_group, block, length, size = ctx.shape
        keys, values, *saved = ctx.saved_tensors
        blocks = _blocks(ctx.shape)
        of_q = keys.new_empty(rows, groups * per_group, length, size)
        of_k, of_v = (torch.zeros(keys.shape, dtype=torch.float32) for _ in range(2))
        parts = zip(blocks, saved[: len(blocks)], saved[len(blocks) :], strict=True)
        for (begin, end), share, query in parts:
            wanted = _stacked(gradients[0][:, :, begin:end], ctx.shape)
            of_v[:, :end] += share.mT @ wanted
            of_share = wanted @ values[:, :end].mT
            of_scores = torch._softmax_backward_data(of_share, share, -1, share.dtype)
            of_q[:, :, begin:end] = _spread(of_scores @ keys[:, :end], ctx.shape)
            of_k[:, :end] += of_scores.mT @ query
        shape = (rows, groups, length, size)
        of_k *= ctx.scale
        return of_q, of_k.to(keys.dtype).view(shape), of_v.to(keys.dtype).view(shape), None


_Shape: TypeAlias = tuple[int, int, int, int, int, int]
"""rows, groups of heads, heads in a group, queries in a block, length, head_size."""


def _blocks(shape: _Shape) -> list[tuple[int, int]]:
    block, length = shape[3:5]
    return [(begin, min(begin + block, length)) for begin in range(0, length, block)]


def _stacked(x: Tensor, shape: _Shape) -> Tensor:
    """[rows, heads, block, size] with the heads that share keys one below the other."""
    rows, groups, _, _, _, size = shape
    return x.reshape(rows * groups, -1, size)


def _spread(x: Tensor, shape: _Shape) -> Tensor:
    """The reverse of `_stacked`."""
    rows, groups, per_group, _, _, size = shape
    return x.view(rows, groups * per_group, -1, size)


@torch.compiler.disable
def blockwise_attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """The same as `dense_attention`: on a processor two to four times as fast, back included."""
    assert isinstance(mask, Tensor)
    attended = BlockwiseAttention.apply(q, k, v, mask)
    assert isinstance(attended, Tensor)
    return attended
