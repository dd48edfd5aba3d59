"""Packed batches of token ids, made by worker processes without end.

A row holds several conversations side by side; positions start again at each, which is how the
model knows the borders. Knows which tokens are to be learnt, and the share of batches that hold
single questions about facts. Does not know the model.
"""

import multiprocessing
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing.queues import Queue

import numpy as np
import numpy.typing as npt

from training.lessons import Lessons
from training.meanings import Meanings
from training.render import Text, draw_question_sample, draw_sample
from training.tokenizer import END_OF_TEXT, TURN_END, TURN_START, load

# How much a predicted token counts: nothing across a border, little in what others say.
PROMPT_WEIGHT = 0.1
_PENDING = 48
# Tokens of a row of single questions: short rows spare attention, and fit all but a few.
QUESTION_LENGTH = 128


@dataclass(frozen=True, slots=True)
class Mix:
    """The size of a batch of whole conversations, and the share, 0 to 1, of the batches that hold
    single questions about facts instead: as many tokens, in rows of `QUESTION_LENGTH`, most of
    them `lessons` where there are some."""

    rows: int
    length: int
    questions: float = 0.0
    lessons: Lessons | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of `tokens`, `positions` within their conversation, loss `weights` of the token that
    follows, and numbers of the `words` that end and of the `lessons` whose answer begins behind
    the token, -1 for none; all of shape [rows, length]."""

    tokens: npt.NDArray[np.uint16]
    positions: npt.NDArray[np.uint16]
    weights: npt.NDArray[np.float16]
    words: npt.NDArray[np.int32]
    lessons: npt.NDArray[np.int32]

    @classmethod
    def empty(cls, rows: int, length: int) -> "Batch":
        """Nothing but padding, from which nothing is learnt."""
        (padding,) = load().encode(END_OF_TEXT).ids
        shape = (rows, length)
        return cls(
            np.full(shape, padding, dtype=np.uint16),
            np.zeros(shape, dtype=np.uint16),
            np.zeros(shape, dtype=np.float16),
            np.full(shape, -1, dtype=np.int32),
            np.full(shape, -1, dtype=np.int32),
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """The token ids of a text, how much each counts, the words that end with them, and the lesson
    that it is, -1 for none, whose answer begins at `answer`."""

    ids: list[int]
    weights: npt.NDArray[np.float16]
    words: npt.NDArray[np.int32]
    lesson: int
    answer: int


def answer_mask(ids: list[int]) -> npt.NDArray[np.bool_]:
    """True for every token that the assistant writes, the end of its turn included; its last
    turn may be cut off."""
    tokenizer = load()
    head = tokenizer.encode(f"{TURN_START}assistant\n").ids
    (end,) = tokenizer.encode(TURN_END).ids
    mask = np.zeros(len(ids), dtype=np.bool_)
    at = 0
    while at < len(ids):
        if ids[at : at + len(head)] == head:
            start = at + len(head)
            at = ids.index(end, start) + 1 if end in ids[start:] else len(ids)
            mask[start:at] = True
        else:
            at += 1
    return mask


def samples(
    seed: int,
    length: int,
    drawn: Callable[[random.Random], Text] = draw_sample,
    meanings: Meanings | None = None,
) -> Iterator[Sample]:
    """Conversations no longer than `length` tokens."""
    rng = random.Random(seed)
    tokenizer = load()
    while True:
        text, lesson = drawn(rng)
        encoded = tokenizer.encode(text)
        n = len(encoded.ids)
        if n <= length:
            mask = answer_mask(encoded.ids)
            weights = np.where(mask, 1.0, PROMPT_WEIGHT).astype(np.float16)
            words = meanings.labels(text, encoded.offsets) if meanings else np.full(n, -1, np.int32)
            answer = int(mask.argmax()) if mask.any() else n
            yield Sample(encoded.ids, weights, words, lesson, answer)


def batches(
    seed: int,
    rows: int,
    length: int,
    drawn: Callable[[random.Random], Text] = draw_sample,
    meanings: Meanings | None = None,
) -> Iterator[Batch]:
    """Packs samples into rows, the longest that still fits first."""
    source = samples(seed, length, drawn, meanings)
    pending = [next(source) for _ in range(_PENDING)]
    while True:
        batch = Batch.empty(rows, length)
        for row in range(rows):
            used = 0
            while fitting := [item for item in pending if len(item.ids) <= length - used]:
                # The oldest one opens a row, so that none waits for ever.
                item = pending[0] if used == 0 else max(fitting, key=lambda one: len(one.ids))
                pending.remove(item)
                pending.append(next(source))
                end = used + len(item.ids)
                batch.tokens[row, used:end] = item.ids
                batch.positions[row, used:end] = np.arange(len(item.ids))
                batch.weights[row, used : end - 1] = item.weights[1:]
                batch.words[row, used:end] = item.words
                batch.lessons[row, used + item.answer - 1] = item.lesson
                used = end
        yield batch


def mixed(seed: int, mix: Mix, meanings: Meanings | None = None) -> Iterator[Batch]:
    """Batches of both kinds, in the shares of the mix."""
    rng = random.Random(seed)
    whole = batches(seed, mix.rows, mix.length, meanings=meanings)
    if not mix.questions:
        yield from whole
    rows = max(1, mix.rows * mix.length // QUESTION_LENGTH)
    drawn = partial(draw_question_sample, lessons=mix.lessons)
    questions = batches(seed, rows, QUESTION_LENGTH, drawn, meanings)
    while True:
        yield next(questions if rng.random() < mix.questions else whole)


def word_batches(seed: int, rows: int, meanings: Meanings) -> Iterator[Batch]:
    """Words beside each other, in rows of `QUESTION_LENGTH`; only their meanings are learnt."""
    tokenizer = load()
    lines = meanings.lines(seed, 4 * QUESTION_LENGTH)
    while True:
        batch = Batch.empty(rows, QUESTION_LENGTH)
        batch.positions[:] = np.arange(QUESTION_LENGTH)
        for row, text in enumerate(islice(lines, rows)):
            encoded = tokenizer.encode(text)
            n = min(len(encoded.ids), QUESTION_LENGTH)
            batch.tokens[row, :n] = encoded.ids[:n]
            batch.words[row, :n] = meanings.labels(text, encoded.offsets)[:n]
        yield batch


def _work(queue: "Queue[Batch]", seed: int, mix: Mix, meanings: Meanings | None) -> None:
    for batch in mixed(seed, mix, meanings):
        queue.put(batch)


class BatchSource:
    """Worker processes that keep a queue of batches full; daemons, so they end with the parent."""

    def __init__(self, workers: int, seed: int, mix: Mix, meanings: Meanings | None = None) -> None:
        context = multiprocessing.get_context("fork")
        self._queue: Queue[Batch] = context.Queue(maxsize=4 * workers)
        for worker in range(workers):
            arguments = (self._queue, seed * 1000 + worker, mix, meanings)
            context.Process(target=_work, args=arguments, daemon=True).start()

    def next(self) -> Batch:
        """The next batch, from whichever worker has one."""
        return self._queue.get()
