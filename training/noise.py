"""How people type: politeness, capitals, missing marks, typos, small talk before the point.

Changes the words around the values, never the values. Does not know what is asked.
"""

import random
from functools import cache
from pathlib import Path

from training.words import any_word, made_up, pick

_BEFORE = (
    "please",
    "hi,",
    "hello,",
    "hey,",
    "hey there,",
    "ok,",
    "so,",
    "well,",
    "now",
    "quick question:",
    "can you tell me",
    "could you tell me",
    "i wonder",
    "i was wondering",
    "one more question:",
    "tell me,",
    "sorry,",
    "excuse me,",
    "thanks, and",
    "just curious,",
    "say,",
    "and",
    "but",
    "also,",
    "i have a question:",
    "do you know",
    "any idea",
    "help,",
    "hmm,",
    "good morning,",
    "question:",
    "forgive me,",
    "dumb question:",
    "dear assistant,",
    "listen,",
    "i am puzzled:",
    "my problem:",
    "for a friend:",
    "would you know",
    "not sure where to ask, but",
    "let me ask,",
    "problem:",
    "tip needed:",
)
_AFTER = (
    "please",
    "thanks",
    "thank you",
    "for me",
    "exactly",
    "then",
    "again",
    "now",
    "by the way",
    "if i may ask",
    "here",
    "in short",
    "actually",
    "my friend",
    "in a nutshell",
    "in plain words",
    "i forgot",
    "i am stuck",
    "or what",
    "any advice",
    "any hint",
    "if possible",
    "step by step",
    "on my machine",
)
_STORY = (
    "i am new to this",
    "i have a {a} {w} at home",
    "i am from {c}",
    "my name is {p}",
    "i tried it yesterday and liked it",
    "my {w} is {a}",
    "we have {n} computers here",
    "i read about it in a {w}",
    "i am writing a {w} for {p}",
    "{p} told me about this",
    "i have little time",
    "there is a {w} on my desk",
    "i work with {w} and {w2}",
    "my boss {p} asks",
    "i use a {a} laptop",
    "i am not a programmer",
    "this is my first {w}",
    "i run a small shop in {c}",
    "my daughter needs it for school",
    "we meet next week to talk about it",
    "i have to show it to {p} tomorrow",
    "the last {w} gave me a headache",
    "sorry for my english",
    "i am in a hurry",
    "i searched for an hour and found nothing",
    "it is for a {w} project at our university",
    "{p} and i share one machine",
    "i am setting up a home lab",
    "i moved here from another program",
    "i am the admin of a school in {c}",
    "i build voice assistants for fun",
    "my {w} talks to my smart home",
    "i write apps for phones",
    "we are a team of {n}",
    "the {a} {w} in the cellar runs it",
    "it worked fine until now",
    "maybe a silly question",
    "i only know the basics",
    "i inherited this from {p}",
    "i have read half of the manual",
    "everything else works",
)
_SMALL = {"the", "a", "an", "do", "does", "is", "are", "to", "of", "i", "can", "please", "for"}


def story(rng: random.Random) -> str:
    """A sentence that has nothing to do with the question."""
    return rng.choice(_STORY).format(
        a=pick(rng, "adjective"),
        w=any_word(rng),
        w2=any_word(rng),
        c=pick(rng, "city"),
        p=pick(rng, "person"),
        n=rng.randint(2, 99),
    )


@cache
def _synonyms() -> dict[str, tuple[str, ...]]:
    text = (Path(__file__).parent / "data" / "synonyms.txt").read_text(encoding="utf-8")
    known: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        word, arrow, others = line.partition(" > ")
        group = tuple(part.strip() for part in (others if arrow else line).split(","))
        known |= {each: group for each in ((word,) if arrow else group) if " " not in each}
    return known


def reword(rng: random.Random, text: str) -> str:
    """Some words changed for others of about the same sense."""
    known = _synonyms()
    words = [
        rng.choice(known[word]) if word in known and rng.random() < 0.3 else word
        for word in text.split(" ")
    ]
    return " ".join(words)


def dress(rng: random.Random, text: str, *, question: bool = True) -> str:
    """Puts a drawn phrase into the shape that a person may have typed."""
    if rng.random() < 0.6:
        text = reword(rng, text)
    if rng.random() < 0.10:
        text = _drop_words(rng, text)
    if rng.random() < 0.10:
        text = _odd_word(rng, text)
    if rng.random() < 0.2:
        text = f"{rng.choice(_BEFORE)} {text}"
    if rng.random() < 0.1:
        text = f"{text} {rng.choice(_AFTER)}"
    if rng.random() < 0.12:
        text = typo(rng, text)
    mark = rng.choices(("?" if question else ".", "", ".", "!"), (6, 4, 0.5, 0.2))[0]
    text = text.rstrip("?.! ") + mark
    if rng.random() < 0.1:
        text = f"{story(rng)}{rng.choice(('. ', ', ', ' and ', '. ', ': '))}{text}"
    return case(rng, text)


def case(rng: random.Random, text: str) -> str:
    """First letter large or not, now and then all capitals; a lone `i` may grow with it."""
    roll = rng.random()
    if roll < 0.02:
        return text.upper()
    if roll < 0.55:
        return text
    text = text.replace(" i ", " I ").replace(" i'd ", " I'd ")
    text = "I" + text[1:] if text.startswith(("i ", "i'")) else text
    return text[:1].upper() + text[1:]


def typo(rng: random.Random, text: str) -> str:
    """One slip of the fingers in one longer word."""
    words = text.split(" ")
    long = [at for at, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if not long:
        return text
    at = rng.choice(long)
    word = words[at]
    spot = rng.randrange(1, len(word) - 1)
    kinds = (
        word[:spot] + word[spot + 1 :],
        word[:spot] + word[spot] + word[spot:],
        word[:spot] + word[spot + 1] + word[spot] + word[spot + 2 :],
        word[:spot] + rng.choice("abcdefghijklmnopqrstuvwxyz") + word[spot + 1 :],
    )
    words[at] = rng.choice(kinds)
    return " ".join(words)


def _drop_words(rng: random.Random, text: str) -> str:
    kept = [word for word in text.split(" ") if word not in _SMALL or rng.random() < 0.4]
    return " ".join(kept) or text


def _odd_word(rng: random.Random, text: str) -> str:
    words = text.split(" ")
    words.insert(rng.randint(0, len(words)), made_up(rng) if rng.random() < 0.5 else any_word(rng))
    return " ".join(words)
