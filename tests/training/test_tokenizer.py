"""The tokenizer: a word has the same tokens everywhere, and llama.cpp agrees on every id."""

from __future__ import annotations

import random

from llm_server.demo import demo_model_path
from llm_server.llama.model import Model
from training.batches import QUESTION_LENGTH, Mix, answer_mask, batches, mixed
from training.conversation import draw_conversation
from training.render import render_sample
from training.tokenizer import VOCAB_SIZE, load, train

TEXTS = (
    "", " ", "\n\n  x", "don't DON'T I'll", "kitchen \"kitchen\" _kitchen", "a1b22 -3.50 1,000",
    "Grüße, Größe! ¿Qué? 你好 🙂 \u200b", "\ttabs\r\nand   blanks  ", '{"a":{"b":[1,2]}}',
    "<tool_call>\n{}\n</tool_call><|im_end|>", "x" * 300, "<|im_start|>user\nHi<|im_end|>",
)  # fmt: skip


def test_its_size_and_that_it_loses_nothing() -> None:
    tokenizer = load()
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False).replace("\ufffd", "") == text


def test_a_word_has_the_same_last_tokens_after_any_mark() -> None:
    tokenizer = load()
    for word in ("kitchen", "Lorvex", "humidity"):
        alone = tokenizer.encode(word).tokens
        for mark in ('"', "_", "/", "("):
            assert tokenizer.encode(mark + word).tokens[1:] == alone
        after_blank = "".join(tokenizer.encode(" " + word).tokens)
        assert after_blank == "Ġ" + "".join(alone)


def test_training_is_the_same_for_the_same_texts() -> None:
    rng = random.Random(0)
    texts = [render_sample(rng, draw_conversation(rng)) for _ in range(200)]
    assert train(texts).to_str() == train(texts).to_str()


def test_only_what_the_assistant_writes_is_learnt() -> None:
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    encoded = load().encode(text)
    learnt = [
        token
        for token, known in zip(encoded.tokens, answer_mask(encoded.ids), strict=True)
        if known
    ]
    assert learnt[-1] == "<|im_end|>"
    assert "".join(learnt[:-1]) == "Hello"


def test_what_is_left_of_an_answer_cut_off_is_learnt() -> None:
    encoded = load().encode("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello there")
    mask = answer_mask(encoded.ids)
    learnt = [token for token, known in zip(encoded.tokens, mask, strict=True) if known]
    assert "".join(learnt) == "HelloĠthere"


def test_questions_have_their_share_of_the_batches_and_short_rows() -> None:
    drawn = mixed(seed=1, mix=Mix(rows=1, length=1024, questions=0.5))
    shapes = [next(drawn).tokens.shape for _ in range(24)]
    short = (1024 // QUESTION_LENGTH, QUESTION_LENGTH)
    assert set(shapes) == {(1, 1024), short}
    assert 4 <= shapes.count(short) <= 20


def test_rows_are_packed_from_whole_conversations() -> None:
    batch = next(batches(seed=1, rows=2, length=2048))
    assert batch.tokens.shape == batch.positions.shape == batch.weights.shape == (2, 2048)
    assert (batch.positions[:, 0] == 0).all()
    starts = batch.positions[:, 1:] == 0
    assert (batch.weights[:, :-1][starts] == 0).all()


def test_llama_cpp_gives_the_same_ids() -> None:
    model = Model(demo_model_path())
    vocab = model.vocab
    rng = random.Random(9)
    samples = [render_sample(rng, draw_conversation(rng)) for _ in range(60)]
    for text in (*TEXTS, *samples):
        assert vocab.tokenize(text, parse_special=True) == load().encode(text).ids, text
    assert load().token_to_id("<|im_end|>") in vocab.eog
    (call,) = load().encode("<tool_call>").ids
    assert vocab.piece(call, special=False) == b"<tool_call>"
    model.close()
