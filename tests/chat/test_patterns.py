"""Patterns as they are searched for, and schemas of raw texts, by random weights."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest

from llm_server.chat.dialogue import Dialogue
from llm_server.chat.syntax.formats import FORMATS
from llm_server.chat.syntax.patterns import search_regex
from llm_server.errors import InvalidRequest
from llm_server.worker.messages import ChatRequest, Message
from tests.chat.generation import generate
from tests.chat.published import TEMPLATES, dialogue_of
from tests.chat.test_constraint import WORDS
from tests.chat.test_shapes import FRAME, SHAPES
from tests.chat.test_syntax import fold, tool
from tests.chat.vocabulary import ByteVocabulary
from tests.sampling import rotated

FORMAT_CHECKER = jsonschema.Draft202012Validator.FORMAT_CHECKER
TEXTS = [
    "",
    "a",
    "b",
    "ab",
    "ba",
    "a1",
    "x/y",
    "xa.b",
    "a\nb",
    "é٣",
    "2024-01-31",
    "[&",
    "^a",
    "a$",
]


@pytest.mark.parametrize(
    "pattern",
    ["a", "^a", "a$", "^a$", "^a|b$", "^(?:a|b)+$", "^[^a]*$", r"\d", r"^\w+$", "x/y", r"x\/y"]
    + ["a.b", r"^\d{4}-\d{2}-\d{2}$", r"[\[&]", r"\^a", r"a\$$", "", "^$", r"[\d.]", "(?<n>b)$"],
)
def test_a_pattern_finds_the_same_texts(pattern: str) -> None:
    ours = re.compile(
        search_regex(pattern, "tools")
        .replace(r"\x{2028}\x{2029}", r"\u2028\u2029")
        .replace("(?<n", "(?P<n")
    )
    theirs = re.compile(pattern.replace("(?<n", "(?P<n"), re.ASCII)
    for text in TEXTS:
        assert bool(ours.fullmatch(text)) == bool(theirs.search(text)), text


@pytest.mark.parametrize(
    "pattern",
    [r"(a)\1", "(?=a)b", "(?<!a)b", r"\bfoo", "(^a|b$)", "a^b", "a$b", "[a", "(?i)a", "\\"],
)
def test_what_cannot_be_said_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        search_regex(pattern, "tools")
    assert caught.value.info.code == "invalid_json_schema"


RAW: list[dict[str, Any]] = [
    {"type": "string", "pattern": "^a|b$", "maxLength": 12},
    {"type": "string", "pattern": "[0-9]{3}", "minLength": 6, "maxLength": 9},
    {"type": "string", "pattern": "^</?[a-z]+>$"},
    {"anyOf": [{"enum": ["red", "blue"]}, {"type": "null"}]},
    {"anyOf": [{"type": "string", "pattern": "^x+$"}, {"type": "integer", "minimum": 5}]},
    {"oneOf": [{"$ref": "#/$defs/colour"}, {"type": "boolean"}]},
    {"allOf": [{"$ref": "#/$defs/colour"}], "description": "A colour."},
    {"enum": ["1", 2, "x", None]},
    {"type": ["string", "null"], "maxLength": 3},
    {"type": ["integer", "null"]},
    {"allOf": [{"type": "string", "minLength": 4}, {"maxLength": 6, "pattern": "^a"}]},
    {"allOf": [{"type": "string", "pattern": "^a"}, {"pattern": "z$"}], "maxLength": 9},
    {"allOf": [{"enum": ["a", "bb", "c"]}, {"enum": ["bb", "c", "d"]}, {"minLength": 2}]},
    {
        "allOf": [
            {"anyOf": [{"type": "string", "pattern": "^x"}, {"type": "integer"}]},
            {"oneOf": [{"type": "string", "pattern": "y$"}, {"type": "null"}]},
        ],
        "maxLength": 8,
    },
    {"type": "string", "minLength": 3, "anyOf": [{"minLength": 2, "maxLength": 5}]},
    {"$ref": "#/$defs/colour", "maxLength": 3},
    {"allOf": [{"type": "number", "minimum": 3}, {"maximum": 9}]},
    *({"type": "string", "format": name} for name in FORMATS),
]


@pytest.mark.parametrize(
    ("schema", "name"),
    rotated(RAW, ["tagged parameters", "names as closing tags", "a Python call"]),
)
def test_raw_values_validate(schema: dict[str, Any], name: str) -> None:
    whole = {
        "type": "object",
        "properties": {"p": schema, "q": {"type": "string"}},
        "required": ["p", "q"],
        "additionalProperties": False,
        "$defs": {"colour": {"type": "string", "enum": ["red", "blue"]}},
    }
    vocabulary = ByteVocabulary(["<s>", "<%end%>", "<%user%>", "<%assistant%>"], words=WORDS)
    check(Dialogue(FRAME % SHAPES[name], vocabulary), vocabulary, whole)


VALUES: list[dict[str, Any]] = [
    {"type": "integer", "minimum": 1, "maximum": 5},
    {"enum": [1, 2, 3]},
    {"const": 7},
    {"const": True},
    {"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 2},
    {"type": ["integer", "boolean"]},
    {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
    {"type": "array", "items": {"type": "string", "maxLength": 2}, "maxItems": 2},
    {"type": "array", "items": {"anyOf": [{"const": 1}, {"enum": ["a", "b"]}]}, "minItems": 1},
    {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 1, "maximum": 3}, "b": {"const": "q"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"$ref": "#/properties/q"}, "maxItems": 2},
    {"$ref": "#/$defs/tree"},
    {"const": {"a": 1, "b": ["x", 2, []]}},
    {"enum": [{"a": "x"}, [1, "y"], [], 3]},
    {"const": {}},
    {"type": "array", "items": {"type": "integer"}, "maxItems": 1},
    {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 1},
    {"type": "array", "items": {"type": "integer"}, "maxItems": 0},
]
NESTED = ["google-gemma-4-31B-it-interleaved", "MiniMax-M3", "Qwen3-Coder"]


@pytest.mark.parametrize(("schema", "name"), rotated(VALUES, NESTED))
def test_what_a_strict_tool_says_of_values_holds(schema: dict[str, Any], name: str) -> None:
    if name not in TEMPLATES:
        pytest.skip("no published templates beside the checkout")
    kids = {"type": "array", "items": {"$ref": "#/$defs/tree"}}
    branch = {"v": {"type": "integer"}, "kids": kids}
    whole = {
        "type": "object",
        "properties": {"p": schema, "q": {"type": "string", "maxLength": 4}},
        "required": ["p"],
        "additionalProperties": False,
        "$defs": {"tree": {"type": "object", "properties": branch, "required": ["v"]}},
    }
    dialogue = dialogue_of(name)
    check(dialogue, dialogue._vocabulary, whole, strict=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("others", [{"type": "integer"}, {"type": "string", "enum": ["a", "b"]}])
@pytest.mark.parametrize("name", NESTED)
def test_parameters_of_any_name_are_of_the_schema_for_them(
    name: str, others: dict[str, Any]
) -> None:
    if name not in TEMPLATES:
        pytest.skip("no published templates beside the checkout")
    dialogue = dialogue_of(name)
    schema = {"type": "object", "additionalProperties": others}
    check(dialogue, dialogue._vocabulary, schema, strict=True)  # type: ignore[arg-type]


def check(
    dialogue: Dialogue, vocabulary: ByteVocabulary, schema: dict[str, Any], *, strict: bool = False
) -> None:
    wanted = tool("do-it", schema)
    wanted["function"]["strict"] = strict
    request = ChatRequest([Message("user", "?")], [wanted], tool_choice="required")
    for seed in range(3):
        got = generate(dialogue.prepare(1, request), vocabulary, max_tokens=700, seed=seed)
        calls = fold(got.deltas)[2]
        assert calls
        for _, arguments in calls:
            jsonschema.validate(json.loads(arguments), schema, format_checker=FORMAT_CHECKER)


@pytest.mark.parametrize(
    ("schema", "said", "value"),
    [
        ({"type": "object"}, '{theme:<|"|>dark<|"|>,n:3}', {"theme": "dark", "n": 3}),
        (
            {"type": "object", "additionalProperties": {"type": "integer"}},
            "{a:1,b:2}",
            {"a": 1, "b": 2},
        ),
        ({"type": "array", "items": {"type": "object"}}, "[{a:1}]", [{"a": 1}]),
        ({"type": "object", "additionalProperties": False}, "{}", {}),
    ],
)
def test_objects_of_any_members_in_a_dialect(schema: Any, said: str, value: Any) -> None:
    name = "google-gemma-4-31B-it-interleaved"
    if name not in TEMPLATES:
        pytest.skip("no published templates beside the checkout")
    dialogue = dialogue_of(name)
    wanted = tool("do-it", {"type": "object", "properties": {"p": schema}, "required": ["p"]})
    request = ChatRequest([Message("user", "?")], [wanted])
    script = "<|tool_call>call:do-it{p:" + said + "}<tool_call|>"
    vocabulary = dialogue._vocabulary
    got = generate(dialogue.prepare(1, request), vocabulary, script=script, max_tokens=400)  # type: ignore[arg-type]
    assert json.loads(fold(got.deltas)[2][0][1]) == {"p": value}


def test_parameters_come_in_the_order_that_a_template_shows() -> None:
    name = "google-gemma-4-31B-it-interleaved"
    if name not in TEMPLATES:
        pytest.skip("no published templates beside the checkout")
    dialogue = dialogue_of(name)
    text = {"type": "string"}
    place = {"type": "object", "properties": {"b": text, "a": text}}
    properties = {"unit": text, "City": text, "at": place}
    wanted = tool("do-it", {"type": "object", "properties": properties, "required": ["City"]})
    said = '{at:{a:<|"|>x<|"|>,b:<|"|>y<|"|>},City:<|"|>Rome<|"|>,unit:<|"|>c<|"|>}'
    got = generate(
        dialogue.prepare(1, ChatRequest([Message("user", "?")], [wanted])),
        dialogue._vocabulary,  # type: ignore[arg-type]
        script=f"<|tool_call>call:do-it{said}<tool_call|>",
        max_tokens=400,
    )
    called = json.loads(fold(got.deltas)[2][0][1])
    assert called == {"at": {"a": "x", "b": "y"}, "City": "Rome", "unit": "c"}


@pytest.mark.parametrize("name", ["google-gemma-4-31B-it-interleaved", "MiniMax-M3"])
def test_a_strict_tool_that_a_dialect_cannot_obey_is_refused(name: str) -> None:
    if name not in TEMPLATES:
        pytest.skip("no published templates beside the checkout")
    dialogue = dialogue_of(name)
    pair = {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]}
    asked = tool("pair", {"type": "object", "properties": {"p": pair}})
    dialogue.prepare(1, ChatRequest([Message("user", "?")], [asked]))
    asked["function"]["strict"] = True
    with pytest.raises(InvalidRequest, match="prefixItems"):
        dialogue.prepare(1, ChatRequest([Message("user", "?")], [asked]))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^a(^b|c)$"},
        {"allOf": [{"anyOf": [{"minLength": i} for i in range(9)]} for _ in range(3)]},
    ],
)
def test_a_tool_that_raw_texts_cannot_obey_is_named(schema: dict[str, Any]) -> None:
    vocabulary = ByteVocabulary(["<s>", "<%end%>", "<%user%>", "<%assistant%>"], words=WORDS)
    d = Dialogue(FRAME % SHAPES["tagged parameters"], vocabulary)
    tools = [tool("fine"), tool("bad", {"type": "object", "properties": {"p": schema}})]
    with pytest.raises(InvalidRequest) as caught:
        d.prepare(1, ChatRequest([Message("user", "?")], tools))
    assert caught.value.info.code == "invalid_json_schema"
    assert caught.value.info.param == "tools[1].function.parameters"


TRUE_FORMATS = {
    "date": ["2024-02-29", "2023-12-31", "2000-02-29"],
    "time": ["23:59:59Z", "00:00:00.5+01:00"],
    "date-time": ["2024-02-29T01:02:03Z"],
    "duration": ["P1Y2M3D", "P3W", "PT5M", "P1DT2H", "PT1H2M3S"],
    "email": ["a.b+c@d-e.org", "x@y"],
    "hostname": ["localhost", "a-1.b.example.com"],
    "ipv4": ["127.0.0.1", "255.255.255.255"],
    "ipv6": ["::", "::1", "fe80::1:2", "1:2:3:4:5:6:7:8", "1::", "1:2:3:4:5:6::8"],
    "uuid": ["123e4567-e89b-12d3-a456-426614174000"],
    "uri": ["http://localhost:8080/a/b?c=d#e", "mailto:a@b.c", "urn:isbn:0451450523"],
}
FALSE_FORMATS = {
    "date": ["2023-02-29", "2024-04-31", "1900-02-29", "2024-13-01", "24-01-01"],
    "time": ["24:00:00Z", "12:00", "12:00:00"],
    "date-time": ["2024-01-01 00:00:00Z", "2024-01-01"],
    "duration": ["P", "PT", "P1H", "1D"],
    "email": ["a@", "@b", "a..b@c"],
    "hostname": ["-a", "a-", "a..b", ""],
    "ipv4": ["256.1.1.1", "1.2.3", "01.2.3.4"],
    "ipv6": ["1:2", ":::", "1::2::3", "1:2:3:4:5:6:7::8:9", "12345::"],
    "uuid": ["123e4567e89b12d3a456426614174000"],
    "uri": ["no scheme", "//host", "http://a b"],
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name: str) -> None:
    for text in TRUE_FORMATS[name]:
        assert re.fullmatch(FORMATS[name], text), text
    for text in FALSE_FORMATS[name]:
        assert not re.fullmatch(FORMATS[name], text), text


NULLS = """{{ bos_token }}{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}
{%- for m in messages %}<%{{ m.role }}%>{{ m.content or '' }}
{%- for c in m.tool_calls or [] %}<call to="{{ c.function.name }}">
{%- for k, v in c.function.arguments.items() if v is not none %}
<arg name="{{ k }}">{{ v if v is string else v | tojson }}</arg>{% endfor %}
</call>{% endfor %}<%end%>{% endfor %}{% if add_generation_prompt %}<%assistant%>{% endif %}"""


@pytest.mark.parametrize("name", ["ours", "MiniMax-M3"])
def test_a_null_that_is_not_written_is_a_parameter_left_out(name: str) -> None:
    if name != "ours" and name not in TEMPLATES:
        pytest.skip("no published templates beside the checkout")
    source = NULLS if name == "ours" else TEMPLATES[name]
    vocabulary = ByteVocabulary(["<s>", "<%end%>", "<%user%>", "<%assistant%>"], words=WORDS)
    d = Dialogue(source, vocabulary)
    schema = {
        "type": "object",
        "properties": {
            "n": {"type": "null"},
            "m": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "o": {"type": "null"},
            "s": {"type": "string"},
        },
        "required": ["n", "m", "s"],
        "additionalProperties": False,
    }
    check(d, vocabulary, schema)
    request = ChatRequest([Message("user", "?")], [tool("do-it", schema)])
    begin, end = d.syntax.calls.begin, d.syntax.calls.end
    written = "".join(part if isinstance(part, str) else "do-it" for part in (*begin, *end))
    parser = d.prepare(1, request).parser
    calls = fold([*parser.feed(written), *parser.close()])[2]
    assert [(name, json.loads(text)) for name, text in calls] == [("do-it", {"n": None, "m": None})]
