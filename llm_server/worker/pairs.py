"""A query and a document as the tokens that a reranker scores. Knows no contexts and no lengths."""

from __future__ import annotations

import re
from collections.abc import Callable

from llm_server.chat.segments import Lookalikes
from llm_server.llama.model import Model

_FIELD = re.compile(r"\{(query|document)\}")


class Pairs:
    """Makes the tokens of pairs for one model, as llama.cpp's server does (server-common.cpp,
    format_prompt_rerank). In neither text markers are recognised. Threads may share it."""

    def __init__(self, model: Model) -> None:
        vocab = model.vocab
        self._vocab = vocab
        self._template = model.rerank_template
        specials = vocab.control if self._template else ()
        self._lookalikes = Lookalikes(vocab.text(token) for token in specials)

    def of(self, query: str) -> Callable[[str], list[int]]:
        """What makes tokens of a document, with that query."""
        if self._template is not None:
            template = self._template
            return lambda document: self._in_template(template, query, document)
        before, between, behind = self._vocab.around_pairs
        head = [*before, *self._plain(query), *between]
        return lambda document: [*head, *self._plain(document), *behind]

    def _in_template(self, template: str, query: str, document: str) -> list[int]:
        marks = self._lookalikes.marker((template, query, document))
        given = {"query": marks.add(query), "document": marks.add(document)}
        segments = marks.split(_FIELD.sub(lambda field: given[field[1]], template))
        tokens: list[int] = []
        for segment in segments:
            tokens += self._vocab.tokenize(segment.text, parse_special=segment.special)
        return tokens

    def _plain(self, text: str) -> list[int]:
        return self._vocab.tokenize(text, parse_special=False)
