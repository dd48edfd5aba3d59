"""The body of `POST /messages`, as strict pydantic models: Anthropic's names for what chat has.

Its content blocks and tools are those that a client runs: of images, documents and tools that
Anthropic's own servers run there are only the names, for their errors.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from llm_server.api.parameters import (
    MAX_INT32,
    MAX_STOPS,
    StopText,
    Wire,
    content_kind,
)
from llm_server.api.wire import MAX_MESSAGES, MAX_TOOLS, GenerationFields, ReasoningEffort

BlockId = Annotated[str, Field(min_length=1, max_length=256)]
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")]


class TextBlock(Wire):
    """A piece of text. That it is to be cached need not be said."""

    type: Literal["text"]
    text: str


class ThinkingBlock(Wire):
    """What the assistant thought. Nothing is signed here, so any signature will do."""

    type: Literal["thinking"]
    thinking: str


class RedactedBlock(Wire):
    """A thought that only Anthropic can read."""

    type: Literal["redacted_thinking"]


class ToolUseBlock(Wire):
    """A call that the assistant made."""

    type: Literal["tool_use"]
    id: BlockId
    name: Annotated[str, Field(min_length=1, max_length=256)]
    input: dict[str, Any] = {}


Texts = Annotated[
    Annotated[str, Tag("(text)")]
    | Annotated[list[TextBlock], Field(fail_fast=True), Tag("(parts)")],
    Discriminator(content_kind),
]


class ToolResultBlock(Wire):
    """What a call resulted in. A failure is told by its text; templates know no other way."""

    type: Literal["tool_result"]
    tool_use_id: BlockId
    content: Texts | None = None
    is_error: bool | None = None


class OtherBlock(Wire):
    """Any other kind of block: it is not served, which its error says."""

    type: Literal["text", "thinking", "redacted_thinking", "tool_use", "tool_result"]


def _block_kind(value: object) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    kinds = ("text", "thinking", "redacted_thinking", "tool_use", "tool_result")
    return f"({kind})" if kind in kinds else "(other)"


Block = Annotated[
    Annotated[TextBlock, Tag("(text)")]
    | Annotated[ThinkingBlock, Tag("(thinking)")]
    | Annotated[RedactedBlock, Tag("(redacted_thinking)")]
    | Annotated[ToolUseBlock, Tag("(tool_use)")]
    | Annotated[ToolResultBlock, Tag("(tool_result)")]
    | Annotated[OtherBlock, Tag("(other)")],
    Discriminator(_block_kind),
]


class WireTurn(Wire):
    """One turn. Results of tools are part of the user's."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        Annotated[str, Tag("(text)")]
        | Annotated[list[Block], Field(fail_fast=True), Tag("(parts)")],
        Discriminator(content_kind),
    ]


class CustomTool(Wire):
    """A tool that the client runs. `type` is for those that Anthropic knows: there are none."""

    type: Literal["custom"] | None = None
    name: ToolName
    description: str | None = Field(None, max_length=65_536)
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class AnyToolChoice(Wire):
    """`tool_choice`: `any` of the tools must be called, or the named one."""

    type: Literal["auto", "any", "none", "tool"]
    name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Wire):
    """`thinking`: none if disabled, else at most so many tokens of it, where that is said."""

    type: Literal["enabled", "adaptive", "between_tools", "disabled"]
    budget_tokens: Annotated[int, Field(ge=1, le=MAX_INT32)] | None = None


class JsonFormat(Wire):
    """The text of the answer must fit a schema."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Wire):
    """`output_config`."""

    effort: ReasoningEffort | None = None
    format: JsonFormat | None = None


class MessagesBody(GenerationFields):
    """`POST /messages`, and without its limits `POST /messages/count_tokens`."""

    messages: Annotated[
        list[WireTurn], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)
    ]
    system: Texts | None = None
    tools: Annotated[list[CustomTool], Field(fail_fast=True, max_length=MAX_TOOLS)] | None = None
    tool_choice: AnyToolChoice | None = None
    stop_sequences: Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    context_management: dict[str, Any] | None = Field(
        None, description="What could be left out of the history: nothing is, it is cached."
    )
