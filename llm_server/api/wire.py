"""The bodies clients may send, as strict pydantic models: names, types and bounds.

Nothing is coerced. A field is honoured (it is in a model), harmless (accepted, no effect on the
answer), refused (known elsewhere, not honoured here), or unknown (ignored; those at the top are
named in a response header). What the fields mean is `requests.py`'s business. Long lists end at
their first error (`fail_fast`): only that one is told, and thousands would take long to describe.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from llm_server.api.parameters import (
    MAX_INT32,
    LoadFields,
    SamplingFields,
    Wire,
    choice_kind,
    content_kind,
)

MAX_MESSAGES = 2048
MAX_TOOLS = 128
MAX_SCHEMA_BYTES = 256 * 1024
MAX_N = 8
MAX_TOP_LOGPROBS = 20
MAX_PROMPTS = 16
MAX_INPUTS = 2048


class TextPart(Wire):
    """One piece of a message, by whomever. Only text is served so far."""

    type: Literal["text", "input_text", "output_text"]
    text: str


class RefusalPart(Wire):
    """What the assistant said instead of an answer: text like any other, for a template."""

    type: Literal["refusal"]
    refusal: str


def _part_kind(value: object) -> str:
    refused = isinstance(value, dict) and value.get("type") == "refusal"
    return "(refusal)" if refused else "(text)"


Parts = Annotated[
    list[
        Annotated[
            Annotated[TextPart, Tag("(text)")] | Annotated[RefusalPart, Tag("(refusal)")],
            Discriminator(_part_kind),
        ]
    ],
    Field(fail_fast=True),
]
Content = Annotated[
    Annotated[str | None, Tag("(text)")] | Annotated[Parts, Tag("(parts)")],
    Discriminator(content_kind),
]
"""A string, null, or a list of text parts. The tags never reach a client."""


class WireFunctionCall(Wire):
    """What an assistant message says it called. Arguments: JSON text, or an object."""

    name: str = Field(min_length=1, max_length=256)
    arguments: Annotated[
        Annotated[str, Tag("(text)")] | Annotated[dict[str, Any], Tag("(object)")],
        Discriminator(lambda value: "(object)" if isinstance(value, dict) else "(text)"),
    ] = "{}"


class WireToolCall(Wire):
    """A call in an assistant message."""

    id: str = Field(min_length=1, max_length=256)
    type: Literal["function"] = "function"
    function: WireFunctionCall


class WireMessage(Wire):
    """One message of the conversation. `reasoning` is another name of `reasoning_content`, a
    `refusal` is text like any other, and of calls there are `tool_calls` alone. Answers begin anew:
    there is no `prefix`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = None
    name: str | None = Field(None, max_length=256)
    tool_calls: list[WireToolCall] | None = Field(None, max_length=MAX_TOOLS)
    tool_call_id: str | None = Field(None, max_length=256)
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    function_call: None = None
    prefix: Literal[False] | None = None


class WireFunction(Wire):
    """What a tool is. Its parameters are a JSON schema, which only templates look into."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = Field(None, max_length=65_536)
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class WireTool(Wire):
    """A tool the model may call."""

    type: Literal["function"]
    function: WireFunction


class StreamOptions(Wire):
    """What a stream holds besides the answer."""

    include_usage: bool | None = None


class NamedFunction(Wire):
    """The function of a named tool choice."""

    name: str = Field(min_length=1, max_length=256)


class NamedToolChoice(Wire):
    """`tool_choice` as an object: this tool must be called."""

    type: Literal["function"]
    function: NamedFunction


class WireSchema(Wire):
    """The schema of a `response_format`, and a name for it that has no effect."""

    name: str | None = Field(None, max_length=256)
    description: str | None = Field(None, max_length=65_536)
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


ResponseFormatType = Literal["text", "json_object", "json_schema"]


class WireResponseFormat(Wire):
    """What the text of the answer must be. A `schema` of its own is llama.cpp's way to say it."""

    type: ResponseFormatType
    json_schema: WireSchema | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class CacheOptions(Wire):
    """OpenAI's `prompt_cache_options`; only `prewarm` has an effect."""

    prewarm: bool | None = None


ToolChoice = Annotated[
    Annotated[Literal["auto", "none", "required"] | None, Tag("(text)")]
    | Annotated[NamedToolChoice, Tag("(object)")],
    Discriminator(choice_kind),
]


ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class TemplateKwargs(Wire):
    """Variables of chat templates that a client may set; others are refused.

    `enable_thinking` or `thinking`, as the template calls it, switches thinking on or off.
    `preserve_thinking` keeps the thoughts of earlier turns, `clear_thinking` leaves them out.
    """

    model_config = ConfigDict(extra="forbid")

    enable_thinking: bool | None = None
    thinking: bool | None = None
    reasoning_effort: ReasoningEffort | None = None
    preserve_thinking: bool | None = None
    clear_thinking: bool | None = None


KeepAlive = Annotated[
    Annotated[str, Field(max_length=32), Tag("(text)")]
    | Annotated[Annotated[float, Field(ge=-1, le=MAX_INT32)], Tag("(number)")],
    Discriminator(lambda value: "(text)" if isinstance(value, str) else "(number)"),
]
"""Seconds, or a time such as 5m; -1 and "forever" are for ever, 0 not at all."""
ModelName = Annotated[str, Field(min_length=1, max_length=512)]


class GenerationFields(SamplingFields):
    """What every request for an answer may say besides its prompt."""

    model: ModelName | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    inference_configs: SamplingFields | None = None
    load_model_configs: LoadFields | None = None
    keep_alive: KeepAlive | None = None


class ChatBody(GenerationFields):
    """`POST /chat/completions`, and with fewer fields in use `POST /restore_cache`."""

    messages: Annotated[
        list[WireMessage], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)
    ]
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[WireTool], Field(fail_fast=True, max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    response_format: WireResponseFormat | None = None
    reasoning_budget: Annotated[int, Field(ge=-1, le=MAX_INT32)] | None = Field(
        None, description="Most tokens of thought; -1 is as many as it takes, 0 none."
    )
    prompt_cache_options: CacheOptions | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    reasoning_effort: ReasoningEffort | None = Field(
        None, description="For templates that know it; `none` is no thought, with any model."
    )


def _prompt_kind(value: object) -> str:
    if not isinstance(value, list):
        return "(text)"
    first = value[0] if value else None
    if isinstance(first, list):
        return "(arrays)"
    return "(tokens)" if isinstance(first, int) else "(texts)"


TokenList = Annotated[list[Annotated[int, Field(ge=0, le=MAX_INT32)]], Field(fail_fast=True)]
TokenIds = Annotated[TokenList, Field(min_length=1)]


class CompletionBody(GenerationFields):
    """`POST /completions`: text that goes on, without a conversation."""

    prompt: Annotated[
        Annotated[str, Tag("(text)")]
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS), Tag("(texts)")]
        | Annotated[TokenIds, Tag("(tokens)")]
        | Annotated[list[TokenIds], Field(max_length=MAX_PROMPTS), Tag("(arrays)")],
        Discriminator(_prompt_kind),
    ]
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_N)] | None = None


class EmbeddingBody(Wire):
    """`POST /embeddings`."""

    input: Annotated[
        Annotated[str, Field(min_length=1), Tag("(text)")]
        | Annotated[
            list[Annotated[str, Field(min_length=1)]],
            Field(min_length=1, max_length=MAX_INPUTS),
            Tag("(texts)"),
        ]
        | Annotated[TokenIds, Tag("(tokens)")]
        | Annotated[list[TokenIds], Field(max_length=MAX_INPUTS), Tag("(arrays)")],
        Discriminator(_prompt_kind),
    ]
    model: ModelName | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=65_536)] | None = None
    load_model_configs: LoadFields | None = None
    keep_alive: KeepAlive | None = None


class TokenizeBody(Wire):
    """`POST /tokenize`, as llama-server has it."""

    content: str
    model: ModelName | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None
    keep_alive: KeepAlive | None = None


class DetokenizeBody(Wire):
    """`POST /detokenize`, as llama-server has it."""

    tokens: TokenList
    model: ModelName | None = None
    keep_alive: KeepAlive | None = None


CHAT_EXAMPLE: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Say hello."}],
    "max_tokens": 32,
}
"""A request that any chat model can answer, for documents."""


class SetModelBody(Wire):
    """`POST /setModel`."""

    model_name: ModelName
    load_model_configs: LoadFields | None = None
    keep_alive: KeepAlive | None = None


class UnloadBody(Wire):
    """`POST /models/unload`."""

    model: ModelName


class FitBody(Wire):
    """`POST /models/fit`."""

    model: ModelName
    load_model_configs: LoadFields | None = None


HARMLESS = frozenset(
    "user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention "
    "cache_prompt include_obfuscation max_tool_calls".split()
)
"""Fields that change nothing about the answer here: accepted as they are."""

NO_EFFECT: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "modalities": (["text"],),
    "echo": (False,),
    "verbosity": ("medium",),
    "background": (False,),
    "truncation": ("disabled",),
    "adaptive_target": (-1,),
    "add_generation_prompt": (True,),
    "bad_words": ([],),
    "continue_final_message": (False,),
    "documents": ([],),
    "dynatemp_range": (0,),
    "functions": ([],),
    "grammar": ("",),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "json_schema": ({},),
    "length_penalty": (1,),
    "min_keep": (0, 1),
    "min_tokens": (0,),
    "n_cmpl": (1,),
    "n_indent": (0,),
    "n_keep": (0,),
    "n_predict": (-1,),
    "parallel_tool_calls": (False, True),
    "reasoning_budget_tokens": (-1,),
    "response_format": ({"type": "text"},),
    "samplers": ([],),
    "stop_token_ids": ([],),
    "t_max_predict_ms": (-1, 0),
    "tfs_z": (1,),
    "tools": ([],),
    "top_n_sigma": (-1,),
    "use_beam_search": (False,),
}
"""Known fields, not honoured yet, with the values that ask for nothing beyond the usual."""

REFUSED = frozenset(
    "allowed_token_ids audio chat_format chat_parser chat_template chat_template_kwargs "
    "container context_management conversation ebnf enable_thinking function_call "
    "guided_choice guided_grammar guided_json guided_regex image_url lora max_new_tokens "
    "mcp_servers messages moderation n_discard output_format prediction previous_response_id "
    "prompt prompt_embeds reasoning reasoning_budget reasoning_effort regex stop_sequences "
    "structured_outputs suffix thinking thinking_budget thinking_budget_tokens tool_choice "
    "truncate_prompt_tokens web_search_options".split()
)
"""Known fields that would change the answer, where they are not honoured: refused unless null."""

INSTEAD = {
    "enable_thinking": "chat_template_kwargs.enable_thinking",
    "thinking": "chat_template_kwargs.thinking",
    "thinking_budget": "reasoning_budget",
    "thinking_budget_tokens": "reasoning_budget",
    "max_new_tokens": "max_tokens",
    "n_cmpl": "n",
    "n_predict": "max_tokens",
    "reasoning_budget_tokens": "reasoning_budget",
}
"""What says the same as a field that is refused, where there is such a field."""
