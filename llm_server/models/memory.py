"""What a model takes in memory, estimated from its header before it is loaded: plain arithmetic.

The formulas are those by which llama.cpp sizes its buffers on the CPU; a test holds the sums
against real loads. What a worker then really takes comes back from it and corrects the next
estimate for the same model (`plan.Planner.learn`).
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from llm_server.models.facts import Facts, Shape
from llm_server.worker.config import (
    PARALLEL,
    PARALLEL_WHOLE_STATE,
    TEXT_N_CTX,
    TEXTS,
    TEXTS_BYTES,
    KvType,
    LoadConfig,
)

MIN_N_CTX = 4096
"""Cells to have where possible, even when they take more than their share of the memory."""
CTX_STEP = 256
"""llama.cpp pads its caches to this many cells."""
KV_SHARE = 4
"""Cells that nobody asked for may take a quarter of the room: prompts of other models need some."""
IDLE_BYTES = 64 << 20
"""What the states of idle prompts may take, which recurrent models keep whole."""
MIN_IDLE = 4
"""Idle states to have in any case: a conversation's head, its last user turn, its end, and the next
one on its way."""
MAX_IDLE = 32
"""Idle states that are enough: more conversations come from the disk."""
MAX_OUTPUTS = 64
"""Rows of a batch that may ask for logits (`llama/context.py`)."""

_KV_BYTES: dict[KvType, tuple[int, int]] = {"f16": (1, 2), "q8_0": (32, 34), "q4_0": (32, 18)}
_PROCESS = 40 << 20
"""A worker without a model: the interpreter, the libraries, numpy. Measured."""
_PER_TOKEN = 500
"""Bytes a token of the vocabulary takes in llama.cpp, Python and llguidance together. Measured."""
_PER_WORD = 150
"""The same for a model that makes vectors: without Python's and llguidance's. Measured."""
_QUEUE = 64 << 20
"""The prompt cache's queue of chunks on their way to the disk (`cache/store.py`, QUEUE_BYTES)."""
_AHEAD = 64 << 20
"""What it reads ahead of being attached (`cache/reading.py`, READ_AHEAD)."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by part."""

    weights: int
    kv: int
    """The cells of the context, or the states of a recurrent model."""
    compute: int
    """llama.cpp's buffers for one batch, and the logits that come out of it."""
    prompt_cache: int
    """Copies of cells on their way to the disk and back, at most."""
    process: int
    """The worker with the model's vocabulary, and what earlier loads took beyond all this."""

    @property
    def total(self) -> int:
        """All parts."""
        return self.weights + self.kv + self.compute + self.prompt_cache + self.process


@dataclass(frozen=True, slots=True)
class Extras:
    """What else a load brings with it, in bytes."""

    adapters: int = 0
    """Size of all LoRA adapters."""
    cache: bool = True
    """Whether there is a prompt cache on disk."""
    correction: int = 0
    """What the last load of this model took beyond its estimate; less than 0 if it took less."""


def estimate(facts: Facts, config: LoadConfig, extras: Extras = Extras()) -> Memory:
    """What the model takes when it is loaded like that, with `n_ctx` and `parallel` settled."""
    if embeds(facts, config):
        return _of_embedding(facts, config, extras)
    shape = facts.shape
    cells = -(-config.n_ctx // CTX_STEP) * CTX_STEP
    kv = cells * kv_bytes_per_cell(shape, config) + _state_bytes(shape, config)
    return Memory(
        weights=facts.tensor_bytes + extras.adapters,
        kv=kv,
        compute=_compute(shape, config, cells),
        prompt_cache=min(_QUEUE, kv) + min(_AHEAD, kv) if extras.cache else 0,
        process=max(0, _PROCESS + _PER_TOKEN * shape.n_vocab + extras.correction),
    )


def layer_bytes(facts: Facts, config: LoadConfig) -> tuple[int, ...]:
    """What each layer takes with its cells, which lie where it does; the output layer last."""
    weights = facts.shape.layer_bytes
    cells = -(-config.n_ctx // CTX_STEP) * CTX_STEP
    kv = cells * kv_bytes_per_cell(facts.shape, config) + _state_bytes(facts.shape, config)
    each = kv // max(1, len(weights))
    return (*(size + each for size in weights), facts.shape.other_bytes)


def n_idle(shape: Shape, config: LoadConfig) -> int:
    """How many idle prompts a memory of whole states holds; 0 for a memory of cells.

    At least as many as may run, each of which leaves one.
    """
    if not shape.state_elements:
        return 0
    fits = min(MAX_IDLE, IDLE_BYTES // (4 * shape.state_elements))
    return max(MIN_IDLE, config.parallel, fits)


def _state_bytes(shape: Shape, config: LoadConfig) -> int:
    """A recurrent memory holds a state for every id (`llama/context.py`)."""
    return (config.parallel + n_idle(shape, config)) * shape.state_elements * 4


def embeds(facts: Facts, config: LoadConfig) -> bool:
    """Whether it makes vectors or scores when it is loaded like that, instead of text."""
    return pooling(facts, config) is not None


def pooling(facts: Facts, config: LoadConfig) -> str | None:
    """How it makes them when it is loaded like that; None for a model that makes text."""
    return facts.pooling if config.pooling == "auto" else config.pooling


def kv_bytes_per_cell(shape: Shape, config: LoadConfig) -> int:
    """Bytes of one cell over all layers; 0 for a model without attention."""
    return _row(shape.k_elements, config.type_k) + _row(shape.v_elements, config.type_v)


def in_blocks(length: int, kind: KvType) -> bool:
    """Whether heads that long can be kept in `kind`: llama.cpp quantizes whole blocks of them."""
    return length % _KV_BYTES[kind][0] == 0


def settled(facts: Facts, config: LoadConfig, room: int, extras: Extras = Extras()) -> LoadConfig:
    """`config` with the numbers that it leaves open, for a model that may take `room` bytes.

    The context is what the model was trained for, as far as a share of the room holds it, and at
    least `MIN_N_CTX` as far as all of the room does. One that is asked for is at most what the
    model can have at all. Whether the result fits is another question, also into the memory of
    cards, of which only a worker knows (`smaller_contexts`).
    """
    if embeds(facts, config):
        return _settled_for_texts(facts, config)
    parallel = config.parallel or (PARALLEL_WHOLE_STATE if facts.shape.state_elements else PARALLEL)
    config = msgspec.structs.replace(config, parallel=min(parallel, config.n_batch))
    if config.n_ctx == 0:
        config = msgspec.structs.replace(config, n_ctx=_fitted(facts, config, room, extras))
    n_ctx = min(config.n_ctx, facts.max_n_ctx)
    return msgspec.structs.replace(config, n_ctx=n_ctx, parallel=min(config.parallel, n_ctx))


def largest_n_ctx(facts: Facts, config: LoadConfig, room: int, extras: Extras = Extras()) -> int:
    """The longest context with which the model takes no more than `room`; 0 if none.

    Never more than the model was trained for. A multiple of 256, unless that is the limit.
    """

    def fits(n_ctx: int) -> bool:
        trial = settled(facts, msgspec.structs.replace(config, n_ctx=n_ctx), room, extras)
        return estimate(facts, trial, extras).total <= room

    limit = facts.n_ctx_train
    if limit and fits(limit):
        return limit
    low, high = 0, limit // CTX_STEP
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * CTX_STEP) else (low, middle - 1)
    return low * CTX_STEP


def smaller_contexts(n_ctx: int) -> tuple[int, ...]:
    """What to try in turn where a card does not hold a context: its halves, to `MIN_N_CTX`."""
    smaller = []
    while n_ctx > MIN_N_CTX:
        n_ctx = max(MIN_N_CTX, n_ctx // 2 // CTX_STEP * CTX_STEP)
        smaller.append(n_ctx)
    return tuple(smaller)


def _settled_for_texts(facts: Facts, config: LoadConfig) -> LoadConfig:
    """As `worker/embedding.py` does. How long a text may be does not depend on the room."""
    n_ctx = config.n_ctx or TEXT_N_CTX
    n_ctx = min(n_ctx, facts.n_ctx_train or n_ctx)
    fits = max(1, TEXTS_BYTES // (4 * max(1, facts.shape.n_embd)))
    parallel = min(config.parallel or TEXTS, fits, n_ctx)
    return msgspec.structs.replace(config, n_ctx=n_ctx, parallel=parallel)


def _fitted(facts: Facts, config: LoadConfig, room: int, extras: Extras) -> int:
    cell = kv_bytes_per_cell(facts.shape, config)
    if cell == 0:
        return facts.n_ctx_train
    share = max(0, room) // KV_SHARE // cell // CTX_STEP * CTX_STEP
    largest = largest_n_ctx(facts, config, room, extras) or MIN_N_CTX
    return min(facts.n_ctx_train or MIN_N_CTX, largest, max(MIN_N_CTX, share))


def _row(n_elements: int, kind: KvType) -> int:
    block, size = _KV_BYTES[kind]
    return n_elements // block * size


def _compute(shape: Shape, config: LoadConfig, cells: int) -> int:
    """llama.cpp's compute buffer and the one for outputs, in the worst case that it reserves for.

    At its widest a graph holds the rows of one micro-batch either between the projections of a
    feed-forward layer (up, gate and their product, and four vectors as long as an embedding), or
    as logits. Beside them lies the mask, or two for models with a sliding window; without flash
    attention also the scores of all heads. Found by fitting what llama.cpp reports.
    """
    sequences = config.parallel + (n_idle(shape, config) or 1)
    rows = min(config.n_ubatch, config.n_batch, config.n_ctx)
    rows = -(-rows // sequences) * sequences
    outputs = min(rows, max(2 * config.parallel, sequences, MAX_OUTPUTS))
    wide = 4 * rows * (4 * shape.n_embd * shape.n_routed + 3 * shape.n_ff + shape.n_state)
    mask = cells * rows * 2 * shape.n_masks if shape.k_elements else 0
    scores = 0
    if config.flash_attn == "off":
        scores, mask = 4 * cells * rows * shape.n_head, 2 * mask
    logits = 4 * outputs * shape.n_vocab
    return max(wide + scores, logits) + mask + logits


def _of_embedding(facts: Facts, config: LoadConfig, extras: Extras) -> Memory:
    """What a model that makes vectors or scores takes: a batch is one graph, nothing is kept of it.

    At its widest that graph holds the rows either in a feed-forward layer or in attention, there
    with the scores of all heads unless flash attention is on, or, of a model that could generate
    text, as logits that nobody asks for. Beside them lie the mask, and, for the mean, which row
    counts how much in which text. Found by fitting what llama.cpp reports.
    """
    shape, rows = facts.shape, config.n_ctx
    scored = config.flash_attn == "off"
    attention = 4 * rows * 6 * shape.n_embd + (4 * rows * rows * shape.n_head if scored else 0)
    wide = (3 if shape.gated else 1) * shape.n_ff + 3 * shape.n_embd
    logits = 0 if shape.is_encoder else 4 * rows * shape.n_vocab
    graph = max(attention, 4 * rows * wide, logits) + rows * rows * (4 if scored else 2)
    outputs = 4 * config.parallel * (shape.n_vocab + shape.n_embd)
    cells = -(-rows // CTX_STEP) * CTX_STEP
    return Memory(
        weights=facts.tensor_bytes + extras.adapters,
        kv=2 * cells * (shape.k_elements + shape.v_elements),
        compute=graph + 4 * rows * config.parallel + outputs,
        prompt_cache=0,
        process=max(0, _PROCESS + _PER_WORD * shape.n_vocab + extras.correction),
    )
