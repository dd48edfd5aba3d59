"""The exported model computes what PyTorch computes; skipped where PyTorch is not installed.

Tolerances: F32 weights, 0.02 in any logit, for llama.cpp keeps keys and values in half
precision; Q8_0, 0.15 on average, for it rounds activations to eight bits too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from llm_server.llama.context import Context
from llm_server.llama.model import Model
from llm_server.worker.config import LoadConfig
from training.tokenizer import load

torch = pytest.importorskip("torch")


def _logits(path: Path, ids: list[int]) -> npt.NDArray[np.float32]:
    """llama.cpp's logits behind each of `ids`: [tokens, vocabulary]."""
    model = Model(path)
    context = Context(model, LoadConfig(n_threads=1), 512, 1)
    rows = []
    for position, token in enumerate(ids):
        context.batch.clear()
        row = context.batch.add(0, position, [token], logits=True)
        context.decode()
        rows.append(context.logits(row).copy())
    context.close()
    model.close()
    return np.array(rows)


def test_runs_are_averaged(tmp_path: Path) -> None:
    from training import weights
    from training.model import Config, DemoModel

    config = Config(layers=1)
    models = [DemoModel(config) for _ in range(2)]
    for name, model in zip("ab", models, strict=True):
        weights.save(model, tmp_path / name)
    mean = weights.average([tmp_path / "a", tmp_path / "b"], config).state_dict()
    first, second = (model.state_dict() for model in models)
    for name, tensor in mean.items():
        expected = (first[name] + second[name]) / 2
        assert torch.allclose(tensor, expected, atol=1e-3), name


@pytest.mark.parametrize(("quantized", "worst", "mean"), [(False, 0.02, 0.005), (True, 2.0, 0.15)])
def test_logits_agree(tmp_path: Path, quantized: bool, worst: float, mean: float) -> None:
    from training.export import export
    from training.model import Config, DemoModel

    torch.manual_seed(0)
    model = DemoModel(Config(layers=2))
    for parameter in model.parameters():
        # Larger than at the start of training, so that logits spread as a trained model's do.
        parameter.data *= 2.0 if parameter.ndim == 2 else 1.0
    path = tmp_path / "model.gguf"
    export(model, path, quantized=quantized)
    ids = load().encode("<|im_start|>user\nHow do I start the server?<|im_end|>\n").ids
    with torch.no_grad():
        expected = model(torch.tensor([ids]), torch.arange(len(ids))[None])[0].numpy()
    difference = np.abs(_logits(path, ids) - expected)
    assert difference.max() < worst
    assert difference.mean() < mean
