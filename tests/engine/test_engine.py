"""The engine on a fake context: scheduling, sharing, preemption, cancelling and accounting."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_server.engine.engine import QUIET_S
from llm_server.engine.pace import WIDE
from llm_server.errors import RequestTooComplex, ShuttingDown
from llm_server.worker.messages import (
    Cancelled,
    Cells,
    Content,
    Failed,
    Finished,
    Progress,
    Usage,
)
from tests.engine.fake_context import Bench, FakeContext, Silent, reference

HEAD = [random.Random(1).randrange(1, 64) for _ in range(80)]


def prompt(seed: int, n: int = 20) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1, 64) for _ in range(n)]


def decoding_ids(bench: Bench) -> set[int]:
    return {row[0] for row in bench.context.steps[-1] if len(row[2]) == 1}


def test_one_request_answers_as_the_model_does() -> None:
    bench = Bench()
    bench.submit(1, prompt(1), max_tokens=30)
    bench.run()
    assert bench.texts[1] == reference(prompt(1), 30)
    assert isinstance(bench.ends[1], Finished)


def test_max_tokens_ends_with_length_and_counts_usage() -> None:
    bench = Bench()
    bench.submit(1, prompt(3), max_tokens=3)
    bench.run()
    end = bench.ends[1]
    assert isinstance(end, Finished)
    assert end.reason == "length"
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (20, 3)


def test_max_tokens_zero_computes_the_prompt_and_samples_nothing() -> None:
    bench = Bench()
    bench.submit(1, prompt(3), max_tokens=0)
    bench.run()
    assert bench.samplers == []
    assert bench.context.n_decoded == 20
    end = bench.ends[1]
    assert isinstance(end, Finished) and end.usage.completion_tokens == 0


def test_cells_in_use_are_those_of_requests_and_those_of_cached_prompts_alone() -> None:
    bench = Bench()
    assert bench.engine.cells == Cells(0, 0)
    bench.submit(1, HEAD, max_tokens=0)
    bench.run()
    assert bench.engine.cells == Cells(running=0, idle=len(HEAD))
    bench.submit(2, [*HEAD, *prompt(2)], max_tokens=30)
    bench.engine.step()
    assert bench.engine.cells == Cells(running=len(HEAD) + 20, idle=0)


def test_tokens_that_show_nothing_are_told_of_now_and_then() -> None:
    bench = Bench(FakeContext(model=lambda tokens: 7))
    bench.context.on_decode = lambda n_rows: bench.clock.pass_(QUIET_S / 4)
    bench.submit(1, prompt(1), max_tokens=40, parser=Silent(1))
    told = [bench.step() for _ in range(40)]
    assert [n for n, events in enumerate(told) if events] == [*range(0, 40, 4), 39]
    assert told[:-1:4] == [[Progress(1, 20, 20, 0)]] * 10


def test_how_long_a_prompt_is_is_told_once_before_its_answer() -> None:
    bench = Bench()
    for id, n_cached in ((1, 0), (2, 20)):
        bench.submit(id, prompt(1), max_tokens=3)
        events = [event for _ in range(3) for event in bench.step()]
        kinds = [type(event) for event in events]
        assert kinds == [Progress, Content, Content, Content, Finished]
        assert events[0] == Progress(id, 20, 20, n_cached)


def test_an_answer_may_fill_the_context_and_no_more() -> None:
    bench = Bench(FakeContext(n_ctx=64))
    tokens = next(p for s in range(100) if len(reference(p := prompt(s), 44)) == 44)
    bench.submit(1, tokens, max_tokens=None)
    bench.run()
    assert len(bench.texts[1]) == 64 - 20
    end = bench.ends[1]
    assert isinstance(end, Finished) and end.reason == "length"


def test_stop_string_ends_the_answer_and_never_shows() -> None:
    text = reference(prompt(5), 20)
    stop = text[7:10]
    bench = Bench()
    bench.submit(1, prompt(5), max_tokens=20, stop=[stop])
    bench.run()
    assert bench.texts[1] == text[: text.index(stop)]
    end = bench.ends[1]
    assert isinstance(end, Finished) and (end.reason, end.stop_text) == ("stop", stop)


@pytest.mark.parametrize("whole_state", [False, True])
def test_many_requests_in_one_batch_do_not_change_each_other(whole_state: bool) -> None:
    bench = Bench(FakeContext(n_ctx=4096, whole_state=whole_state))
    for i in range(20):
        bench.submit(i, prompt(i, 10 + i), max_tokens=12)
    bench.run()
    assert bench.texts == {i: reference(prompt(i, 10 + i), 12) for i in range(20)}


@pytest.mark.parametrize("whole_state", [False, True])
def test_agents_that_arrive_together_compute_their_head_once(whole_state: bool) -> None:
    bench = Bench(FakeContext(n_ctx=4096, whole_state=whole_state))
    for i in range(8):
        bench.submit(i, HEAD + prompt(i), max_tokens=1)
    bench.run()
    assert bench.context.n_decoded == len(HEAD) + 8 * 20
    cached = [e.usage.cached_tokens for e in bench.ends.values() if isinstance(e, Finished)]
    assert sorted(cached) == [0] + 7 * [len(HEAD)]
    assert bench.texts == {i: reference(HEAD + prompt(i), 1) for i in range(8)}


def test_the_next_turn_costs_only_its_new_tokens() -> None:
    bench = Bench()
    bench.submit(1, HEAD, max_tokens=4)
    bench.run()
    answer = [ord(c) - ord("0") for c in bench.texts[1]]
    before = bench.context.n_decoded
    bench.submit(2, [*HEAD, *answer, *prompt(2)], max_tokens=1)
    bench.run()
    # The last sampled token was never computed; it belongs to the new turn's cost.
    assert bench.context.n_decoded - before == 1 + 20
    assert bench.texts[2] == reference([*HEAD, *answer, *prompt(2)], 1)


def test_a_prompt_that_leaves_in_the_middle_reuses_what_came_before() -> None:
    bench = Bench()
    bench.submit(1, HEAD, max_tokens=2)
    bench.run()
    other = HEAD[:50] + prompt(9)
    bench.submit(2, other, max_tokens=5)
    bench.run()
    end = bench.ends[2]
    assert isinstance(end, Finished) and end.usage.cached_tokens == 50
    assert bench.texts[2] == reference(other, 5)


def test_namespaces_share_nothing() -> None:
    bench = Bench()
    bench.submit(1, HEAD, namespace="a")
    bench.run()
    bench.submit(2, HEAD, namespace="b")
    bench.run()
    end = bench.ends[2]
    assert isinstance(end, Finished) and end.usage.cached_tokens == 0


def test_decoding_goes_on_in_every_step_while_a_long_prompt_arrives() -> None:
    bench = Bench(FakeContext(n_ctx=4096, n_batch=512))
    bench.context.on_decode = lambda n_rows: bench.clock.pass_(0.004 * n_rows)
    short = next(p for s in range(100) if len(reference(p := prompt(s), 30)) == 30)
    bench.submit(1, short, max_tokens=30)
    while not bench.texts[1]:
        bench.step()
    bench.submit(2, prompt(50, 2000), max_tokens=1)
    while 1 not in bench.ends:
        events = bench.step()
        assert decoding_ids(bench), "the stream was stalled"
        if 1 not in bench.ends:
            assert any(isinstance(e, Progress) and e.id == 2 for e in events)


def test_prompt_tokens_per_step_follow_their_measured_cost() -> None:
    bench = Bench(FakeContext(n_ctx=8192, n_batch=512))
    bench.context.on_decode = lambda n_rows: bench.clock.pass_(0.004 * n_rows)
    bench.submit(1, prompt(2, 4000), max_tokens=1)
    bench.run()
    sizes = [sum(len(row[2]) for row in step) for step in bench.context.steps]
    assert sizes[0] == 128, "nothing is known yet"
    assert set(sizes[1:-2]) == {112}, "half a second at 4 ms a token, in tiles of 16"
    assert sizes[-1] >= WIDE, "a narrow rest would cost more a token"


def test_the_shortest_prompt_goes_first_until_the_long_one_has_waited() -> None:
    bench = Bench(FakeContext(n_ctx=8192, n_batch=128))
    bench.engine._pace.learn(0, 100, 1.0)  # 10 ms a prompt token
    bench.submit(1, prompt(1, 600), max_tokens=1)
    bench.submit(2, prompt(2, 20), max_tokens=1)
    bench.step()
    first = [len(row[2]) for row in bench.context.steps[0]]
    assert first[0] == 20, "the short one is whole in the first step"
    bench.clock.now += 10.0  # by now 6 seconds of work have waited 10
    bench.submit(3, prompt(3, 20), max_tokens=1)
    before = len(bench.context.steps)
    bench.run()
    sizes = [len(row[2]) for row in bench.context.steps[before]]
    assert sizes[0] > 20, "the long prompt is not starved by new short ones"


def test_cancel_takes_effect_at_the_next_step_and_keeps_what_was_computed() -> None:
    bench = Bench()
    bench.submit(1, HEAD, max_tokens=100)
    bench.submit(2, prompt(2), max_tokens=100)
    bench.step()
    bench.engine.cancel(1)
    bench.engine.cancel(2)
    bench.engine.cancel(77)
    took = bench.step()
    assert [(event.id, type(event)) for event in took] == [(1, Cancelled), (2, Cancelled)]
    assert bench.engine.idle
    assert bench.ends == {}
    assert all(sampler.closed for sampler in bench.samplers)
    bench.submit(3, HEAD, max_tokens=1)
    bench.run()
    end = bench.ends[3]
    assert isinstance(end, Finished) and end.usage.cached_tokens == len(HEAD)


def test_what_the_cancelled_took_is_told() -> None:
    bench = Bench(FakeContext(n_batch=64))
    bench.submit(1, prompt(1), max_tokens=100)
    while len(bench.texts[1]) < 3:
        bench.step()
    bench.submit(2, HEAD, max_tokens=100)
    bench.step()
    bench.submit(3, prompt(3), max_tokens=100)
    for id in (1, 2, 3):
        bench.engine.cancel(id)
    took = {event.id: event.usage for event in bench.step() if isinstance(event, Cancelled)}
    assert took[1] == Usage(20, len(bench.texts[1]), 0)
    assert 0 < took[2].prompt_tokens < len(HEAD), "as far as it was computed"
    assert took[3] == Usage(0, 0, 0), "it did not run"


def test_short_of_cells_the_youngest_gives_way_and_still_answers_right() -> None:
    bench = Bench(FakeContext(n_ctx=64, parallel=4))
    long = [s for s in range(300) if len(reference(prompt(s, 12), 40)) == 40][:4]
    for id, seed in enumerate(long):
        bench.submit(id, prompt(seed, 12), max_tokens=40)
    bench.run()
    assert bench.texts == {id: reference(prompt(seed, 12), 40) for id, seed in enumerate(long)}


def test_more_requests_than_sequences_wait_their_turn() -> None:
    bench = Bench(FakeContext(n_ctx=4096, parallel=3))
    for i in range(12):
        bench.submit(i, prompt(i), max_tokens=5)
    while not bench.engine.idle:
        bench.step()
        assert len({row[0] for row in bench.context.steps[-1]}) <= 3
    assert len(bench.ends) == 12


def test_a_failed_step_fails_its_requests_and_nothing_cached_is_believed() -> None:
    bench = Bench()
    bench.submit(1, HEAD, max_tokens=4)
    bench.run()
    bench.submit(2, HEAD, max_tokens=4)
    bench.context.failures.append(RuntimeError("compute failed"))
    bench.step()
    end = bench.ends[2]
    assert isinstance(end, Failed)
    assert (end.error.status, end.error.code) == (500, "internal_error")
    assert "compute failed" not in end.error.message
    assert bench.context.n_used == 0
    bench.submit(3, HEAD, max_tokens=4)
    bench.run()
    third = bench.ends[3]
    assert isinstance(third, Finished) and third.usage.cached_tokens == 0
    assert bench.texts[3] == reference(HEAD, 4)


def test_requests_outside_a_failed_step_start_over() -> None:
    bench = Bench(FakeContext(n_ctx=4096, n_batch=32))
    bench.submit(1, prompt(1, 32), max_tokens=6)
    bench.submit(2, prompt(2, 400), max_tokens=6)
    bench.context.failures.append(RuntimeError("compute failed"))
    bench.step()
    assert [id for id, end in bench.ends.items() if isinstance(end, Failed)] == [1], (
        "the batch had room for one of them"
    )
    bench.run()
    assert isinstance(bench.ends[2], Finished)
    assert bench.texts[2] == reference(prompt(2, 400), 6)


def test_no_cells_from_llama_cpp_drops_idle_prefixes_and_goes_on() -> None:
    bench = Bench()
    bench.submit(1, HEAD, max_tokens=4)
    bench.run()
    bench.submit(2, prompt(7), max_tokens=4)
    bench.context.failures.append("no_cells")
    bench.run()
    assert bench.texts[2] == reference(prompt(7), 4)


def test_a_broken_parser_costs_its_own_request_only() -> None:
    bench = Bench()
    bench.submit(1, prompt(1), max_tokens=8)
    bench.submit(2, prompt(2), max_tokens=8)

    def broken(text: str) -> list[object]:
        raise ValueError("parser")

    victim = next(s for s in bench.engine._admission.waiting if s.id == 1)
    victim._answer._parser.feed = broken  # type: ignore[method-assign, assignment]
    bench.run()
    assert isinstance(bench.ends[1], Failed)
    assert bench.texts[2] == reference(prompt(2), 8)


def test_a_refusal_in_the_middle_of_an_answer_keeps_its_name() -> None:
    bench = Bench()
    bench.submit(1, prompt(1), max_tokens=8)

    def too_complex(text: str) -> list[object]:
        raise RequestTooComplex("no")

    victim = bench.engine._admission.waiting[0]
    victim._answer._parser.feed = too_complex  # type: ignore[method-assign, assignment]
    bench.run()
    end = bench.ends[1]
    assert isinstance(end, Failed) and end.error == RequestTooComplex("no").info


def test_a_long_prompt_gets_its_turn_among_many_short_ones() -> None:
    bench = Bench(FakeContext(n_ctx=4096, parallel=32, n_batch=512, n_seq=128))
    rng = random.Random(4)

    def submit_short() -> None:
        id = len(bench.texts) + 1
        bench.submit(id, prompt(id, 60), max_tokens=rng.randrange(20, 90))

    for _ in range(16):
        submit_short()
    bench.step()
    bench.submit(0, prompt(0, 3600), max_tokens=1)
    while 0 not in bench.ends:
        bench.clock.pass_(0.1)
        bench.step()
        assert len(bench.ends) < 200, "everybody passes the long prompt"
        while len(bench.texts) - len(bench.ends) < 17:
            submit_short()
    assert bench.texts[0] == reference(prompt(0, 3600), 1)


def test_fail_all_ends_running_and_waiting_requests() -> None:
    bench = Bench(FakeContext(parallel=1))
    bench.submit(1, prompt(1), max_tokens=50)
    bench.submit(2, prompt(2), max_tokens=50)
    bench.step()
    failed = bench.engine.fail_all(ShuttingDown("The server is shutting down."))
    assert {event.id for event in failed if isinstance(event, Failed)} == {1, 2}
    assert bench.engine.idle
    bench.engine.check()


@settings(max_examples=150)
@given(
    st.integers(0, 2**32),
    st.integers(40, 200),
    st.integers(1, 6),
    st.integers(8, 64),
    st.booleans(),
)
def test_whatever_happens_every_answer_is_the_reference(
    seed: int, n_ctx: int, parallel: int, n_batch: int, whole_state: bool
) -> None:
    """Random trees of prompts, arrivals, cancels and refusals, with far too few cells."""
    rng = random.Random(seed)
    context = FakeContext(
        n_ctx, parallel, n_seq=2 * parallel, n_batch=n_batch, whole_state=whole_state
    )
    bench = Bench(context)
    stems = [prompt(rng.randrange(5), rng.randrange(1, n_ctx // 2)) for _ in range(3)]
    prompts: dict[int, list[int]] = {}
    cancelled = set()
    for id in range(rng.randrange(1, 16)):
        stem = rng.choice(stems)
        tokens = stem[: rng.randrange(len(stem)) + 1] + prompt(rng.randrange(4), rng.randrange(9))
        prompts[id] = tokens
        bench.submit(id, tokens, max_tokens=rng.randrange(1, 30))
        for _ in range(rng.randrange(4)):
            bench.clock.now += rng.random()
            bench.step()
            assert context.n_used <= n_ctx
        if rng.random() < 0.2:
            victim = rng.randrange(id + 1)
            if victim not in bench.ends:
                cancelled.add(victim)
                bench.engine.cancel(victim)
    bench.run()
    assert bench.engine.idle
    for id, tokens in prompts.items():
        if id in cancelled:
            continue
        end = bench.ends[id]
        assert isinstance(end, Finished), f"{id}: {end}"
        n = end.usage.completion_tokens
        assert bench.texts[id] == reference(tokens, n)
