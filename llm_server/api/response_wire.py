"""The body of `POST /responses`, as strict pydantic models: what differs from chat."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from llm_server.api.parameters import MAX_INT32, Wire, choice_kind, content_kind
from llm_server.api.wire import (
    MAX_MESSAGES,
    MAX_TOOLS,
    CacheOptions,
    GenerationFields,
    Parts,
    ReasoningEffort,
    ResponseFormatType,
    WireFunction,
)

ItemId = Annotated[str, Field(min_length=1, max_length=256)]


ItemText = Annotated[
    Annotated[str, Tag("(text)")] | Annotated[Parts, Tag("(parts)")],
    Discriminator(content_kind),
]


class MessageItem(Wire):
    """A message; its type may be left out."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: ItemText


class CallItem(Wire):
    """A call that the assistant made."""

    type: Literal["function_call"]
    call_id: ItemId
    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: str


class OutputItem(Wire):
    """What a call resulted in."""

    type: Literal["function_call_output"]
    call_id: ItemId
    output: ItemText


class ThoughtText(Wire):
    """A piece of a thought."""

    text: str


class ReasoningItem(Wire):
    """What the assistant thought: as it was, else its summary. An encrypted one has neither."""

    type: Literal["reasoning"]
    summary: list[ThoughtText] = []
    content: list[ThoughtText] | None = None


class OtherItem(Wire):
    """Any other kind of item: there is none, which its error says."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"]


def _item_kind(value: object) -> str:
    kind = value.get("type", "message") if isinstance(value, dict) else "message"
    kinds = ("message", "function_call", "function_call_output", "reasoning")
    return f"({kind})" if kind in kinds else "(other)"


Item = Annotated[
    Annotated[MessageItem, Tag("(message)")]
    | Annotated[CallItem, Tag("(function_call)")]
    | Annotated[OutputItem, Tag("(function_call_output)")]
    | Annotated[ReasoningItem, Tag("(reasoning)")]
    | Annotated[OtherItem, Tag("(other)")],
    Discriminator(_item_kind),
]


class FlatTool(WireFunction):
    """A tool: a function, with no object of its own around it."""

    type: Literal["function"]


class FlatToolChoice(Wire):
    """`tool_choice` as an object: this function must be called."""

    type: Literal["function"]
    name: Annotated[str, Field(min_length=1, max_length=256)]


class TextFormat(Wire):
    """What the text of the answer must be, with the schema beside the type."""

    type: ResponseFormatType
    name: Annotated[str, Field(max_length=256)] | None = None
    description: Annotated[str, Field(max_length=65_536)] | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextOptions(Wire):
    """`text`: the form of the answer's text."""

    format: TextFormat | None = None


class ReasoningOptions(Wire):
    """`reasoning`. Thoughts are part of the answer as they are, so a summary changes nothing."""

    effort: ReasoningEffort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ResponsesBody(GenerationFields):
    """`POST /responses`, without state: the whole conversation is in `input`."""

    input: Annotated[
        Annotated[str, Tag("(text)")]
        | Annotated[
            list[Item], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES), Tag("(parts)")
        ],
        Discriminator(content_kind),
    ]
    instructions: str | None = None
    tools: Annotated[list[FlatTool], Field(fail_fast=True, max_length=MAX_TOOLS)] | None = None
    tool_choice: Annotated[
        Annotated[Literal["auto", "none", "required"] | None, Tag("(text)")]
        | Annotated[FlatToolChoice, Tag("(object)")],
        Discriminator(choice_kind),
    ] = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    max_output_tokens: Annotated[int, Field(ge=-1, le=MAX_INT32)] | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_options: CacheOptions | None = None

    @field_validator("max_output_tokens")
    @classmethod
    def _check_limit(cls, n: int | None) -> int | None:
        if n == 0:
            raise ValueError("A response has a token at least")
        return n
