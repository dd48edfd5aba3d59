"""Texts that come again are not tokenized again, within a budget and within a namespace."""

from __future__ import annotations

from llm_server.chat.segments import Segment
from llm_server.worker.known_texts import WORTH_KEEPING, KnownTexts

LONG = "a" * WORTH_KEEPING


class Tokenizer:
    """A token a character; says what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Segment] = []

    def __call__(self, segment: Segment) -> list[int]:
        self.asked.append(segment)
        return [ord(character) + segment.special for character in segment.text]


def test_a_text_that_comes_again_is_known_where_it_was_asked() -> None:
    tokenizer = Tokenizer()
    known = KnownTexts(tokenizer)
    plain, special = Segment(LONG, False), Segment(LONG, True)
    for segment, namespace in ((plain, ""), (special, ""), (plain, "other")):
        fresh = tokenizer(segment)
        n_asked = len(tokenizer.asked)
        assert known.tokens(segment, namespace) == fresh
        assert len(tokenizer.asked) == n_asked + 1
        known.tokens(segment, namespace).clear()
        assert known.tokens(segment, namespace) == fresh
        assert len(tokenizer.asked) == n_asked + 1


def test_what_was_not_asked_for_the_longest_time_goes_first() -> None:
    tokenizer = Tokenizer()
    known = KnownTexts(tokenizer, budget=2 * WORTH_KEEPING)
    first, second, third = (Segment(letter * WORTH_KEEPING, False) for letter in "abc")
    for segment in (first, second, first, third, first):
        known.tokens(segment, "")
    assert tokenizer.asked == [first, second, third]
    known.tokens(second, "")
    assert tokenizer.asked == [first, second, third, second]


def test_short_texts_and_too_long_ones_are_not_kept() -> None:
    tokenizer = Tokenizer()
    known = KnownTexts(tokenizer, budget=2 * WORTH_KEEPING)
    for text in ("a", LONG * 3, LONG):
        for _ in range(2):
            known.tokens(Segment(text, False), "")
    assert [len(segment.text) for segment in tokenizer.asked] == [
        *(1, 1),
        *(3 * WORTH_KEEPING, 3 * WORTH_KEEPING),
        WORTH_KEEPING,
    ]
