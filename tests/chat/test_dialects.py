"""Calls as models really write them, beside what their templates show."""

from __future__ import annotations

import json
import sys
from functools import cache
from typing import Any

import pytest

from llm_server.chat.dialogue import Dialogue
from llm_server.chat.stream import AnswerParser, Where
from llm_server.chat.syntax.format import ParamArgs
from llm_server.chat.syntax.literal import Slot, fill, text_of
from llm_server.worker.messages import ChatRequest, Delta, FunctionCall, Message
from tests.chat.generation import generate
from tests.chat.published import TEMPLATES, dialogue_of
from tests.chat.test_syntax import fold, tool
from tests.chat.vocabulary import ByteVocabulary

PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "n": {"type": "integer"},
        "l": {"type": "array", "items": {"type": "string"}},
    },
}
TOOLS = [tool("get_weather", PARAMETERS), tool("do-it", PARAMETERS)]
PARIS = ("get_weather", {"city": "Paris"})

LLAMA = "meta-llama-Llama-3.1-8B-Instruct"
HARMONY = "openai-gpt-oss-120b"
KIMI_K3 = "Kimi-K3"
QWEN = "Qwen3-Coder"
NEMOTRON = "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"
KIMI_K2 = "moonshotai-Kimi-K2"
LFM = "LFM2.5-8B-A1B"
GEMMA = "google-gemma-4-31B-it-interleaved"
_JSON = '{"city": "Paris"}'
_SWITCH = "<|end|><|start|>assistant"
_FUNCTION = "<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>"
_BARE = "<|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>%s<|tool_call_end|>"

CALLS: list[tuple[str, str, str, list[tuple[str, Any]]]] = [
    (LLAMA, '{"type": "function", "name": "get_weather", "parameters": %s}', "", [PARIS]),
    (LLAMA, '{"type":"function","name":"get_weather","parameters":%s}', "", [PARIS]),
    (LLAMA, '{\n "type": "function",\n "name": "get_weather", "parameters": %s\n}', "", [PARIS]),
    (
        HARMONY,
        "<|channel|>analysis to=functions.get_weather code<|message|>%s<|call|>",
        "",
        [PARIS],
    ),
    (
        HARMONY,
        f"<|channel|>analysis<|message|>Hm.{_SWITCH}<|channel|>analysis to=functions.get_weather"
        " <|constrain|>json<|message|>%s<|call|>",
        "",
        [PARIS],
    ),
    (
        HARMONY,
        " to=functions.get_weather<|channel|>analysis <|constrain|>json<|message|>%s<|call|>",
        "",
        [PARIS],
    ),
    (HARMONY, "<|channel|>final <|constrain|>json<|message|>%s", _JSON, []),
    (
        HARMONY,
        f"<|channel|>analysis<|message|>Hm.{_SWITCH}<|channel|>final json<|message|>%s",
        _JSON,
        [],
    ),
    (
        KIMI_K3,
        "Hm.<|close|>think<|sep|><|open|>response<|sep|>I look.<|close|>response<|sep|>"
        '<|open|>tools<|sep|><|open|>call tool="get_weather" index="1"<|sep|>'
        '<|open|>argument key="city" type="string"<|sep|>Paris<|close|>argument<|sep|>'
        "<|close|>call<|sep|><|close|>tools<|sep|><|close|>message<|sep|>",
        "I look.",
        [PARIS],
    ),
    (QWEN, f"I look.\n\n{_FUNCTION}\n</tool_call>", "I look.", [PARIS]),
    (QWEN, f"{_FUNCTION}\n", "", [PARIS]),
    (QWEN, f"{_FUNCTION}\n</tool_call>\n{_FUNCTION}\n</tool_call>", "", [PARIS, PARIS]),
    (QWEN, f"<tool_call>\n{_FUNCTION}\n{_FUNCTION}\n</tool_call>", "", [PARIS, PARIS]),
    (QWEN, f"<tool_call>\n{_FUNCTION}", "", [PARIS]),
    (NEMOTRON, f"Hm.</think>\nI look.\n{_FUNCTION}", "I look.", [PARIS]),
    (KIMI_K2, f"I look.{_BARE}", "I look.", [PARIS]),
    (KIMI_K2, f"{_BARE}{_BARE}<|tool_calls_section_end|>", "", [PARIS, PARIS]),
]
"""By template: what a model wrote (`%s`: arguments as JSON), its content and its calls."""


@cache
def where_of(name: str) -> Where:
    """Where an answer starts. Measured once: a parser for each cut is cheap, a prompt is not."""
    d = dialogue_of(name)
    return d._where(d.render(ChatRequest([Message("user", "Question?")], TOOLS)))[0]


def parsed(name: str, *parts: str) -> tuple[str, list[tuple[str | None, Any]]]:
    """Content and calls of an answer that comes in these parts."""
    parser = AnswerParser(1, dialogue_of(name).syntax, TOOLS, where_of(name))
    deltas: list[Delta] = []
    for part in parts:
        deltas += parser.feed(part)
    content, _, calls = fold(deltas + parser.close())
    return content, [(name, json.loads(arguments)) for name, arguments in calls]


@pytest.mark.parametrize(("name", "text", "content", "calls"), CALLS)
def test_what_models_write_is_read_wherever_it_is_cut(
    name: str, text: str, content: str, calls: list[tuple[str, Any]]
) -> None:
    if name not in TEMPLATES:
        pytest.skip("no published templates beside the checkout")
    text = text.replace("%s", _JSON)
    for cut in range(len(text)):
        assert parsed(name, text[:cut], text[cut:]) == (content, calls), text[:cut]
    assert parsed(name, *text) == (content, calls)


NO_CALLS = [
    (LLAMA, '{"type": "function", "name": "unknown", "parameters": {}}'),
    (LLAMA, '{"type": "circle", "name": "get_weather", "parameters": {}}'),
    (LLAMA, '{"type": "function", "name": "get_weather"}'),
    (QWEN, "Write `<function=unknown>\n<parameter=city>` so."),
    (QWEN, "Write `<function=get_weather>` so."),
    (QWEN, "if a <function=get_weather"),
]


@pytest.mark.parametrize(("name", "text"), NO_CALLS)
def test_what_only_looks_like_a_call_is_content(name: str, text: str) -> None:
    if name not in TEMPLATES:
        pytest.skip("no published templates beside the checkout")
    for cut in range(len(text)):
        assert parsed(name, text[:cut], text[cut:]) == (text, [])


NUMBERED = {
    "Kimi-K2-Thinking": "<think></think><|tool_calls_section_begin|><|tool_call_begin|>"
    "functions.get_weather:%d<|tool_call_argument_begin|>{",
    "Cohere2MoE": "Hm.<|END_THINKING|><|START_ACTION|>[\n"
    '    {"tool_call_id": "%d", "tool_name": "get_weather", "parameters": {',
}


@pytest.mark.parametrize("name", NUMBERED)
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_calls_are_numbered_on_through_a_conversation(name: str, choice: Any) -> None:
    if name not in TEMPLATES:
        pytest.skip("no published templates beside the checkout")
    vocabulary = ByteVocabulary(["<s>", "</s>"])
    d = Dialogue(TEMPLATES[name], vocabulary)
    question = Message("user", "Question?")
    calls = [FunctionCall(f"call_{i}", "get_weather", _JSON) for i in range(2)]
    earlier = [
        question,
        Message("assistant", None, tool_calls=calls),
        *(Message("tool", "Sun.", tool_call_id=call.id) for call in calls),
    ]
    prompt = "".join(s.text for s in d.render(ChatRequest(earlier, TOOLS)))
    for number in range(2):  # calls and results, in the number the vendor has
        assert prompt.count(f"get_weather:{number}") + prompt.count(f'_call_id": "{number}"') == 2
    for messages, number in ([question], 0), (earlier, 2):
        prepared = d.prepare(1, ChatRequest(messages, TOOLS, tool_choice=choice))
        script = NUMBERED[name] % number
        got = generate(prepared, vocabulary, script=script, max_tokens=900)
        assert got.n_masked
        assert got.text.startswith(script)
        assert fold(got.deltas)[2][0][0] == "get_weather"


RAW = {
    "Qwen3-Coder": "<tool_call>\n<function=do-it>\n<parameter=city>\nParis",
    "GLM-4.6": "<tool_call>do-it\n<arg_key>city</arg_key>\n<arg_value>Paris",
    "MiniMax-M3": ']<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name="do-it">'
    "]<]minimax[>[<city>Paris",
}


@pytest.mark.parametrize("name", RAW)
def test_a_closing_tag_that_has_begun_is_gone_on_with_where_tokens_run_short(name: str) -> None:
    if name not in TEMPLATES:
        pytest.skip("no published templates beside the checkout")
    vocabulary = ByteVocabulary(["<s>", "</s>"])
    d = Dialogue(TEMPLATES[name], vocabulary)
    assert isinstance(d.syntax.calls.args, ParamArgs)
    closing = text_of(fill(d.syntax.calls.args.wrappers["string"].post, {Slot.KEY: "city"}))
    for n in range(len(closing)):
        prepared = d.prepare(1, ChatRequest([Message("user", "?")], TOOLS))
        assert prepared.constraint is not None
        said = RAW[name] + closing[:n]
        for token in vocabulary.tokenize(said, parse_special=True):
            prepared.constraint.accept(token)
        way = prepared.constraint.forced(1)
        said += b"".join(vocabulary.piece(token, special=True) for token in way).decode()
        assert parsed(name, said) == ("", [("do-it", {"city": "Paris"})])


@pytest.mark.parametrize("quote", ["'", '"'])
@pytest.mark.parametrize("text", ["", "Paris", "It is", "a, n=3)]"])
def test_texts_in_either_quotes_end_where_tokens_run_short(quote: str, text: str) -> None:
    if LFM not in TEMPLATES:
        pytest.skip("no published templates beside the checkout")
    vocabulary = ByteVocabulary(["<s>", "</s>"])
    d = Dialogue(TEMPLATES[LFM], vocabulary)
    prepared = d.prepare(1, ChatRequest([Message("user", "?")], TOOLS))
    assert prepared.constraint is not None
    said = f"<|tool_call_start|>[get_weather(city={quote}{text}"
    for token in vocabulary.tokenize(said, parse_special=True):
        prepared.constraint.accept(token)
    said += bytes(prepared.constraint.forced(1)).decode()
    assert parsed(LFM, said) == ("", [("get_weather", {"city": text})])


LITERALS = [
    ("city='Paris'", "Paris"),
    ('city="Paris"', "Paris"),
    ("city=''", ""),
    ('city="It\'s"', "It's"),
    ("city='It\\'s \"b\"'", 'It\'s "b"'),
    ('city="a \\"b\\" c"', 'a "b" c'),
    ("city='a\\nb\\\\c'", "a\nb\\c"),
    ("city='\\u00e9\\ud83d\\ude00'", "é😀"),
    ("city='C:\\dir'", "C:\\dir"),
    ("city='a, n=3) [x] 'b' c'", "a, n=3) [x] 'b' c"),  # as the template writes it
    ("city='It\\'s\n'", "It's\n"),
    ("city = 'Paris' ", "Paris"),
]


@pytest.mark.parametrize(("argument", "city"), LITERALS)
@pytest.mark.parametrize("rest", ["", ", n=3"])
def test_texts_are_literals_of_python(argument: str, city: str, rest: str) -> None:
    if LFM not in TEMPLATES:
        pytest.skip("no published templates beside the checkout")
    text = f"<|tool_call_start|>[get_weather({argument}{rest})]<|tool_call_end|>"
    expected = {"city": city, "n": 3} if rest else {"city": city}
    for cut in range(len(text)):
        assert parsed(LFM, text[:cut], text[cut:]) == ("", [("get_weather", expected)])


@pytest.mark.parametrize("argument", [argument for argument, _ in LITERALS[:7]])
@pytest.mark.parametrize(
    "schema", [{"type": "string"}, {}, {"enum": ["It's", "Paris", 'It\'s "b"']}]
)
def test_a_model_may_write_literals_of_python(argument: str, schema: dict[str, Any]) -> None:
    if LFM not in TEMPLATES:
        pytest.skip("no published templates beside the checkout")
    vocabulary = ByteVocabulary(["<s>", "</s>"])
    parameters = {"type": "object", "properties": {"city": schema}, "required": ["city"]}
    request = ChatRequest([Message("user", "?")], [tool("do-it", parameters)])
    prepared = Dialogue(TEMPLATES[LFM], vocabulary).prepare(1, request)
    script = f"<|tool_call_start|>[do-it({argument})]<|tool_call_end|>"
    got = generate(prepared, vocabulary, script=script, max_tokens=900)
    value = dict(LITERALS)[argument]
    assert got.n_masked
    assert got.text.startswith(script) == (value in schema.get("enum", [value]))
    if not got.text.startswith(script):
        return
    _, arguments = fold(got.deltas)[2][0]
    assert json.loads(arguments) == {"city": value}


def test_any_parameters_of_a_tool_that_names_none() -> None:
    if LFM not in TEMPLATES:
        pytest.skip("no published templates beside the checkout")
    vocabulary = ByteVocabulary(["<s>", "</s>"])
    free = tool("do-it", {"type": "object", "additionalProperties": True})
    request = ChatRequest([Message("user", "?")], [free], tool_choice="required")
    d = Dialogue(TEMPLATES[LFM], vocabulary)
    for seed in range(4):
        got = generate(d.prepare(1, request), vocabulary, max_tokens=600, seed=seed)
        calls = fold(got.deltas)[2]
        assert got.ended and calls
        assert all(isinstance(json.loads(arguments), dict) for _, arguments in calls)


HUGE = {"type": "object", "properties": {"n": {"type": "number"}, "l": {"type": "array"}}}


def refuse(constant: str) -> None:
    raise ValueError(constant)


@pytest.mark.parametrize("dialect", [QWEN, "GLM-4.6", LFM, GEMMA])
def test_numbers_that_overflow_are_the_largest_ones(dialect: str) -> None:
    if dialect not in TEMPLATES:
        pytest.skip("no published templates beside the checkout")
    d, tools = dialogue_of(dialect), [tool("do-it", HUGE)]
    huge = FunctionCall("call_1", "do-it", '{"n": -1e400, "l": [1e999, 2]}')
    messages = [Message("user", "?"), Message("assistant", None, tool_calls=[huge])]
    prompt = "".join(s.text for s in d.render(ChatRequest(messages, tools), generate=False))
    assert "inf" not in prompt.lower()
    for largest in ("1.7976931348623157e308", "1.7976931348623157e+308"):
        prompt = prompt.replace(largest, "1e400")
    call = prompt[prompt.rindex(d.syntax.calls.trigger) :]
    parser = AnswerParser(1, d.syntax, tools)
    [(_, arguments)] = fold([*parser.feed(call), *parser.close()])[2]
    most = sys.float_info.max
    assert json.loads(arguments, parse_constant=refuse) == {"n": -most, "l": [most, 2]}
