"""Anthropic's Messages API: `POST /messages`, from its JSON to a `ChatRequest`.

Its turns become messages, and chat's code does the rest. What comes out is the business of
`anthropic_events.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llm_server.api import sse
from llm_server.api.anthropic_events import AnthropicMessage, MessageEvents, StreamEvent, failure
from llm_server.api.anthropic_wire import (
    Block,
    MessagesBody,
    OutputConfig,
    TextBlock,
    Texts,
    Thinking,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    WireTurn,
)
from llm_server.api.body import Json
from llm_server.api.context import answer, read_call
from llm_server.api.fields import check_generation, chosen_sampling, validated
from llm_server.api.parameters import check_stops
from llm_server.api.requests import (
    Call,
    call_of,
    ignored_in_tools,
    response_format,
    tool_objects,
    warming,
)
from llm_server.api.schema import operation
from llm_server.api.wire import WireFunction
from llm_server.errors import InvalidRequest, UnsupportedParameter
from llm_server.worker.messages import (
    ChatRequest,
    FunctionCall,
    Message,
    ResponseFormat,
    Sampling,
)

router = APIRouter()

EXAMPLE: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Where do I put my models?"}],
    "max_tokens": 64,
    "temperature": 0,
}

BILLING = "x-anthropic-billing-header:"
"""What Claude Code begins its system prompt with: a line for Anthropic's accounts that is another
one each time. With it no prompt would ever be found in a cache."""


_REMINDER = "<system-reminder>\n{}\n</system-reminder>"
"""How Claude Code marks what it, and not its user, has to say in the middle of a conversation."""


@router.post(
    "/messages",
    openapi_extra=operation(
        AnthropicMessage, body=MessagesBody, example=EXAMPLE, chunk=StreamEvent
    ),
)
async def messages(request: Request) -> Response:
    """Answer a conversation with blocks of text, thought and tool calls."""
    call = await read_call(request, messages_call)
    return answer(
        request,
        call,
        MessageEvents,
        MessageEvents,
        sse.NAMED,
        lambda info: sse.named(failure(info)),
    )


def messages_call(body: dict[str, Json]) -> Call:
    """The body of a request, understood. Raises InvalidRequest."""
    ignored = check_generation(body, MessagesBody, {"output_config": OutputConfig})
    _refuse_built_in(body)
    asked = validated(MessagesBody, body)
    if asked.n not in (None, 1):
        raise UnsupportedParameter("A message has one answer.", param="n")
    functions = _functions(asked)
    ignored += ignored_in_tools(functions)
    chosen = chosen_sampling(asked)
    if asked.stop_sequences is not None:
        check_stops(asked.stop_sequences, "stop_sequences")
        chosen["stop"] = asked.stop_sequences
    request = _chat_request(asked, functions, Sampling(**chosen))
    call = call_of(asked, [request], ignored=ignored, chosen=chosen.keys(), place=_place)
    return warming(call) if request.sampling.max_tokens == 0 else call


def _place(param: str) -> str:
    """Where this API has what chat has at `param`."""
    return param.replace(".function.parameters", ".input_schema").replace(".function", "")


def _refuse_built_in(body: dict[str, Json]) -> None:
    """There are the client's tools alone, none that this server or a client's own code knows."""
    tools = body.get("tools")
    for i, tool in enumerate(tools if isinstance(tools, list) else []):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind != "custom":
            raise UnsupportedParameter(
                "Tools of this type are not supported; custom ones, with an input_schema, are.",
                param=f"tools[{i}].type",
            )


def _functions(asked: MessagesBody) -> list[WireFunction]:
    """The tools as OpenAI has them; names may be longer here."""
    return [
        WireFunction.model_construct(
            name=tool.name,
            description=tool.description,
            parameters=tool.input_schema,
            strict=tool.strict,
        )
        for tool in asked.tools or []
    ]


def _chat_request(
    asked: MessagesBody, functions: list[WireFunction], sampling: Sampling
) -> ChatRequest:
    effort = asked.output_config.effort if asked.output_config else None
    return ChatRequest(
        messages=_messages(asked),
        tools=tool_objects(functions, "tools[{}]", "input_schema"),
        sampling=sampling,
        template_kwargs={"reasoning_effort": effort} if effort else {},
        response_format=_format(asked.output_config),
        reasoning_budget=0 if effort == "none" else _budget(asked.thinking),
        **_tool_choice(asked),
    )


def _format(config: OutputConfig | None) -> ResponseFormat:
    if config is None or config.format is None:
        return ResponseFormat()
    return response_format("json_schema", config.format.schema_, "output_config.format.schema")


def _budget(thinking: Thinking | None) -> int | None:
    if thinking is None:
        return None
    return 0 if thinking.type == "disabled" else thinking.budget_tokens


def _tool_choice(asked: MessagesBody) -> dict[str, Any]:
    """The fields of `ChatRequest` that say whether, and which, tool is called."""
    choice = asked.tool_choice
    if choice is None:
        return {}
    if choice.type == "tool" and choice.name is None:
        raise InvalidRequest("The tool to be called has no name.", param="tool_choice.name")
    required = choice.type in ("any", "tool")
    return {
        "tool_choice": "required" if required else choice.type,
        "tool_name": choice.name if choice.type == "tool" else None,
        "parallel_tool_calls": not choice.disable_parallel_tool_use,
    }


# ---- turns -> messages -------------------------------------------------------------------------


def _messages(asked: MessagesBody) -> list[Message]:
    if asked.messages[-1].role == "assistant":
        raise UnsupportedParameter(
            "Answers begin anew: the last message cannot be the assistant's.",
            param=f"messages[{len(asked.messages) - 1}].role",
        )
    system = _system(asked.system or "")
    messages = [Message("system", system)] if system else []
    called: set[str] = set()
    turns: list[tuple[str, list[Block]]] = []
    for i, turn in enumerate(asked.messages):
        blocks = _blocks(turn)
        _check_blocks(turn, blocks, called, f"messages[{i}].content")
        role = "assistant" if turn.role == "assistant" else "user"
        if turns and turns[-1][0] == role:
            turns[-1][1].extend(blocks)  # neighbours are one turn, as Anthropic has it
        else:
            turns.append((role, [*blocks]))
    for role, blocks in turns:
        messages += _said(blocks) if role == "assistant" else _heard(blocks)
    return messages


def _system(system: str | list[TextBlock]) -> str:
    """The system prompt, without what says nothing to a model."""
    texts = [system] if isinstance(system, str) else [block.text for block in system]
    texts = [text.partition("\n")[2] if text.startswith(BILLING) else text for text in texts]
    return "\n".join(filter(None, texts))


def _blocks(turn: WireTurn) -> Sequence[Block]:
    """What a turn consists of. A system text behind the first turn becomes the user's: at the
    head, where most templates have theirs, each new one would undo what is cached."""
    content = turn.content
    blocks = [TextBlock(type="text", text=content)] if isinstance(content, str) else content
    if turn.role != "system":
        return blocks
    return [
        TextBlock(type="text", text=_REMINDER.format(block.text))
        if isinstance(block, TextBlock)
        else block
        for block in blocks
    ]


def _check_blocks(turn: WireTurn, blocks: Sequence[Block], called: set[str], place: str) -> None:
    """Raises InvalidRequest for a block that is not this role's, or a result without its call."""
    for i, block in enumerate(blocks):
        of_assistant = not isinstance(block, TextBlock | ToolResultBlock)
        of_user = isinstance(block, ToolResultBlock)
        if of_assistant and turn.role != "assistant" or of_user and turn.role != "user":
            message = "A message of this role has no such block."
            raise InvalidRequest(message, param=f"{place}[{i}].type")
        if isinstance(block, ToolUseBlock):
            called.add(block.id)
        if isinstance(block, ToolResultBlock) and block.tool_use_id not in called:
            raise InvalidRequest(
                "No earlier tool_use block has this id.", param=f"{place}[{i}].tool_use_id"
            )


def _said(blocks: Sequence[Block]) -> Iterator[Message]:
    """The one message of an assistant's turn, as it was said; none of an empty one."""
    content = "".join(block.text for block in blocks if isinstance(block, TextBlock))
    thought = "\n\n".join(block.thinking for block in blocks if isinstance(block, ThinkingBlock))
    calls = [
        FunctionCall(block.id, block.name, msgspec.json.encode(block.input).decode())
        for block in blocks
        if isinstance(block, ToolUseBlock)
    ]
    if content or thought or calls:
        yield Message(
            "assistant",
            content or None,
            tool_calls=calls,
            reasoning_content=thought or None,
        )


def _heard(blocks: Sequence[Block]) -> Iterator[Message]:
    """The messages of a user's turn in their order: results of tools, and the text between."""
    texts: list[str] = []
    for block in blocks:
        if isinstance(block, TextBlock):
            texts.append(block.text)
            continue
        assert isinstance(block, ToolResultBlock)
        yield from _spoken(texts)
        texts = []
        yield Message("tool", _text(block.content), tool_call_id=block.tool_use_id)
    yield from _spoken(texts)


def _spoken(texts: list[str]) -> Iterator[Message]:
    if texts:
        yield Message("user", "\n".join(texts))


def _text(content: Texts | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(block.text for block in content)
