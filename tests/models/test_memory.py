"""Estimates of memory: held against real loads, and the arithmetic around them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from gguf import PoolingType, TokenType

from llm_server.demo import demo_model_path
from llm_server.gguf.header import read_header
from llm_server.models.facts import Facts, facts_of
from llm_server.models.memory import (
    CTX_STEP,
    IDLE_BYTES,
    MAX_IDLE,
    MIN_IDLE,
    MIN_N_CTX,
    Extras,
    estimate,
    kv_bytes_per_cell,
    largest_n_ctx,
    n_idle,
    settled,
    smaller_contexts,
)
from llm_server.worker.client import Worker
from llm_server.worker.config import Adapter, LoadConfig
from llm_server.worker.messages import Load
from tests import tiny_encoders, tiny_models

MIB = 1 << 20
AMPLE = 1 << 40
NO_CACHE = Extras(cache=False)


def facts(path: Path) -> Facts:
    return facts_of([read_header(path)])


@pytest.fixture(scope="module")
def encoder_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The widths and the vocabulary of a small real encoder, for longer texts."""
    shape = tiny_encoders.Shape(
        n_embd=384, n_ff=1536, n_head=12, n_layer=3, n_ctx_train=4096, n_vocab=30_000
    )
    path = tmp_path_factory.mktemp("models") / "encoder.gguf"
    return tiny_encoders.build_bert(path, PoolingType.MEAN, shape=shape, n_labels=1)


@pytest.fixture(scope="module")
def wordy_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that generates text, with many more tokens than layers: logits outweigh all else."""
    plain = tiny_models.bpe_vocabulary()
    n_more = 30_000
    vocabulary = replace(
        plain,
        tokens=[*plain.tokens, *(f"word{i}" for i in range(n_more))],
        types=[*plain.types, *[TokenType.NORMAL] * n_more],
    )
    path = tmp_path_factory.mktemp("models") / "wordy.gguf"
    return tiny_models.build_attention(path, vocabulary=vocabulary)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two for the demo model, one of them heavier than it is itself."""
    folder = tmp_path_factory.mktemp("adapters")
    return [
        tiny_models.build_wide_lora(folder / f"{rank}.gguf", demo_model_path(), rank)
        for rank in (8, 128)
    ]


@pytest.fixture(scope="module")
def demo() -> Facts:
    return facts(demo_model_path())


@pytest.mark.parametrize(
    ("model", "config"),
    [
        ("demo", LoadConfig()),
        ("demo", LoadConfig(n_ctx=16_384, n_ubatch=1024)),
        ("demo", LoadConfig(n_ctx=16_384, type_k="q8_0", type_v="q8_0", parallel=4)),
        ("demo", LoadConfig(n_ctx=8192, flash_attn="off", type_k="q4_0")),
        ("demo", LoadConfig(n_ctx=4096, lora=(Adapter("8.gguf"), Adapter("128.gguf")))),
        ("sliding_gguf", LoadConfig(n_ctx=16_384)),
        ("recurrent_gguf", LoadConfig(parallel=64)),
        ("hybrid_gguf", LoadConfig(n_ctx=16_384)),
        ("delta_gguf", LoadConfig(n_ctx=131_072, parallel=64)),
        ("demo", LoadConfig(pooling="mean")),
        ("wordy_gguf", LoadConfig(pooling="last", flash_attn="off", parallel=4)),
        ("encoder_gguf", LoadConfig()),
        ("encoder_gguf", LoadConfig(n_ctx=100_000)),
        ("encoder_gguf", LoadConfig(pooling="rank")),
        ("reranker_gguf", LoadConfig()),
        ("encoder_gguf", LoadConfig(n_ctx=1000, flash_attn="off")),
    ],
)
def test_estimates_are_near_what_real_workers_take(
    model: str, config: LoadConfig, adapters: list[Path], request: pytest.FixtureRequest
) -> None:
    used = adapters if config.lora else []
    extras = Extras(cache=False, adapters=sum(adapter.stat().st_size for adapter in used))
    path = demo_model_path() if model == "demo" else request.getfixturevalue(model)
    told = facts(path)
    config = settled(told, msgspec.structs.replace(config, n_threads=1), AMPLE, extras)
    command = Load(
        path,
        config,
        log_level="error",
        adapter_paths=tuple(used),
        n_idle=n_idle(told.shape, config),
    )

    async def load() -> int:
        worker = await Worker.start(command)
        await worker.stop(5)
        assert (worker.loaded.n_ctx, worker.loaded.parallel) == (config.n_ctx, config.parallel)
        return worker.loaded.memory_bytes

    taken = asyncio.run(load())
    guessed = estimate(told, config, extras).total
    assert abs(guessed - taken) <= max(16 * MIB, taken // 10), (guessed // MIB, taken // MIB)


def test_parts_follow_the_configuration(demo: Facts) -> None:
    config = settled(demo, LoadConfig(n_ctx=4096), AMPLE)
    base = estimate(demo, config)
    assert base.weights == demo.tensor_bytes
    assert base.kv == 4096 * 2 * (demo.shape.k_elements + demo.shape.v_elements)
    assert base.prompt_cache == 2 * base.kv
    assert estimate(demo, config, NO_CACHE).prompt_cache == 0
    quantized = msgspec.structs.replace(config, type_k="q8_0", type_v="q4_0")
    cell = demo.shape.k_elements // 32 * 34 + demo.shape.v_elements // 32 * 18
    assert kv_bytes_per_cell(demo.shape, quantized) == cell
    assert estimate(demo, config, Extras(adapters=5)).weights == base.weights + 5
    assert estimate(demo, config, Extras(correction=-MIB)).total == base.total - MIB
    assert estimate(demo, config, Extras(correction=-AMPLE)).process == 0


def test_an_open_context_takes_a_share_of_the_room_but_a_usable_one(demo: Facts) -> None:
    told = LoadConfig()
    wide = replace(demo.shape, k_elements=20 * demo.shape.k_elements)
    long = replace(demo, n_ctx_train=1 << 20, shape=wide)
    cell = kv_bytes_per_cell(wide, told)
    assert settled(long, told, AMPLE).n_ctx == 1 << 20
    assert settled(long, told, 4 * 10_000 * cell).n_ctx == 10_000 // CTX_STEP * CTX_STEP
    # Less than a share would be useless: all of the room may go.
    assert 4 * MIN_N_CTX * cell > 700 * MIB
    assert settled(long, told, 700 * MIB).n_ctx == MIN_N_CTX
    tight = settled(long, told, 300 * MIB)
    assert CTX_STEP <= tight.n_ctx < MIN_N_CTX
    assert estimate(long, tight).total <= 300 * MIB
    # Nothing fits: the usual is asked for, and refused by whoever compares.
    assert settled(long, told, 0).n_ctx == MIN_N_CTX
    assert settled(demo, told, AMPLE).n_ctx == demo.n_ctx_train
    assert settled(demo, LoadConfig(n_ctx=77), 0).n_ctx == 77


def test_a_context_that_a_card_does_not_hold_is_halved_down_to_a_usable_one() -> None:
    assert smaller_contexts(40_960) == (20_480, 10_240, 5120, MIN_N_CTX)
    assert smaller_contexts(35 * CTX_STEP) == (17 * CTX_STEP, MIN_N_CTX)
    assert smaller_contexts(MIN_N_CTX) == smaller_contexts(512) == ()


def test_the_largest_context_is_the_largest(demo: Facts) -> None:
    config = LoadConfig()
    assert largest_n_ctx(demo, config, AMPLE) == demo.n_ctx_train
    assert largest_n_ctx(demo, config, 0) == 0
    room = 80 * MIB
    n_ctx = largest_n_ctx(demo, config, room)
    assert 0 < n_ctx < demo.n_ctx_train and n_ctx % CTX_STEP == 0

    def total(n: int) -> int:
        return estimate(demo, settled(demo, LoadConfig(n_ctx=n), room)).total

    assert total(n_ctx) <= room < total(n_ctx + CTX_STEP)


def test_open_numbers_are_settled_within_each_other(demo: Facts, recurrent_gguf: Path) -> None:
    assert settled(demo, LoadConfig(), AMPLE).parallel == 32
    assert settled(demo, LoadConfig(n_batch=8), AMPLE).parallel == 8
    assert settled(demo, LoadConfig(n_ctx=16), AMPLE).parallel == 16
    recurrent = facts(recurrent_gguf)
    assert settled(recurrent, LoadConfig(), AMPLE).parallel == 4
    assert settled(recurrent, LoadConfig(), AMPLE).n_ctx == recurrent.n_ctx_train


def test_positions_that_were_learnt_bound_the_context(demo: Facts) -> None:
    learnt = replace(demo, max_n_ctx=demo.n_ctx_train)
    asked = LoadConfig(n_ctx=2 * demo.n_ctx_train)
    assert settled(demo, asked, AMPLE).n_ctx == asked.n_ctx
    assert settled(learnt, asked, AMPLE).n_ctx == demo.n_ctx_train


def test_whole_states_are_kept_as_many_as_are_affordable(demo: Facts, recurrent_gguf: Path) -> None:
    told, shape = LoadConfig(parallel=1), facts(recurrent_gguf).shape

    def idle(state_mib: float, config: LoadConfig = told) -> int:
        return n_idle(replace(shape, state_elements=int(state_mib * MIB) // 4), config)

    assert n_idle(demo.shape, told) == 0
    assert n_idle(shape, told) == MAX_IDLE
    assert idle(3) == IDLE_BYTES // (3 * MIB)
    assert idle(60) == MIN_IDLE
    assert idle(60, LoadConfig(parallel=8)) == 8
    few, many = (
        estimate(replace(facts(recurrent_gguf), shape=replace(shape, state_elements=n)), told).kv
        for n in (60 * MIB // 4, MIB // 4)
    )
    assert few == (1 + MIN_IDLE) * 60 * MIB
    assert many == (1 + MAX_IDLE) * MIB
