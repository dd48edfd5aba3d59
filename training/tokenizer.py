"""The demo model's tokenizer: byte-level BPE, split as llama.cpp's `qwen2` pre-tokenizer splits.

A word has the same tokens wherever it stands: merges never join letters with marks, and a blank
joins only the first token of a common word, by the last merges of all. So copying a value from
a sentence into JSON is copying its tokens. Does not know the model.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    trainers,
)

from training.conversation import draw_conversation
from training.render import render_sample

PATH = Path(__file__).parent / "tokenizer.json"
VOCAB_SIZE = 3072
BLANK_MERGES = 640
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CONTROL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
# llama.cpp shows these as text, so that a parser sees them.
VISIBLE_TOKENS = (
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>",
)  # fmt: skip
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPECIAL = re.compile("|".join(re.escape(token) for token in (*CONTROL_TOKENS, *VISIBLE_TOKENS)))
_BLANK = "Ġ"


def split_words() -> pre_tokenizers.PreTokenizer:
    """The pre-tokenizer at run time."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _split_letters() -> pre_tokenizers.PreTokenizer:
    """A finer split, for training: letters apart from all else."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
            pre_tokenizers.Split(Regex(r"\p{L}+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def corpus(seed: int, count: int) -> list[str]:
    """Sample texts without special tokens."""
    rng = random.Random(seed)
    texts = (render_sample(rng, draw_conversation(rng)) for _ in range(count))
    return [part for text in texts for part in _SPECIAL.split(text) if part]


def train(texts: Sequence[str]) -> Tokenizer:
    """Trains the tokenizer; the result is the same for the same texts."""
    special = (*CONTROL_TOKENS, *VISIBLE_TOKENS)
    rough = Tokenizer(models.BPE())
    rough.pre_tokenizer = _split_letters()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - BLANK_MERGES - len(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    rough.train_from_iterator(texts, trainer)
    trained = json.loads(rough.to_str())["model"]
    vocab: dict[str, int] = dict(trained["vocab"])
    merges = [(left, right) for left, right in trained["merges"]]
    for word in _common_words(texts, vocab):
        merges.append((_BLANK, word))
        vocab[_BLANK + word] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = split_words()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    return tokenizer


def _common_words(texts: Iterable[str], vocab: dict[str, int]) -> list[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(re.findall(r"(?<= )[a-zA-Z]+", text))
    known = [
        word
        for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if word in vocab
    ]
    return known[:BLANK_MERGES]


@cache
def load() -> Tokenizer:
    """The tokenizer that ships."""
    return Tokenizer.from_file(str(PATH))


if __name__ == "__main__":
    train(corpus(seed=0, count=30_000)).save(str(PATH))
