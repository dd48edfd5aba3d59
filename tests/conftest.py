"""Fixtures shared by all tests: the tiny models, built once a session."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import pytest

from tests import tiny_models

# A shell that starts tests in the background lets them ignore Ctrl-C, and all they start with them.
signal.signal(signal.SIGINT, signal.default_int_handler)


with contextlib.suppress(ImportError):  # the tests of the cluster do without
    from hypothesis import settings

    # An example takes longer while the machine has other things to do.
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")

LONGEST = ("web", "faults", "endurance", "test_server", "test_live", "api", "chat")
"""What takes longest, by the first part of its path under tests/."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that with several processes none of them is left for the end."""
    here = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        part = item.path.relative_to(here).parts[0].removesuffix(".py")
        return LONGEST.index(part) if part in LONGEST else len(LONGEST)

    items.sort(key=place)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder that holds the tiny models which the session's tests have asked for."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def attention_gguf(tiny_folder: Path) -> Path:
    """Attention, byte-level BPE, ChatML."""
    return tiny_models.build_attention(tiny_folder / "attention.gguf")


@pytest.fixture(scope="session")
def reranker_gguf(tiny_folder: Path) -> Path:
    """A decoder that scores pairs, with a template for them."""
    return tiny_models.build_reranker(tiny_folder / "reranker.gguf")


@pytest.fixture(scope="session")
def spm_gguf(tiny_folder: Path) -> Path:
    """Attention, SentencePiece with byte fallback and a BOS token, ChatML."""
    return tiny_models.build_spm(tiny_folder / "spm.gguf")


@pytest.fixture(scope="session")
def sliding_gguf(tiny_folder: Path) -> Path:
    """Attention, every second layer with a window of `tiny_models.WINDOW` tokens."""
    return tiny_models.build_sliding(tiny_folder / "sliding.gguf")


@pytest.fixture(scope="session")
def recurrent_gguf(tiny_folder: Path) -> Path:
    """A recurrent state and no attention."""
    return tiny_models.build_recurrent(tiny_folder / "recurrent.gguf")


@pytest.fixture(scope="session")
def hybrid_gguf(tiny_folder: Path) -> Path:
    """Recurrent layers and attention."""
    return tiny_models.build_hybrid(tiny_folder / "hybrid.gguf")


@pytest.fixture(scope="session")
def delta_gguf(tiny_folder: Path) -> Path:
    """Layers with a state whose tensors are named as those of attention, and one that attends."""
    return tiny_models.build_delta(tiny_folder / "delta.gguf")
