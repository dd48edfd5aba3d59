"""Log probabilities in OpenAI's two shapes: that of chat, and the older one of completions."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

import msgspec

from llm_server.worker.messages import TokenLogprob, TokenLogprobs


class TopLogprobJson(msgspec.Struct):
    """A token that was possible. `token` is its text as far as its `bytes` are UTF-8."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobJson(msgspec.Struct):
    """A token of the answer, with the most probable ones in its place."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprobJson]


class ChatLogprobs(msgspec.Struct):
    """`logprobs` of a choice of chat: all tokens that were generated, in order."""

    content: list[TokenLogprobJson]
    refusal: None = None


class TextLogprobs(msgspec.Struct):
    """`logprobs` of a choice of completions: a column for each thing to know of a token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
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


class TextOffsets:
    """Places the tokens of one choice in its text, in characters from the text's start."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at = 0

    def logprobs(self, tokens: Iterable[TokenLogprobs]) -> TextLogprobs:
        """The next tokens as completions list them."""
        json = TextLogprobs([], [], [], [])
        for entry in tokens:
            json.tokens.append(_legacy_text(entry.token))
            json.token_logprobs.append(entry.token.logprob)
            json.top_logprobs.append(
                {_legacy_text(t): t.logprob for t in reversed([entry.token, *entry.top])}
            )
            json.text_offset.append(self._at)
            self._at += len(self._decoder.decode(entry.token.piece))
        return json


def _text(token: TokenLogprob) -> str:
    return token.piece.decode("utf-8", "replace")


def _legacy_text(token: TokenLogprob) -> str:
    """As OpenAI writes it: a part of a character by its bytes."""
    try:
        return token.piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.piece)
