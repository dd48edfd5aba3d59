"""The bodies of Ollama's API, as strict pydantic models: its names for what chat has."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from llm_server.api.parameters import MAX_INT32, SamplingFields, Wire, choice_kind
from llm_server.api.wire import (
    MAX_INPUTS,
    MAX_MESSAGES,
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    KeepAlive,
    ModelName,
    WireFunction,
)


class Options(SamplingFields):
    """`options`: how tokens are picked. How a model is loaded is settled by the server, and not by
    each request anew: `num_ctx` and its like have no effect, which a header says."""

    num_predict: Annotated[int, Field(ge=-2, le=MAX_INT32)] | None = None


class CalledFunction(Wire):
    """What was called; no arguments may be null."""

    name: str = Field(min_length=1, max_length=256)
    arguments: Annotated[
        Annotated[str | None, Tag("(text)")] | Annotated[dict[str, Any], Tag("(object)")],
        Discriminator(choice_kind),
    ] = None


class OllamaCall(Wire):
    """A call in an assistant's message; older clients know no ids, or have empty ones."""

    id: Annotated[str, Field(max_length=256)] | None = None
    function: CalledFunction


class OllamaTool(Wire):
    """A tool the model may call."""

    type: Literal["function"] = "function"
    function: WireFunction


class OllamaMessage(Wire):
    """One message. A result of a tool belongs to the call with its id, else to the next one of its
    name, else to the next one."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[OllamaCall] | None = Field(None, max_length=MAX_TOOLS)
    tool_call_id: str | None = Field(None, max_length=256)
    tool_name: str | None = Field(None, max_length=256)


Format = Annotated[
    Annotated[Literal["", "json"], Tag("(text)")] | Annotated[dict[str, Any], Tag("(object)")],
    Discriminator(choice_kind),
]
"""JSON of any kind, or by a schema."""
Think = Annotated[
    Annotated[bool, Tag("(flag)")]
    | Annotated[Literal["low", "medium", "high", "max"], Tag("(text)")],
    Discriminator(lambda value: "(flag)" if isinstance(value, bool) else "(text)"),
]


class GenerationBody(Wire):
    """What both ways to ask for an answer have. Unlike elsewhere, it is a stream unless told."""

    model: ModelName
    options: Options | None = None
    stream: bool | None = None
    format: Format | None = None
    think: Think | None = None
    keep_alive: KeepAlive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


class OllamaChatBody(GenerationBody):
    """`POST /api/chat`. Without messages the model is loaded, or unloaded with `keep_alive` 0."""

    messages: list[OllamaMessage] | None = Field(None, fail_fast=True, max_length=MAX_MESSAGES)
    tools: list[OllamaTool] | None = Field(None, fail_fast=True, max_length=MAX_TOOLS)


class GenerateBody(GenerationBody):
    """`POST /api/generate`: one turn, or with `raw` or a `suffix` a text that goes on."""

    prompt: str | None = None
    system: str | None = None
    suffix: str | None = None
    raw: bool | None = None
    images: list[Any] | None = None
    template: str | None = None
    context: list[Any] | None = None


class OllamaEmbedBody(Wire):
    """`POST /api/embed`."""

    input: Annotated[
        Annotated[str, Field(min_length=1), Tag("(text)")]
        | Annotated[
            list[Annotated[str, Field(min_length=1)]],
            Field(min_length=1, max_length=MAX_INPUTS),
            Tag("(texts)"),
        ],
        Discriminator(lambda value: "(texts)" if isinstance(value, list) else "(text)"),
    ]
    model: ModelName
    dimensions: Annotated[int, Field(ge=1, le=65_536)] | None = None
    keep_alive: KeepAlive | None = None


class OllamaEmbeddingsBody(Wire):
    """`POST /api/embeddings`, the older one: a single text."""

    prompt: str = Field(min_length=1)
    model: ModelName
    keep_alive: KeepAlive | None = None


class ModelBody(Wire):
    """`POST /api/show` and `POST /api/pull`: a model by its name, also under its older name."""

    model: ModelName | None = None
    name: ModelName | None = None
    stream: bool | None = None
