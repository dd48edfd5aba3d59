"""Other shapes of a conversation, for templates that refuse it as it is."""

from __future__ import annotations

import pytest

from llm_server.chat.normalise import join_neighbours, split_calls, whole_arguments
from llm_server.chat.template import ChatTemplate
from llm_server.worker.messages import FunctionCall, Message


def calls(*ids: str) -> Message:
    return Message("assistant", tool_calls=[FunctionCall(id, "f", "{}") for id in ids])


def rendered(template: ChatTemplate, messages: list[Message]) -> str:
    return "".join(segment.text for segment in template.render(messages))


def result(id: str, text: str) -> Message:
    return Message("tool", text, tool_call_id=id)


def test_results_follow_their_calls_though_ids_come_again_in_each_turn() -> None:
    user = Message("user", "q")
    split = split_calls(
        [user, calls("0", "1"), result("1", "Rome"), result("0", "Oslo")]
        + [Message("assistant", "ok"), user, calls("0"), result("0", "Cairo")]
    )
    assert split == (
        [user, calls("0"), result("0", "Oslo"), calls("1"), result("1", "Rome")]
        + [Message("assistant", "ok"), user, calls("0"), result("0", "Cairo")]
    )


def test_thoughts_of_neighbours_are_joined_as_their_texts_are() -> None:
    first = Message("assistant", "a", reasoning_content="hm")
    second = Message("assistant", "b", reasoning_content="well")
    assert join_neighbours([first, second]) == [
        Message("assistant", "a\n\nb", reasoning_content="hm\n\nwell")
    ]


@pytest.mark.parametrize(
    ("cut", "whole"),
    [
        ('{"a": "unclo', '{"a": "unclo"}'),
        ('{"a": [1, {"b": "é', '{"a": [1, {"b": "é"}]}'),
        ('{"a": 1, "b', '{"a": 1}'),
        ('{"a": "\\', '{"a": ""}'),
        ('{"a": 1}', '{"a": 1}'),
        ('{"a": "\ud83d', '{"a": "?"}'),
        ("", ""),
        ("[1]", "{}"),
        ("null", "{}"),
        ("no JSON", "{}"),
        ("[" * 100_000, "{}"),
    ],
)
def test_arguments_that_were_cut_are_the_object_that_was_begun(cut: str, whole: str) -> None:
    answer = Message("assistant", tool_calls=[FunctionCall("0", "f", cut)])
    (shown,) = whole_arguments([answer])
    assert shown.tool_calls == [FunctionCall("0", "f", whole)]


def test_a_call_that_was_cut_can_be_sent_back() -> None:
    """Where a template goes through the members of an object; where it takes text, as it was."""
    members = "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }};{% endfor %}"
    text = "{{ c.function.arguments }}"
    source = """{% if messages[0].role == 'system' %}{{ raise_exception('No system.') }}{% endif %}
{%- for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.name }}(@){% endfor %}
{{- m.content or '' }}|{% endfor %}"""
    history = [
        Message("user", "q"),
        Message("assistant", tool_calls=[FunctionCall("0", "f", '{"a": "x", "b": "unclo')]),
        result("0", "cut"),
    ]
    template = ChatTemplate(source.replace("@", members), "", "")
    assert rendered(template, history) == "q|f(a=x;b=unclo;)|cut|"
    assert rendered(template, [Message("system", "s"), *history]).startswith("s\n\nq|f(a=x;")
    template = ChatTemplate(source.replace("@", text), "", "")
    assert rendered(template, history) == 'q|f({"a": "x", "b": "unclo)|cut|'
