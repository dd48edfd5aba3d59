"""Other shapes of a conversation, for templates that refuse it as it is.

Pure functions from messages to messages. They know nothing of templates: the caller tries them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import reduce
from typing import TypeAlias

import msgspec

from llm_server.chat.history import as_object
from llm_server.worker.messages import Message

Repair: TypeAlias = Callable[[list[Message]], list[Message]]


def split_calls(messages: list[Message]) -> list[Message]:
    """One call a message, each followed by its own result."""
    moved: set[int] = set()
    out: list[Message] = []
    for at, message in enumerate(messages):
        if at in moved:
            continue
        if len(message.tool_calls) < 2:
            out.append(message)
            continue
        results = _results(messages, at)
        for index, call in enumerate(message.tool_calls):
            content = message.content if index == 0 else None
            out.append(msgspec.structs.replace(message, content=content, tool_calls=[call]))
            if call.id in results:
                out.append(messages[results[call.id]])
                moved.add(results[call.id])
    return out


def _results(messages: list[Message], at: int) -> dict[str, int]:
    """Where the results of the calls at `at` are, by id: before the next calls, for many clients
    number the calls of each turn anew."""
    found: dict[str, int] = {}
    for behind, message in enumerate(messages[at + 1 :], at + 1):
        if message.tool_calls:
            break
        if message.tool_call_id:
            found[message.tool_call_id] = behind
    return found


def split_content(messages: list[Message]) -> list[Message]:
    """Text and calls of one message in two."""
    out: list[Message] = []
    for message in messages:
        if message.tool_calls and message.content:
            out.append(msgspec.structs.replace(message, tool_calls=[]))
            message = msgspec.structs.replace(message, content=None, reasoning_content=None)
        out.append(message)
    return out


def fold_system(messages: list[Message]) -> list[Message]:
    """All system text at the head of the first user turn."""
    system = [m.content for m in messages if m.role == "system" and m.content]
    rest = [m for m in messages if m.role != "system"]
    if not system:
        return messages
    for index, message in enumerate(rest):
        if message.role == "user":
            text = "\n\n".join([*system, message.content or ""])
            return [
                *rest[:index],
                msgspec.structs.replace(message, content=text),
                *rest[index + 1 :],
            ]
    return [Message("user", "\n\n".join(system)), *rest]


def head_system(messages: list[Message]) -> list[Message]:
    """All system text in one message at the start."""
    system = [m.content for m in messages if m.role == "system" and m.content]
    rest = [m for m in messages if m.role != "system"]
    return [Message("system", "\n\n".join(system)), *rest] if system else messages


def join_neighbours(messages: list[Message]) -> list[Message]:
    """Neighbours of one role become one message, so that roles alternate."""
    out: list[Message] = []
    for message in messages:
        last = out[-1] if out else None
        if (
            last is not None
            and message.role == last.role
            and message.role in ("user", "assistant", "system")
            and not (last.tool_calls and message.tool_calls)
        ):
            texts = [text for text in (last.content, message.content) if text]
            thoughts = [m.reasoning_content for m in (last, message) if m.reasoning_content]
            out[-1] = msgspec.structs.replace(
                last,
                content="\n\n".join(texts) or None,
                reasoning_content="\n\n".join(thoughts) or None,
                tool_calls=last.tool_calls or message.tool_calls,
            )
        else:
            out.append(message)
    return out


def bare_calls(messages: list[Message]) -> list[Message]:
    """Calls without the reasoning that led to them, where there is text as well."""
    return [
        msgspec.structs.replace(m, reasoning_content=None) if m.tool_calls and m.content else m
        for m in messages
    ]


def whole_arguments(messages: list[Message]) -> list[Message]:
    """Arguments that are no JSON object, as of a call that was cut, as what there is of one."""
    return [
        msgspec.structs.replace(
            message,
            tool_calls=[
                msgspec.structs.replace(call, arguments=_whole(call.arguments))
                for call in message.tool_calls
            ],
        )
        for message in messages
    ]


def _whole(arguments: str) -> str:
    if isinstance(as_object(arguments), dict):
        return arguments
    from pydantic_core import from_json  # workers seldom need it, and it takes 30 ms

    try:
        begun = from_json(arguments.encode("utf-8", "replace"), allow_partial="trailing-strings")
    except ValueError:
        begun = None
    return json.dumps(begun if isinstance(begun, dict) else {}, ensure_ascii=False)


def _chain(*repairs: Repair) -> Repair:
    return lambda messages: reduce(lambda repaired, repair: repair(repaired), repairs, messages)


REPAIRS: tuple[Repair, ...] = (
    split_calls,
    bare_calls,
    head_system,
    join_neighbours,
    _chain(head_system, join_neighbours),
    fold_system,
    _chain(fold_system, join_neighbours),
    _chain(bare_calls, split_calls, fold_system, join_neighbours),
    whole_arguments,
    _chain(whole_arguments, bare_calls, split_calls, fold_system, join_neighbours),
)
"""In the order to try: the least change first."""
