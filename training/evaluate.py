"""Measures the demo model over HTTP: `python -m training.evaluate --url http://127.0.0.1:8000`.

Sends every case to the chat endpoint at temperature 0 and prints a table. Knows OpenAI's wire
format and Hermes calls in text; the cases themselves are in `cases.py`.
"""

import argparse
import json
import re
from collections import Counter
from typing import Any, get_args

import httpx

from training.cases import Answer, Case, Split, all_cases
from training.tools import Call

MAX_TOKENS = 400
# The parts that the project promises, in percent.
TARGETS = {
    "facts": 90,
    "one call": 90,
    "two calls": 90,
    "no call: no tool fits": 95,
    "no call: nothing to call": 95,
}
_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)


def body_of(case: Case, model: str | None) -> dict[str, Any]:
    """The request for a case."""
    body: dict[str, Any] = {
        "messages": [_on_the_wire(message) for message in case.messages],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
    }
    if case.tools:
        body["tools"] = case.tools
    if model is not None:
        body["model"] = model
    return body


def _on_the_wire(message: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's clients send arguments as a JSON string."""
    if not message.get("tool_calls"):
        return message
    calls = [
        {
            **call,
            "function": {
                **call["function"],
                "arguments": json.dumps(call["function"]["arguments"]),
            },
        }
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def answer_of(reply: dict[str, Any]) -> Answer:
    """The answer in a chat completion; calls may be parsed, or still be text."""
    choice = reply["choices"][0]
    message = choice["message"]
    content = message.get("content") or ""
    parsed = message.get("tool_calls") or []
    functions = [call["function"] for call in parsed]
    if not functions:
        functions = [_decoded(text) for text in _CALL.findall(content)]
    calls = tuple(Call(str(one.get("name")), _arguments(one.get("arguments"))) for one in functions)
    return Answer(content, calls, str(choice["finish_reason"]))


def _decoded(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _arguments(value: Any) -> dict[str, Any]:
    return _decoded(value) if isinstance(value, str) else value if isinstance(value, dict) else {}


def table(cases: list[Case], answers: list[Answer]) -> str:
    """The result as a Markdown table, one row a group."""
    total = Counter(case.group for case in cases)
    right = Counter(
        case.group for case, answer in zip(cases, answers, strict=True) if case.right(answer)
    )
    ended = sum(answer.finish_reason in ("stop", "tool_calls") for answer in answers)
    rows = ["| what | cases | right | target |", "|---|---|---|---|"]
    for group, count in total.items():
        target = f"{TARGETS[group]} %" if group in TARGETS else ""
        rows.append(f"| {group} | {count} | {100 * right[group] / count:.1f} % | {target} |")
    rows.append(
        f"| turn ended by the model | {len(cases)} | {100 * ended / len(cases):.1f} % | 100 % |"
    )
    return "\n".join(rows)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the demo model over HTTP.")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", help="name of the model; the current one by default")
    parser.add_argument("--split", choices=get_args(Split), default="held_out")
    parser.add_argument("--wrong", action="store_true", help="print the cases that went wrong")
    args = parser.parse_args()
    cases = all_cases(args.split)
    answers: list[Answer] = []
    with httpx.Client(base_url=args.url, timeout=120) as client:
        for case in cases:
            reply = client.post("/v1/chat/completions", json=body_of(case, args.model))
            reply.raise_for_status()
            answers.append(answer_of(reply.json()))
    print(table(cases, answers))
    if args.wrong:
        for case, answer in zip(cases, answers, strict=True):
            if not case.right(answer):
                print(
                    f"\n{case.group}: {case.messages[-1]['content']}\n  wanted {case.wanted}\n"
                    f"  got {answer.calls or answer.content}"
                )


if __name__ == "__main__":
    main()
