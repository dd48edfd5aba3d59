"""Has llama.cpp read a model file: the part of a load that needs little of this package.

Imports nothing that takes long, so that llama.cpp can read while the rest is being imported.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Literal

import msgspec

from llm_server.errors import InsufficientMemory, ModelLoadFailed, ServerError
from llm_server.llama import log
from llm_server.llama.gpu import built_for_cards, devices, layers_that_fit
from llm_server.llama.lib import lib
from llm_server.llama.model import LoadError, Model
from llm_server.worker.messages import Load

logger = logging.getLogger(__name__)

_NO_MEMORY = re.compile(r"to allocate|bad_alloc|OutOf\w*Memory|annot allocate memory")
"""How llama.cpp, C++, Vulkan and the system say so. What it refuses may hold the file's name."""

FEWER_LAYERS = (
    'Set n_gpu_layers to "auto", so that only as many layers go there as fit, or to less than now.'
)
"""What helps where a card is too small."""


def gpu_layers(command: Load) -> int:
    """How many layers go to graphics cards, -1 for all; 0 where there are none."""
    asked, cards = command.config.n_gpu_layers, devices()
    if not cards:
        if is_missed(asked, built_for_cards()):
            logger.warning(
                "llama.cpp finds no graphics card (n_gpu_layers is %s): the processor computes. "
                "`llm-server doctor` may tell why.",
                asked,
            )
        return 0
    if asked == "auto":
        return layers_that_fit(command.layer_bytes, command.compute_bytes, cards)
    return asked


def is_missed(asked: int | Literal["auto"], built_for_cards: bool) -> bool:
    """Whether somebody who asked for so many layers on cards should know that there is none.

    All of them is what everybody asks for who says nothing.
    """
    return asked != 0 and (asked != -1 or built_for_cards)


def read(command: Load, on_progress: Callable[[float], None]) -> tuple[Load, Model]:
    """The model of `command`, and the command with the number of layers that cards really take.

    Raises:
        ModelLoadFailed: the file is not a model that this build can load.
        InsufficientMemory: its weights do not fit into the memory, or that of the cards.
    """
    log.install()
    lib.llama_backend_init()
    n_gpu_layers = gpu_layers(command)
    config = msgspec.structs.replace(command.config, n_gpu_layers=n_gpu_layers)
    try:
        model = Model(command.model_path, n_gpu_layers=n_gpu_layers, on_progress=on_progress)
    except LoadError as error:
        raise refused(str(error), n_gpu_layers) from None
    return msgspec.structs.replace(command, config=config), model


def refused(told: str, n_gpu_layers: int) -> ServerError:
    """Why there is no model of a file that llama.cpp has refused in these words."""
    if not _NO_MEMORY.search(told):
        return ModelLoadFailed(f"{told}.", param="model")
    if n_gpu_layers == 0:
        return InsufficientMemory(f"{told}. The memory falls short.", param="model")
    return InsufficientMemory(
        f"{told}. The memory of the graphics cards falls short. {FEWER_LAYERS}",
        param="load_model_configs.n_gpu_layers",
    )
