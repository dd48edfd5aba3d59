"""Probe conversations: known words through a template, to see what it puts around them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llm_server.errors import TemplateError
from llm_server.worker.messages import FunctionCall, JsonObject, Message

if TYPE_CHECKING:
    from llm_server.chat.template import ChatTemplate

NAMES = ("fnqa", "fnqb")
KEYS = ("kxa", "kxb")
VALUES = ("vxa", "vxb")
IDS = ("idqa12345", "idqb12345")
"""Nine letters and digits: the strictest template takes no others."""

QUESTION, CONTENT, THOUGHT, RESULT = "uqtext", "cqtext", "rqtext", "aqtext"
STRINGS: JsonObject = dict(zip(KEYS, VALUES, strict=True))


def probe_tool(
    name: str, keys: Sequence[str], schemas: Mapping[str, JsonObject] | None = None
) -> JsonObject:
    """A tool whose parameters are texts, but for those that have `schemas`."""
    text = {"type": "string", "description": "Text."}
    properties: JsonObject = {key: (schemas or {}).get(key, text) for key in keys}
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": "A probe.",
            "parameters": {"type": "object", "properties": properties, "required": list(keys)},
        },
    }


TOOLS = [probe_tool(name, KEYS) for name in NAMES]


@dataclass(frozen=True)
class Probes:
    """Renders of one template. Each gives what follows the user's turn, or None if refused."""

    template: ChatTemplate
    kwargs: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    tools: Sequence[JsonObject] = tuple(TOOLS)

    def prompt(self) -> str:
        """The text that leads into an answer."""
        return self._tail([], generate=True) or ""

    def text(self, reasoning: str | None = None) -> str:
        """An answer without calls."""
        message = Message("assistant", CONTENT, reasoning_content=reasoning)
        return self._tail([message]) or ""

    def calls(
        self,
        *arguments: JsonObject,
        content: str | None = None,
        reasoning: str | None = None,
    ) -> str | None:
        """An answer with calls."""
        names = [tool["function"]["name"] for tool in self.tools]
        calls = [
            FunctionCall(IDS[i], names[i], json.dumps(value)) for i, value in enumerate(arguments)
        ]
        message = Message("assistant", content, tool_calls=calls, reasoning_content=reasoning)
        return self._tail([message])

    def later_call(self, arguments: JsonObject) -> str | None:
        """An answer with a call, behind another call and its result."""
        names = [tool["function"]["name"] for tool in self.tools]
        calls = [FunctionCall(IDS[i], names[i], json.dumps(arguments)) for i in range(2)]
        result = Message("tool", RESULT, name=names[0], tool_call_id=IDS[0])
        first, later = (Message("assistant", None, tool_calls=[call]) for call in calls)
        text = self._tail([first, result, later])
        return text[text.rfind(RESULT) + len(RESULT) :] if text and RESULT in text else None

    def _tail(self, answer: list[Message], generate: bool = False) -> str | None:
        messages = [Message("user", QUESTION), *answer]
        try:
            text = self.template.probe(messages, list(self.tools), generate, self.kwargs)
        except TemplateError:
            return None
        return text[text.rfind(QUESTION) + len(QUESTION) :] if QUESTION in text else None
