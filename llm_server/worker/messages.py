"""The whole protocol between the API process and a worker process.

Frames are a 4-byte little-endian length and a msgpack body, on the child's stdin and stdout.
Down go `Command`s, one a frame; up come lists of `Event`s, all those of one engine step in one
frame, if it holds them. Every `Submit` is answered by events of its id that end in exactly one
`Finished` (`Told` for a question) or `Failed`. End of file is death. It knows no pipes, no HTTP and
no llama.cpp.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from llm_server.cache.counts import Counts
from llm_server.errors import ErrorInfo
from llm_server.worker.config import CacheConfig, LoadConfig, Pooling

JsonObject: TypeAlias = dict[str, Any]
"""JSON from the client that only templates and schemas look into."""

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls"]


class FunctionCall(msgspec.Struct, frozen=True):
    """One call of an assistant message; `arguments` is JSON text, as OpenAI has it."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of the history. Text parts are already joined into `content`."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    name: str | None = None
    tool_calls: list[FunctionCall] = []
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How to pick tokens. Defaults are llama.cpp's (`common/common.h`, common_params_sampling).

    `max_tokens` None means up to the end of the context; 0 computes the prompt and stops.
    `seed` None draws one. `repeat_last_n` and `dry_penalty_last_n`: -1 is the whole context.
    `top_logprobs` asks for `Logprobs`, each with so many alternatives; None asks for none.
    """

    max_tokens: int | None = None
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    logit_bias: dict[int, float] = {}
    stop: list[str] = []
    mirostat: Literal[0, 1, 2] = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: list[str] = msgspec.field(default_factory=lambda: ["\n", ":", '"', "*"])
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    top_logprobs: int | None = None


class ResponseFormat(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the answer's text must be: anything, a JSON object, or JSON that fits `schema`.

    `param` is where the schema stood in the request, for error messages.
    """

    type: Literal["text", "json_object", "json_schema"] = "text"
    schema: JsonObject | None = None
    param: str = "response_format"


class ChatRequest(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """One answer wanted to one conversation: what every dialect of chat becomes.

    `tools` are OpenAI tool objects (`{"type": "function", "function": {...}}`), validated at the
    edge. `template_kwargs` are extra scalar variables of the chat template (`enable_thinking`).
    `cache_salt` separates the prompt caches of different API keys. `tool_name` is the one tool
    that must be called, `tool_choice` what holds for all of them. `reasoning_budget` is the most
    tokens to think for: None is no limit, 0 ends a thought as it begins.
    """

    messages: list[Message]
    tools: list[JsonObject] = []
    sampling: Sampling = Sampling()
    template_kwargs: dict[str, str | int | float | bool] = {}
    cache_salt: str = ""
    persist: bool = False
    tool_choice: Literal["auto", "none", "required"] = "auto"
    tool_name: str | None = None
    parallel_tool_calls: bool = True
    response_format: ResponseFormat = ResponseFormat()
    reasoning_budget: int | None = None


class CompletionRequest(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """One continuation wanted of one prompt: text, in which markers are recognised, or token ids.

    `suffix` is what comes behind the gap that is to be filled. `echo` asks for the prompt's text
    as the first `Content`; where log probabilities are wanted, those of its tokens come with it.
    `place` is where the prompt stands in the client's request, for what there is against it.
    """

    prompt: str | list[int]
    suffix: str | None = None
    echo: bool = False
    sampling: Sampling = Sampling()
    cache_salt: str = ""
    persist: bool = False
    place: str = "prompt"


Request: TypeAlias = ChatRequest | CompletionRequest


class Embed(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """Vectors wanted of texts or token ids, at least one, none empty; shortened to `dimensions`."""

    inputs: list[str | list[int]]
    dimensions: int | None = None


class Rerank(msgspec.Struct, frozen=True, tag=True):
    """How well does each of these documents, at least one, answer the query?"""

    query: str
    documents: list[str]


class Tokenize(msgspec.Struct, frozen=True, tag=True):
    """Which tokens is this text? `add_special` adds those that the model has around every text,
    `parse_special` recognises markers in it, `with_pieces` asks for each token's bytes."""

    text: str
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class Detokenize(msgspec.Struct, frozen=True, tag=True):
    """Which text are these tokens?"""

    tokens: list[int]


class Render(msgspec.Struct, frozen=True, tag=True):
    """Which prompt would this request have, and of how many tokens?"""

    request: ChatRequest


Question: TypeAlias = Tokenize | Detokenize | Render
"""What is answered at once by one `Told`, and computes nothing with the model."""

Asked: TypeAlias = Request | Embed | Rerank | Question
"""All that can be submitted."""


# ---- commands: API process -> worker -----------------------------------------------------------


class StandBy(msgspec.Struct, frozen=True, tag=True):
    """Make ready what needs no model, and wait for `Load`. If it comes, it is the first command."""


class Load(msgspec.Struct, frozen=True, tag=True):
    """What to load, sent once. Answered by `Loaded` or `LoadFailed`.

    `adapter_paths` are the files of `config.lora` in their order, `template_path` is that of
    `config.chat_template`. `cache` None: prompts are cached in memory alone. `sandbox` False leaves
    the worker all that its user may do. `layer_bytes` is what each layer takes on a graphics card,
    the output layer last, and `compute_bytes` what computing takes there. `n_idle` is how many idle
    prompts a memory of whole states holds; 0 for as many as may run. `smaller_n_ctx` is to be tried
    in turn where the memory does not hold the `n_ctx` of `config`.
    """

    model_path: Path
    config: LoadConfig = LoadConfig()
    cache: CacheConfig | None = None
    log_level: str = "info"
    log_format: str = "text"
    sandbox: bool = True
    adapter_paths: tuple[Path, ...] = ()
    template_path: Path | None = None
    layer_bytes: tuple[int, ...] = ()
    compute_bytes: int = 0
    n_idle: int = 0
    smaller_n_ctx: tuple[int, ...] = ()


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Start a request. Ids are chosen by the API process and never used twice.

    Owners take turns where several wait; empty where nobody is told apart.
    """

    id: int
    request: Asked
    owner: str = ""


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Nobody wants the answer any more. For this id nothing comes back but maybe a `Cancelled`, and
    what was on its way."""

    id: int


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Take no more, fail what still runs, keep what is worth keeping, exit within `deadline_s`."""

    deadline_s: float = 5.0


Command: TypeAlias = StandBy | Load | Submit | Cancel | Stop


# ---- events: worker -> API process -------------------------------------------------------------


class LoadProgress(msgspec.Struct, frozen=True, tag=True):
    """How much of the weights has been read, 0 to 1."""

    fraction: float


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """The model is ready; what is in force after all defaults were resolved.

    `memory_bytes` is what the worker has taken of the machine's memory, 0 where the system does
    not say.
    """

    n_ctx: int
    parallel: int
    description: str
    sandbox: str = ""
    """What the worker gave up: `full`, `partial (...)` or `off`."""
    fingerprint: str = ""
    pooling: Pooling | None = None
    """Of an embedding model or a reranker; None for a model that generates text."""
    memory_bytes: int = 0
    n_gpu_layers: int = 0
    max_gpu_layers: int | None = 0
    """What `n_gpu_layers` -1 comes to: 0 where there is no graphics card, None where llama.cpp
    was built for them and sees none: where none was to be used, the sandbox hides them."""
    flash_attn: Literal["on", "off"] = "on"


class LoadFailed(msgspec.Struct, frozen=True, tag=True):
    """The model could not be loaded; the worker exits after this."""

    error: ErrorInfo


class CacheStats(Counts, tag=True):
    """What the disk cache of this worker has done since its start; sent when it has changed."""


class Cells(msgspec.Struct, frozen=True, tag=True):
    """Cells of the context that running requests hold, and that only cached prompts do."""

    running: int = 0
    idle: int = 0


class Progress(msgspec.Struct, frozen=True, tag=True):
    """A request's prompt is being read from the disk, computed, or stored: `n_done` of `n_prompt`
    tokens are there, `n_cached` reused. It comes with the first token at the latest; while a
    request waits for the disk, or its answer's tokens show nothing, again and again."""

    id: int
    n_prompt: int
    n_done: int
    n_cached: int


class Content(msgspec.Struct, frozen=True, tag=True):
    """More of the answer's text."""

    id: int
    text: str


class Reasoning(msgspec.Struct, frozen=True, tag=True):
    """More of the model's thinking."""

    id: int
    text: str


class ToolCall(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """A fragment of the `index`-th tool call: id and name in the first one, then arguments."""

    id: int
    index: int
    arguments: str = ""
    call_id: str | None = None
    name: str | None = None


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """A token's bytes, and the natural logarithm of its probability."""

    piece: bytes
    logprob: float


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """A token of the answer, and the `top` most probable ones in its place, best first.

    It completed `n_chars` characters of text: a marker none, though it has bytes.
    """

    token: TokenLogprob
    top: list[TokenLogprob]
    n_chars: int


class Logprobs(msgspec.Struct, frozen=True, tag=True):
    """More of the answer's tokens, in order, before the delta that they made visible.

    Every token counts: also of thoughts and calls, and those that show nothing. Left out are the
    end of the turn, and what a stop string cut off. The probabilities are the model's own, before
    bias, penalties, constraints, temperature and truncation. Tokens of an echoed prompt come first:
    `opening` has the bytes of the very first one, which nothing makes probable.
    """

    id: int
    tokens: list[TokenLogprobs]
    opening: bytes | None = None


class Embedded(msgspec.Struct, frozen=True, tag=True):
    """The vectors of a request's next `n` texts, of length 1: float32, little-endian. Of those of a
    `Rerank` the scores, one number each."""

    id: int
    n: int
    vectors: bytes


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one request; `cached_tokens` of the prompt were reused, not computed.

    `disk_tokens` of those came from the disk, the others from live cells. `state_bytes` is what
    the prompt takes on disk, for requests that asked to `persist` it; 0 where it is not there.
    `reasoning_tokens` of the completion were thoughts.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    disk_tokens: int = 0
    state_bytes: int = 0
    reasoning_tokens: int = 0


class Timings(msgspec.Struct, frozen=True):
    """Where a request's time went, in milliseconds. `cache_ms` is attaching what was on disk.

    `queue_ms` begins with the prepared prompt: rendering and tokenizing, and waiting for a thread
    that does, belong to no stage.
    Of `draft_n` tokens that were guessed and computed, `draft_n_accepted` were right.
    """

    queue_ms: float
    prompt_ms: float
    predicted_ms: float
    cache_ms: float = 0.0
    draft_n: int = 0
    draft_n_accepted: int = 0


class Finished(msgspec.Struct, frozen=True, tag=True):
    """The request is complete; `stop_text` is the stop string that ended it, if one has."""

    id: int
    reason: FinishReason
    usage: Usage
    timings: Timings
    stop_text: str | None = None


class Cancelled(msgspec.Struct, frozen=True, tag=True):
    """What a request for text took before it was cancelled: no end, for nobody waits for one.

    `prompt_tokens` are those that were computed or reused.
    """

    id: int
    usage: Usage
    timings: Timings


class Told(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The answer to a `Question`, as far as it asked; `n_tokens` are those of `text`."""

    id: int
    text: str = ""
    tokens: list[int] = []
    pieces: list[bytes] = []
    n_tokens: int = 0


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The request ended without a complete answer."""

    id: int
    error: ErrorInfo


Delta: TypeAlias = Content | Reasoning | ToolCall
RequestEvent: TypeAlias = Progress | Delta | Logprobs | Embedded | Finished | Told | Failed
Event: TypeAlias = (
    LoadProgress | Loaded | LoadFailed | CacheStats | Cells | Cancelled | RequestEvent
)
