"""The trainer learns, and starts again from what was shipped; skipped where PyTorch is missing."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from llm_server.demo import demo_model_path
from tests.training.test_lessons import lessons
from tests.training.test_meanings import archive
from training.batches import Mix, mixed
from training.meanings import Meanings

ARGS = argparse.Namespace(device="cpu", compile=False, seed=1)

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("length", [10, 300])
def test_attention_by_blocks_is_that_of_the_kernel_and_so_are_its_gradients(length: int) -> None:
    from training.model import blockwise_attention, dense_attention, dense_mask

    torch.manual_seed(0)
    shared = [torch.randn(2, heads, length, 8) for heads in (6, 2, 2)]
    towards = torch.randn(2, 6, length, 8)
    mask = dense_mask(torch.arange(length).repeat(2, 1) % torch.tensor([[length], [7]]))
    found = []
    for attend in (dense_attention, blockwise_attention):
        q, k, v = (each.clone().requires_grad_() for each in shared)
        attended = attend(q, k, v, mask)
        torch.autograd.backward((attended * towards).sum())
        found.append((attended, q.grad, k.grad, v.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_batch_seen_again_is_less_of_a_surprise() -> None:
    from training.model import Config, DemoModel
    from training.train import Trainer

    torch.manual_seed(0)
    trainer = Trainer(DemoModel(Config(layers=2)), ARGS)
    for mix in (Mix(1, 512), Mix(1, 512, questions=1.0)):
        batch = next(mixed(seed=1, mix=mix))
        losses = [float(trainer.step(batch, rate=2e-3)) for _ in range(8)]
        assert losses[-1] < 0.8 * losses[0]


def test_words_are_learnt_beside_texts(tmp_path: Path) -> None:
    from training.model import Config, DemoModel
    from training.train import Trainer

    torch.manual_seed(0)
    meanings = Meanings(archive(tmp_path))
    trainer = Trainer(DemoModel(Config(layers=6)), ARGS, meanings)
    batch = next(mixed(seed=1, mix=Mix(1, 512), meanings=meanings))

    def far() -> float:
        """How far the meanings are that the model holds at the words of the batch."""
        words = torch.from_numpy(batch.words)
        assert trainer._words is not None
        return float(trainer._words.loss(list(trainer._states(batch)), words).detach())

    before = far()
    losses = [float(trainer.step(batch, rate=2e-3)) for _ in range(12)]
    assert losses[-1] < losses[0] and far() < 0.8 * before


def test_what_a_teacher_reads_in_questions_is_learnt_beside_their_answers() -> None:
    from training.model import Config, DemoModel
    from training.train import Trainer

    torch.manual_seed(0)
    made = lessons()
    trainer = Trainer(DemoModel(Config(layers=8)), ARGS, lessons=made)
    batch = next(mixed(seed=1, mix=Mix(1, 512, questions=1.0, lessons=made)))

    def far(numbers: torch.Tensor) -> float:
        """How far the vectors are that the model holds where answers begin."""
        assert trainer._questions is not None
        return float(trainer._questions.loss(list(trainer._states(batch)), numbers).detach())

    numbers = torch.from_numpy(batch.lessons)
    before = far(numbers)
    losses = [float(trainer.step(batch, rate=2e-3)) for _ in range(12)]
    assert losses[-1] < losses[0] and far(numbers) < 0.8 * before
    assert far(torch.full_like(numbers, -1)) == 0, "where there are none"


def test_the_shipped_file_is_a_start_and_comes_out_the_same(tmp_path: Path) -> None:
    import gguf

    from training import weights
    from training.export import export
    from training.model import Config

    path = tmp_path / "again.gguf"
    export(weights.load(demo_model_path(), Config()), path)
    shipped, again = gguf.GGUFReader(demo_model_path()), gguf.GGUFReader(path)
    assert [tensor.name for tensor in shipped.tensors] == [tensor.name for tensor in again.tensors]
    for one, other in zip(shipped.tensors, again.tensors, strict=True):
        assert np.array_equal(one.data, other.data), one.name


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    from training import weights
    from training.model import Config

    with pytest.raises(FileNotFoundError, match="no weights in"):
        weights.load(tmp_path, Config())
