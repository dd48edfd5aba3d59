"""Every sampling parameter does what it says, on a real model's logits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest

from llm_server.llama.context import Context
from llm_server.llama.lib import lib
from llm_server.llama.sampler import Sampler
from llm_server.worker.messages import Sampling
from tests.engine.real import Runner, open_context

TEXT = "<|im_start|>user\nhello world and the people<|im_end|>\n<|im_start|>assistant\n"
WILD = Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=7, max_tokens=24)


@pytest.fixture(scope="module")
def context(attention_gguf: Path) -> Iterator[Context]:
    with open_context(attention_gguf) as opened:
        yield opened


def with_(sampling: Sampling, **changes: object) -> Sampling:
    return msgspec.structs.replace(sampling, **changes)


def draws(context: Context, sampling: Sampling, n: int = 200) -> list[int]:
    """Many first tokens for the same prompt, as different seeds draw them."""
    tokens = context.model.vocab.tokenize(TEXT, parse_special=True)
    context.clear()
    context.batch.clear()
    row = context.batch.add(0, 0, tokens, logits=True)
    context.decode()
    drawn = []
    for seed in range(n):
        sampler = Sampler(context, with_(sampling, seed=seed), tokens)
        drawn.append(sampler.sample(row))
        sampler.close()
    return drawn


def probabilities(context: Context, temperature: float = 1.0) -> np.ndarray:
    draws(context, WILD, 1)
    row = len(context.model.vocab.tokenize(TEXT, parse_special=True)) - 1
    logits = context.logits(row).astype(np.float64) / temperature
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def test_seed_makes_an_answer_reproducible(context: Context) -> None:
    runner = Runner(context)
    first = runner.answer(TEXT, WILD)
    assert runner.answer(TEXT, WILD) == first
    assert runner.answer(TEXT, with_(WILD, seed=8)) != first


def test_without_a_seed_answers_differ(context: Context) -> None:
    runner = Runner(context)
    assert len({runner.answer(TEXT, with_(WILD, seed=None)) for _ in range(4)}) > 1


@pytest.mark.parametrize("temperature", [0.0, 1e-46, 1e-38, 1e-6])
def test_temperature_zero_takes_the_most_probable_token(
    context: Context, temperature: float
) -> None:
    best = int(probabilities(context).argmax())
    assert set(draws(context, with_(WILD, temperature=temperature), 5)) == {best}


def test_top_k_keeps_k_tokens(context: Context) -> None:
    allowed = set(np.argsort(-probabilities(context))[:3].tolist())
    drawn = set(draws(context, with_(WILD, top_k=3)))
    assert drawn <= allowed and len(drawn) > 1


def test_top_p_zero_takes_the_most_probable_token(context: Context) -> None:
    best = int(probabilities(context).argmax())
    assert set(draws(context, with_(WILD, top_p=0.0))) == {best}


def test_top_p_keeps_the_nucleus(context: Context) -> None:
    p = probabilities(context)
    order = np.argsort(-p)
    n = int(np.searchsorted(np.cumsum(p[order]), 0.5)) + 1
    drawn = set(draws(context, with_(WILD, temperature=1.0, top_p=0.5)))
    assert drawn <= set(order[:n].tolist())
    assert not set(draws(context, with_(WILD, temperature=1.0))) <= set(order[:n].tolist())


def test_min_p_drops_what_is_far_below_the_best(context: Context) -> None:
    p = probabilities(context)
    allowed = set(np.flatnonzero(p >= 0.3 * p.max()).tolist())
    assert set(draws(context, with_(WILD, temperature=1.0, min_p=0.3))) <= allowed


def test_typical_p_narrows_the_choice(context: Context) -> None:
    wide = set(draws(context, with_(WILD, temperature=1.0)))
    assert len(set(draws(context, with_(WILD, temperature=1.0, typical_p=0.2)))) < len(wide)


def masked_draws(context: Context, sampling: Sampling, n: int = 200) -> list[int]:
    """As `draws`, where a grammar allows every sixteenth token."""
    draws(context, WILD, 1)
    row = len(context.model.vocab.tokenize(TEXT, parse_special=True)) - 1
    mask = np.full(-(-context.model.vocab.n_tokens // 32), 0x00010001, np.int32)
    drawn = []
    for seed in range(n):
        sampler = Sampler(context, with_(sampling, seed=seed), [])
        drawn.append(sampler.sample(row, mask))
        sampler.close()
    return drawn


def test_typical_p_counts_only_what_a_grammar_allows(context: Context) -> None:
    allowed = np.arange(0, context.model.vocab.n_tokens, 16)
    p = probabilities(context)[allowed]
    p /= p.sum()
    order = np.argsort(np.abs(-np.log(p) + (p * np.log(p)).sum()))
    n = int(np.searchsorted(np.cumsum(p[order]), 0.5)) + 1
    typical = set(allowed[order[:n]].tolist())
    drawn = set(masked_draws(context, with_(WILD, temperature=1.0, typical_p=0.5)))
    assert drawn <= typical and len(drawn) > 1


def test_mirostat_aims_at_its_surprise_in_a_grammar(context: Context) -> None:
    assert len(set(masked_draws(context, with_(WILD, mirostat=1, mirostat_tau=9.0)))) > 1


def test_xtc_takes_the_top_choices_out(context: Context) -> None:
    best = int(probabilities(context).argmax())
    assert best in draws(context, WILD)
    removed = with_(WILD, xtc_probability=1.0, xtc_threshold=0.01)
    assert best not in draws(context, removed)


def test_logit_bias_forces_and_bans(context: Context) -> None:
    assert set(draws(context, with_(WILD, logit_bias={300: 100.0}), 20)) == {300}
    best = int(probabilities(context).argmax())
    greedy = with_(WILD, temperature=0.0, logit_bias={best: -100.0})
    assert best not in draws(context, greedy, 3)


@pytest.mark.parametrize(
    "penalty",
    [
        {"repeat_penalty": 1.8},
        {"frequency_penalty": 2.0},
        {"presence_penalty": 2.0},
        {"dry_multiplier": 4.0, "dry_allowed_length": 1, "dry_sequence_breakers": []},
    ],
)
def test_penalties_make_a_repetitive_answer_less_so(
    context: Context, penalty: dict[str, object]
) -> None:
    vocab = context.model.vocab
    again = vocab.tokenize(" the people", parse_special=False)
    # A model that loves two tokens repeats them for ever, unless it is penalised.
    loop = Sampling(temperature=0, max_tokens=24, logit_bias=dict.fromkeys(again, 9.0))
    runner = Runner(context)
    plain = runner.answer(TEXT, loop)
    assert runner.answer(TEXT, with_(loop, **penalty)) != plain


def test_repeat_penalty_reaches_back_into_the_prompt(context: Context) -> None:
    best = int(probabilities(context).argmax())
    piece = context.model.vocab.piece(best, special=True).decode()
    tokens = context.model.vocab.tokenize(TEXT, parse_special=True)
    context.clear()
    context.batch.clear()
    row = context.batch.add(0, 0, tokens, logits=True)
    context.decode()
    penal = Sampling(temperature=0, repeat_penalty=1e6)
    for history, expected in ((tokens, True), ([*tokens, best], False)):
        sampler = Sampler(context, penal, history)
        assert (sampler.sample(row) == best) is expected, piece
        sampler.close()


@pytest.mark.parametrize(("reach", "again"), [({}, True), ({"dry_penalty_last_n": -1}, False)])
def test_dry_looks_as_far_back_as_in_llama_cpp_unless_told(
    context: Context, reach: dict[str, int], again: bool
) -> None:
    draws(context, WILD, 1)
    row = len(context.model.vocab.tokenize(TEXT, parse_special=True)) - 1
    history = [10, 11, 12, *range(100, 200), 10, 11]
    dry = Sampling(
        temperature=0,
        logit_bias={12: 50.0},
        dry_multiplier=10.0,
        dry_base=10.0,
        dry_allowed_length=1,
        dry_sequence_breakers=[],
    )
    sampler = Sampler(context, with_(dry, **reach), history)
    assert (sampler.sample(row) == 12) is again
    sampler.close()


@pytest.mark.parametrize(
    "penalty",
    [
        {"repeat_penalty": 1.8, "repeat_last_n": 2**31 - 1},
        {"dry_multiplier": 4.0, "dry_penalty_last_n": 2**31 - 1},
    ],
)
def test_a_penalty_that_looks_back_further_than_there_is_takes_no_memory_for_it(
    context: Context, penalty: dict[str, float]
) -> None:
    before = psutil.Process().memory_info().vms
    sampler = Sampler(context, with_(WILD, **penalty), [1, 2, 3])
    assert psutil.Process().memory_info().vms - before < 2**30
    sampler.close()


@pytest.mark.parametrize("sampling", [WILD, with_(WILD, mirostat=2)])
def test_the_largest_seed_is_a_seed(context: Context, sampling: Sampling) -> None:
    """llama.cpp's LLAMA_DEFAULT_SEED, which means to draw one there."""
    runner = Runner(context)
    largest = with_(sampling, seed=2**32 - 1)
    assert runner.answer(TEXT, largest) == runner.answer(TEXT, largest)


def test_a_kind_of_dry_sampler_is_built_once(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[object] = []
    build = lib.llama_sampler_init_dry
    monkeypatch.setattr(
        lib, "llama_sampler_init_dry", lambda *given: built.append(given) or build(*given)
    )
    loop = Sampling(temperature=0, max_tokens=24, dry_multiplier=4.0, dry_allowed_length=1)
    context.dry.build(loop)
    runner = Runner(context)
    # What one copy has seen is nothing to the next.
    assert runner.answer(TEXT, loop) == runner.answer(TEXT, loop)
    assert len(built) == 1
    for n in range(20):
        context.dry.build(with_(loop, dry_base=1.5 + n))
    assert runner.answer(TEXT, loop) and len(built) == 22


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "sampling",
    [
        with_(WILD, temperature=0.0),
        WILD,
        with_(WILD, top_k=40, top_p=0.9, min_p=0.05, temperature=0.8),
        with_(WILD, xtc_probability=0.5, xtc_threshold=0.01, repeat_penalty=1.3),
        with_(WILD, mirostat=2),
    ],
)
def test_what_is_put_back_is_sampled_as_it_was(
    context: Context, sampling: Sampling, masked: bool
) -> None:
    """As from the row that the logits came from, also by those who come after the first."""
    draws(context, WILD, 1)
    tokens = context.model.vocab.tokenize(TEXT, parse_special=True)
    n_vocab = context.model.vocab.n_tokens
    mask = np.full(-(-n_vocab // 32), 0x0F0F0F0F, np.int32) if masked else None
    kept = context.logits(len(tokens) - 1).copy()
    rows = [context.put_back(kept), context.put_back(kept), len(tokens) - 1]
    for seed in range(20):
        drawn = []
        for row in rows:
            sampler = Sampler(context, with_(sampling, seed=seed), tokens)
            drawn.append([sampler.sample(row, mask) for _ in range(3)])
            sampler.close()
        assert drawn[0] == drawn[1] == drawn[2]
    assert len(set(rows)) == 3


@pytest.mark.parametrize("mirostat", [1, 2])
def test_mirostat_aims_at_its_surprise(context: Context, mirostat: int) -> None:
    runner = Runner(context)
    low = with_(WILD, mirostat=mirostat, mirostat_tau=0.1, max_tokens=40)
    high = with_(low, mirostat_tau=9.0)
    assert runner.answer(TEXT, low) != runner.answer(TEXT, high)
