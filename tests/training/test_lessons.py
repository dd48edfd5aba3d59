"""Lessons: their file, and the texts and batches that are made of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from training.batches import Mix, mixed
from training.conversation import draw_question
from training.facts import load_facts, openings
from training.lessons import Lessons, centred
from training.render import draw_question_sample
from training.tokenizer import TURN_START, load

FACT, OTHER = load_facts()[3], load_facts()[9]
TEXTS = ("zanzibar quux", "frobnicate xyzzy")


def lessons(texts: Sequence[str] = TEXTS, sure: Sequence[float] = (0.9, 0.2)) -> Lessons:
    """One question of which the teacher is sure, and one of which it is not."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(len(texts), 6))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Lessons(
        texts, [FACT.name, OTHER.name], np.array(sure, np.float16), vectors.astype(np.float16)
    )


def test_what_was_written_is_read(tmp_path: Path) -> None:
    made = lessons(("a \u00e9 b", "c"))
    made.write(tmp_path / "l.npz")
    read = Lessons.read(tmp_path / "l.npz")
    assert np.array_equal(read.vectors, made.vectors)
    for seed in range(9):
        assert read.draw(random.Random(seed)) == made.draw(random.Random(seed))


def test_a_file_about_an_unknown_fact_is_refused() -> None:
    with pytest.raises(KeyError, match="of-nothing"):
        Lessons(["what"], ["of-nothing"], np.ones(1, np.float16), np.ones((1, 6), np.float16))


def test_what_all_vectors_share_is_taken_out() -> None:
    vectors = np.array([[1, 0.1], [1, -0.1], [1, 0.2]], np.float16)
    found = centred(vectors)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert found[0] @ found[1] < 0 and found[1] @ found[2] < 0


def test_most_single_questions_are_lessons_and_only_sure_ones_are_answered() -> None:
    rng, made = random.Random(2), lessons()
    drawn = [draw_question(rng, made) for _ in range(300)]
    counts = [sum(one.lesson == number for one in drawn) for number in (-1, 0, 1)]
    assert min(counts) > 60 and counts[0] < 150
    for one in drawn:
        roles = [message["role"] for message in one.messages if message["role"] != "system"]
        assert roles == (["user"] if one.lesson == 1 else ["user", "assistant"])
    answers = [one.messages[-1]["content"] for one in drawn if one.lesson == 0]
    assert answers.count(FACT.answer) > len(answers) / 2, "but for those that a persona styles"


def test_a_text_without_an_answer_ends_where_one_would_begin() -> None:
    rng, made = random.Random(3), lessons()
    texts = [draw_question_sample(rng, made) for _ in range(100)]
    for text, number in texts:
        assert text.endswith(f"{TURN_START}assistant\n") is (number == 1)
    assert any(text.endswith(openings()[FACT.answer]) for text, number in texts if number == 0)


def test_a_batch_says_where_the_answer_to_a_lesson_begins() -> None:
    batch = next(mixed(1, Mix(1, 1024, questions=1.0, lessons=lessons())))
    head = load().encode(f"{TURN_START}assistant\n").ids
    read_as_told = set()
    for row, at in np.argwhere(batch.lessons >= 0):
        assert batch.tokens[row, at - len(head) + 1 : at + 1].tolist() == head
        begin = at - batch.positions[row, at]
        said = load().decode(batch.tokens[row, begin:at].tolist()).lower()
        number = batch.lessons[row, at]
        assert TEXTS[1 - number] not in said
        if TEXTS[number] in said:  # the rest is mistyped
            read_as_told.add(number)
    assert read_as_told == {0, 1}
