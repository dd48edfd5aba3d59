"""From a request to the engine's `Prompt`: render, tokenize, check the length.

Runs in a thread of its own with a deep stack, so that a slow template never stalls decoding and
a long run of one character does not overflow llama.cpp's recursive tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import msgspec

from llm_server.cache.reading import WORTH_READING
from llm_server.cache.tree import common_prefix
from llm_server.chat.dialogue import N_TURNS, Dialogue
from llm_server.chat.segments import Segment
from llm_server.chat.stream import PlainText
from llm_server.engine.logprobs import Scores
from llm_server.engine.sequence import Echo, Prompt
from llm_server.errors import ContextLengthExceeded, InvalidRequest, UnsupportedParameter
from llm_server.llama.context import Context
from llm_server.llama.model import Model
from llm_server.llama.sampler import Sampler
from llm_server.llama.vocab import NO_TOKEN, Vocab
from llm_server.worker.known_texts import KnownTexts
from llm_server.worker.messages import (
    Asked,
    ChatRequest,
    CompletionRequest,
    Detokenize,
    Embed,
    Render,
    Rerank,
    Sampling,
    Tokenize,
    Told,
)

STACK_BYTES = 1 << 30
"""Stack of the preparing thread. llama.cpp's std::regex needs about 0.4 KB a character of one run;
the memory is only reserved until it is used."""


MAX_TOLD_BYTES = 512 * 1024
"""Longest text of a question: some tokenizers take seconds for it."""

MAX_RENDERED_BYTES = 4 * 1024 * 1024
"""Longest prompt to be shown: it must fit a frame."""

BEFORE_END = 4
"""Tokens before the end of a prompt at which a whole state is kept for the same prompt. More than
one: where a text goes on, its end may be other tokens."""

_CHEAP_BYTES = 1 << 16
"""A text this short is tokenized without a first look at its length."""


def open_dialogue(model: Model, template: str | None = None) -> Dialogue:
    """The model's dialogue, with what every request needs of it.

    `template` replaces the model's own.

    Raises:
        TemplateError: the model's chat template cannot be compiled.
    """
    dialogue = Dialogue(model.chat_template if template is None else template, model.vocab)
    _ = dialogue.syntax
    return dialogue


class Preparer:
    """Prepares requests for one loaded model, and answers questions about its tokens."""

    def __init__(self, context: Context, dialogue: Dialogue) -> None:
        self._context = context
        self._vocab = context.model.vocab
        self._dialogue = dialogue
        self._known = KnownTexts(self._tokens_in)

    def prepare(self, id: int, request: Asked) -> Prompt | Told:
        """The prompt of a request, or the answer to a question.

        Raises:
            TemplateError: the template refused the messages.
            ContextLengthExceeded: there is no room for a first token behind the prompt.
            InvalidRequest: a field does not fit this model.
        """
        match request:
            case ChatRequest():
                return self._prepare_chat(id, request)
            case CompletionRequest():
                return self._prepare_completion(id, request)
            case Tokenize():
                return tell_tokens(self._vocab, id, request)
            case Detokenize():
                return tell_text(self._vocab, id, request)
            case Render():
                return self._tell_prompt(id, request)
            case Embed():
                raise InvalidRequest(
                    "This model generates text. To load it as an embedding model instead, set "
                    "load_model_configs.pooling to mean, cls or last.",
                    param="model",
                    code="unsupported_model",
                )
            case Rerank():
                raise InvalidRequest(
                    "This model generates text: it cannot rerank. Use a reranker; if it is one "
                    "whose file does not say so, set load_model_configs.pooling to rank.",
                    param="model",
                    code="unsupported_model",
                )

    def _prepare_chat(self, id: int, request: ChatRequest) -> Prompt:
        check_tokens(request.sampling.logit_bias, self._vocab.n_tokens, "logit_bias")
        prepared = self._dialogue.prepare(id, request)
        tokens = self._tokenize(prepared.segments, request.cache_salt)
        sampling = _with_bans(request.sampling, prepared.banned)
        boundaries = self._boundaries(request, prepared.segments, tokens)
        return Prompt(
            id,
            tokens,
            make_sampler=self._maker(sampling, tokens),
            parser=prepared.parser,
            constraint=prepared.constraint,
            scores=self._scores(id, sampling),
            max_tokens=sampling.max_tokens,
            stop=sampling.stop,
            namespace=request.cache_salt,
            visible=prepared.visible,
            head=boundaries[0] if boundaries else 0,
            boundaries=boundaries,
            persist=request.persist,
        )

    def _prepare_completion(self, id: int, request: CompletionRequest) -> Prompt:
        sampling = request.sampling
        check_tokens(sampling.logit_bias, self._vocab.n_tokens, "logit_bias")
        tokens = self._prompt_tokens(request)
        if len(tokens) >= self._context.n_ctx:
            raise ContextLengthExceeded(len(tokens), self._context.n_ctx, param=request.place)
        scores = self._scores(id, sampling)
        return Prompt(
            id,
            tokens,
            make_sampler=self._maker(sampling, tokens),
            parser=PlainText(id),
            scores=scores,
            told=self._bytes_of(request.prompt) if request.echo and not scores else b"",
            echo=self._echo(request.prompt, tokens) if request.echo and scores else None,
            max_tokens=sampling.max_tokens,
            stop=sampling.stop,
            namespace=request.cache_salt,
            boundaries=_near_end(len(tokens)),
            persist=request.persist,
        )

    def _maker(self, sampling: Sampling, tokens: list[int]) -> Callable[[], Sampler]:
        """How the engine makes the sampler; what takes long of it is done here and now."""
        self._context.dry.build(sampling)
        return lambda: Sampler(self._context, sampling, tokens)

    def _prompt_tokens(self, request: CompletionRequest) -> list[int]:
        vocab, prompt, suffix = self._vocab, request.prompt, request.suffix
        place = request.place
        tokens = self._tokenize_text(prompt, place) if isinstance(prompt, str) else prompt
        check_tokens(tokens, vocab.n_tokens, place)
        if suffix is not None:
            before, after, middle = vocab.fill_in
            if NO_TOKEN in vocab.fill_in:
                raise UnsupportedParameter(
                    "This model has no tokens to fill in a middle: it cannot honour a suffix.",
                    param="suffix",
                )
            tokens = [before, *tokens, after, *self._tokenize_text(suffix, "suffix"), middle]
        if isinstance(prompt, str) and vocab.add_bos and tokens[:1] != [vocab.bos]:
            tokens = [vocab.bos, *tokens]
        if not tokens:
            raise InvalidRequest(f"The {place} is empty.", param=place)
        return tokens

    def _tokenize_text(self, text: str, param: str) -> list[int]:
        self._refuse_longer(len(text.encode()), param)
        return self._vocab.tokenize(text, parse_special=True)

    def _refuse_longer(self, n_bytes: int, param: str = "messages") -> None:
        """A bound before a text is tokenized: some tokenizers are quadratic in its length."""
        n_ctx = self._context.n_ctx
        if (fewest := fewest_tokens(n_bytes, self._vocab)) >= n_ctx:
            raise ContextLengthExceeded(fewest, n_ctx, param=param, at_least=True)

    def _bytes_of(self, prompt: str | list[int]) -> bytes:
        if isinstance(prompt, str):
            return prompt.encode()
        return b"".join(self._vocab.piece(token, special=True) for token in prompt)

    def _echo(self, prompt: str | list[int], tokens: list[int]) -> Echo | None:
        """How to tell the prompt: without what tokenizing put before its text."""
        bos = self._vocab.text(self._vocab.bos)
        added = isinstance(prompt, str) and tokens[0] == self._vocab.bos
        start = int(added and not (bos and str(prompt).startswith(bos)))
        if start == len(tokens):
            return None
        pieces = [self._vocab.piece(token, special=True) for token in tokens[start:]]
        if isinstance(prompt, str) and self._vocab.adds_blank:
            pieces = _as_in(prompt.encode(), pieces)
        return Echo(start, pieces)

    def _scores(self, id: int, sampling: Sampling) -> Scores | None:
        if sampling.top_logprobs is None:
            return None
        return Scores(id, self._context.logits, self._vocab, sampling.top_logprobs)

    def _tell_prompt(self, id: int, asked: Render) -> Told:
        """Also of a prompt that is too long for the context, within reason."""
        segments = self._dialogue.render(asked.request)
        text = "".join(segment.text for segment in segments)
        n_bytes, longest = len(text.encode()), self._vocab.max_token_bytes
        reasonable = max(MAX_TOLD_BYTES, self._context.n_ctx * longest)
        if n_bytes > min(reasonable, MAX_RENDERED_BYTES):
            raise ContextLengthExceeded(n_bytes // longest, self._context.n_ctx, at_least=True)
        return Told(id, text, n_tokens=len(self._tokens_of(segments, asked.request.cache_salt)))

    def _tokenize(self, segments: Sequence[Segment], namespace: str) -> list[int]:
        n_ctx = self._context.n_ctx
        self._refuse_longer(sum(len(segment.text.encode()) for segment in segments))
        tokens = self._tokens_of(segments, namespace)
        if not tokens:
            raise InvalidRequest("The messages make an empty prompt.", param="messages")
        if len(tokens) >= n_ctx:
            raise ContextLengthExceeded(len(tokens), n_ctx)
        return tokens

    def _tokens_in(self, segment: Segment) -> list[int]:
        return self._vocab.tokenize(segment.text, parse_special=segment.special)

    def _tokens_of(self, segments: Sequence[Segment], namespace: str) -> list[int]:
        tokens: list[int] = []
        for segment in segments:
            tokens += self._known.tokens(segment, namespace)
        # Most templates write the BOS token themselves; a second one would harm the answer.
        if self._vocab.add_bos and tokens[:1] != [self._vocab.bos]:
            tokens.insert(0, self._vocab.bos)
        return tokens

    def _boundaries(
        self, request: ChatRequest, segments: Sequence[Segment], tokens: list[int]
    ) -> list[int]:
        """The prompt's stable ends as token positions; the first one ends the head.

        Ranges of cells can be cut anywhere, so there only the head is of interest.
        """
        found = set()
        n_turns = N_TURNS if self._context.whole_state else 0
        for n_chars in self._dialogue.boundaries(request, n_turns):
            before = self._tokens_of(_cut(segments, n_chars), request.cache_salt)
            # A token may reach over the boundary: only those that are the same count.
            found.add(common_prefix(before, 0, tokens, 0))
        if request.persist and n_turns and len(tokens) - max(found, default=0) > WORTH_READING:
            found.update(_near_end(len(tokens)))
        return sorted(n for n in found if WORTH_READING <= n < len(tokens))


def fewest_tokens(n_bytes: int, vocab: Vocab) -> int:
    """At least so many tokens a text of that length has; 0 for one that is cheap to tokenize."""
    return n_bytes // vocab.max_token_bytes if n_bytes > _CHEAP_BYTES else 0


def tell_tokens(vocab: Vocab, id: int, asked: Tokenize) -> Told:
    """Which tokens the text is. Raises InvalidRequest for one that is too long."""
    if len(asked.text.encode()) > MAX_TOLD_BYTES:
        raise InvalidRequest(f"The text is over {MAX_TOLD_BYTES} bytes long.", param="content")
    tokens = vocab.tokenize(
        asked.text, parse_special=asked.parse_special, add_special=asked.add_special
    )
    pieces = [vocab.piece(token, special=True) for token in tokens if asked.with_pieces]
    return Told(id, tokens=tokens, pieces=pieces, n_tokens=len(tokens))


def tell_text(vocab: Vocab, id: int, asked: Detokenize) -> Told:
    """Which text the tokens are. Raises InvalidRequest for unknown ids, or too much text."""
    check_tokens(asked.tokens, vocab.n_tokens, "tokens")
    text = b"".join(vocab.piece(token, special=True) for token in asked.tokens)
    if len(text) > MAX_TOLD_BYTES:
        raise InvalidRequest(f"The text is over {MAX_TOLD_BYTES} bytes long.", param="tokens")
    return Told(id, text.decode("utf-8", "replace"), n_tokens=len(asked.tokens))


def check_tokens(tokens: Iterable[int], n_vocab: int, param: str) -> None:
    """Refuse ids that are not in a vocabulary: llama.cpp would abort. Raises InvalidRequest."""
    for token in tokens:
        if not 0 <= token < n_vocab:
            raise InvalidRequest(
                f"{param} names token {token}, but this model's tokens are 0 to {n_vocab - 1}.",
                param=param,
            )


def _as_in(text: bytes, pieces: Sequence[bytes]) -> list[bytes]:
    """The pieces of `text` without blanks that it does not have, as far as they are its own."""
    told, at = [], 0
    for piece in pieces:
        if not text.startswith(piece, at) and piece[:1] == b" ":
            piece = piece[1:]
        if not text.startswith(piece, at):
            break
        told.append(piece)
        at += len(piece)
    return [*told, *pieces[len(told) :]]


def _near_end(n_tokens: int) -> list[int]:
    """Where the same prompt, come again, leaves the one that it is."""
    at = n_tokens - BEFORE_END
    return [at] if at >= WORTH_READING else []


def _cut(segments: Sequence[Segment], n_chars: int) -> list[Segment]:
    """The first `n_chars` characters of a rendered prompt."""
    kept: list[Segment] = []
    for segment in segments:
        kept.append(Segment(segment.text[:n_chars], segment.special))
        n_chars -= len(segment.text)
        if n_chars <= 0:
            break
    return kept


def _with_bans(sampling: Sampling, banned: frozenset[int]) -> Sampling:
    if not banned:
        return sampling
    bias = {**sampling.logit_bias, **dict.fromkeys(banned, -math.inf)}
    return msgspec.structs.replace(sampling, logit_bias=bias)
