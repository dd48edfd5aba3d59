"""A byte-level vocabulary with chosen markers, as the worker's own would be."""

from __future__ import annotations

import re


class ByteVocabulary:
    """256 tokens for the bytes, then `words`, then `user_defined`, then `control` markers.

    The first of `control` is BOS, the second EOS, and the only one that ends a generation.
    `n_listed` counts how often all of it was asked for.
    """

    n_listed = 0

    def __init__(
        self,
        control: list[str],
        user_defined: list[str] | None = None,
        words: list[str] | None = None,
    ) -> None:
        self._texts = [bytes([b]) for b in range(256)]
        self._texts += [w.encode() for w in words or []]
        first_marker = len(self._texts)
        self._texts += [m.encode() for m in user_defined or []]
        first_control = len(self._texts)
        self._texts += [m.encode() for m in control]
        self.n_tokens = len(self._texts)
        self.control = frozenset(range(first_control, self.n_tokens))
        self.bos, self.eos = first_control, first_control + 1
        self.eog = frozenset([self.eos])
        self._ids = {t: i for i, t in reversed(list(enumerate(self._texts)))}
        self._first_marker = first_marker
        self._plain = self._pattern(range(256, first_control))
        self._special = self._pattern(range(256, self.n_tokens))

    def _pattern(self, ids: range) -> re.Pattern[bytes]:
        spelled = sorted((self._texts[i] for i in ids), key=len, reverse=True)
        return re.compile(b"|".join([*map(re.escape, spelled), b"."]), re.DOTALL)

    @property
    def spellings(self) -> list[bytes]:
        self.n_listed += 1
        return self._texts

    def text(self, token: int) -> str:
        return self._texts[token].decode("latin-1" if token < 256 else "utf-8")

    def piece(self, token: int, *, special: bool) -> bytes:
        return self._texts[token] if special or token not in self.control else b""

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        pattern = self._special if parse_special else self._plain
        return [self._ids[m] for m in pattern.findall(text.encode("utf-8", "replace"))]
