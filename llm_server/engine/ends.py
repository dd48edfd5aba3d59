"""What a model said behind the last prompts: with it, a prompt that comes again computes nothing.

Cells and disk keep the memory of a prompt, but the first token of an answer is drawn from logits,
which only computing the prompt's last token gives. They are kept, exactly as they were computed.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence

from llm_server.engine.logprobs import Logits

_MAX_BYTES = 8 << 20
"""13 prompts of a model with 152,000 tokens in its vocabulary, 60 of one with 32,000."""


class PromptEnds:
    """Logits behind prompts, the least recently used out first; each `namespace` for itself."""

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._n_bytes = 0
        self._ends: OrderedDict[tuple[str, bytes], Logits] = OrderedDict()

    def remember(self, tokens: Sequence[int], namespace: str, logits: Logits) -> Logits:
        """`logits` [n_vocab] came behind `tokens`; returns the copy that is kept."""
        key = _key(tokens, namespace)
        self._forget(key)
        kept = self._ends[key] = logits.copy()
        self._n_bytes += kept.nbytes
        while self._n_bytes > self._max_bytes:
            self._forget(next(iter(self._ends)))
        return kept

    def recall(self, tokens: Sequence[int], namespace: str) -> Logits | None:
        """The logits [n_vocab] that came behind `tokens`, if they are still known. Not a copy."""
        key = _key(tokens, namespace)
        if key in self._ends:
            self._ends.move_to_end(key)
        return self._ends.get(key)

    def _forget(self, key: tuple[str, bytes]) -> None:
        if (logits := self._ends.pop(key, None)) is not None:
            self._n_bytes -= logits.nbytes


def _key(tokens: Sequence[int], namespace: str) -> tuple[str, bytes]:
    return namespace, array("i", tokens).tobytes()
