"""A model's vocabulary: text to token ids, token ids to bytes. Nothing of templates or sampling."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from itertools import repeat

import numpy as np

from llm_server.llama.lib import held, lib

NO_TOKEN = -1
"""LLAMA_TOKEN_NULL: the vocabulary has no such token."""

_PIECE_BYTES = 128  # enough for nearly every token; longer ones are asked for twice
_ENDS = (
    lib.llama_vocab_eos,
    lib.llama_vocab_eot,
    lib.llama_vocab_fim_pad,
    lib.llama_vocab_fim_rep,
    lib.llama_vocab_fim_sep,
)
_AT_A_TIME = 512  # calls without a chance for other threads

_token_to_piece = held("llama_token_to_piece")


class Vocab:
    """The tokenizer of one loaded model; valid as long as the model is. Threads may share it.

    `tokenize` of long hostile text needs a deep stack (recursive std::regex inside llama.cpp):
    call it from a thread with a large one.
    """

    def __init__(self, model: int) -> None:
        self._model = model
        self._vocab = lib.llama_model_get_vocab(model)
        self.n_tokens: int = lib.llama_vocab_n_tokens(self._vocab)
        self.bos: int = lib.llama_vocab_bos(self._vocab)
        self.eos: int = lib.llama_vocab_eos(self._vocab)
        self.add_bos: bool = lib.llama_vocab_get_add_bos(self._vocab)

    @property
    def handle(self) -> int:
        """The `llama_vocab *`, for the sampler chain."""
        handle: int = self._vocab
        return handle

    @functools.cached_property
    def fill_in(self) -> tuple[int, int, int]:
        """Ids of the markers before a prefix, a suffix and the middle; `NO_TOKEN` for none."""
        pre, suf = lib.llama_vocab_fim_pre(self._vocab), lib.llama_vocab_fim_suf(self._vocab)
        return pre, suf, lib.llama_vocab_fim_mid(self._vocab)

    @functools.cached_property
    def around_pairs(self) -> tuple[list[int], list[int], list[int]]:
        """Ids before, between and behind two texts that belong together.

        As llama.cpp's server has them (server-common.cpp, format_prompt_rerank).
        """
        sep: int = lib.llama_vocab_sep(self._vocab)
        end = sep if self.eos == NO_TOKEN else self.eos
        first = [self.bos] if self.add_bos else []
        last = [end] if lib.llama_vocab_get_add_eos(self._vocab) else []
        between = [*last, sep] if lib.llama_vocab_get_add_sep(self._vocab) else last
        before, middle, behind = ([t for t in x if t != NO_TOKEN] for x in (first, between, last))
        return before, middle, behind

    @functools.cached_property
    def adds_blank(self) -> bool:
        """Whether a text begins with a blank as tokens, though it has none (SentencePiece)."""
        first = self.tokenize("a", parse_special=False)[:1]
        return bool(first) and self.piece(first[0], special=True).startswith(b" ")

    @functools.cached_property
    def eog(self) -> frozenset[int]:
        """Ids of the tokens that end a generation (`llama_vocab_is_eog`).

        llama.cpp makes a control token of every one but those that the file names by their ids.
        """
        found = set(self.control) | {getter(self._vocab) for getter in _ENDS}
        found.add(self._eom())
        return frozenset(t for t in found if t >= 0 and lib.llama_vocab_is_eog(self._vocab, t))

    @functools.cached_property
    def control(self) -> frozenset[int]:
        """Ids of the tokens that are markers and not text (`llama_vocab_is_control`), as far as
        they are spelled at all; 3 ms for 150,000, where asking one by one takes 45."""
        found: set[int] = set()
        every = np.arange(self.n_tokens, dtype=np.int32)
        for ids in self._runs():
            run = (ctypes.c_int32 * len(ids)).from_buffer(every.data, ids.start * every.itemsize)
            # Markers are left out unless they are asked for: most runs have none.
            if self._n_bytes(run, special=True) != self._n_bytes(run, special=False):
                found.update(t for t in ids if lib.llama_vocab_is_control(self._vocab, t))
        return frozenset(found)

    def _n_bytes(self, ids: ctypes.Array[ctypes.c_int32], *, special: bool) -> int:
        """Length of the text of `ids`, which llama.cpp says (negated) where there is no room."""
        return -int(lib.llama_detokenize(self._vocab, ids, len(ids), None, 0, False, special))

    def _eom(self) -> int:
        """The one id of those that the file may name for which llama.cpp's API has no call."""
        buffer = ctypes.create_string_buffer(32)
        n = lib.llama_model_meta_val_str(
            self._model, b"tokenizer.ggml.eom_token_id", buffer, len(buffer)
        )
        return int(buffer.value) if n > 0 else NO_TOKEN

    def _runs(self) -> Iterator[range]:
        """All ids, so many at a time that other threads do not wait long."""
        for first in range(0, self.n_tokens, _AT_A_TIME):
            yield range(first, min(first + _AT_A_TIME, self.n_tokens))

    @functools.cached_property
    def suppressed(self) -> list[int]:
        """Ids that the model's metadata says must never be sampled."""
        count = ctypes.c_int32(0)
        ids = lib.llama_vocab_get_suppress_tokens(self._vocab, ctypes.byref(count))
        return [ids[i] for i in range(count.value)]

    @functools.cached_property
    def spellings(self) -> list[bytes]:
        """The bytes of each token, control tokens spelled out; 0.2 s for 150,000, once."""
        return list(self._spelled())

    def _spelled(self) -> Iterator[bytes]:
        buffer = ctypes.create_string_buffer(_AT_A_TIME * _PIECE_BYTES)
        start = ctypes.addressof(buffer)
        for ids in self._runs():
            offsets = range(0, len(ids) * _PIECE_BYTES, _PIECE_BYTES)
            places = range(start, start + len(ids) * _PIECE_BYTES, _PIECE_BYTES)
            size, lstrip, special = repeat(_PIECE_BYTES), repeat(0), repeat(True)
            lengths = list(
                map(_token_to_piece, repeat(self._vocab), ids, places, size, lstrip, special)
            )
            written = buffer.raw
            for token, at, length in zip(ids, offsets, lengths, strict=True):
                yield written[at : at + length] if length >= 0 else self.piece(token, special=True)

    @functools.cached_property
    def max_token_bytes(self) -> int:
        """Length of the longest token's bytes: a text of n bytes has at least n / this tokens."""
        return max(map(len, self.spellings))

    def tokenize(self, text: str, *, parse_special: bool, add_special: bool = False) -> list[int]:
        """Token ids of `text`. `parse_special` lets control tokens be recognised in it."""
        data = text.encode("utf-8")
        size = len(data) + 8
        ids = (ctypes.c_int32 * size)()
        n = lib.llama_tokenize(self._vocab, data, len(data), ids, size, add_special, parse_special)
        if n < 0:
            size = -n
            ids = (ctypes.c_int32 * size)()
            n = lib.llama_tokenize(
                self._vocab, data, len(data), ids, size, add_special, parse_special
            )
        return ids[:n]

    def piece(self, token: int, *, special: bool) -> bytes:
        """The bytes of one token; a control token is empty unless `special`.

        Raises:
            IndexError: the id is not in the vocabulary (llama.cpp itself would abort).
        """
        if not 0 <= token < self.n_tokens:
            raise IndexError(f"token id {token} is not in a vocabulary of {self.n_tokens}")
        buffer = ctypes.create_string_buffer(_PIECE_BYTES)
        n = lib.llama_token_to_piece(self._vocab, token, buffer, _PIECE_BYTES, 0, special)
        if n < 0:
            buffer = ctypes.create_string_buffer(-n)
            n = lib.llama_token_to_piece(self._vocab, token, buffer, -n, 0, special)
        return buffer.raw[:n]

    def text(self, token: int) -> str:
        """A single token as text, such as the BOS marker; empty for `NO_TOKEN`."""
        if token == NO_TOKEN:
            return ""
        return self.piece(token, special=True).decode("utf-8", "replace")
