"""What random weights write under a constraint is what the request demands."""

from __future__ import annotations

import json
import time
from typing import Any

import jsonschema
import numpy as np
import pytest

from llm_server.chat.constraint import Constraint, GrammarTooComplex
from llm_server.chat.dialogue import Dialogue
from llm_server.chat.grammar import Grammars
from llm_server.chat.plan import _markers
from llm_server.chat.syntax.literal import common_prefix
from llm_server.engine.answer import TokenConstraint
from llm_server.errors import InvalidRequest
from llm_server.worker.messages import ChatRequest, Message, ResponseFormat
from tests.chat.generation import Answer, allows, generate
from tests.chat.published import TEMPLATES, dialogue_of
from tests.chat.test_syntax import fold, tool
from tests.chat.vocabulary import ByteVocabulary
from tests.sampling import rotated

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer"},
        "deep": {
            "type": "object",
            "properties": {"a": {"type": "array", "items": {"type": "number"}}},
            "required": ["a"],
            "additionalProperties": False,
        },
        "flag": {"type": "boolean"},
        "opt": {"type": "string", "maxLength": 5},
    },
    "required": ["city", "unit", "days", "deep", "flag"],
    "additionalProperties": False,
}
COUNT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}},
    "required": ["x"],
    "additionalProperties": False,
}
TOOLS = [tool("get_weather", WEATHER), tool("do-it", COUNT)]
SCHEMAS = {"get_weather": WEATHER, "do-it": COUNT}
QUESTION = [Message("user", "Question?")]
WORDS = ['": "', ', "', "name", "arguments", '"}']
HERMES_MARKERS = ["<tool_call>", "</tool_call>"]

CHATML = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}
{%- if m.reasoning_content %}{{ '<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' }}
{%- endif %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ '\\n<tool_call>\\n{"name": "' +
c.function.name + '", "arguments": ' + c.function.arguments | tojson + '}\\n</tool_call>' }}
{%- endfor %}{{ '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}{% endif %}"""


def build(
    source: str = CHATML, markers: list[str] | None = None
) -> tuple[Dialogue, ByteVocabulary]:
    control = ["<s>", "<|im_end|>", "<|im_start|>"]
    vocabulary = ByteVocabulary(control, markers if markers is not None else [], WORDS)
    return Dialogue(source, vocabulary), vocabulary


def answer(request: ChatRequest, *, markers: list[str] | None = None, **how: Any) -> Answer:
    d, vocabulary = build(markers=markers)
    return generate(d.prepare(1, request), vocabulary, **how)


def arguments(calls: list[tuple[str | None, str]]) -> list[str]:
    """The names of valid calls."""
    for name, text in calls:
        assert name is not None
        jsonschema.validate(json.loads(text), SCHEMAS[name])
    return [name or "" for name, _ in calls]


@pytest.mark.parametrize(("name", "spelled"), rotated(TEMPLATES, [False, True]))
def test_required_is_a_valid_call_in_every_syntax(name: str, spelled: bool) -> None:
    markers = sorted(_markers(dialogue_of(name).syntax)) if spelled else []
    vocabulary = ByteVocabulary(["<s>", "</s>", *markers], words=WORDS)
    d = Dialogue(TEMPLATES[name], vocabulary)
    for choice in ({"tool_choice": "required"}, {"tool_name": "do-it"}):
        prepared = d.prepare(1, ChatRequest(QUESTION, TOOLS, **choice))  # type: ignore[arg-type]
        got = generate(prepared, vocabulary, max_tokens=900, seed=len(name))
        names = arguments(fold(got.deltas)[2])
        assert got.ended
        assert names
        assert "tool_choice" in choice or set(names) == {"do-it"}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("markers", [[], HERMES_MARKERS, [*HERMES_MARKERS, "<think>", "</think>"]])
def test_required_with_few_tokens_left(markers: list[str], seed: int) -> None:
    request = ChatRequest(QUESTION, TOOLS, tool_choice="required")
    got = answer(request, markers=markers, max_tokens=420, seed=seed)
    assert got.ended
    assert arguments(fold(got.deltas)[2])


@pytest.mark.parametrize("syntax", ["hermes", "params"])
def test_a_call_with_room_enough_is_the_models_own(syntax: str) -> None:
    """Long fixed keys are few tokens: what may be called must not be counted by its letters."""
    keys = [f"{name}_{'long' * 20}" for name in ("unit", "span", "channel")]
    schema = {
        "type": "object",
        "properties": {key: {"enum": ["first of two", "other of two"]} for key in keys},
        "required": keys,
        "additionalProperties": False,
    }
    words = [
        *WORDS,
        *keys,
        "first of two",
        "other of two",
        "<parameter=",
        "</parameter>",
        "configure",
    ]
    source = CHATML if syntax == "hermes" else TEMPLATES["Qwen3-Coder"]
    vocabulary = ByteVocabulary(["<s>", "<|im_end|>", "<|im_start|>"], HERMES_MARKERS, words)
    d = Dialogue(source, vocabulary)
    request = ChatRequest(
        QUESTION, [tool("configure", schema)], tool_choice="required", parallel_tool_calls=False
    )
    said = set()
    for seed in range(12):
        got = generate(d.prepare(1, request), vocabulary, max_tokens=400, seed=seed)
        assert got.ended
        ((_, text),) = fold(got.deltas)[2]
        jsonschema.validate(json.loads(text), schema)
        said.add(text)
    assert len(said) > 2


def test_one_call_only_where_parallel_calls_are_off() -> None:
    for seed in range(6):
        request = ChatRequest(QUESTION, TOOLS, tool_choice="required", parallel_tool_calls=False)
        got = answer(request, max_tokens=2000, seed=seed)
        assert len(arguments(fold(got.deltas)[2])) == 1


@pytest.mark.parametrize("markers", [[], HERMES_MARKERS])
def test_auto_is_free_until_the_call_and_then_valid(markers: list[str]) -> None:
    request = ChatRequest(QUESTION, TOOLS)
    for seed in range(4):
        got = answer(
            request, markers=markers, script="Let me see.\n<tool_call>", seed=seed, max_tokens=900
        )
        content, _, calls = fold(got.deltas)
        assert content.startswith("Let me see.")
        assert arguments(calls)


OPENINGS = {
    "meetkai-functionary-medium-v3.2": ["get_weather\n", "\nget_weather\n", "get_weather {"],
    "muse-glimmer": [
        'to=get_weather<|message|><atem:function_calls>\n<atem:invoke name="get_weather">',
        "to=self<|message|>Hm.<|eom|><|start|>assistant to=get_weather<|message|>"
        '<atem:function_calls><atem:invoke name="get_weather">',
        "to=user<|message|>Yes.<|eom|><|start|>assistant to=get_weather<|message|>"
        '<atem:function_calls><atem:invoke name="get_weather">',
    ],
    "meta-llama-Llama-3.1-8B-Instruct": [
        '{ "name" : "get_weather", "parameters": ',
        '{"type": "function", "name": "get_weather", "parameters": ',
        '{"type":"function","name":"get_weather","parameters":{',
    ],
    "openai-gpt-oss-120b": [
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
        "<|channel|>commentary to=functions.get_weather<|message|>",
        "<|channel|>analysis to=functions.get_weather code<|message|>",
    ],
    "Qwen3-Coder": [
        "I look.\n<function=get_weather>",
        "<function=get_weather>\n",
        "A <function=other>, <function>, and <function=get_weather>",
    ],
    "moonshotai-Kimi-K2": [
        "I look.<|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
    ],
}


@pytest.mark.parametrize("spelled", [False, True])
@pytest.mark.parametrize(
    ("name", "script"), [(name, script) for name in OPENINGS for script in OPENINGS[name]]
)
def test_auto_constrains_what_can_only_be_a_call(name: str, script: str, spelled: bool) -> None:
    if name not in TEMPLATES:
        pytest.skip("no published templates beside the checkout")
    markers = sorted(_markers(dialogue_of(name).syntax)) if spelled else []
    vocabulary = ByteVocabulary(["<s>", "</s>", *markers], words=WORDS)
    prepared = Dialogue(TEMPLATES[name], vocabulary).prepare(1, ChatRequest(QUESTION, TOOLS))
    got = generate(prepared, vocabulary, script=script, max_tokens=900, seed=len(script))
    assert got.n_masked
    assert "get_weather" in arguments(fold(got.deltas)[2]), got.text


MISFITS: list[tuple[str | None, str, list[str]]] = [
    (None, "Hm. <tool_cal", ["l>\n{", 'l>\n{"x', "l>!"]),
    (None, "Hm. ", ["<tool_call>\n{", '<tool_call>\n{"x', ".<tool_call>!"]),
    (None, "<think>Hm.", ["<tool_call>\n{", "</think><tool_call>!", "</think>.<tool_call>!"]),
    ("meetkai-functionary-medium-v3.2", "get_weather", ["\n{", '\n{"x', "\nIt"]),
    ("meetkai-functionary-medium-v3.2", "", ["get_weather\n{", 'get_weather\n{"x', "do-it\nIt"]),
    (
        "openai-gpt-oss-120b",
        "<|channel|>commentary to=functions.get_weather<|message",
        ["|>{", '|>{"x', "|>It"],
    ),
]
"""By template (None: Hermes' calls): what was said, and tokens that hold the end of a header, the
first with arguments that may follow."""


@pytest.mark.parametrize(("name", "said", "words"), MISFITS, ids=range(len(MISFITS)))
def test_a_token_cannot_end_a_header_and_go_on_as_the_call_must_not(
    name: str | None, said: str, words: list[str]
) -> None:
    if name not in TEMPLATES and name is not None:
        pytest.skip("no published templates beside the checkout")
    vocabulary = ByteVocabulary(["<s>", "</s>"], words=words)
    source = CHATML if name is None else TEMPLATES[name]
    request = ChatRequest(QUESTION, TOOLS)
    prepared = Dialogue(source, vocabulary).prepare(1, request)
    assert prepared.constraint is not None
    for token in vocabulary.tokenize(said, parse_special=True):
        prepared.constraint.accept(token)
    tokens = range(256, 256 + len(words))
    assert [may_come(prepared.constraint, token) for token in tokens] == [True, False, False]
    assert [may_come(prepared.constraint, token) for token in tokens] == [True, False, False]
    assert may_come(prepared.constraint, ord("x")), "another letter makes it plain text"
    # A model of random weights that says so makes a valid call in one go.
    again = Dialogue(source, vocabulary).prepare(1, request)
    got = generate(again, vocabulary, script=said + words[0], max_tokens=900)
    assert arguments(fold(got.deltas)[2])


def may_come(constraint: TokenConstraint, token: int) -> bool:
    """Whether a model that wants to say `token` may."""
    mask = constraint.mask()
    if mask is not None and not mask.view(np.uint32)[token // 32] >> token % 32 & 1:
        return False
    return not constraint.refuses(token)


def straddling(texts: list[str]) -> list[str]:
    """Words that hold an end of one of `texts`, or all of it, and go on in many ways."""
    call = '\n{"name": "do-it", "arguments": '
    behind = ["", "\n", "{", '{"', "x", "\n\n<tool", "<think>", call + '{"', call + '{"y":"']
    behind += [f"<tool_call>{call}{{}}"]
    words = [
        lead + text[n:] + rest
        for text in texts
        for n, lead in enumerate(["", "", ".\n"])
        for rest in behind
    ]
    words += [text[-n:] + rest for text in texts for n in (1, 2, 5) for rest in behind]
    words += [text[:n] for text in texts for n in (1, 2, len(text) - 1)]
    return sorted({word for word in words if len(word) > 1})


@pytest.mark.parametrize("markers", [[], HERMES_MARKERS, [*HERMES_MARKERS, "<think>", "</think>"]])
@pytest.mark.parametrize(
    "request_",
    [
        ChatRequest(QUESTION, TOOLS),
        ChatRequest(QUESTION, TOOLS, tool_choice="required"),
        ChatRequest(QUESTION, response_format=ResponseFormat("json_schema", COUNT)),
    ],
    ids=["auto", "required", "schema"],
)
def test_tokens_that_hold_the_end_of_a_marker_and_more(
    request_: ChatRequest, markers: list[str]
) -> None:
    """Wherever the vocabulary cuts, what is read as a call or an answer by a schema is valid."""
    words = straddling(["<tool_call>", "<think>", "</think>"])
    vocabulary = ByteVocabulary(["<s>", "<|im_end|>", "<|im_start|>"], markers, words)
    d = Dialogue(CHATML, vocabulary)
    schema = request_.response_format.schema
    is_free = request_.tool_choice == "auto" and schema is None
    n_calls = 0
    for seed in range(40):
        script = ["<think>", "Hm. <tool" if is_free else ""][seed % 2]
        got = generate(
            d.prepare(1, request_), vocabulary, seed=seed, script=script, max_tokens=700, wordy=True
        )
        content, _, calls = fold(got.deltas)
        n_calls += len(arguments(calls))
        if schema is not None:
            jsonschema.validate(json.loads(content), schema)
        elif not is_free:
            assert calls
            assert not content
    assert n_calls or schema is not None


@pytest.mark.parametrize("said", ["get_weather is a tool.", "to=user? No.", "get", "{}", "x"])
@pytest.mark.parametrize("name", OPENINGS)
def test_auto_leaves_words_like_headers_alone(name: str, said: str) -> None:
    if name not in TEMPLATES:
        pytest.skip("no published templates beside the checkout")
    vocabulary = ByteVocabulary(["<s>", "</s>"], words=WORDS)
    constraint = (
        Dialogue(TEMPLATES[name], vocabulary).prepare(1, ChatRequest(QUESTION, TOOLS)).constraint
    )
    assert constraint is not None
    for token in vocabulary.tokenize(said, parse_special=True):
        constraint.accept(token)
        assert constraint.mask() is None


def test_json_that_names_no_tool_is_no_call() -> None:
    name = "meta-llama-Llama-3.1-8B-Instruct"
    if name not in TEMPLATES:
        pytest.skip("no published templates beside the checkout")
    vocabulary = ByteVocabulary(["<s>", "</s>"], words=WORDS)
    prepared = Dialogue(TEMPLATES[name], vocabulary).prepare(1, ChatRequest(QUESTION, TOOLS))
    assert prepared.constraint is not None
    for token in vocabulary.tokenize('{"name": "Bob", "age": 3}', parse_special=False):
        assert may_come(prepared.constraint, token)
        prepared.constraint.accept(token)
    assert any(may_come(prepared.constraint, token) for token in vocabulary.eog)


def test_auto_without_a_call_costs_no_masks() -> None:
    d, vocabulary = build()
    prepared = d.prepare(1, ChatRequest(QUESTION, TOOLS))
    said = "A plain answer, <tag> and all." * 10
    got = generate(
        prepared,
        vocabulary,
        script=said,
        max_tokens=len(vocabulary.tokenize(said, parse_special=True)),
    )
    assert got.n_masked == 0
    assert fold(got.deltas) == (said, "", [])


@pytest.mark.parametrize("name", TEMPLATES)
def test_auto_leaves_an_answer_without_calls_alone(name: str) -> None:
    markers = sorted(_markers(dialogue_of(name).syntax))
    vocabulary = ByteVocabulary(["<s>", "</s>", *markers], words=WORDS)
    d = Dialogue(TEMPLATES[name], vocabulary)
    answer = Message("assistant", "A plain answer: {}.", reasoning_content="A thought.")
    prompt = "".join(s.text for s in d.render(ChatRequest(QUESTION, TOOLS)))
    request = ChatRequest([*QUESTION, answer], TOOLS)
    whole = "".join(s.text for s in d.render(request, generate=False))
    said = whole[len(common_prefix(prompt, whole)) : whole.rindex("A plain answer") + 19]
    constraint = d.prepare(1, ChatRequest(QUESTION, TOOLS)).constraint
    for token in vocabulary.tokenize(said, parse_special=True) if constraint else []:
        constraint.accept(token)
        assert constraint.mask() is None


def test_free_text_beside_tools_waits_for_no_tables() -> None:
    d, vocabulary = build()
    request = ChatRequest(QUESTION, TOOLS)
    generate(d.prepare(1, request), vocabulary, script="Plain text. <tool", max_tokens=17)
    assert not vocabulary.n_listed
    got = generate(d.prepare(1, request), vocabulary, script="<tool_call>", max_tokens=900)
    assert vocabulary.n_listed
    assert arguments(fold(got.deltas)[2])


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"type": "object", "properties": {"a": {"type": "nonsense"}}}, "nonsense"),
        ({"type": "object", "properties": {"a": {"enum": []}}, "required": ["a"]}, "unsatisfiable"),
        ({"type": "string", "pattern": "(a"}, "not supported"),
    ],
)
def test_a_schema_is_refused_alike_with_tables_and_without(
    parameters: dict[str, Any], told: str, warm: bool
) -> None:
    d, vocabulary = build()
    if warm:
        d.warm()
    request = ChatRequest(QUESTION, [tool("f", parameters)])
    with pytest.raises(InvalidRequest, match=told):
        d.prepare(1, request)
    assert bool(vocabulary.n_listed) == warm


def test_what_looks_like_a_marker_in_a_schema_is_text() -> None:
    d, vocabulary = build(markers=HERMES_MARKERS)
    marker = vocabulary.tokenize("<tool_call>", parse_special=True)
    schema = {"type": "object", "properties": {"a": {"const": f"<{marker}>"}}, "required": ["a"]}
    request = ChatRequest(QUESTION, [tool("f", schema)])
    got = generate(d.prepare(1, request), vocabulary, script="<tool_call>", max_tokens=300)
    ((_, said),) = fold(got.deltas)[2]
    assert json.loads(said) == {"a": f"<{marker}>"}


def test_watching_free_text_is_cheap() -> None:
    d, vocabulary = build()
    constraint = d.prepare(1, ChatRequest(QUESTION, TOOLS)).constraint
    assert isinstance(constraint, Constraint)
    tokens = vocabulary.tokenize("Some plain text. " * 100, parse_special=False)
    begin = time.process_time()
    for token in tokens:
        constraint.accept(token)
        assert constraint.forced(10_000) == []
        assert constraint.mask() is None
    assert (time.process_time() - begin) / len(tokens) < 100e-6


def test_no_constraint_without_a_demand() -> None:
    d, _ = build()
    assert d.prepare(1, ChatRequest(QUESTION)).constraint is None
    assert d.prepare(1, ChatRequest(QUESTION, TOOLS, tool_choice="none")).constraint is None


def test_none_bans_the_marker_of_calls() -> None:
    d, vocabulary = build(markers=HERMES_MARKERS)
    prepared = d.prepare(1, ChatRequest(QUESTION, TOOLS, tool_choice="none"))
    assert [vocabulary.text(token) for token in prepared.banned] == ["<tool_call>"]


@pytest.mark.parametrize("name", ["openai-gpt-oss-120b", "Kimi-K3", "GigaChat3-10B-A1.8B"])
def test_none_bans_nothing_that_an_answer_needs(name: str) -> None:
    if name not in TEMPLATES:
        pytest.skip("no published templates beside the checkout")
    markers = sorted(_markers(dialogue_of(name).syntax))
    d = Dialogue(TEMPLATES[name], ByteVocabulary(["<s>", "</s>", *markers], words=WORDS))
    reasoning = d.syntax.reasoning
    needed = [d.syntax.content_open, d.syntax.content_close, d.syntax.switch]
    needed += [reasoning.open, reasoning.close] if reasoning else []
    for tools in ([], TOOLS):
        prepared = d.prepare(1, ChatRequest(QUESTION, tools, tool_choice="none"))
        banned = [d._vocabulary.text(token) for token in prepared.banned]
        assert not any(text in other for text in banned for other in needed)


def test_a_model_that_thinks_in_messages_may_think_before_its_json() -> None:
    name = "openai-gpt-oss-120b"
    if name not in TEMPLATES:
        pytest.skip("no published templates beside the checkout")
    markers = sorted(_markers(dialogue_of(name).syntax))
    vocabulary = ByteVocabulary(["<s>", "</s>", *markers], words=WORDS)
    d = Dialogue(TEMPLATES[name], vocabulary)
    wanted = ResponseFormat("json_schema", COUNT)
    thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    prepared = d.prepare(1, ChatRequest(QUESTION, response_format=wanted))
    got = generate(prepared, vocabulary, script=thought, max_tokens=300)
    content, reasoning, _ = fold(got.deltas)
    assert reasoning == "Hm."
    jsonschema.validate(json.loads(content), COUNT)
    prepared = d.prepare(1, ChatRequest(QUESTION, TOOLS, tool_choice="required"))
    got = generate(prepared, vocabulary, script=thought, max_tokens=900)
    assert arguments(fold(got.deltas)[2])


def test_an_effort_turns_thoughts_on_where_templates_have_a_switch() -> None:
    switch = CHATML.replace("enable_thinking is defined and not", "not")
    d, _ = build(switch)
    efforts = {"max": True, "high": True, "low": True, "minimal": False, None: False}
    for effort, thinks in efforts.items():
        kwargs = {"reasoning_effort": effort} if effort else {}
        prompt = "".join(s.text for s in d.render(ChatRequest(QUESTION, template_kwargs=kwargs)))
        assert ("</think>" not in prompt) == thinks
    off = ChatRequest(
        QUESTION, template_kwargs={"reasoning_effort": "high", "enable_thinking": False}
    )
    assert "</think>" in "".join(s.text for s in d.render(off))


CALL = '<tool_call>\n{"name": "do-it", "arguments": {"x": 5}}\n</tool_call>'


@pytest.mark.parametrize("behind", ["", "\n", " \n\n"])
def test_blanks_behind_a_call_promise_no_other(behind: str) -> None:
    d, vocabulary = build(markers=HERMES_MARKERS)
    constraint = d.prepare(1, ChatRequest(QUESTION, TOOLS)).constraint
    assert constraint is not None
    for token in vocabulary.tokenize(CALL + behind, parse_special=True):
        assert not constraint.refuses(token)
        mask = constraint.mask()
        assert mask is None or allows(mask, token)
        constraint.accept(token)
    mask = constraint.mask()
    assert mask is not None
    assert any(allows(mask, token) for token in vocabulary.eog)
    assert allows(mask, vocabulary.tokenize("\n", parse_special=False)[0])


def test_an_answer_that_was_cut_says_so() -> None:
    d, vocabulary = build()
    wanted = ResponseFormat("json_schema", {"type": "array", "items": {"const": 7}})
    for max_tokens, cut in ((200, False), (80, True)):
        constraint = d.prepare(1, ChatRequest(QUESTION, response_format=wanted)).constraint
        assert constraint is not None
        text, said = "[" + ",".join("7" * 60) + "]", ""
        while not constraint.finished and said != text:
            forced = constraint.forced(max_tokens - len(said))
            for token in forced or vocabulary.tokenize(text[len(said)], parse_special=False):
                constraint.accept(token)
                said += vocabulary.text(token)
        assert constraint.cut == cut
        assert len(json.loads(said)) == 60 or cut


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1},
        "node": {"$ref": "#/$defs/node"},
    },
    "required": ["name", "tags", "node"],
    "additionalProperties": False,
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["next"],
            "additionalProperties": False,
        }
    },
}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("tools", [[], TOOLS])
def test_an_answer_by_schema(tools: list[dict[str, Any]], seed: int) -> None:
    wanted = ResponseFormat("json_schema", SCHEMA)
    got = answer(ChatRequest(QUESTION, tools, response_format=wanted), seed=seed, max_tokens=900)
    content, _, calls = fold(got.deltas)
    assert got.ended
    if calls:
        assert tools
        assert arguments(calls)
    else:
        jsonschema.validate(json.loads(content), SCHEMA)
        assert json.dumps(json.loads(content), separators=(",", ":"), ensure_ascii=False) == content


@pytest.mark.parametrize("thought", ["", "<think>\nHm.\n</think>\n\n"])
@pytest.mark.parametrize("markers", [[], HERMES_MARKERS, [*HERMES_MARKERS, "<think>", "</think>"]])
def test_what_begins_as_a_call_is_one_before_its_name_comes(
    markers: list[str], thought: str
) -> None:
    """Stop strings end no call, and a header has newlines and quotes in it."""
    said = {
        '<tool_call>\n{"name": "do-it", "arguments": {"x": 1}}\n</tool_call>': True,
        '{"name":"xy","tags":["a"],"node":{"next":null}}': False,
    }
    d, vocabulary = build(markers=markers)
    wanted = ResponseFormat("json_schema", SCHEMA)
    for text, is_call in said.items():
        constraint = d.prepare(1, ChatRequest(QUESTION, TOOLS, response_format=wanted)).constraint
        assert constraint is not None
        for token in vocabulary.tokenize(thought, parse_special=True):
            constraint.accept(token)
        assert not constraint.calling
        for token in vocabulary.tokenize(text, parse_special=True):
            constraint.accept(token)
            assert constraint.finished or constraint.calling == is_call


def test_a_json_object() -> None:
    for seed in range(4):
        wanted = ResponseFormat("json_object")
        got = answer(ChatRequest(QUESTION, response_format=wanted), seed=seed, max_tokens=400)
        assert isinstance(json.loads(fold(got.deltas)[0]), dict)


@pytest.mark.parametrize("markers", [[], ["<think>", "</think>"]])
def test_thoughts_are_free_and_the_answer_is_not(markers: list[str]) -> None:
    wanted = ResponseFormat("json_schema", SCHEMA)
    request = ChatRequest(QUESTION, response_format=wanted)
    got = answer(request, markers=markers, script="<think>\nHm, {\n</think>", max_tokens=600)
    content, reasoning, _ = fold(got.deltas)
    assert reasoning == "Hm, {"
    jsonschema.validate(json.loads(content), SCHEMA)


@pytest.mark.parametrize("seed", range(3))
def test_an_endless_thought_leaves_room_for_the_answer(seed: int) -> None:
    request = ChatRequest(QUESTION, TOOLS, tool_choice="required")
    got = answer(request, script="<think>\n" + "x" * 2000, max_tokens=700, seed=seed)
    _, reasoning, calls = fold(got.deltas)
    assert reasoning.startswith("xxx")
    assert arguments(calls)


def test_a_budget_ends_a_thought() -> None:
    got = answer(
        ChatRequest(QUESTION, reasoning_budget=20), script="<think>\n" + "x" * 200, max_tokens=60
    )
    content, reasoning, _ = fold(got.deltas)
    assert reasoning.strip("x") == ""
    assert 10 <= len(reasoning) <= 20
    assert content.startswith("x")


def test_a_closed_thought_is_not_opened_again() -> None:
    request = ChatRequest(
        QUESTION, TOOLS, tool_choice="required", template_kwargs={"enable_thinking": False}
    )
    got = answer(request, max_tokens=900)
    assert got.text.startswith("<tool_call>")


def test_no_budget_at_all_is_told_to_the_template() -> None:
    d, _ = build()
    segments = d.render(ChatRequest(QUESTION, reasoning_budget=0))
    assert "".join(s.text for s in segments).endswith("<think>\n\n</think>\n\n")
    asked = ChatRequest(QUESTION, reasoning_budget=0, template_kwargs={"enable_thinking": True})
    assert "<think>" not in "".join(s.text for s in d.render(asked))


def test_forced_text_is_not_sampled() -> None:
    got = answer(ChatRequest(QUESTION, TOOLS, tool_name="do-it", parallel_tool_calls=False))
    assert len(got.tokens) > got.n_sampled + 40


BAD_SCHEMAS: list[Any] = [
    {"$ref": "http://localhost/schema.json"},
    {"$ref": "file:///etc/passwd"},
    {"$ref": "#"},
    {"type": "string", "pattern": "(?=a)b"},
    {"type": "string", "pattern": "foo**("},
    {"type": "nothing"},
    {"type": "object", "properties": {"x": False}, "required": ["x"]},
    {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(5000)}},
    {"type": "string", "description": "x" * 600_000},
    {"type": "integer", "multipleOf": 1_000_003},
    {"type": "object", "properties": {"x": {"type": "number", "multipleOf": 1.000003}}},
]


@pytest.mark.parametrize("schema", BAD_SCHEMAS, ids=range(len(BAD_SCHEMAS)))
def test_a_schema_that_cannot_be_forced_is_refused(schema: Any) -> None:
    d, _ = build()
    wanted = ResponseFormat("json_schema", schema, param="response_format.json_schema.schema")
    with pytest.raises(InvalidRequest) as caught:
        d.prepare(1, ChatRequest(QUESTION, response_format=wanted))
    info = caught.value.info
    assert info.code == "invalid_json_schema"
    assert info.param == "response_format.json_schema.schema"


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems cannot be enforced"),
        ({"type": "string", "pattern": r"^(?!\.)(?!.*\.\.)[a-z.]+$"}, "pattern cannot be enforced"),
        ({"type": "string", "pattern": r"\bfoo\b"}, "pattern cannot be enforced"),
        ({"patternProperties": {"(?=a)": {}}}, "patternProperties cannot be enforced"),
        ({"type": "string", "format": "color"}, "format cannot be enforced"),
        ({"type": "integer", "multipleOf": 20_001}, "digits are more than 20000"),
        ({"type": "integer", "multipleOf": 2_000_000_000}, "multipleOf is more than 400000000"),
        ({"type": "object", "minProperties": 2}, "minProperties cannot be enforced"),
        ({"properties": {"a": {}}, "maxProperties": 1}, "maxProperties cannot be enforced"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "two of its options"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_its_name_or_ignored(
    schema: dict[str, Any], said: str
) -> None:
    parameters = {"type": "object", "properties": {"x": schema}}
    d, _ = build()
    d.prepare(1, ChatRequest(QUESTION, [tool("a", parameters)]))
    strict = tool("a", parameters)
    strict["function"]["strict"] = True
    with pytest.raises(InvalidRequest, match=said):
        d.prepare(1, ChatRequest(QUESTION, [strict]))


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "string", "minLength": -1}, "Expected positive integer for 'minLength', got -1"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "minimum (5) is greater than maximum"),
        ({"type": "object", "required": "a"}, "Expected array for 'required'"),
        ({"enum": []}, "Unsatisfiable schema"),
        ({"type": "integer", "multipleOf": 20_011}, "more than 20000"),
        ({"allOf": [{"multipleOf": 2000}, {"multipleOf": 19_997}]}, "The common multiple of"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "Only values without end"),
    ],
)
def test_a_refused_schema_is_told_what_is_wrong_with_it(schema: Any, said: str) -> None:
    d, _ = build()
    with pytest.raises(InvalidRequest) as caught:
        d.prepare(1, ChatRequest(QUESTION, response_format=ResponseFormat("json_schema", schema)))
    message = caught.value.info.message
    assert said in message
    assert "oneOf" not in message
    assert "at 2(" not in message


def test_options_that_exclude_each_other_are_enforced() -> None:
    def option(kind: str) -> dict[str, Any]:
        properties = {"kind": {"const": kind}, kind: {"type": "integer"}}
        return {"type": "object", "properties": properties, "required": ["kind"]}

    schema = {"oneOf": [option("a"), option("b"), {"type": "null"}]}
    for seed in range(4):
        wanted = ResponseFormat("json_schema", schema)
        got = answer(ChatRequest(QUESTION, response_format=wanted), seed=seed)
        jsonschema.validate(json.loads(fold(got.deltas)[0]), schema)


BOMBS: list[Any] = [
    {"type": "string", "pattern": "^(a{600}){600}$"},
    {"type": "string", "pattern": "(a*)*b"},
    {"type": "string", "pattern": "(" * 5000 + ")" * 5000},
    {"enum": [f"value {i}" for i in range(20_000)]},
    {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(900)}},
    {"type": "array", "minItems": 10**6, "items": {"type": "array", "minItems": 10**6}},
    {"type": "string", "maxLength": 10**9},
    {
        "allOf": [
            {"anyOf": [{"type": "object", "required": [f"a{i}{j}"]} for j in range(6)]}
            for i in range(8)
        ]
    },
    {"type": "number", "minimum": -1e300, "multipleOf": 7919},
    {"type": "integer", "multipleOf": 19_997},
    {"type": "integer", "multipleOf": 10_000_000},
    {"type": "number", "multipleOf": 0.1},
]


@pytest.mark.parametrize("schema", BOMBS, ids=range(len(BOMBS)))
def test_a_schema_bomb_works_or_is_refused_soon(schema: Any) -> None:
    d, _ = build()
    begin = time.process_time()
    try:
        d.prepare(1, ChatRequest(QUESTION, response_format=ResponseFormat("json_schema", schema)))
    except InvalidRequest as error:
        assert error.info.code == "invalid_json_schema"
    assert time.process_time() - begin < 2


@pytest.mark.parametrize("multiple", [0.1, 0.01, 1e-3, 250, 1_000_000, 60_000])
def test_common_multiples_are_kept(multiple: float) -> None:
    d, _ = build()
    wanted = ResponseFormat("json_schema", {"type": "number", "multipleOf": multiple})
    d.prepare(1, ChatRequest(QUESTION, response_format=wanted))


def test_many_slow_schemas_are_refused_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_server.chat.plan.COMPILE_SECONDS", 0)
    d, _ = build()
    with pytest.raises(InvalidRequest) as caught:
        d.prepare(1, ChatRequest(QUESTION, [tool("a", COUNT), tool("b", COUNT)]))
    info = caught.value.info
    assert (info.code, info.param) == ("invalid_json_schema", "tools[0].function.parameters")


def test_a_grammar_that_runs_out_in_the_middle_is_an_error_of_its_own() -> None:
    d, vocabulary = build()
    schema = {"type": "string", "pattern": "^([a-z]{1,300},?){300}$"}
    request = ChatRequest(QUESTION, response_format=ResponseFormat("json_schema", schema))
    prepared = d.prepare(1, request)
    with pytest.raises(GrammarTooComplex):
        generate(prepared, vocabulary)


def test_a_bad_tool_is_named() -> None:
    d, _ = build()
    bad = tool("bad", {"type": "object", "properties": {"x": {"$ref": "http://localhost/"}}})
    with pytest.raises(InvalidRequest) as caught:
        d.prepare(1, ChatRequest(QUESTION, [*TOOLS, bad]))
    assert caught.value.info.param == "tools[2].function.parameters"


def test_a_pattern_that_does_not_parse_is_told_with_its_error() -> None:
    d, _ = build()
    for pattern, error in (("a(b", "unclosed group"), ("*", "missing expression")):
        schema = {"type": "object", "properties": {"x": {"type": "string", "pattern": pattern}}}
        wanted = ResponseFormat("json_schema", schema)
        for request in (
            ChatRequest(QUESTION, response_format=wanted),
            ChatRequest(QUESTION, [tool("bad", schema)], tool_choice="required"),
        ):
            with pytest.raises(InvalidRequest) as caught:
                d.prepare(1, request)
            assert f"`{pattern}` has an error: " in str(caught.value) and error in str(caught.value)


def test_choices_that_no_tool_satisfies_are_refused() -> None:
    d, _ = build()
    for request in (
        ChatRequest(QUESTION, TOOLS, tool_name="other"),
        ChatRequest(QUESTION, tool_choice="required"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            d.prepare(1, request)
        assert (caught.value.info.param, caught.value.info.code) == ("tool_choice", "invalid_value")


def test_grammars_are_kept_within_their_budget() -> None:
    d, _ = build()
    for i in range(60):
        schema = {"const": i, "description": "x" * 100_000}
        wanted = ResponseFormat("json_schema", schema)
        d.prepare(1, ChatRequest(QUESTION, response_format=wanted))
    grammars = d._planner.grammars
    assert sum(map(len, grammars._compiled)) <= 4 * 1024 * 1024
    assert len(grammars._compiled) >= 10


def test_where_one_marker_begins_another_the_longer_one_is_meant() -> None:
    markers = ["<s>", "</s>", "[CALL]", "[CALL][ID]"]
    vocabulary = ByteVocabulary(markers)
    short, long = 258, 259
    for order in (markers, markers[::-1]):
        tokens = Grammars(vocabulary, order).tokens("a[CALL]b[CALL][ID]")
        assert tokens == [ord("a"), short, ord("b"), long]


def test_boundaries_follow_the_head_and_the_turns() -> None:
    d, _ = build()
    messages = [
        Message("system", "Be brief."),
        Message("user", "One"),
        Message("assistant", "1"),
        Message("user", "Two"),
    ]
    request = ChatRequest(messages)
    text = "".join(s.text for s in d.render(request))
    ends = [text[:at] for at in d.boundaries(request)]
    assert ends[0].endswith("<|im_start|>user\n")
    assert ends[1].endswith("One<|im_end|>\n")
    assert ends[-1].endswith("Two<|im_end|>\n")


def test_a_prompt_that_is_to_be_stored_has_a_boundary_behind_its_last_turn() -> None:
    d, _ = build()
    request = ChatRequest([Message("user", "One"), Message("assistant", "1")], persist=True)
    text = "".join(s.text for s in d.render(request))
    assert text[: d.boundaries(request)[-1]].endswith("1<|im_end|>\n")
