"""The training data: what is kept for measuring never occurs in it, and it is what it says."""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

import pytest

from training import chat
from training.cases import all_cases, families, questions
from training.chat import Talk
from training.conversation import draw_conversation, frames, reserved_names, training_families
from training.facts import DATA, load_facts, openings
from training.grammar import draw, normal, pattern
from training.persona import Persona, draw_persona
from training.render import compact_calls, draw_question_sample, render
from training.results import report
from training.tools import load_families


def test_each_answer_holds_its_fact() -> None:
    for fact in load_facts():
        assert fact.answered_by(fact.answer), fact.name
        assert len(fact.held_out) == 2, fact.name


def bits(numbers: Sequence[int]) -> int:
    """An integer with these bits set; `numbers` ascend."""
    held = bytearray(numbers[-1] // 8 + 1)
    for number in numbers:
        held[number // 8] |= 1 << number % 8
    return int.from_bytes(held, "little")


def suspects(texts: Iterable[str], lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each text with the grammar lines that may draw it: of each of its words they hold the
    beginning. To compile all lines to expressions would take minutes."""
    numbers: defaultdict[str, list[int]] = defaultdict(list)
    for number, line in enumerate(lines):
        for part in {word for piece in re.split("[{|}]", line) for word in normal(piece).split()}:
            numbers[part].append(number)
    having = Counter({part: bits(found) for part, found in numbers.items()})
    for text in texts:
        left = (1 << len(lines)) - 1
        for word in text.split():
            begun = 0
            for n in range(1, len(word) + 1):
                begun |= having[word[:n]]
            left &= begun
        while left:
            number = left.bit_length() - 1
            left ^= 1 << number
            yield text, lines[number]


def test_no_held_out_question_can_be_drawn() -> None:
    rng = random.Random(0)
    kept = {
        normal(text)
        for fact in load_facts()
        for text in (*fact.held_out, *(draw(rng, line) for line in questions(fact, "validation")))
    }
    lines = [line for fact in load_facts() for line in fact.train]
    assert [pair for pair in suspects(kept, lines) if pattern(pair[1]).fullmatch(pair[0])] == []
    drawn = [normal(draw(rng, line)) for line in lines[::1000]]
    found = {text for text, line in suspects(drawn, lines) if pattern(line).fullmatch(text)}
    assert found == set(drawn), "what can be drawn is suspected"


def test_no_held_out_tool_occurs_in_the_families() -> None:
    known = {name for family in training_families() for name in family.names}
    known |= {family.name for family in training_families()}
    for path in DATA.glob("tools_*.txt"):
        for family in load_families(path):
            assert family.name not in known
            assert not known & set(family.names)


def test_no_held_out_utterance_occurs_in_the_families() -> None:
    utterances = {line for family in training_families() for line in family.utterances}
    for family in (*families("held_out"), *families("validation")):
        assert not utterances & set(family.utterances), family.name


def test_no_drawn_tool_has_a_held_out_name() -> None:
    rng = random.Random(3)
    kept = reserved_names()
    for _ in range(400):
        for tool in draw_conversation(rng).tools:
            assert isinstance(tool, dict)
            function = tool["function"]
            assert isinstance(function, dict)
            assert function["name"] not in kept


def test_arguments_of_a_request_stand_in_its_text() -> None:
    rng = random.Random(5)
    for family in training_families():
        request = family.skill(rng).ask(rng)
        for value in request.call.arguments.values():
            if isinstance(value, str):
                assert value.replace("_", " ") in request.text.replace("_", " ")


def test_frames_leave_no_blank_word() -> None:
    rng = random.Random(6)
    for family in frames():
        for _ in range(20):
            skill = family.skill(rng)
            words = json.dumps(skill.definition(rng)) + skill.ask(rng).text
            drawn = words.replace("_", " ").split()
            assert not {"xa", "xb", "xc", "xn", "xv", "xw"} & set(drawn), (family.name, words)


def test_the_same_seed_draws_the_same_conversation() -> None:
    first, second = (render(draw_conversation(random.Random(11))) for _ in range(2))
    assert first == second


def test_compact_calls_hold_the_same_arguments() -> None:
    text = '<tool_call>\n{"name": "a", "arguments": {"b": [1, "c: d, e"]}}\n</tool_call>'
    short = '<tool_call>\n{"name":"a","arguments":{"b":[1,"c: d, e"]}}\n</tool_call>'
    assert compact_calls(text) == short


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"status": "ok"}', "Done."),
        ('{"error": "not found"}', "That did not work: not found."),
        ('{"wind_speed": 3, "dry": true}', "The result is: wind speed 3 and dry yes."),
        ('{"status": "ok", "id": 7}', "Done: id 7."),
        ("plain words", "The result is: plain words."),
        ('["a", "b", "c"]', "The result is: a, b and c."),
    ],
)
def test_the_sentence_about_a_result(content: str, sentence: str) -> None:
    assert report(content) == sentence


def test_a_persona_changes_how_facts_are_told() -> None:
    talk = Talk(Persona(system="x", upper=True, ending="mango"))
    answer = chat.fact(random.Random(1), talk).answer
    assert answer == answer.upper()
    assert answer.endswith(" MANGO")
    assert "Quillon" in Persona(name="Quillon", language="German").greeting()


def test_beside_tools_a_persona_leaves_words_alone() -> None:
    rng = random.Random(2)
    personas = [draw_persona(rng, tools=True) for _ in range(200)]
    assert not any(persona.upper or persona.ending for persona in personas)


def test_cases_are_the_same_each_time() -> None:
    first, second = all_cases("held_out"), all_cases("held_out")
    assert [case.messages for case in first] == [case.messages for case in second]


def test_an_opening_begins_one_answer_alone() -> None:
    answers = [fact.answer for fact in load_facts()]
    for answer, opening in openings().items():
        assert [other for other in answers if other.startswith(opening)] == [answer]


def test_a_question_sample_ends_with_its_answer_or_with_the_opening_of_it() -> None:
    rng = random.Random(4)
    texts = [draw_question_sample(rng).text for _ in range(200)]
    whole = [text for text in texts if text.endswith("<|im_end|>\n")]
    assert 0 < len(whole) < len(texts)
    for text in set(texts) - set(whole):
        assert text.rpartition("<|im_start|>assistant\n")[2] in openings().values()
