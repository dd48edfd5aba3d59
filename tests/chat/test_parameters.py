"""The schemas of tools in dialects of parameters: what cannot be told or kept to is refused."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from llm_server.chat.dialogue import Dialogue
from llm_server.errors import InvalidRequest
from llm_server.worker.messages import ChatRequest, Message
from tests.chat.generation import generate
from tests.chat.published import TEMPLATES
from tests.chat.test_dialects import GEMMA, KIMI_K3, LFM, NEMOTRON, QWEN
from tests.chat.test_syntax import fold
from tests.chat.vocabulary import ByteVocabulary

NAMES = ["@type", "created[gte]", "ids[]", "user.name", "a/b", "first name", "f(x)", "it's", "ключ"]
UNSPEAKABLE = [
    (QWEN, "a>b"),
    (NEMOTRON, ""),
    ("GLM-4.6", "a<b"),
    ("inclusionai-ling-3.0-flash", "a\nb"),
    (GEMMA, "xml:lang"),
    (LFM, "a=b"),
    (KIMI_K3, 'say "q"'),
    ("openbmb-MiniCPM5-1B", 'say "q"'),
    ("muse-glimmer", 'say "q"'),
    ("deepseek-ai-DeepSeek-V4", " a"),
    ("MiniMax-M3", "a>b"),
]


def strict(schema: dict[str, Any]) -> list[dict[str, Any]]:
    function = {"name": "do-it", "parameters": schema, "strict": True}
    return [{"type": "function", "function": function}]


def named(name: str, *, inside: bool = False, required: bool = True) -> list[dict[str, Any]]:
    """A strict tool with a parameter, or a member of one, between two others."""
    properties = {"y": {"type": "string"}, name: {"type": "integer"}, "z": {"type": "string"}}
    schema = {
        "type": "object",
        "properties": properties,
        "required": [*properties] if required else ["y", "z"],
        "additionalProperties": False,
    }
    if inside:
        schema = {"type": "object", "properties": {"o": schema}, "required": ["o"]}
    return strict(schema)


def arguments_for(dialect: str, tools: list[dict[str, Any]], seed: int = 1) -> Any:
    """The arguments of a call that random weights write."""
    if dialect not in TEMPLATES:
        pytest.skip("no published templates beside the checkout")
    vocabulary = ByteVocabulary(["<s>", "</s>"])
    d = Dialogue(TEMPLATES[dialect], vocabulary)
    request = ChatRequest([Message("user", "?")], tools, tool_name="do-it", reasoning_budget=0)
    got = generate(d.prepare(1, request), vocabulary, max_tokens=2000, seed=seed)
    assert got.ended
    [(_, arguments)] = fold(got.deltas)[2][:1]
    return json.loads(arguments)


@pytest.mark.parametrize("dialect", dict.fromkeys(name for name, _ in UNSPEAKABLE))
@pytest.mark.parametrize("inside", [False, True])
def test_names_of_parameters_come_back(dialect: str, inside: bool) -> None:
    for name in NAMES:
        got = arguments_for(dialect, named(name, inside=inside))
        got = got["o"] if inside else got
        assert got.keys() == {"y", name, "z"}
        assert isinstance(got[name], int)


@pytest.mark.parametrize(("dialect", "name"), UNSPEAKABLE)
def test_a_name_that_would_be_misread_is_refused_or_left_out(dialect: str, name: str) -> None:
    with pytest.raises(InvalidRequest, match="parameter named") as refused:
        arguments_for(dialect, named(name))
    info = refused.value.info
    assert (info.param, info.code) == ("tools[0].function.parameters", "invalid_json_schema")
    assert arguments_for(dialect, named(name, required=False)).keys() == {"y", "z"}


@pytest.mark.parametrize(
    ("dialect", "name"), [(GEMMA, "xml:lang"), (GEMMA, "a]b"), ("MiniMax-M3", "a>b")]
)
def test_so_are_names_inside_an_object(dialect: str, name: str) -> None:
    with pytest.raises(InvalidRequest, match="parameter named"):
        arguments_for(dialect, named(name, inside=True))
    written = arguments_for(dialect, named(name, inside=True, required=False))
    assert written["o"].keys() == {"y", "z"}


def closed(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


INTEGER = {"type": "integer"}
PARTS = {
    "allOf": [
        {"properties": {"q": INTEGER}, "required": ["q"]},
        {"properties": {"r": {"type": "boolean"}}, "required": ["r"]},
    ]
}
ROOTS: dict[str, dict[str, Any]] = {
    "a reference": {"$ref": "#/$defs/X", "$defs": {"X": closed(q=INTEGER)}},
    "parts": PARTS,
    "parts of a member": closed(o=PARTS),
    "alternatives": {"anyOf": [closed(q=INTEGER), closed(s={"const": "x"}, q=INTEGER)]},
    "either name": {
        "properties": {"q": INTEGER, "s": {"type": "boolean"}},
        "anyOf": [{"required": ["q"]}, {"required": ["s"]}],
    },
    "another name": {
        "properties": {"a": {"type": "boolean"}},
        "required": ["q"],
        "additionalProperties": INTEGER,
    },
}


@pytest.mark.parametrize("dialect", [QWEN, LFM, GEMMA, "MiniMax-M3"])
@pytest.mark.parametrize("root", ROOTS)
def test_a_root_that_does_not_list_its_properties_holds_too(dialect: str, root: str) -> None:
    schema = {"type": "object", **ROOTS[root]}
    for seed in range(3):
        jsonschema.validate(arguments_for(dialect, strict(schema), seed), schema)


@pytest.mark.parametrize("dialect", [QWEN, GEMMA])
@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"minProperties": 1}, "minProperties"),
        ({"maxProperties": 1}, "maxProperties"),
        ({"patternProperties": {"^x": INTEGER}}, "patternProperties"),
        ({"anyOf": [closed(q=INTEGER), closed(q={"type": "string"})]}, "differ in the type"),
    ],
)
def test_what_a_root_cannot_be_kept_to_is_refused(
    dialect: str, schema: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidRequest, match=told):
        arguments_for(dialect, strict({"type": "object", **schema}))


@pytest.mark.parametrize("dialect", [GEMMA, "MiniMax-M3"])
def test_members_are_read_by_their_schema_whatever_they_are_called(dialect: str) -> None:
    part = {
        "type": "object",
        "properties": {"item": {"enum": ["5"]}, "n": {"const": 5}},
        "required": ["item", "n"],
        "additionalProperties": False,
    }
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/part"}, "b": {"items": {"$ref": "#/$defs/part"}}},
        "required": ["a", "b"],
        "additionalProperties": False,
        "$defs": {"part": part},
    }
    schema["properties"]["b"] |= {"type": "array", "minItems": 1, "maxItems": 2}
    got = arguments_for(dialect, strict(schema))
    jsonschema.validate(got, schema)
