"""The engine with the disk tier behind it: a fake context, a real store in a temporary folder."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_server.cache.disk import DiskTier, Policy, chunk_tokens
from llm_server.cache.files import Files
from llm_server.cache.heads import N_IN_VAIN
from llm_server.cache.idle import RENT_ROWS
from llm_server.cache.ledger import Ledger
from llm_server.cache.reading import HUNG_S, READ_AHEAD
from llm_server.cache.store import ChunkStore
from llm_server.cache.survey import damage, survey
from llm_server.worker.messages import Failed, Finished, Usage
from tests.cache.scenario import chunk_files
from tests.engine.fake_context import Bench, FakeContext, reference

FINGERPRINT = bytes(32)
SIZE = 16


def prompt(seed: int, n: int = 20) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1, 64) for _ in range(n)]


HEAD = prompt(99, 100)


class Server:
    """An engine that can be restarted on the same folder."""

    def __init__(
        self,
        folder: Path,
        *,
        whole_state: bool = False,
        policy: Policy = "auto",
        n_ctx: int = 4096,
        parallel: int = 8,
        read_ahead: int = READ_AHEAD,
        hung_s: float = HUNG_S,
        files: Files | None = None,
    ) -> None:
        self.folder = folder
        self._hung_s, self._files = hung_s, files
        self._read_ahead = read_ahead
        self.whole_state = whole_state
        self._policy = policy
        self._n_ctx, self._parallel = n_ctx, parallel
        self.start()

    def start(self) -> None:
        self.store = ChunkStore(self.folder, FINGERPRINT, 1 << 30, files=self._files)
        ledger = Ledger(self.folder, FINGERPRINT, "a.gguf")
        self.disk = DiskTier(
            self.store,
            FINGERPRINT,
            whole_state=self.whole_state,
            policy=self._policy,
            size=SIZE,
            ledger=ledger,
            read_ahead=self._read_ahead,
            hung_s=self._hung_s,
        )
        self.context = FakeContext(
            self._n_ctx, self._parallel, n_seq=self._parallel * 3, whole_state=self.whole_state
        )
        self.woken = threading.Event()
        self.bench = Bench(self.context, disk=self.disk, wake=self.woken.set)

    def restart(self, *, killed: bool = False) -> None:
        """Stop in order, or as if killed after the writes so far, and start anew."""
        if killed:
            self.store.flush(10)
        else:
            self.bench.engine.close(10)
        self.start()

    def ask(
        self, id: int, tokens: Sequence[int], *, head: int = 0, max_tokens: int = 4, **more: object
    ) -> Usage:
        """One request to its end; the answer must be the reference."""
        self.bench.submit(id, tokens, head=head, max_tokens=max_tokens, **more)  # type: ignore[arg-type]
        self.run()
        end = self.bench.ends[id]
        assert isinstance(end, Finished)
        assert self.bench.texts[id] == reference(tokens, end.usage.completion_tokens)
        return end.usage

    def step(self) -> None:
        """One step, once all is read that those who wait for the disk need.

        Others decode meanwhile: of fake steps, which take no time, they would have any number.
        """
        while not all(s.fetch.done for s in self.bench.engine._admission.waiting if s.fetch):
            assert self.woken.wait(10)
            self.woken.clear()
        self.bench.step()

    def run(self) -> None:
        while not self.bench.engine.idle:
            self.bench.step()
            if self.bench.engine.blocked:
                # A read wakes us; a write that is behind is waited for here.
                if not self.woken.wait(0.01):
                    self.store.flush(10)
                self.woken.clear()


@pytest.fixture(params=[False, True], ids=["ranges", "whole_state"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Server:
    return Server(tmp_path, whole_state=request.param)


@pytest.fixture
def ranges(tmp_path: Path) -> Server:
    return Server(tmp_path)


def test_another_question_behind_a_known_head_costs_only_itself_after_a_kill(
    server: Server,
) -> None:
    server.ask(1, HEAD + prompt(1), head=len(HEAD))
    server.restart(killed=True)
    usage = server.ask(2, HEAD + prompt(2), head=len(HEAD))
    assert (usage.cached_tokens, usage.disk_tokens) == (len(HEAD), len(HEAD))
    assert server.context.n_decoded == 20 + usage.completion_tokens - 1


def test_two_servers_on_one_folder_compute_a_head_once(server: Server) -> None:
    other = Server(server.folder, whole_state=server.whole_state)
    server.ask(1, HEAD + prompt(1), head=len(HEAD))
    server.store.flush(10)
    usage = other.ask(2, HEAD + prompt(2), head=len(HEAD))
    assert (usage.cached_tokens, usage.disk_tokens) == (len(HEAD), len(HEAD))
    other.store.flush(10)
    assert other.store.stats().written == 0


def test_requests_that_find_their_head_are_counted_over_restarts(server: Server) -> None:
    for i in range(3):  # computed once, then found twice
        server.ask(i, HEAD + prompt(i), head=len(HEAD))
    server.ask(3, HEAD[:-1] + prompt(3), head=len(HEAD))  # another head
    server.restart()
    server.ask(4, HEAD + prompt(4), head=len(HEAD))
    server.restart()
    assert sorted(head.hits for head in survey(server.folder).heads()) == [0, 3]


def test_a_head_that_stays_in_the_cells_is_not_the_first_to_be_evicted(server: Server) -> None:
    server.ask(1, HEAD + prompt(1), head=len(HEAD))
    server.store.flush(10)
    for path in chunk_files(server.folder):
        os.utime(path, (0, 0))
    usage = server.ask(2, HEAD + prompt(2), head=len(HEAD))
    assert (usage.cached_tokens, usage.disk_tokens) == (len(HEAD), 0)
    server.disk.close(10)
    stored = [path.stat().st_mtime for path in chunk_files(server.folder)]
    assert stored and min(stored) > time.time() - 3600


def test_a_head_that_stays_in_the_cells_is_stored_again_when_it_was_cleared(
    server: Server,
) -> None:
    server.ask(1, HEAD + prompt(1), head=len(HEAD))
    server.store.flush(10)
    stored = chunk_files(server.folder)
    for path in stored:
        path.unlink()
    server.ask(2, HEAD + prompt(2), head=len(HEAD))
    noticed = threading.Event()
    server.disk._reader.do(noticed.set)
    assert noticed.wait(10)
    server.ask(3, HEAD + prompt(3), head=len(HEAD))
    server.store.flush(10)
    assert set(stored) <= set(chunk_files(server.folder))


def heads_stored(server: Server) -> int:
    server.store.flush(10)
    return len(survey(server.folder).heads())


def test_heads_that_nobody_uses_again_are_no_heads_until_somebody_does(server: Server) -> None:
    told = [prompt(i, 40) for i in range(N_IN_VAIN + 3)]  # the time of day is in them
    for i in range(N_IN_VAIN + 2):
        server.ask(i, told[i] + prompt(50 + i), head=40)
    assert heads_stored(server) == N_IN_VAIN
    server.ask(80, told[N_IN_VAIN + 1] + prompt(80), head=40)
    noticed = threading.Event()
    server.disk._reader.do(noticed.set)
    assert noticed.wait(10)
    server.ask(81, told[-1] + prompt(81), head=40)
    assert heads_stored(server) == N_IN_VAIN + 2


def test_what_was_stored_as_anything_becomes_a_head_when_it_is_found_as_one(
    tmp_path: Path,
) -> None:
    server = Server(tmp_path, policy="all")
    server.ask(1, HEAD, max_tokens=1)
    assert heads_stored(server) == 0
    server.ask(2, HEAD + prompt(2), head=96)
    noticed = threading.Event()
    server.disk._reader.do(noticed.set)
    assert noticed.wait(10)
    assert heads_stored(server) == 1


def test_a_head_that_is_asked_for_is_stored_whatever_became_of_others(server: Server) -> None:
    for i in range(N_IN_VAIN):
        server.ask(i, prompt(i, 40) + prompt(50 + i), head=40)
    server.ask(80, HEAD + prompt(80), head=len(HEAD), max_tokens=0, persist=True)
    server.restart(killed=True)
    assert server.ask(81, HEAD + prompt(81), head=len(HEAD)).disk_tokens == len(HEAD)


def test_a_conversation_goes_on_after_a_restart_in_order(server: Server) -> None:
    usage = server.ask(1, HEAD, max_tokens=6)
    answer = [ord(c) - ord("0") for c in server.bench.texts[1]]
    server.restart()
    usage = server.ask(2, [*HEAD, *answer, *prompt(3)])
    # The last sampled token was never computed.
    assert usage.cached_tokens == len(HEAD) + len(answer) - 1


def test_agents_that_arrive_together_read_their_head_once(server: Server) -> None:
    server.ask(1, HEAD + prompt(1), head=len(HEAD))
    server.restart(killed=True)
    for i in range(8):  # nothing but the head is shared, whoever comes first
        server.bench.submit(i, [*HEAD, i + 1, *prompt(i)], max_tokens=1, head=len(HEAD))
    server.run()
    ends = [end for end in server.bench.ends.values() if isinstance(end, Finished)]
    assert sorted(end.usage.disk_tokens for end in ends) == 7 * [0] + [len(HEAD)]
    assert [end.usage.cached_tokens for end in ends] == 8 * [len(HEAD)]
    assert server.context.n_used < len(HEAD) + 8 * 24


def test_persist_stores_all_of_a_prompt(server: Server) -> None:
    usage = server.ask(1, HEAD, max_tokens=0, persist=True)
    assert (usage.completion_tokens, usage.state_bytes) == (0, len(HEAD))
    server.restart(killed=True)
    assert server.ask(2, HEAD + prompt(5)).disk_tokens == len(HEAD)


@pytest.mark.parametrize("keep_bytes", [0, 200], ids=["emptied", "cut off"])
def test_one_restart_heals_all_that_a_power_failure_took(ranges: Server, keep_bytes: int) -> None:
    ranges.ask(1, HEAD, max_tokens=0, persist=True)
    ranges.restart(killed=True)
    for path in chunk_files(ranges.folder)[1:]:
        os.truncate(path, min(keep_bytes, path.stat().st_size - 1))
    ranges.restart(killed=True)
    ranges.ask(2, HEAD, max_tokens=0, persist=True)
    ranges.store.flush(10)
    assert ranges.disk.has(HEAD, "")
    assert [damage(file) for file in survey(ranges.folder).stored] == [None] * 7
    ranges.restart(killed=True)
    assert ranges.ask(3, HEAD + prompt(5)).disk_tokens == len(HEAD)


def test_what_was_stored_as_anything_becomes_a_head_when_it_is_asked_for(tmp_path: Path) -> None:
    server = Server(tmp_path, policy="all")
    server.ask(1, HEAD, max_tokens=1)
    server.store.flush(10)
    stored = chunk_files(tmp_path)
    assert stored
    server.ask(2, HEAD, max_tokens=0, persist=True)
    server.store.flush(10)
    assert len(chunk_files(tmp_path)) == len(stored)
    assert all("-rh-" in path.name for path in chunk_files(tmp_path))


def test_what_waits_to_be_copied_becomes_a_head_when_it_is_asked_for(server: Server) -> None:
    server.disk.want(HEAD, "", head=False, tail=True)
    server.disk.want(HEAD, "", head=True, tail=True)
    copies = []
    while server.disk.pending:
        copies.append(server.disk.next_copy())
    assert copies and all(copy.head for copy in copies)
    assert len({copy.stop for copy in copies}) == len(copies)


def test_what_waits_for_a_disk_that_hangs_is_bounded(server: Server) -> None:
    n = 0
    while not server.store.stats().dropped:
        server.disk.want([n] * 40_000, "", head=False, tail=False)
        n += 1
    copies = []
    while server.disk.pending:
        copies.append(server.disk.next_copy())
    waited = {id(copy.tokens): copy.tokens for copy in copies}
    assert n - 1 == len(waited) > 20, "the chunks of a prompt share its tokens"
    server.disk.want([n] * 40_000, "", head=False, tail=False)
    assert server.disk.pending, "it is on again"


def test_the_same_prompt_finds_itself_after_it_was_stored(server: Server) -> None:
    server.ask(1, HEAD, max_tokens=0, boundaries=[50, len(HEAD) - 4], persist=True)
    server.restart(killed=True)
    assert server.ask(2, HEAD).disk_tokens >= len(HEAD) - 4


def test_nothing_is_said_to_be_stored_where_nothing_is_written(tmp_path: Path) -> None:
    server = Server(tmp_path, policy="off")
    assert server.ask(1, HEAD, max_tokens=0, persist=True).state_bytes == 0
    server.restart()
    assert server.store.stats().chunks == 0


def test_what_is_used_once_is_not_written_and_what_is_hit_twice_is(ranges: Server) -> None:
    stem = prompt(7, 64)
    ranges.ask(1, stem + prompt(1))
    ranges.ask(2, stem + prompt(2))
    ranges.store.flush(10)
    assert ranges.store.stats().chunks == 0
    ranges.ask(3, stem + prompt(3))
    ranges.store.flush(10)
    assert ranges.store.stats().chunks == 64 // SIZE


def test_what_the_cells_cannot_hold_is_on_disk_before_it_is_dropped(tmp_path: Path) -> None:
    """Three conversations take turns in cells that hold one of them."""
    server = Server(tmp_path, n_ctx=140, parallel=2)
    prompts = [prompt(seed, 100) for seed in range(3)]
    for id, tokens in enumerate(prompts):
        server.ask(id, tokens)
        server.store.flush(10)
    for id, tokens in enumerate(prompts, start=3):
        usage = server.ask(id, tokens)
        assert usage.cached_tokens == 100
        server.store.flush(10)


class Talk:
    """A conversation on a server; a template that drops answers from the prompt lacks them."""

    def __init__(self, server: Server, seed: int, *, answers_stay: bool) -> None:
        self._server, self._seed, self._answers_stay = server, seed, answers_stay
        self._head = prompt(1000 + seed, 40)
        self._tokens = list(self._head)
        self._n_turns = 0

    def turn(self) -> tuple[int, int]:
        """The next turn: how many tokens it found, and how many it could have."""
        known = len(self._tokens)
        self._n_turns += 1
        id = 100 * self._seed + self._n_turns
        self._tokens += prompt(id, 20)
        n, n_head = len(self._tokens), len(self._head)
        opening = [1, 2]
        usage = self._server.ask(id, self._tokens + opening, head=n_head, boundaries=[n_head, n])
        self._server.store.flush(10)
        if self._answers_stay:
            answer = [ord(c) - ord("0") for c in self._server.bench.texts[id]]
            self._tokens += opening + answer
        # The last token of an answer may not have been computed.
        return usage.cached_tokens, known - bool(self._answers_stay and self._n_turns > 1)


@pytest.mark.parametrize("answers_stay", [True, False])
@pytest.mark.parametrize("parallel", [2, 8])
def test_conversations_in_turn_go_on_though_few_states_are_kept(
    tmp_path: Path, parallel: int, answers_stay: bool
) -> None:
    server = Server(tmp_path, whole_state=True, parallel=parallel)
    talks = [Talk(server, seed, answers_stay=answers_stay) for seed in range(5)]
    for talk in talks:
        talk.turn()
    for _ in range(4):
        for talk in talks:
            found, known = talk.turn()
            assert found >= known


@pytest.mark.parametrize("answers_stay", [True, False])
def test_a_conversation_that_goes_on_writes_no_states(tmp_path: Path, answers_stay: bool) -> None:
    server = Server(tmp_path, whole_state=True, parallel=2)
    talk = Talk(server, 1, answers_stay=answers_stay)
    talk.turn()
    for _ in range(6):
        found, known = talk.turn()
        assert found >= known
    assert server.store.stats().written == 1, "the head"


def test_older_prefixes_leave_the_cells_once_the_disk_has_them(tmp_path: Path) -> None:
    """Idle cells slow every decoding step down; what leaves them is not computed again."""
    server = Server(tmp_path, n_ctx=20_000)
    prompts = [prompt(seed, RENT_ROWS + 100) for seed in range(6)]
    n = len(prompts[0])
    for id, tokens in enumerate(prompts):
        server.ask(id, tokens)
        server.store.flush(10)
    assert server.context.n_used <= 3 * (n + 10)
    newest = server.ask(6, prompts[5])
    assert (newest.cached_tokens, newest.disk_tokens) == (n, 0)
    oldest = server.ask(7, prompts[0])
    assert (oldest.cached_tokens, oldest.disk_tokens) == (n, n)


def test_prefixes_stay_in_the_cells_when_the_disk_cannot_take_them(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    server = Server(tmp_path / "file", n_ctx=20_000)
    prompts = [prompt(seed, RENT_ROWS + 100) for seed in range(6)]
    for id, tokens in enumerate(prompts):
        server.ask(id, tokens)
    usage = server.ask(6, prompts[0])
    assert (usage.cached_tokens, usage.disk_tokens) == (len(prompts[0]), 0)


def test_only_what_was_asked_for_is_waited_for(tmp_path: Path) -> None:
    """A prefix that nobody asked to store is no reason to keep who did waiting."""
    server = Server(tmp_path, n_ctx=400)
    server.bench.submit(1, prompt(1, 150), max_tokens=130)
    server.bench.submit(2, prompt(2, 60), max_tokens=1)
    while 2 not in server.bench.ends:
        server.step()
    assert 1 not in server.bench.ends
    assert server.bench.engine._cache.unsaved, "the idle prefix is not in danger"
    assert not server.bench.engine._cache.copying
    server.bench.submit(3, prompt(3, 40), max_tokens=1, persist=True)
    while 3 not in server.bench.ends or server.bench.engine._cache.copying:
        server.step()
        server.store.flush(10)
    assert 1 not in server.bench.ends
    server.store.flush(10)
    assert server.disk.has(prompt(3, 40), "")


@pytest.mark.parametrize(("policy", "expected"), [("off", 0), ("all", 23 // SIZE + 1)])
def test_the_write_policy_is_honoured(tmp_path: Path, policy: Policy, expected: int) -> None:
    server = Server(tmp_path, policy=policy)
    server.ask(1, prompt(1))
    server.restart()
    assert server.store.stats().chunks == expected


def test_a_prompt_that_leaves_inside_a_stored_chunk_uses_its_beginning(ranges: Server) -> None:
    ranges.ask(1, HEAD, max_tokens=0, persist=True)
    ranges.restart(killed=True)
    usage = ranges.ask(2, HEAD[:57] + prompt(8))
    assert usage.disk_tokens == 57


def test_cells_come_first_and_the_disk_adds_what_they_lack(ranges: Server) -> None:
    ranges.ask(1, HEAD, max_tokens=0, persist=True)
    ranges.restart(killed=True)
    ranges.ask(2, HEAD[:40], max_tokens=1)
    usage = ranges.ask(3, HEAD + prompt(3))
    assert usage.cached_tokens == len(HEAD)
    assert usage.disk_tokens == len(HEAD) - 40


def test_namespaces_do_not_find_each_others_prompts_on_disk(server: Server) -> None:
    server.ask(1, HEAD, max_tokens=0, persist=True, namespace="a")
    server.restart(killed=True)
    assert server.ask(2, HEAD + prompt(1), namespace="b").disk_tokens == 0
    assert server.ask(3, HEAD + prompt(1), namespace="a").disk_tokens == len(HEAD)


def test_no_room_for_a_piece_means_computing_it(tmp_path: Path) -> None:
    server = Server(tmp_path, n_ctx=120, parallel=2)
    server.ask(1, HEAD, max_tokens=0, persist=True)
    server.restart(killed=True)
    server.bench.submit(2, prompt(50, 60), max_tokens=40)
    server.bench.step()
    server.bench.submit(3, HEAD + prompt(3, 10), max_tokens=2)
    server.run()
    for id, tokens in ((2, prompt(50, 60)), (3, HEAD + prompt(3, 10))):
        end = server.bench.ends[id]
        assert isinstance(end, Finished)
        assert server.bench.texts[id] == reference(tokens, end.usage.completion_tokens)


def test_a_payload_that_llama_cpp_refuses_is_never_tried_again(server: Server) -> None:
    server.ask(1, HEAD, max_tokens=0, persist=True)
    server.restart(killed=True)

    def refuse(*_: object) -> None:
        server.context.n_refused += 1
        raise RuntimeError("refused")

    server.context.refuse = refuse
    usage = server.ask(2, HEAD + prompt(2))
    assert usage.disk_tokens == 0
    assert server.context.n_refused == 1


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.booleans(), st.sampled_from(["auto", "all"]))
def test_whatever_the_history_answers_are_exact(
    tmp_path_factory: pytest.TempPathFactory, seed: int, whole_state: bool, policy: Policy
) -> None:
    """Random trees of prompts, restarts and kills, with few cells."""
    rng = random.Random(seed)
    server = Server(
        tmp_path_factory.mktemp("cache"),
        whole_state=whole_state,
        policy=policy,
        n_ctx=rng.randrange(150, 400),
        parallel=3,
        read_ahead=rng.choice([1, 50, READ_AHEAD]),
    )
    stems = [prompt(s, rng.randrange(1, 90)) for s in range(3)]
    id = 0
    for _ in range(rng.randrange(1, 5)):
        asked = {}
        for _ in range(rng.randrange(1, 6)):
            stem = rng.choice(stems)
            head = rng.randrange(len(stem) + 1)
            tokens = stem[: rng.randrange(head, len(stem) + 1)] + prompt(rng.randrange(3), 5)
            asked[id] = tokens
            server.bench.submit(
                id, tokens, head=head, max_tokens=rng.randrange(8), persist=rng.random() < 0.2
            )
            id += 1
        server.run()
        for asked_id, tokens in asked.items():
            end = server.bench.ends[asked_id]
            assert not isinstance(end, Failed)
            expected = reference(tokens, end.usage.completion_tokens)
            assert server.bench.texts[asked_id] == expected
        server.restart(killed=rng.random() < 0.5)
        server.store.flush(10)


def test_chunks_are_smaller_where_copying_them_takes_long() -> None:
    assert chunk_tokens(12_288) == 256
    assert chunk_tokens(131_072) == 32
    assert chunk_tokens(0) == 256
    assert chunk_tokens(10**9) == 16
    assert chunk_tokens(12_288, window=100) == 64
