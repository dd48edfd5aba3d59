"""How many layers go to graphics cards: arithmetic, with cards that are made up."""

from __future__ import annotations

import pytest

from llm_server.llama.gpu import MARGIN, Device, built_for_cards, devices, layers_that_fit
from llm_server.llama.lib import lib

GB = 10**9
LAYERS = [GB] * 4 + [2 * GB]
"""Four layers and an output layer."""


def card(room: int) -> Device:
    return Device(MARGIN + room, integrated=False)


@pytest.mark.parametrize(
    ("cards", "reserve", "n"),
    [
        ([], 0, 0),
        ([card(0)], 0, 0),
        ([card(2 * GB - 1)], 0, 0),
        ([card(2 * GB)], 0, 1),
        ([card(4 * GB)], 0, 3),
        ([card(4 * GB)], 1, 2),
        ([card(6 * GB)], 0, 5),
        ([card(100 * GB)], 0, 5),
        ([card(3 * GB), card(3 * GB)], 0, 5),
        # Cards share the layers by number: the last one's may be the bigger ones.
        ([card(3 * GB), card(3 * GB)], GB // 2, 3),
        ([card(4 * GB), card(2 * GB)], 0, 5),
        ([card(5 * GB), card(1 * GB)], 0, 4),
        ([card(1 * GB), card(5 * GB)], 0, 5),
        # Nothing goes to a card without room.
        ([Device(MARGIN // 2, integrated=False), card(4 * GB)], 0, 3),
        ([card(4 * GB), Device(MARGIN // 2, integrated=False)], GB, 2),
        ([card(GB // 5), card(4 * GB)], 0, 3),
    ],
)
def test_layers_that_fit(cards: list[Device], reserve: int, n: int) -> None:
    assert layers_that_fit(LAYERS, reserve, cards) == n


def test_a_build_without_cards_has_none() -> None:
    assert bool(devices()) <= built_for_cards()
    assert bool(devices()) <= bool(lib.llama_supports_gpu_offload())
