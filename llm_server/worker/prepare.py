"""From a `ChatRequest` to the engine's `Prompt`: render, tokenize, check the length.

Runs in a thread of its own with a deep stack, so that a slow template never stalls decoding and
a long run of one character does not overflow llama.cpp's recursive tokenizer.
"""

from __future__ import annotations

from llm_server.chat.stream import PlainText
from llm_server.chat.template import ChatTemplate
from llm_server.engine.sequence import Prompt
from llm_server.errors import ContextLengthExceeded, InvalidRequest
from llm_server.llama.context import Context
from llm_server.llama.sampler import Sampler
from llm_server.worker.messages import ChatRequest, Sampling

STACK_BYTES = 1 << 30
"""Stack of the preparing thread. llama.cpp's std::regex needs about 0.4 KB a character of one run;
the memory is only reserved until it is used."""


class Preparer:
    """Prepares requests for one loaded model.

    Raises TemplateError when the model's chat template cannot be compiled.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._vocab = context.model.vocab
        self._template = ChatTemplate(
            context.model.chat_template,
            bos_token=self._vocab.text(self._vocab.bos),
            eos_token=self._vocab.text(self._vocab.eos),
            specials=[self._vocab.text(token) for token in self._vocab.control],
        )

    def prepare(self, id: int, request: ChatRequest) -> Prompt:
        """The prompt of a request.

        Raises:
            TemplateError: the template refused the messages.
            ContextLengthExceeded: there is no room for a first token behind the prompt.
            InvalidRequest: `logit_bias` names a token that does not exist.
        """
        sampling = request.sampling
        self._check_bias(sampling)
        tokens = self._tokenize(request)
        return Prompt(
            id,
            tokens,
            make_sampler=lambda: Sampler(self._context, sampling, tokens),
            parser=PlainText(id),
            max_tokens=sampling.max_tokens,
            stop=sampling.stop,
            namespace=request.cache_salt,
            persist=request.persist,
        )

    def _check_bias(self, sampling: Sampling) -> None:
        n_vocab = self._vocab.n_tokens
        for token in sampling.logit_bias:
            if not 0 <= token < n_vocab:
                raise InvalidRequest(
                    f"logit_bias names token {token}, but this model's tokens are 0 to "
                    f"{n_vocab - 1}.",
                    param="logit_bias",
                )

    def _tokenize(self, request: ChatRequest) -> list[int]:
        n_ctx = self._context.n_ctx
        segments = self._template.render(
            request.messages, request.tools, kwargs=request.template_kwargs
        )
        n_bytes = sum(len(segment.text.encode()) for segment in segments)
        at_least = n_bytes // self._vocab.max_token_bytes
        if at_least >= n_ctx:
            raise ContextLengthExceeded(at_least, n_ctx)
        tokens: list[int] = []
        for segment in segments:
            tokens += self._vocab.tokenize(segment.text, parse_special=segment.special)
        # Most templates write the BOS token themselves; a second one would harm the answer.
        if self._vocab.add_bos and tokens[:1] != [self._vocab.bos]:
            tokens.insert(0, self._vocab.bos)
        if len(tokens) >= n_ctx:
            raise ContextLengthExceeded(len(tokens), n_ctx)
        return tokens
