"""Calls that a template writes are read back: measuring and parsing together."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_server.chat.dialogue import Dialogue
from llm_server.chat.stream import AnswerParser
from llm_server.chat.syntax.format import ParamArgs
from llm_server.chat.syntax.literal import common_prefix
from llm_server.worker.messages import ChatRequest, Content, Delta, FunctionCall, Message, Reasoning
from tests.chat.published import TEMPLATES, dialogue_of
from tests.sampling import rotated

PARAMETERS = {
    "type": "object",
    "properties": {
        "s": {"type": "string"},
        "t": {"type": "string"},
        "n": {"type": "integer"},
        "f": {"type": "number"},
        "b": {"type": "boolean"},
        "z": {},
        "o": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "object"}}},
        "l": {"type": "array", "items": {}},
    },
}


def tool(name: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    function = {"name": name, "parameters": parameters or PARAMETERS}
    return {"type": "function", "function": function}


TOOLS = [tool("get_weather"), tool("do-it")]
SECOND = {"s": "second", "n": 2}

AWKWARD: list[dict[str, Any]] = [
    {"s": "Paris"},
    {},
    {"s": ""},
    {"s": "x\n <b>&'\"\\ é 日本 \u2028"},
    {"s": "\n\nx\n", "t": " lead and trail "},
    {"s": "null", "t": "7"},
    {"s": "a", "n": 7, "f": -1.5, "b": True},
    {
        "b": False,
        "o": {"a": 'x "y" \' }', "b": {"c": 1, "d": [1, 2]}},
        "l": [1, "a, b", {"k": "v"}],
    },
    {"l": [], "o": {}},
    {"s": "</tool_call> <tool_call> }]</parameter> </arg_value> \n</function> <|im_end|>"},
    {"s": "it's, ok=1) [x]", "t": '{"a": 1}'},
    {"s": '{"name": "get_weather", "arguments": {}}'},
]

ONE_CALL_ONLY = {  # what the template itself shows of two calls
    "GigaChat3-10B-A1.8B",
    "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.2-3B-Instruct",
    "openai-gpt-oss-120b",
}


def written(d: Dialogue, answer: Message) -> tuple[str, AnswerParser]:
    """What the template writes of an answer, and a parser at that place."""
    question = Message("user", "Question?")

    def render(*messages: Message, generate: bool = False) -> str:
        request = ChatRequest([question, *messages], TOOLS)
        return "".join(s.text for s in d.render(request, generate=generate))

    whole, prompt = render(answer), render(generate=True)
    head = common_prefix(prompt, whole)
    shared = common_prefix(render(Message("assistant", "Zzz.")), whole)
    prepared = d.prepare(1, ChatRequest([question], TOOLS))
    assert isinstance(prepared.parser, AnswerParser)
    parser = prepared.parser
    if not whole.startswith(prompt.rstrip()):
        # History and prompt differ, as where old thoughts are dropped: begin with the message.
        parser = AnswerParser(1, d.syntax, TOOLS)
        head = shared if prompt.rstrip().endswith(shared[-8:].rstrip()) else head
    return whole[len(head) :], parser


def fold(deltas: list[Delta]) -> tuple[str, str, list[tuple[str | None, str]]]:
    """Content, reasoning and calls of a whole answer."""
    content = "".join(d.text for d in deltas if isinstance(d, Content))
    reasoning = "".join(d.text for d in deltas if isinstance(d, Reasoning))
    calls: dict[int, tuple[str | None, str]] = {}
    for d in deltas:
        if not isinstance(d, Content | Reasoning):
            name, arguments = calls.get(d.index, (None, ""))
            assert (name is None) == (d.name is not None) == (d.call_id is not None)
            calls[d.index] = (name or d.name, arguments + d.arguments)
    return content, reasoning, list(calls.values())


def read(p: AnswerParser, text: str, step: int) -> tuple[str, str, list[tuple[str | None, Any]]]:
    deltas: list[Delta] = []
    for at in range(0, len(text), step):
        deltas += p.feed(text[at : at + step])
    deltas += p.close()
    content, reasoning, calls = fold(deltas)
    return content, reasoning, [(name, json.loads(arguments)) for name, arguments in calls]


def calls_of(*arguments: dict[str, Any]) -> list[FunctionCall]:
    names = ("get_weather", "do-it")
    return [
        FunctionCall(f"call_{i}", names[i], json.dumps(value)) for i, value in enumerate(arguments)
    ]


@pytest.mark.parametrize("name", TEMPLATES)
def test_null_comes_back_where_it_is_written(name: str) -> None:
    d = dialogue_of(name)
    args = d.syntax.calls.args
    arguments = {"s": "x", "z": None}
    text, p = written(d, Message("assistant", None, tool_calls=calls_of(arguments)))
    if isinstance(args, ParamArgs) and "null" not in args.wrappers:
        assert name == "MiniMax-M3"
        arguments = {"s": "x"}  # the template leaves it out, as one does who omits an optional one
    assert read(p, text, 1)[2] == [("get_weather", arguments)], text


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_call_shows_nothing_of_its_markup_wherever_it_is_cut(name: str) -> None:
    d = dialogue_of(name)
    calls = calls_of({"s": "Paris"}, SECOND)[: 1 if d.syntax.calls.again is None else 2]
    text, parser = written(d, Message("assistant", None, tool_calls=calls))
    behind = fold([*parser.feed(text), *parser.close()])[0]  # what this template ends turns with
    text = text[max(0, text.find(d.syntax.calls.trigger)) :].rstrip()
    for end in (d.syntax.calls.turn_end, behind, d.syntax.calls.turn_end):
        text = text.removesuffix(end.strip())
    for cut in range(len(text)):
        p = AnswerParser(1, d.syntax, TOOLS)
        content, _, read = fold([*p.feed(text[:cut]), *p.close()])
        assert not (read and content.strip()), text[:cut]
        assert "</" not in "".join(arguments for _, arguments in read)


def test_nearly_all_published_templates_have_a_measured_syntax() -> None:
    if not TEMPLATES:
        pytest.skip("no published templates beside the checkout")
    native = [name for name in TEMPLATES if dialogue_of(name).syntax.native]
    assert len(native) >= 42


@pytest.mark.parametrize(("name", "step"), rotated(TEMPLATES, [1, 5, 1, 10**9]))
def test_one_call_comes_back(name: str, step: int) -> None:
    d = dialogue_of(name)
    for arguments in AWKWARD:
        text, p = written(d, Message("assistant", None, tool_calls=calls_of(arguments)))
        assert read(p, text, step)[2] == [("get_weather", arguments)], text


@pytest.mark.parametrize("name", [n for n in TEMPLATES if n not in ONE_CALL_ONLY])
def test_two_calls_come_back(name: str) -> None:
    d = dialogue_of(name)
    for arguments in AWKWARD:
        calls = calls_of(arguments, SECOND)
        text, p = written(d, Message("assistant", None, tool_calls=calls))
        assert read(p, text, 3)[2] == [("get_weather", arguments), ("do-it", SECOND)], text


@pytest.mark.parametrize("name", TEMPLATES)
def test_text_before_a_call_is_content(name: str) -> None:
    d = dialogue_of(name)
    if not d.template.style.beside:
        pytest.skip("shows text and calls in messages of their own")
    said = "Let me look <that> up."
    text, p = written(d, Message("assistant", said, tool_calls=calls_of({"s": "Paris"})))
    content, reasoning, calls = read(p, text, 1)
    assert calls == [("get_weather", {"s": "Paris"})]
    if said in text and text.index(said) < text.index("Paris"):
        assert (content + reasoning).lstrip().startswith(said)


@pytest.mark.parametrize("name", TEMPLATES)
def test_plain_text_is_content(name: str) -> None:
    d = dialogue_of(name)
    said = 'Braces {"a": 1} and <tags>, and\n\ntwo paragraphs.'
    text, p = written(d, Message("assistant", said))
    content, _, calls = read(p, text, 1)
    assert content.strip().startswith(said)
    assert calls == []


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_shown_thought_is_reasoning(name: str) -> None:
    d = dialogue_of(name)
    answer = Message("assistant", "The answer.", reasoning_content="A thought.")
    text, p = written(d, answer)
    reasoning = d.syntax.reasoning
    if "A thought." not in text or reasoning is None or not reasoning.open:
        pytest.skip("the template does not show thoughts")
    content, thought, _ = read(p, text, 1)
    assert content.startswith("The answer.")
    assert thought == "A thought."


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner),
    max_leaves=6,
)


@settings(max_examples=60)
@given(
    s=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    o=st.dictionaries(st.text("abc", min_size=1, max_size=3), VALUES, max_size=3),
    cuts=st.lists(st.integers(0, 200), max_size=6),
)
@pytest.mark.parametrize("name", ["Qwen-Qwen3-0.6B", "Apriel-1.6-15b-Thinker-fixed", "GLM-4.6"])
def test_any_arguments_cut_anywhere(name: str, s: str, o: dict[str, Any], cuts: list[int]) -> None:
    if name not in TEMPLATES:
        pytest.skip("no published templates beside the checkout")
    d = dialogue_of(name)
    arguments = {"s": s, "o": o}
    text, p = written(d, Message("assistant", None, tool_calls=calls_of(arguments)))
    deltas: list[Delta] = []
    edges = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    for begin, end in zip(edges, edges[1:], strict=False):
        deltas += p.feed(text[begin:end])
    calls = fold(deltas + p.close())[2]
    assert [(name, json.loads(a)) for name, a in calls] == [("get_weather", arguments)]
