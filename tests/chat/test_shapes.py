"""Call syntaxes of templates that nobody published: the shapes count, not the markers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_server.chat.dialogue import Dialogue
from llm_server.chat.plan import _markers
from llm_server.chat.syntax.format import HERMES
from llm_server.chat.syntax.literal import text_of
from llm_server.chat.syntax.measure import measure_calls
from llm_server.chat.syntax.probes import Probes
from llm_server.worker.messages import ChatRequest, Message
from tests.chat.generation import generate
from tests.chat.test_constraint import SCHEMAS, WORDS, arguments
from tests.chat.test_constraint import TOOLS as STRICT_TOOLS
from tests.chat.test_syntax import AWKWARD, SECOND, calls_of, fold, read, written
from tests.chat.vocabulary import ByteVocabulary

FRAME = """{{ bos_token }}{%% if tools %%}<tools>{{ tools | tojson }}</tools>{%% endif %%}
{%%- for m in messages %%}<%%{{ m.role }}%%>{{ m.content or '' }}
{%%- if m.tool_calls %%}%s{%% endif %%}<%%end%%>
{%%- endfor %%}{%% if add_generation_prompt %%}<%%assistant%%>{%% endif %%}"""

EACH = "{% for c in m.tool_calls %}{% set f = c.function %}%s{% endfor %}"
PARAMS = "{% for k, v in f.arguments.items() %}%s{% endfor %}"

SHAPES: dict[str, str] = {
    "object in tags": EACH.replace(
        "%s",
        "<fn_call>{{ {'name': f.name, 'arguments': f.arguments} | tojson }}</fn_call>",
    ),
    "object in a code block": EACH.replace(
        "%s",
        '\n```tool_call\n{"function": "{{ f.name }}", "parameters": '
        "{{ f.arguments | tojson }}}\n```",
    ),
    "the whole list as OpenAI has it": "<|calls|>{{ m.tool_calls | tojson }}<|/calls|>",
    "an indented list": "[CALLS]{{ m.tool_calls | map(attribute='function') | list"
    " | tojson(indent=2) }}[/CALLS]",
    "name then JSON": EACH.replace(
        "%s", "<|tool|>{{ f.name }}<|args|>{{ f.arguments | tojson }}<|done|>"
    ),
    "name then JSON on lines": EACH.replace(
        "%s", "\nCALL> {{ f.name }}\nWITH> {{ f.arguments | tojson }}\n"
    ),
    "numbered calls": "<calls>"
    + EACH.replace(
        "%s",
        '<call id="{{ loop.index }}">{{ f.name }}: {{ f.arguments | tojson }}</call>',
    )
    + "</calls>",
    "tagged parameters": EACH.replace(
        "%s",
        '<invoke tool="{{ f.name }}">'
        + PARAMS.replace(
            "%s",
            '<arg name="{{ k }}">{{ v if v is string else v | tojson }}</arg>',
        )
        + "</invoke>",
    ),
    "tagged parameters, all as JSON": EACH.replace(
        "%s",
        "<invoke>{{ f.name }}"
        + PARAMS.replace("%s", "<key>{{ k }}</key><val>{{ v | tojson }}</val>")
        + "</invoke>",
    ),
    "names as closing tags": EACH.replace(
        "%s",
        "<call>\n<{{ f.name }}>\n"
        + PARAMS.replace("%s", "<{{ k }}>{{ v if v is string else v | tojson }}</{{ k }}>\n")
        + "</{{ f.name }}>\n</call>",
    ),
    "a name and a value on each line": EACH.replace(
        "%s",
        "<yaml>\nname: {{ f.name }}\n"
        + PARAMS.replace("%s", "  {{ k }}: {{ v | tojson }}\n")
        + "</yaml>",
    ),
    "a Python call": "<|py|>["
    + EACH.replace(
        "%s",
        "{{ f.name }}("
        + PARAMS.replace("%s", "{{ k }}={{ v | tojson }}{{ '' if loop.last else ', ' }}")
        + "){{ '' if loop.last else ', ' }}",
    )
    + "]<|/py|>",
}


VARIANTS = {
    path.stem: path.read_text(encoding="utf-8")
    for path in sorted((Path(__file__).parent / "variants").glob("*.jinja"))
}
"""Whole templates: other frames, markers, keys, separators and thoughts, tools in other places."""

FOREIGN = {"arguments_as_text"}
"""Variants whose calls no shape here can write: Hermes' calls instead."""

SOURCES = {**{name: FRAME % shape for name, shape in SHAPES.items()}, **VARIANTS}


def dialogue(name: str, *markers: str) -> tuple[Dialogue, ByteVocabulary]:
    control = ["<s>", "<%end%>", "<%user%>", "<%assistant%>", *markers]
    vocabulary = ByteVocabulary(control, words=WORDS)
    return Dialogue(SOURCES[name], vocabulary), vocabulary


@pytest.mark.parametrize("name", SOURCES)
def test_calls_come_back(name: str) -> None:
    d, _ = dialogue(name)
    assert d.syntax.native == (name not in FOREIGN)
    for values in AWKWARD:
        for step in (1, 9):
            text, p = written(d, Message("assistant", "Hm.", tool_calls=calls_of(values, SECOND)))
            content, _, calls = read(p, text, step)
            assert calls == [("get_weather", values), ("do-it", SECOND)], text
            assert content.startswith("Hm.")


@pytest.mark.parametrize("name", SOURCES)
def test_thoughts_and_plain_text_come_back(name: str) -> None:
    d, _ = dialogue(name)
    said = 'Braces {"a": 1} and <tags>, and\n\ntwo paragraphs.'
    for calls in ([], calls_of({"s": "Paris"})):
        answer = Message("assistant", said, tool_calls=calls, reasoning_content="A thought.")
        text, p = written(d, answer)
        content, reasoning, found = read(p, text, 1)
        assert content.strip().startswith(said)
        assert found == ([("get_weather", {"s": "Paris"})] if calls else [])
        assert reasoning == ("A thought." if d.syntax.reasoning else "")
        assert ("A thought." in text) == (d.syntax.reasoning is not None)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("spelled", [False, True])
def test_random_weights_write_valid_calls(name: str, spelled: bool) -> None:
    d, vocabulary = dialogue(name)
    if spelled:
        d, vocabulary = dialogue(name, *sorted(_markers(d.syntax)))
    assert set(SCHEMAS) == {"get_weather", "do-it"}
    for seed in range(3):
        request = ChatRequest([Message("user", "?")], STRICT_TOOLS, tool_choice="required")
        got = generate(d.prepare(1, request), vocabulary, max_tokens=900, seed=seed)
        assert got.ended
        assert arguments(fold(got.deltas)[2])
    script = "Hm." + (d.syntax.calls.trigger or text_of(d.syntax.calls.begin))
    free = ChatRequest([Message("user", "?")], STRICT_TOOLS)
    got = generate(d.prepare(1, free), vocabulary, script=script, max_tokens=900)
    assert got.n_masked
    assert arguments(fold(got.deltas)[2])


def test_a_single_sign_announces_no_call() -> None:
    thought = "{% if m.reasoning_content %}<|r|>{{ m.reasoning_content }}<|/r|>{% endif %}"
    call = EACH.replace("%s", "/{{ f.name }} {{ f.arguments | tojson }}\n")
    vocabulary = ByteVocabulary(["<s>", "<%end%>", "<%user%>", "<%assistant%>"], words=WORDS)
    d = Dialogue((FRAME % call).replace("{{ m.content", thought + "{{ m.content"), vocabulary)
    text, p = written(d, Message("assistant", "One and/or two.", reasoning_content="A thought."))
    assert read(p, text, 1)[:2] == ("One and/or two.<%end%>", "A thought.")
    text, p = written(d, Message("assistant", None, tool_calls=calls_of({"s": "a/b"})))
    assert read(p, text, 1)[2] == [("get_weather", {"s": "a/b"})]
    request = ChatRequest([Message("user", "?")], STRICT_TOOLS)
    constraint = d.prepare(1, request).constraint
    assert constraint is not None
    for token in vocabulary.tokenize("One and/or two.", parse_special=True):
        constraint.accept(token)
        assert constraint.mask() is None
    got = generate(d.prepare(1, request), vocabulary, script="/get_weather {", max_tokens=900)
    assert arguments(fold(got.deltas)[2])


def test_an_unknown_shape_falls_back_to_hermes() -> None:
    call = EACH.replace("%s", "{{ f.arguments | tojson }} -> {{ f.name }}")
    vocabulary = ByteVocabulary(["<s>", "<%end%>"])
    d = Dialogue(FRAME % call, vocabulary)
    assert d.syntax.calls == HERMES
    messages: list[Any] = [
        Message("user", "?"),
        Message("assistant", None, tool_calls=calls_of({"s": "x"})),
        Message("tool", "42", tool_call_id="call_0"),
    ]
    text = "".join(s.text for s in d.render(ChatRequest(messages, STRICT_TOOLS)))
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"s": "x"}}\n</tool_call>' in text
    assert "<%user%><tool_response>\n42\n</tool_response>" in text
    assert text.count("get_weather") == 2


DECEPTIVE = {
    "a length": "<call {{ f.name | length }}>{{ f.name }}<args>{{ f.arguments | tojson }}</call>",
    "a name in capitals": "<call for {{ f.name | upper }}>{{ f.name }}: {{ f.arguments | tojson }}"
    "</call>",
    "only the second call": "<call>{{ f.name }}{% if not loop.first %}({{ f.name[:1] }})"
    "{% endif %}<args>{{ f.arguments | tojson }}</call>",
    "a length of the arguments": "<call>{{ f.name }}<{{ f.arguments | tojson | length }}>"
    "{{ f.arguments | tojson }}</call>",
}


@pytest.mark.parametrize("name", DECEPTIVE)
def test_what_fits_the_probes_alone_falls_back_to_hermes(name: str) -> None:
    vocabulary = ByteVocabulary(["<s>", "<%end%>", "<%user%>", "<%assistant%>"], words=WORDS)
    d = Dialogue(FRAME % EACH.replace("%s", DECEPTIVE[name]), vocabulary)
    assert measure_calls(Probes(d.template)) is not None
    assert d.syntax.calls == HERMES
    request = ChatRequest([Message("user", "?")], STRICT_TOOLS, tool_choice="required")
    prompt = "".join(s.text for s in d.render(request))
    assert "<tool_call>" in prompt and "<tools>[" not in prompt
    got = generate(d.prepare(1, request), vocabulary, max_tokens=900)
    assert got.ended
    assert arguments(fold(got.deltas)[2])
