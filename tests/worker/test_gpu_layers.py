"""What is said where there is no graphics card."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from llm_server.llama.gpu import built_for_cards, devices
from llm_server.worker.config import LoadConfig
from llm_server.worker.messages import Load
from llm_server.worker.weights import gpu_layers, is_missed


@pytest.mark.parametrize(
    ("asked", "built", "missed"),
    [
        (0, False, False),
        (0, True, False),
        (-1, False, False),
        (-1, True, True),
        (20, False, True),
        (20, True, True),
        ("auto", False, True),
    ],
)
def test_who_misses_a_card(asked: int | Literal["auto"], built: bool, missed: bool) -> None:
    assert is_missed(asked, built) is missed


@pytest.mark.skipif(bool(devices()) or built_for_cards(), reason="there is a card, or may be")
def test_layers_that_no_card_takes_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    for asked in (-1, 0, 20):
        assert gpu_layers(Load(Path("a.gguf"), LoadConfig(n_gpu_layers=asked))) == 0
    (warning,) = caplog.records
    assert "(n_gpu_layers is 20): the processor computes" in warning.getMessage()
