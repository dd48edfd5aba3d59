"""A worker whose model makes vectors or scores: which, its context, its requests as tokens."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence

import msgspec

from llm_server.engine.embedder import Texts
from llm_server.errors import (
    ContextLengthExceeded,
    InsufficientMemory,
    InvalidRequest,
    ModelLoadFailed,
)
from llm_server.llama.adapter import LoadedAdapter
from llm_server.llama.context import ContextError, DecodeError
from llm_server.llama.embedding import POOLING, EmbeddingContext
from llm_server.llama.lib import lib
from llm_server.llama.model import Model
from llm_server.machine import physical_cores
from llm_server.worker.config import TEXT_N_CTX, TEXTS, TEXTS_BYTES, LoadConfig, Pooling
from llm_server.worker.messages import Asked, Detokenize, Embed, Rerank, Tokenize, Told
from llm_server.worker.pairs import Pairs
from llm_server.worker.prepare import check_tokens, fewest_tokens, tell_text, tell_tokens

logger = logging.getLogger(__name__)

MAX_PAIRS_TOKENS = 1 << 20
"""Most tokens of a request's pairs in all, as many as token ids may come in a body: the query is in
each of them, so that a small body could ask for any memory."""


def pooling_of(model: Model, config: LoadConfig) -> Pooling | None:
    """How `model` makes vectors or scores, as configured or as its file says; None: it generates
    text.

    Encoders that do not say take the mean, as sentence-transformers does.
    """
    if config.pooling != "auto":
        return config.pooling
    architecture = model.metadata("general.architecture")
    stated = model.metadata(f"{architecture}.pooling_type")
    for name, value in POOLING.items():
        if stated == str(value):
            return name
    is_encoder = model.metadata(f"{architecture}.attention.causal") == "false"
    return "mean" if is_encoder or not lib.llama_model_has_decoder(model.handle) else None


def open_embedding(
    model: Model, pooling: Pooling, config: LoadConfig, adapters: Sequence[LoadedAdapter] = ()
) -> EmbeddingContext:
    """A context for texts of `model`, with what `config` leaves open settled, tried once.

    Raises:
        InsufficientMemory: it does not fit into the memory.
        ModelLoadFailed: the model computes neither.
    """
    n_ctx = min(config.n_ctx or TEXT_N_CTX, model.n_ctx_train)
    fits = max(1, TEXTS_BYTES // (4 * model.n_embd))
    try:
        context = EmbeddingContext(
            model,
            pooling,
            n_batch=n_ctx,
            n_shared=config.n_ubatch,
            max_texts=min(config.parallel or TEXTS, fits, n_ctx),
            config=msgspec.structs.replace(config, n_threads=config.n_threads or physical_cores()),
            adapters=adapters,
        )
    except ContextError:
        raise InsufficientMemory(
            f"Memory for texts of {n_ctx} tokens could not be had. Ask for a smaller n_ctx.",
            param="load_model_configs.n_ctx",
        ) from None
    try:
        context.embed([[0]])
    except DecodeError as error:
        logger.error("the first batch failed: %s", error)
        raise ModelLoadFailed(
            "This model computes no embeddings or scores.", param="model"
        ) from None
    return context


class TextPreparer:
    """Prepares requests for one embedding model or reranker, and answers questions about tokens."""

    def __init__(self, context: EmbeddingContext, pooling: Pooling) -> None:
        self._pairs = Pairs(context.model) if pooling == "rank" else None
        self._n_ctx = context.n_batch
        self._n_embd = context.model.n_embd_out
        self._vocab = context.model.vocab

    def prepare(self, id: int, request: Asked) -> Texts | Told:
        """The tokens of a request, or the answer to a question.

        Raises:
            ContextLengthExceeded: a text is longer than the model can see.
            InvalidRequest: a field does not fit this model, or it makes something else.
        """
        match request:
            case Embed() if self._pairs is None:
                return self._prepare(id, request)
            case Rerank() if self._pairs is not None:
                return self._prepare_pairs(id, request, self._pairs)
            case Tokenize():
                return tell_tokens(self._vocab, id, request)
            case Detokenize():
                return tell_text(self._vocab, id, request)
            case _:
                raise self._unsupported(request)

    def _unsupported(self, request: Asked) -> InvalidRequest:
        if self._pairs is not None:
            told = (
                "This model is loaded as a reranker: it cannot chat, complete or make embeddings. "
                "Use /v1/rerank or another model; to have embeddings of it all the same, set "
                "load_model_configs.pooling to mean, cls or last."
            )
        elif isinstance(request, Rerank):
            told = (
                "This model is loaded for embeddings: it cannot rerank. Use a reranker; if it is "
                "one whose file does not say so, set load_model_configs.pooling to rank."
            )
        else:
            told = (
                "This model is loaded for embeddings: it cannot chat or complete. Use "
                "/v1/embeddings or another model; if it can generate text too, set "
                "load_model_configs.pooling to auto."
            )
        return InvalidRequest(told, param="model", code="unsupported_model")

    def _prepare(self, id: int, request: Embed) -> Texts:
        if request.dimensions is not None and request.dimensions > self._n_embd:
            raise InvalidRequest(
                f"This model's embeddings have {self._n_embd} dimensions; ask for no more.",
                param="dimensions",
            )
        texts = [self._tokens(text, f"input[{i}]") for i, text in enumerate(request.inputs)]
        return Texts(id, texts, request.dimensions)

    def _prepare_pairs(self, id: int, request: Rerank, pairs: Pairs) -> Texts:
        query = request.query
        self._refuse_longer(query, "query")
        tokens_with = pairs.of(query)
        self._check(tokens_with(""), "query")  # It is at fault if no document would fit.
        texts: list[array[int]] = []
        room = MAX_PAIRS_TOKENS
        for i, document in enumerate(request.documents):
            param = f"documents[{i}]"
            self._refuse_longer(query + document, param)
            tokens = self._check(tokens_with(document), param)
            if (room := room - len(tokens)) < 0:
                raise InvalidRequest(
                    f"With the query, which counts for each of them, the documents have more than "
                    f"{MAX_PAIRS_TOKENS} tokens. Send fewer of them at a time.",
                    param="documents",
                    code="too_many_items",
                )
            texts.append(array("i", tokens))
        return Texts(id, texts, scored=True)

    def _tokens(self, text: str | list[int], param: str) -> list[int]:
        if isinstance(text, str):
            self._refuse_longer(text, param)
            text = self._vocab.tokenize(text, parse_special=True, add_special=True)
        check_tokens(text, self._vocab.n_tokens, param)
        return self._check(text, param)

    def _refuse_longer(self, text: str, param: str) -> None:
        """A bound before a text is tokenized: some tokenizers are quadratic in its length."""
        if (fewest := fewest_tokens(len(text.encode()), self._vocab)) >= self._n_ctx:
            raise ContextLengthExceeded(fewest, self._n_ctx, param=param, at_least=True)

    def _check(self, tokens: list[int], param: str) -> list[int]:
        if not tokens:
            raise InvalidRequest(f"{param} has no tokens.", param=param)
        if len(tokens) > self._n_ctx:
            raise ContextLengthExceeded(len(tokens), self._n_ctx, param=param)
        return tokens
