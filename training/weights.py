"""Checkpoints: half-precision weights in numpy files of bounded size, or an exported GGUF file.

Optimizer state is not kept: a resumed run warms up again. Does not write GGUF.
"""

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import torch

from training.model import Config, DemoModel

_PART_BYTES = 12 * 2**20


def save(model: DemoModel, folder: Path) -> None:
    """Writes `weights-N.npz`, each about 12 MB at most."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, tensor in model.state_dict().items():
        array = tensor.detach().float().cpu().numpy().astype(np.float16)
        if size + array.nbytes > _PART_BYTES:
            parts.append({})
            size = 0
        parts[-1][name] = array
        size += array.nbytes
    for index, part in enumerate(parts):
        np.savez(folder / f"weights-{index}.npz", **part)  # type: ignore[arg-type]


def average(sources: Sequence[Path], config: Config) -> DemoModel:
    """The mean of the weights of runs that began alike (Wortsman et al., "Model soups", 2022).

    Raises FileNotFoundError as `load` does.
    """
    states = [load(source, config).state_dict() for source in sources]
    model = DemoModel(config)
    model.load_state_dict(
        {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    )
    return model


def load(source: Path, config: Config) -> DemoModel:
    """The model of a checkpoint's folder or of a GGUF file, its matrices dequantized.

    Raises FileNotFoundError when there is none.
    """
    state = _from_gguf(source) if source.suffix == ".gguf" else _from_folder(source)
    model = DemoModel(config)
    model.load_state_dict(state)
    return model


def _from_folder(folder: Path) -> dict[str, torch.Tensor]:
    paths = sorted(folder.glob("weights-*.npz"))
    if not paths:
        raise FileNotFoundError(f"no weights in {folder}")
    state: dict[str, torch.Tensor] = {}
    for path in paths:
        with np.load(path) as part:
            state.update({name: torch.from_numpy(part[name]).float() for name in part.files})
    return state


def _from_gguf(path: Path) -> dict[str, torch.Tensor]:
    return {
        tensor.name: torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        for tensor in gguf.GGUFReader(path).tensors
    }
