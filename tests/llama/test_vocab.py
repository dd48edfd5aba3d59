"""A vocabulary asked for all of its tokens at once says what it says of each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llm_server.llama.lib import lib
from llm_server.llama.model import Model
from tests.tiny_models import bpe_vocabulary, build_attention


@pytest.mark.parametrize("kind", ["attention", "spm"])
def test_all_tokens_at_once(kind: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(f"{kind}_gguf")
    model = Model(path)
    vocab, ids = model.vocab, range(model.vocab.n_tokens)
    assert vocab.spellings == [vocab.piece(token, special=True) for token in ids]
    assert vocab.max_token_bytes == max(map(len, vocab.spellings))
    assert vocab.control == {t for t in ids if lib.llama_vocab_is_control(vocab.handle, t)}
    assert vocab.eog == {t for t in ids if lib.llama_vocab_is_eog(vocab.handle, t)}
    assert vocab.control and vocab.eog < vocab.control
    model.close()


def test_a_token_of_any_length_is_spelled_whole(tmp_path: Path) -> None:
    plain = bpe_vocabulary()
    tokens = [*plain.tokens[:300], "a" * 1000, *plain.tokens[301:]]
    model = Model(build_attention(tmp_path / "long.gguf", vocabulary=replace(plain, tokens=tokens)))
    assert model.vocab.spellings[300] == b"a" * 1000
    assert model.vocab.max_token_bytes == 1000
    model.close()


@pytest.mark.parametrize("name", ["eot", "eom", "fim_pad", "fim_rep", "fim_sep"])
def test_a_plain_word_ends_an_answer_where_the_file_says_so(tmp_path: Path, name: str) -> None:
    vocabulary = replace(bpe_vocabulary(), named=((name, 300),))
    model = Model(build_attention(tmp_path / "plain.gguf", vocabulary=vocabulary))
    assert lib.llama_vocab_is_eog(model.vocab.handle, 300)
    assert 300 in model.vocab.eog and 300 not in model.vocab.control
    model.close()
