"""What is shown when, and what hostile text costs."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_server.chat.stream import AnswerParser, PlainText, Where
from llm_server.chat.syntax.format import HERMES, CallFormat, JsonArgs, ReasoningFormat, Syntax
from llm_server.chat.syntax.literal import Slot, build
from llm_server.worker.messages import Content, Reasoning, ToolCall
from tests.chat.test_syntax import TOOLS, fold

PLAIN = Syntax(calls=HERMES)
THINKING = Syntax(calls=HERMES, reasoning=ReasoningFormat("<think>", "</think>"))
CALL = '<tool_call>\n{"name": "do-it", "arguments": {"s": "a b", "n": 1}}\n</tool_call>'


def parse(syntax: Syntax, where: Where = "start", tools: bool = True) -> AnswerParser:
    return AnswerParser(7, syntax, TOOLS if tools else [], where)


def test_plain_text_passes_through() -> None:
    parser = PlainText(3)
    assert parser.feed("a") == [Content(3, "a")]
    assert parser.close() == []


def test_only_what_could_become_a_marker_is_held_back() -> None:
    parser = parse(PLAIN)
    assert parser.feed("Hello") == [Content(7, "Hello")]
    assert parser.feed(" a < b") == [Content(7, " a < b")]
    assert parser.feed(" <tool") == []
    assert parser.feed("box>") == [Content(7, " <toolbox>")]
    assert parser.feed("\n") == []
    assert parser.close() == [Content(7, "\n")]


def test_a_call_streams_as_openai_has_it() -> None:
    parser = parse(PLAIN)
    begin = CALL.index('{"s')
    assert parser.feed("Sure.\n" + CALL[:begin]) == [Content(7, "Sure.")]
    first, *rest = parser.feed(CALL[begin : begin + 2])
    assert isinstance(first, ToolCall)
    assert (first.index, first.name, first.arguments) == (0, "do-it", "")
    assert first.call_id is not None
    assert first.call_id.startswith("call_")
    assert rest == [ToolCall(7, 0, arguments='{"')]
    assert parser.feed(CALL[begin + 2 :]) == [ToolCall(7, 0, arguments='s": "a b", "n": 1}')]
    assert parser.close() == []
    assert parser.n_calls == 1


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (f"Before.\n{CALL}\nAfter.", "Before.\n\nAfter."),
        (f"Before.{CALL}After.", "Before.\n\nAfter."),
        (f"One {CALL}\n{CALL}\ntwo\n{CALL}  three.\n", "One\n\ntwo\n\nthree.\n"),
        (f"<think>Hm.</think>\n\n{CALL}\nAfter.", "After."),
        (f"{CALL}\nAfter.", "After."),
        (f"Before.\n{CALL}\n", "Before."),
    ],
)
@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_text_on_both_sides_of_calls_is_paragraphs(text: str, content: str, step: int) -> None:
    parser = parse(THINKING)
    deltas = [d for i in range(0, len(text), step) for d in parser.feed(text[i : i + step])]
    assert fold(deltas + parser.close())[0] == content


def test_thoughts_are_kept_apart() -> None:
    parser = parse(THINKING)
    assert parser.feed("<think>\nHm") == [Reasoning(7, "Hm")]
    assert parser.feed(".\n</th") == [Reasoning(7, ".")]
    assert parser.feed("ink>\n\n") == []
    assert parser.feed("Yes.") == [Content(7, "Yes.")]


def test_an_opened_thought_goes_on() -> None:
    parser = parse(THINKING, where="reasoning")
    deltas = parser.feed("Hm.</think>Yes.") + parser.close()
    assert deltas == [Reasoning(7, "Hm."), Content(7, "Yes.")]


@pytest.mark.parametrize("closing", ["</thin", "\n</think", "\n<", "\n"])
def test_the_cut_end_of_a_thought_is_nobodys(closing: str) -> None:
    for tools in (True, False):
        parser = parse(THINKING, "reasoning", tools)
        _, reasoning, _ = fold(parser.feed("If a < b") + parser.feed(closing) + parser.close())
        assert reasoning.rstrip("\n") == "If a < b"
    parser = parse(THINKING, "reasoning")
    assert fold(parser.feed("Hm. <th") + parser.feed("anks>") + parser.close())[1] == "Hm. <thanks>"


def test_a_call_inside_a_thought_is_a_call() -> None:
    parser = parse(THINKING, where="reasoning")
    _, reasoning, calls = fold(parser.feed(f"Let me.\n{CALL}") + parser.close())
    assert (reasoning, calls) == ("Let me.", [("do-it", '{"s": "a b", "n": 1}')])


@pytest.mark.parametrize(
    "text",
    [
        "<tool_cal",
        "a <tool_call>no</tool_call> b",
        '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "do-it", "arguments": {broken}}',
        '<tool_call>\n{"name": "do-it", "arguments": [1]}\n</tool_call>',
        '{"name": "do-it", "arguments": {}}',
        "</tool_call></think>",
        "<tool_call>" * 3 + ".",
    ],
)
def test_what_is_no_call_is_content(text: str) -> None:
    for step in (1, 1000):
        parser = parse(PLAIN)
        deltas = [d for i in range(0, len(text), step) for d in parser.feed(text[i : i + step])]
        assert fold(deltas + parser.close()) == (text, "", [])


def test_without_tools_a_call_is_content() -> None:
    parser = parse(THINKING, tools=False)
    assert fold(parser.feed(CALL) + parser.close()) == (CALL, "", [])


@pytest.mark.parametrize("step", [1, 1000])
def test_a_call_that_is_cut_before_its_arguments_is_not_told(step: int) -> None:
    begun = CALL.index("<tool_call>") + len("<tool_call>")
    for cut in range(begun, CALL.index("a b")):
        parser, text = parse(PLAIN), "Well. " + CALL[:cut]
        deltas = [d for i in range(0, len(text), step) for d in parser.feed(text[i : i + step])]
        content, _, _ = fold(deltas + parser.close())
        assert content.strip() == "Well.", text


def test_a_thought_ends_where_a_call_begins() -> None:
    parser = parse(THINKING, where="reasoning")
    told = []
    for text in ["Hm", ".", "<tool_call>", '\n{"name": "do-it", ', '"arguments": {}', "}"]:
        parser.feed(text)
        told.append(parser.thinking)
    assert told == [True, True, False, False, False, False]


def test_a_cut_call_keeps_what_came() -> None:
    for cut in range(CALL.index("a b") + 1, len(CALL) + 1):
        parser = parse(PLAIN)
        content, _, calls = fold(parser.feed(CALL[:cut]) + parser.close())
        assert (content, calls[0][0]) == ("", "do-it")
        assert CALL[:cut].find(calls[0][1]) > 0


HOSTILE = [
    "{",
    "<tool_call>",
    '<tool_call>\n{"name": "do-it", "arguments": {"',
    '<tool_call>\n{"name": "do-it", "arguments": {"a": [',
    '"',
    "\\",
    "\n",
    "<",
    "<think>",
    '<tool_call>{"name": "',
]


@pytest.mark.parametrize("piece", HOSTILE)
@pytest.mark.parametrize("step", [4, 10**7])
def test_hostile_text_costs_linear_time(piece: str, step: int) -> None:
    text = piece * (100_000 // len(piece))
    parser = parse(THINKING)
    begin = time.process_time()
    for at in range(0, len(text), step):
        parser.feed(text[at : at + step])
    parser.close()
    assert time.process_time() - begin < 2


@settings(max_examples=200)
@given(
    st.lists(
        st.sampled_from(
            ["<tool_call>", "</tool_call>", '{"name": "do-it"', ', "arguments": ', "{", "}", '"s"']
            + [": ", '"', "\\", "\n", "[", "]", "<think>", "</think>", "<", "é", " ", "x"]
        ),
        max_size=25,
    ),
    st.integers(1, 9),
)
def test_pieces_do_not_change_the_answer(parts: list[str], step: int) -> None:
    text = "".join(parts)
    whole, cut = parse(THINKING), parse(THINKING)
    expected = fold(whole.feed(text) + whole.close())
    deltas = [d for i in range(0, len(text), step) for d in cut.feed(text[i : i + step])]
    assert fold(deltas + cut.close()) == expected


_TYPED = "<|channel|>commentary json<|message|>"
HARMONY = Syntax(
    calls=CallFormat(
        begin=build("<|end|><|start|>assistant to=functions.", Slot.NAME, _TYPED),
        start=build("to=functions.", Slot.NAME, _TYPED),
        end=build("<|call|>"),
        args=JsonArgs(),
        trigger="<|end|><|start|>assistant to",
    ),
    reasoning=ReasoningFormat("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
    content_open="<|channel|>final<|message|>",
    content_close="<|return|>",
    switch="<|end|><|start|>assistant",
)


@pytest.mark.parametrize(
    "header",
    [
        " to=functions.do-it<|channel|>commentary json<|message|>",
        "<|channel|>commentary to=functions.do-it <|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.do-it<|message|>",
        " to=functions.do-it<|channel|>commentary <|constrain|>json<|message|>",
    ],
)
def test_messages_in_channels(header: str) -> None:
    text = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    text += "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
    text += header + '{"x": 1}<|call|>'
    for step in (1, 1000):
        parser = parse(HARMONY)
        deltas = [d for i in range(0, len(text), step) for d in parser.feed(text[i : i + step])]
        expected = ("I look.", "Hm.", [("do-it", '{"x": 1}')])
        assert fold(deltas + parser.close()) == expected


def test_an_answer_in_its_channel() -> None:
    text = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    text += "<|channel|>final<|message|>Yes."
    parser = parse(HARMONY)
    assert fold(parser.feed(text) + parser.close()) == ("Yes.", "Hm.", [])
