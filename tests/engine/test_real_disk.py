"""Prompts from the disk on llama.cpp, for each kind of memory: exact, and really not computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llm_server.cache.disk import DiskTier
from llm_server.cache.fingerprint import model_fingerprint
from llm_server.cache.store import ChunkStore
from llm_server.llama import log
from llm_server.llama.context import Context
from llm_server.worker.config import CacheConfig, LoadConfig
from llm_server.worker.load import open_cache, state_fingerprint
from llm_server.worker.messages import Load, Sampling
from tests.cache.scenario import add_head
from tests.engine.real import Runner, assert_greedy, open_context

KINDS = ["attention", "spm", "sliding", "recurrent", "hybrid"]
HEAD = "<|im_start|>system\n" + "you may make a name for each word " * 40 + "<|im_end|>\n"
GREEDY = Sampling(temperature=0, max_tokens=12)


def opened(load: Load, context: Context) -> DiskTier | None:
    digest = model_fingerprint(load.model_path)
    return open_cache(load, context, state_fingerprint(digest, load, context))


def turn(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_question_after_a_restart_is_fast_and_exact(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path: Path = request.getfixturevalue(f"{kind}_gguf")
    load = Load(path, cache=CacheConfig(tmp_path, 1 << 30))
    with open_context(path, parallel=4) as context:
        runner = Runner(context, opened(load, context))
        n_head = len(context.model.vocab.tokenize(HEAD, parse_special=True))
        runner.answer(HEAD + turn("what is oil"), GREEDY, head=n_head)
        assert runner.ends[0].usage.cached_tokens == 0
        runner.engine.close(10)
    with open_context(path, parallel=4) as context:
        runner = Runner(context, opened(load, context))
        other = HEAD + turn("who are people")
        runner.answer(other, GREEDY, head=n_head)
        usage = runner.ends[0].usage
        assert usage.disk_tokens == usage.cached_tokens >= n_head
        runner.assert_all_greedy([other])


def test_a_start_tells_when_it_has_less_room_than_is_stored(
    attention_gguf: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_head(tmp_path, model="a.gguf")  # 1000 bytes
    with open_context(attention_gguf) as context:
        for budget in (1000, 999):
            assert caplog.messages == []
            load = Load(attention_gguf, cache=CacheConfig(tmp_path, budget))
            assert opened(load, context) is not None
    assert len(caplog.messages) == 1 and "0.0 MB" in caplog.text


@pytest.mark.parametrize(
    "config",
    [LoadConfig(flash_attn="off"), LoadConfig(type_k="q8_0"), LoadConfig(type_v="q8_0")],
)
def test_memory_of_another_layout_is_another_memory(
    attention_gguf: Path, config: LoadConfig
) -> None:
    log.install()  # which is how the worker learns what "auto" came to
    with open_context(attention_gguf) as context:
        as_it_is = state_fingerprint(bytes(32), Load(attention_gguf), context)
        other = state_fingerprint(bytes(32), Load(attention_gguf, config), context)
        flash = Load(attention_gguf, LoadConfig(flash_attn="on"))
        assert as_it_is == state_fingerprint(bytes(32), flash, context)
    assert as_it_is != other


@pytest.mark.parametrize("kind", KINDS)
def test_memory_comes_back_bit_for_bit(kind: str, request: pytest.FixtureRequest) -> None:
    """The next token's logits after save and load are those without."""
    path: Path = request.getfixturevalue(f"{kind}_gguf")
    with open_context(path, parallel=4) as context:
        tokens = context.model.vocab.tokenize(HEAD, parse_special=True)
        context.batch.add(0, 0, tokens, logits=False)
        context.decode()
        n = len(tokens)
        step = context.model.n_swa or 100
        cuts = [0, n] if context.whole_state else [*range(0, n, step), n]
        payloads = [
            (context.save(0, start, stop), start, stop)
            for start, stop in zip(cuts, cuts[1:], strict=False)
        ]

        def next_logits(sequence: int) -> np.ndarray:
            context.batch.clear()
            row = context.batch.add(sequence, n, [65], logits=True)
            assert context.decode() == "done"
            return context.logits(row).copy()

        original = next_logits(0)
        context.clear()
        for payload, start, stop in payloads:
            context.load(payload, context.running[1], start, stop)
        assert np.array_equal(next_logits(context.running[1]), original)


def test_a_part_of_a_saved_range_is_as_good_as_computed(attention_gguf: Path) -> None:
    with open_context(attention_gguf) as context:
        tokens = context.model.vocab.tokenize(HEAD, parse_special=True)
        context.batch.add(0, 0, tokens, logits=False)
        context.decode()
        payload = context.save(0, 0, len(tokens))
        context.clear()
        context.load(payload, 0, 0, 77)
        context.batch.clear()
        row = context.batch.add(0, 77, [tokens[77]], logits=True)
        context.decode()
        restored = context.logits(row).copy()
        context.clear()
        context.batch.clear()
        context.batch.add(0, 0, tokens[:77], logits=False)
        context.decode()
        context.batch.clear()
        row = context.batch.add(0, 77, [tokens[77]], logits=True)
        context.decode()
        assert np.abs(context.logits(row) - restored).max() < 2e-3


def test_another_models_chunks_are_never_used(
    attention_gguf: Path, spm_gguf: Path, tmp_path: Path
) -> None:
    load = Load(attention_gguf, cache=CacheConfig(tmp_path, 1 << 30))
    with open_context(attention_gguf) as context:
        runner = Runner(context, opened(load, context))
        runner.answer(HEAD, GREEDY, head=200)
        runner.engine.close(10)
    assert any(tmp_path.rglob("*.kv"))
    with open_context(spm_gguf) as context:
        other = Load(spm_gguf, cache=load.cache)
        disk = opened(other, context)
        assert disk is not None and disk.store.stats().chunks == 0


def test_a_corrupt_file_is_a_miss_and_the_answer_is_right(
    attention_gguf: Path, tmp_path: Path
) -> None:
    load = Load(attention_gguf, cache=CacheConfig(tmp_path, 1 << 30))
    with open_context(attention_gguf) as context:
        runner = Runner(context, opened(load, context))
        runner.answer(HEAD, GREEDY, head=300)
        runner.engine.close(10)
    victim = max(tmp_path.rglob("*.kv"), key=lambda file: file.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with open_context(attention_gguf) as context:
        disk = opened(load, context)
        assert disk is not None
        runner = Runner(context, disk)
        runner.answer(HEAD, GREEDY)
        assert disk.store.stats().corrupt == 1
        assert_greedy(context, HEAD, runner.recorders[0].tokens)


def test_a_folder_that_cannot_be_used_leaves_requests_alone(
    attention_gguf: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    load = Load(attention_gguf, cache=CacheConfig(tmp_path / "file" / "x", 1 << 30))
    with open_context(attention_gguf) as context:
        disk = opened(load, context)
        assert disk is not None and isinstance(disk.store, ChunkStore)
        runner = Runner(context, disk)
        runner.answer(HEAD, GREEDY, head=100, persist=True)
        assert runner.ends[0].usage.completion_tokens > 0
