"""Log probabilities in OpenAI's two shapes: that of chat, and the older one of completions."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

import msgspec

from llm_server.worker.messages import Logprobs, TokenLogprob, TokenLogprobs


class TopLogprobJson(msgspec.Struct):
    """A token that was possible. `token` is its text as far as its `bytes` are UTF-8."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobJson(TopLogprobJson):
    """A token of the answer, with the most probable ones in its place."""

    top_logprobs: list[TopLogprobJson]


class ChatLogprobs(msgspec.Struct):
    """`logprobs` of a choice of chat: all tokens that were generated, in order."""

    content: list[TokenLogprobJson]
    refusal: None = None


class TextLogprobs(msgspec.Struct):
    """`logprobs` of a choice of completions: a column for each thing to know of a token.

    The first token of an echoed prompt has null for its probability and its alternatives.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


def chat_logprobs(tokens: Iterable[TokenLogprobs]) -> list[TokenLogprobJson]:
    """The worker's tokens as chat lists them."""
    return [
        TokenLogprobJson(
            _text(entry.token),
            entry.token.logprob,
            list(entry.token.piece),
            [TopLogprobJson(_text(top), top.logprob, list(top.piece)) for top in entry.top],
        )
        for entry in tokens
    ]


class TextColumns:
    """Collects the tokens of one choice, placed in its text: in characters from its start."""

    def __init__(self) -> None:
        self._at = 0
        self._columns = TextLogprobs([], [], [], [])

    def add(self, event: Logprobs) -> None:
        """The next tokens."""
        if event.opening is not None:
            whole = codecs.getincrementaldecoder("utf-8")("replace").decode(event.opening)
            self._add(event.opening, len(whole), None, None)
        for entry in event.tokens:
            token = entry.token
            top = {_legacy_text(t.piece): t.logprob for t in reversed([token, *entry.top])}
            self._add(token.piece, entry.n_chars, token.logprob, top)

    def taken(self) -> TextLogprobs | None:
        """What was collected since the last time, if anything."""
        columns, self._columns = self._columns, TextLogprobs([], [], [], [])
        return columns if columns.tokens else None

    def _add(
        self, piece: bytes, n_chars: int, logprob: float | None, top: dict[str, float] | None
    ) -> None:
        self._columns.tokens.append(_legacy_text(piece))
        self._columns.token_logprobs.append(logprob)
        self._columns.top_logprobs.append(top)
        self._columns.text_offset.append(self._at)
        self._at += n_chars


def _text(token: TokenLogprob) -> str:
    return token.piece.decode("utf-8", "replace")


def _legacy_text(piece: bytes) -> str:
    """As OpenAI writes it: a part of a character by its bytes."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
