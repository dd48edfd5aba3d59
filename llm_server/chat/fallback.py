"""Tools for a template that knows none: explained in a system message, written in Hermes syntax.

Messages in, messages out; calls become text of the assistant, results become user turns.
"""

from __future__ import annotations

import json

import msgspec

from llm_server.worker.messages import FunctionCall, JsonObject, Message

_EXPLANATION = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{signatures}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def without_tools(messages: list[Message], tools: list[JsonObject]) -> list[Message]:
    """The same conversation for a template without tools."""
    out: list[Message] = []
    after_result = False
    for message in messages:
        if message.tool_calls:
            out.append(_calls_as_text(message))
        elif message.role == "tool":
            text = f"<tool_response>\n{message.content or ''}\n</tool_response>"
            if after_result:
                text = f"{out.pop().content}\n{text}"
            out.append(Message("user", text))
        else:
            out.append(message)
        after_result = message.role == "tool"
    return _explained(out, tools) if tools else out


def _explained(messages: list[Message], tools: list[JsonObject]) -> list[Message]:
    signatures = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    text = _EXPLANATION.format(signatures=signatures)
    if messages and messages[0].role == "system":
        head = msgspec.structs.replace(
            messages[0], content=f"{messages[0].content or ''}\n\n{text}"
        )
        return [head, *messages[1:]]
    return [Message("system", text), *messages]


def _calls_as_text(message: Message) -> Message:
    parts = [message.content] if message.content else []
    parts += [_call_as_text(call) for call in message.tool_calls]
    return msgspec.structs.replace(message, content="\n".join(parts), tool_calls=[])


def _call_as_text(call: FunctionCall) -> str:
    try:
        arguments = json.dumps(json.loads(call.arguments or "{}"), ensure_ascii=False)
    except (ValueError, RecursionError):
        arguments = call.arguments
    name = json.dumps(call.name, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'
