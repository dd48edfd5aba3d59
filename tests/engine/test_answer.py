"""An answer under a constraint: forced tokens, masks, ends; on a fake context."""

from __future__ import annotations

import itertools

import pytest

from llm_server.chat.stream import AnswerParser
from llm_server.chat.syntax.format import HERMES, ReasoningFormat, Syntax
from llm_server.engine.answer import Answer, Mask
from llm_server.worker.messages import Content, Delta, Finished, Logprobs, Reasoning
from tests.engine.fake_context import EOG, Bench, FakeVocabulary, Text, next_token, reference

PROMPT = [5, 6, 7, 8]


class Script:
    """Forces given tokens at given lengths of the answer, and ends it at another."""

    def __init__(
        self,
        forced: dict[int, list[int]],
        *,
        finish_at: int | None = None,
        instead: list[int] | None = None,
    ) -> None:
        self.seen: list[int] = []
        self.finished = False
        self.cut = False
        self.calling = False
        self._forced = forced
        self._finish_at = finish_at
        self._instead = instead or []

    def mask(self) -> Mask | None:
        return None

    def refuses(self, token: int) -> bool:
        return False

    def forced(self, remaining: int) -> list[int]:
        return self._forced.pop(len(self.seen), [])[:remaining]

    def instead_of_end(self) -> list[int]:
        instead, self._instead = self._instead, []
        return instead

    def accept(self, token: int) -> None:
        self.seen.append(token)
        self.finished = len(self.seen) == self._finish_at


def end_of(bench: Bench) -> Finished:
    bench.run()
    end = bench.ends[1]
    assert isinstance(end, Finished)
    return end


def text(tokens: list[int]) -> str:
    return "".join(chr(ord("0") + token) for token in tokens)


def test_forced_tokens_are_computed_together_and_not_sampled() -> None:
    bench = Bench()
    first = next_token(PROMPT)
    script = Script({1: [11, 12, 13]})
    bench.submit(1, PROMPT, max_tokens=5, constraint=script)
    end = end_of(bench)
    after = next_token([*PROMPT, first, 11, 12, 13])
    assert bench.texts[1] == text([first, 11, 12, 13, after])
    assert end.usage.completion_tokens == 5
    sizes = [len(row[2]) for step in bench.context.steps for row in step]
    assert sizes == [4, 4], "the prompt, then one sampled token with the three forced ones"
    assert bench.samplers[0].accepted == [11, 12, 13], "penalties must know of them"
    assert script.seen == [first, 11, 12, 13, after]


def test_what_is_forced_from_the_beginning_comes_before_anything_is_sampled() -> None:
    bench = Bench()
    bench.submit(1, PROMPT, max_tokens=3, constraint=Script({0: [11, 12]}))
    assert end_of(bench).usage.completion_tokens == 3
    assert bench.texts[1] == text([11, 12, next_token([*PROMPT, 11, 12])])
    bench.submit(2, PROMPT, max_tokens=3, constraint=Script({0: [EOG]}))
    bench.run()
    assert bench.texts[2] == ""


def test_an_answer_ends_when_its_grammar_does() -> None:
    bench = Bench()
    bench.submit(1, PROMPT, max_tokens=50, constraint=Script({}, finish_at=2))
    assert end_of(bench).reason == "stop"
    assert bench.texts[1] == reference(PROMPT, 2)


def test_forced_tokens_never_exceed_max_tokens() -> None:
    bench = Bench()
    bench.submit(1, PROMPT, max_tokens=3, constraint=Script({1: [11, 12, 13, 14]}))
    end = end_of(bench)
    assert (end.reason, end.usage.completion_tokens) == ("length", 3)


def test_a_forced_end_of_generation_ends_the_answer() -> None:
    bench = Bench()
    bench.submit(1, PROMPT, max_tokens=9, constraint=Script({1: [11, EOG]}))
    assert end_of(bench).reason == "stop"
    assert bench.texts[1][-1] == text([11])


def test_an_end_that_comes_too_early_is_replaced() -> None:
    prompt = next(p for n in range(500) if next_token(p := [n % 64, n // 64, 3]) == EOG)
    bench = Bench()
    bench.submit(1, prompt, max_tokens=2, constraint=Script({}, instead=[21]))
    end_of(bench)
    assert bench.texts[1] == text([21, next_token([*prompt, 21])])


def test_an_answer_that_was_brought_to_its_end_is_not_whole() -> None:
    bench = Bench()
    script = Script({}, finish_at=2)
    script.cut = True
    bench.submit(1, PROMPT, max_tokens=50, constraint=script)
    assert end_of(bench).reason == "length"


def test_an_answer_with_calls_says_so() -> None:
    bench = Bench()
    bench.submit(1, PROMPT, max_tokens=50, constraint=Script({}, finish_at=2))
    waiting = bench.engine._admission.waiting[0]
    parser = Text(1)
    parser.n_calls = 2
    waiting._answer._parser = parser
    assert end_of(bench).reason == "tool_calls"


def test_stop_strings_end_no_call_and_no_thought() -> None:
    for calling, answering in ((True, True), (False, False)):
        bench = Bench()
        script = Script({1: [9, 10, 11]}, finish_at=6)
        script.calling = calling
        bench.submit(1, PROMPT, max_tokens=9, constraint=script, stop=[text([10])])
        bench.engine._admission.waiting[0]._answer._parser.answering = answering
        assert end_of(bench).reason == "stop"
        assert len(script.seen) == 6
        assert text([10]) in "".join(bench.texts[1])
    bench = Bench()
    bench.submit(1, PROMPT, max_tokens=9, constraint=Script({1: [9, 10, 11]}), stop=[text([10])])
    assert end_of(bench).reason == "stop"
    assert text([10]) not in "".join(bench.texts[1])


@pytest.mark.parametrize("stop", ["\n\n", "\n"])
@pytest.mark.parametrize("blanks", [["\n\n", "Yes"], ["\n", "\nYes"], ["\n\nYes"]])
def test_blanks_between_a_thought_and_its_answer_end_nothing(stop: str, blanks: list[str]) -> None:
    said = ["<think>", "hm", "</think>", *blanks, " sir", "\n\n", "more"]
    syntax = Syntax(HERMES, reasoning=ReasoningFormat("<think>", "</think>"))
    answer = Answer(
        Spoken(said),
        InOrder,
        AnswerParser(1, syntax, []),
        None,
        [stop],
        frozenset(),
        len(said),
    )
    deltas: list[Delta | Logprobs] = []
    while answer.reason is None:
        deltas += answer.next(0)[1]
    assert answer.reason == "stop"
    assert "".join(d.text for d in deltas if isinstance(d, Content)) == "Yes sir"


class Spoken:
    """A vocabulary of pieces."""

    eog = frozenset[int]()

    def __init__(self, pieces: list[str]) -> None:
        self._pieces = pieces

    def piece(self, token: int, *, special: bool) -> bytes:
        return self._pieces[token].encode()


class InOrder:
    """Samples one token after the other."""

    def __init__(self) -> None:
        self._tokens = itertools.count()

    def sample(self, row: int, mask: Mask | None) -> int:
        return next(self._tokens)

    def accept(self, token: int) -> None:
        raise AssertionError("nothing is forced")

    def close(self) -> None:
        pass


class Thinker(Text):
    """A parser that takes the first characters for a thought."""

    def __init__(self, id: int, n: int) -> None:
        super().__init__(id)
        self.n = n

    def feed(self, text: str) -> list[Delta]:
        thought, said = text[: self.n], text[self.n :]
        self.n -= len(thought)
        self.thinking = not said
        shown: list[Delta] = [Reasoning(1, thought)] if thought else []
        return [*shown, Content(1, said)] if said else shown


def test_tokens_of_thoughts_are_counted() -> None:
    bench = Bench()
    bench.submit(1, PROMPT, max_tokens=9, constraint=Script({}, finish_at=5))
    bench.engine._admission.waiting[0]._answer._parser = Thinker(1, 3)
    usage = end_of(bench).usage
    assert (usage.completion_tokens, usage.reasoning_tokens) == (5, 3)


def test_a_stream_with_forced_tokens_does_not_wait_behind_a_prompt() -> None:
    bench = Bench()
    script = Script({n: [9, 9, 9, 9] for n in range(1, 200, 5)})
    bench.context.on_decode = lambda n_rows: bench.clock.pass_(0.01 * n_rows)
    bench.submit(1, PROMPT, max_tokens=40, constraint=script)
    bench.step()
    bench.submit(2, [n % 63 + 1 for n in range(150)], max_tokens=1)
    while 1 not in bench.ends:
        bench.step()
        first = bench.context.steps[-1][0]
        assert 0 < len(first[2]) <= 5, "the stream's row comes first"


class Bytes(FakeVocabulary):
    """Every token is a byte."""

    def piece(self, token: int, *, special: bool) -> bytes:
        return bytes([token])


class Says:
    """A sampler that says given tokens."""

    def __init__(self, tokens: bytes) -> None:
        self._left = list(tokens)

    def sample(self, row: int, mask: Mask | None) -> int:
        return self._left.pop(0)

    def accept(self, token: int) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"", ["h"]),
        ("é!".encode()[1:], ["h", "é", "!"]),
        (b"!?", ["h", "\N{REPLACEMENT CHARACTER}!", "?"]),
    ],
)
def test_an_answer_completes_the_last_character_of_what_is_told_before_it(
    said: bytes, expected: list[str]
) -> None:
    told = "hé".encode()[:-1]
    answer = Answer(
        Bytes(), lambda: Says(said), Text(1), None, ["h"], frozenset(), len(said), told=told
    )
    deltas: list[Delta | Logprobs] = []
    while answer.reason is None:
        deltas += answer.next(0)[1]
    assert deltas == [Content(1, text) for text in expected]
