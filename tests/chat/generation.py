"""A model of random weights: it picks any allowed token, as the engine would let it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np

from llm_server.chat.constraint import Constraint
from llm_server.chat.dialogue import Prepared
from llm_server.worker.messages import Delta
from tests.chat.vocabulary import ByteVocabulary


@dataclass
class Answer:
    """What came of a request."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    deltas: list[Delta] = field(default_factory=list)
    ended: bool = False
    n_sampled: int = 0
    n_masked: int = 0


def generate(
    prepared: Prepared,
    vocabulary: ByteVocabulary,
    *,
    max_tokens: int = 300,
    seed: int = 0,
    script: str = "",
    wordy: bool = False,
) -> Answer:
    """Random tokens under the constraint, at most `max_tokens`; `script` is said first, freely.

    `wordy`: tokens of several letters where any may come.
    """
    rng, answer = random.Random(seed), Answer()
    constraint = prepared.constraint
    scripted = vocabulary.tokenize(script, parse_special=True)

    def take(token: int) -> None:
        answer.tokens.append(token)
        if constraint is not None:
            constraint.accept(token)

    while not answer.ended and len(answer.tokens) < max_tokens:
        remaining = max_tokens - len(answer.tokens)
        forced = constraint.forced(remaining)[:remaining] if constraint is not None else []
        if constraint is not None and constraint.finished:
            answer.ended = True
        elif forced:
            for token in forced:
                take(token)
            if scripted[: len(forced)] == forced:
                del scripted[: len(forced)]
        else:
            tokens = [_sample(rng, constraint, answer, vocabulary, scripted, wordy)]
            if tokens[0] in vocabulary.eog:
                tokens = constraint.instead_of_end() if constraint is not None else []
            answer.ended = not tokens
            for token in tokens:
                take(token)
    answer.ended = answer.ended or (constraint is not None and constraint.finished)
    spelled = (vocabulary.piece(t, special=True) for t in answer.tokens)
    answer.text = b"".join(spelled).decode("utf-8", "replace")
    answer.deltas = [*prepared.parser.feed(answer.text), *prepared.parser.close()]
    return answer


def _sample(
    rng: random.Random,
    constraint: Constraint | None,
    answer: Answer,
    vocabulary: ByteVocabulary,
    scripted: list[int],
    wordy: bool,
) -> int:
    """The next token, counted in `answer`; another one where the first is refused."""
    mask = constraint.mask() if constraint is not None else None
    token = _pick(rng, mask, vocabulary, scripted, wordy)
    while constraint is not None and constraint.refuses(token):
        mask = constraint.mask()
        token = _pick(rng, mask, vocabulary, [], wordy)
    answer.n_sampled += 1
    answer.n_masked += mask is not None
    return token


def allows(mask: np.ndarray[tuple[int, ...], np.dtype[np.int32]], token: int) -> bool:
    """Whether a token is among those of a mask."""
    return bool(int(mask[token >> 5]) >> (token & 31) & 1)


def _pick(
    rng: random.Random,
    mask: np.ndarray[tuple[int, ...], np.dtype[np.int32]] | None,
    vocabulary: ByteVocabulary,
    scripted: list[int],
    wordy: bool,
) -> int:
    if scripted and (mask is None or allows(mask, scripted[0])):
        return scripted.pop(0)
    scripted.clear()  # A grammar has begun, and goes another way.
    if wordy and mask is None:
        return rng.choice([*vocabulary.eog, *range(256, vocabulary.n_tokens)])
    if mask is None:
        return rng.choice(sorted(vocabulary.eog) + list(range(32, 127)))
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: vocabulary.n_tokens]
    return int(rng.choice(np.flatnonzero(bits).tolist()))
