"""A worker whose model makes vectors: whether it does, its context, its requests as tokens."""

from __future__ import annotations

import logging
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
from llm_server.worker.messages import Asked, Detokenize, Embed, Tokenize, Told
from llm_server.worker.prepare import check_tokens, fewest_tokens, tell_text, tell_tokens

logger = logging.getLogger(__name__)


def pooling_of(model: Model, config: LoadConfig) -> Pooling | None:
    """How `model` makes vectors, as configured or as its file says; None: it generates text.

    Encoders that do not say take the mean, as sentence-transformers does.

    Raises:
        ModelLoadFailed: it is a reranker, which makes neither.
    """
    if config.pooling != "auto":
        return config.pooling
    architecture = model.metadata("general.architecture")
    stated = model.metadata(f"{architecture}.pooling_type")
    if stated == str(lib.LLAMA_POOLING_TYPE_RANK):
        raise ModelLoadFailed(
            "This model is a reranker, and those are not served. To have embeddings of it all the "
            "same, set load_model_configs.pooling to mean, cls or last.",
            param="model",
        )
    for name, value in POOLING.items():
        if stated == str(value):
            return name
    is_encoder = model.metadata(f"{architecture}.attention.causal") == "false"
    return "mean" if is_encoder or not lib.llama_model_has_decoder(model.handle) else None


def open_embedding(
    model: Model, pooling: Pooling, config: LoadConfig, adapters: Sequence[LoadedAdapter] = ()
) -> EmbeddingContext:
    """A context for vectors of `model`, with what `config` leaves open settled, tried once.

    Raises:
        InsufficientMemory: it does not fit into the memory.
        ModelLoadFailed: the model computes no vector.
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
        raise ModelLoadFailed("This model computes no embeddings.", param="model") from None
    return context


class TextPreparer:
    """Prepares requests for one embedding model, and answers questions about its tokens."""

    def __init__(self, context: EmbeddingContext) -> None:
        self._n_ctx = context.n_batch
        self._n_embd = context.model.n_embd_out
        self._vocab = context.model.vocab

    def prepare(self, id: int, request: Asked) -> Texts | Told:
        """The tokens of a request, or the answer to a question.

        Raises:
            ContextLengthExceeded: a text is longer than the model can see.
            InvalidRequest: a field does not fit this model, or text is to be generated.
        """
        match request:
            case Embed():
                return self._prepare(id, request)
            case Tokenize():
                return tell_tokens(self._vocab, id, request)
            case Detokenize():
                return tell_text(self._vocab, id, request)
            case _:
                raise InvalidRequest(
                    "This model is loaded for embeddings: it cannot chat or complete. Use "
                    "/v1/embeddings or another model; if it can generate text too, set "
                    "load_model_configs.pooling to auto.",
                    param="model",
                    code="unsupported_model",
                )

    def _prepare(self, id: int, request: Embed) -> Texts:
        if request.dimensions is not None and request.dimensions > self._n_embd:
            raise InvalidRequest(
                f"This model's embeddings have {self._n_embd} dimensions; ask for no more.",
                param="dimensions",
            )
        texts = [self._tokens(text, f"input[{i}]") for i, text in enumerate(request.inputs)]
        return Texts(id, texts, request.dimensions)

    def _tokens(self, text: str | list[int], param: str) -> list[int]:
        if isinstance(text, str):
            if (fewest := fewest_tokens(len(text.encode()), self._vocab)) >= self._n_ctx:
                raise ContextLengthExceeded(fewest, self._n_ctx, param=param, at_least=True)
            text = self._vocab.tokenize(text, parse_special=True, add_special=True)
            if not text:
                raise InvalidRequest(f"{param} has no tokens.", param=param)
        check_tokens(text, self._vocab.n_tokens, param)
        if len(text) > self._n_ctx:
            raise ContextLengthExceeded(len(text), self._n_ctx, param=param)
        return text
