"""What the header of a LoRA adapter says of it: for display, nothing is decided by it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llm_server.gguf.header import InvalidGguf, read_header


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """Of what kind of model it is an adapter, and how large."""

    architecture: str
    base: str | None
    """The name of the model it was trained on, where it says so."""
    rank: int
    n_params: int


def adapter_facts(path: Path) -> AdapterFacts:
    """The facts of an adapter. Blocks for the disk.

    Raises:
        InvalidGguf: it cannot be read, or is not a LoRA adapter.
    """
    try:
        header = read_header(path)
    except OSError as error:
        raise InvalidGguf(f"it cannot be read: {error.strerror}") from None
    metadata = header.metadata
    ranks = [t.shape[1] for t in header.tensors if t.name.endswith(".lora_a") and len(t.shape) == 2]
    if metadata.get("adapter.type") != "lora" or not ranks:
        raise InvalidGguf("it is an adapter, but no LoRA")
    names = ("general.base_model.0.name", "general.base_model.0.repo_url")
    base = next((b for n in names if isinstance(b := metadata.get(n), str)), None)
    return AdapterFacts(
        architecture=str(metadata.get("general.architecture", "?"))[:64],
        base=base,
        rank=max(ranks),
        n_params=sum(tensor.n_elements for tensor in header.tensors),
    )
