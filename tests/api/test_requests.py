"""What a request body means: names, types, bounds, defaults, and which field wins."""

from __future__ import annotations

import re
from typing import Any, get_type_hints

import msgspec
import pytest
from openai.types import completion_create_params as text_params
from openai.types.chat import completion_create_params as chat_params

from llm_server.api.completions import completion_call
from llm_server.api.parameters import SamplingFields, Wire
from llm_server.api.requests import Call, chat_call, restore_call, set_model_call
from llm_server.api.responses import responses_call
from llm_server.api.wire import (
    HARMLESS,
    NO_EFFECT,
    REFUSED,
    ChatBody,
    CompletionBody,
)
from llm_server.errors import InvalidRequest, ServerError, UnsupportedParameter
from llm_server.worker.messages import ChatRequest, FunctionCall, Message, ResponseFormat, Sampling

HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def refusal(**fields: Any) -> tuple[str | None, str | None]:
    with pytest.raises(ServerError) as caught:
        chat_call({"messages": HELLO} | fields)
    info = caught.value.info
    assert info.status == 400 and info.type == "invalid_request_error" and not info.retry
    return info.code, info.param


def only(call: Call) -> ChatRequest:
    """The one request of a call."""
    (request,) = call.requests
    assert isinstance(request, ChatRequest)
    return request


def sampling(**fields: Any) -> Sampling:
    return only(chat_call({"messages": HELLO} | fields)).sampling


def messages(*wire: dict[str, Any]) -> list[Message]:
    return only(chat_call({"messages": list(wire)})).messages


# ---- messages ----------------------------------------------------------------------------------


def test_the_plain_request() -> None:
    call = chat_call({"messages": HELLO})
    assert only(call).messages == [Message(role="user", content="hello")]
    assert (call.model, call.overrides, call.stream, call.include_usage) == (None, {}, False, False)
    assert only(call).sampling == Sampling()
    assert call.ignored == []


def test_text_parts_are_joined_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "12"}, {"type": "refusal", "refusal": "5"}]
    assert messages({"role": "developer", "content": parts}) == [
        Message(role="system", content="12\n5")
    ]


def test_an_answer_cannot_be_begun_by_the_client() -> None:
    begun = {"role": "assistant", "content": "The answer is", "prefix": True}
    with pytest.raises(UnsupportedParameter, match="prefix' is not supported: ") as caught:
        chat_call({"messages": [*HELLO, begun]})
    assert caught.value.info.param == "messages[1].prefix"
    chat_call({"messages": [*HELLO, {**begun, "prefix": False}]})


@pytest.mark.parametrize("kind", ["string", "array", None, ["string", "null"], {}])
def test_the_parameters_of_a_tool_are_an_object(kind: object) -> None:
    function = {"name": "f", "parameters": {"type": kind}}
    with pytest.raises(InvalidRequest) as caught:
        chat_call({"messages": HELLO, "tools": [{"type": "function", "function": function}]})
    info = caught.value.info
    assert (info.param, info.code) == ("tools[0].function.parameters", "invalid_json_schema")
    function["parameters"] = {"type": ["null", "object"]}
    chat_call({"messages": HELLO, "tools": [{"type": "function", "function": function}]})


def test_other_names_of_thoughts_and_texts() -> None:
    assert messages(
        {"role": "assistant", "content": "a", "reasoning": "hm"},
        {"role": "assistant", "content": "a", "reasoning": "hm", "reasoning_content": "well"},
        {"role": "assistant", "content": None, "refusal": "No.", "function_call": None},
        {"role": "assistant", "content": "", "refusal": None},
    ) == [
        Message("assistant", "a", reasoning_content="hm"),
        Message("assistant", "a", reasoning_content="well"),
        Message("assistant", "No."),
        Message("assistant", ""),
    ]


def test_a_tool_loop() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    other = {"id": "c2", "function": {"name": "g", "arguments": {"é": None}}}
    got = messages(
        {"role": "assistant", "content": None, "tool_calls": [call, other]},
        {"role": "tool", "tool_call_id": "c1", "content": "42", "name": "f"},
    )
    assert got[0].tool_calls == [
        FunctionCall("c1", "f", '{"a": 1}'),
        FunctionCall("c2", "g", '{"é": null}'),
    ]
    assert got[0].content is None
    assert got[1] == Message(role="tool", content="42", name="f", tool_call_id="c1")


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ({}, "missing_required_parameter", "messages[0].role"),
        ({"role": "root", "content": "x"}, "invalid_value", "messages[0].role"),
        ({"role": 5, "content": "x"}, "invalid_type", "messages[0].role"),
        ({"role": "user"}, "invalid_value", "messages[0].content"),
        ({"role": "assistant", "content": None}, "invalid_value", "messages[0].content"),
        (
            {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": ""}},
            "unsupported_parameter",
            "messages[0].function_call",
        ),
        ({"role": "user", "content": 5}, "invalid_type", "messages[0].content"),
        ({"role": "user", "content": ["x"]}, "invalid_type", "messages[0].content[0]"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///"}}]},
            "invalid_value",
            "messages[0].content[0].type",
        ),
        (
            {"role": "tool", "content": "x"},
            "missing_required_parameter",
            "messages[0].tool_call_id",
        ),
        (
            {"role": "tool", "content": "x", "tool_call_id": "orphan"},
            "invalid_value",
            "messages[0].tool_call_id",
        ),
        (
            {
                "role": "user",
                "content": "x",
                "tool_calls": [{"id": "c", "function": {"name": "f"}}],
            },
            "invalid_value",
            "messages[0].tool_calls",
        ),
    ],
)
def test_a_wrong_message_is_named(message: dict[str, Any], code: str, param: str) -> None:
    assert refusal(messages=[message]) == (code, param)


def test_messages_are_required_and_bounded() -> None:
    assert refusal(messages=[]) == ("invalid_value", "messages")
    assert refusal(messages=None) == ("invalid_type", "messages")
    assert refusal(messages=HELLO * 2049) == ("invalid_value", "messages")
    with pytest.raises(ServerError) as caught:
        chat_call({})
    assert caught.value.info.code == "missing_required_parameter"


# ---- sampling ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stream_options": [], "stream": True}, "'stream_options' should be an object."),
        ({"tools": "x"}, "'tools' should be an array."),
        ({"metadata": {}, "logit_bias": []}, "'logit_bias' should be an object."),
        ({"stop": ["x"] * 17}, "'stop': list should have at most 16 items, not 17."),
    ],
)
def test_wrong_types_are_told_in_words_of_json(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ServerError) as caught:
        chat_call({"messages": [{"role": "user", "content": "x"}], **fields})
    assert caught.value.info.message == message


def test_top_level_wins_over_inference_configs() -> None:
    got = sampling(
        inference_configs={"temperature": 0.1, "top_k": 7, "stop": ["user:"]}, temperature=0.9
    )
    assert (got.temperature, got.top_k, got.stop) == (0.9, 7, ["user:"])


def test_two_names_for_one_thing() -> None:
    assert sampling(repetition_penalty=1.2).repeat_penalty == 1.2
    assert sampling(max_completion_tokens=5).max_tokens == 5
    # Across levels the level decides, not the spelling.
    assert sampling(inference_configs={"repetition_penalty": 1.5}, repeat_penalty=1.1) == sampling(
        repeat_penalty=1.1
    )
    assert sampling(inference_configs={"max_tokens": 3}, max_completion_tokens=4).max_tokens == 4


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_minus_one_token_at_most_is_no_limit(name: str) -> None:
    assert sampling(**{name: -1}).max_tokens is None
    call = chat_call({"messages": HELLO, name: -1})
    assert "max_tokens" in call.chosen, "the model's own limit would take its place"


def test_null_is_the_default_everywhere() -> None:
    fields = {name: None for name in ChatBody.model_fields if name != "messages"}
    assert chat_call({"messages": HELLO} | fields) == chat_call({"messages": HELLO})


def test_stop_seed_and_logit_bias() -> None:
    assert sampling(stop="x").stop == ["x"]
    assert sampling(stop=["x", "y"]).stop == ["x", "y"]
    assert sampling(seed=2**32 + 5).seed == 5
    assert sampling(seed=-1).seed is None
    assert sampling(logit_bias={"12": -100, "3": 0.5}).logit_bias == {12: -100.0, 3: 0.5}


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("temperature", [0, 2], [-0.1, 2.1]),
        ("top_p", [0, 1], [-0.1, 1.1]),
        ("top_k", [-1, 0, 2**31 - 1], [-2, 2**31]),
        ("min_p", [0, 1], [-0.1, 1.1]),
        ("typical_p", [0.1, 1], [0, 1.1]),
        ("repeat_penalty", [0.5, 10], [0, 10.1]),
        ("repeat_last_n", [-1, 0], [-2, 2**31]),
        ("frequency_penalty", [-2, 2], [-2.1, 1e30]),
        ("presence_penalty", [-2, 2], [-2.1, 1e30]),
        ("max_tokens", [0, 1, 2**31 - 1], [-2, 2**31, 2**63]),
        ("mirostat", [0, 2], [-1, 3]),
        ("mirostat_tau", [0.1, 100], [0, 101]),
        ("mirostat_eta", [0.1, 1], [0, 1.1]),
        ("dry_multiplier", [0, 10], [-1, 11]),
        ("dry_base", [1, 10], [0.9, 11]),
        ("dry_allowed_length", [0], [-1]),
        ("dry_penalty_last_n", [-1], [-2]),
        ("xtc_probability", [0, 1], [-0.1, 1.1]),
        ("xtc_threshold", [0, 1], [-0.1, 1.1]),
    ],
)
def test_each_bound_at_its_limit_and_beyond(name: str, good: list[float], bad: list[float]) -> None:
    for value in good:
        assert getattr(sampling(**{name: value}), name) == value
    for value in bad:
        assert refusal(**{name: value}) == ("invalid_value", name)
        assert refusal(inference_configs={name: value}) == (
            "invalid_value",
            f"inference_configs.{name}",
        )


@pytest.mark.parametrize(
    ("stop", "param"),
    [
        ("", "stop"),
        ([""], "stop[0]"),
        (["x"] * 17, "stop"),
        ("x" * 257, "stop"),
        (["é" * 129], "stop"),
    ],
)
def test_stop_is_bounded(stop: object, param: str) -> None:
    assert refusal(stop=stop) == ("invalid_value", param)


@pytest.mark.parametrize(
    "bias",
    [{"a": 1}, {"1\n": 1}, {"-1": 1}, {"1": 101}, {"1.0": 1}, {str(i): 0 for i in range(1025)}],
)
def test_logit_bias_is_bounded(bias: dict[str, float]) -> None:
    code, param = refusal(logit_bias=bias)
    assert code == "invalid_value" and str(param).startswith("logit_bias")


WRONG: dict[str, object] = {
    "str": "x",
    "int": 3,
    "float": 0.5,
    "bool": True,
    "list": [],
    "dict": {},
}


def wrong_types() -> list[tuple[str, object]]:
    """Every sampling field with every JSON type that cannot be right for it."""
    right = {"stop": {"str", "list"}, "logit_bias": {"dict"}, "dry_sequence_breakers": {"list"}}
    integers = {"max_tokens", "max_completion_tokens", "top_k", "repeat_last_n", "seed", "mirostat"}
    integers |= {"dry_allowed_length", "dry_penalty_last_n"}
    cases = []
    for name in SamplingFields.model_fields:
        allowed = right.get(name, {"int"} if name in integers else {"int", "float"})
        cases += [(name, value) for kind, value in WRONG.items() if kind not in allowed]
    return cases


@pytest.mark.parametrize(("name", "value"), wrong_types())
def test_no_type_is_coerced(name: str, value: object) -> None:
    assert refusal(**{name: value}) == ("invalid_type", name)


@pytest.mark.parametrize(
    "name", ["stream", "stream_options", "model", "tools", "inference_configs", "tool_choice"]
)
def test_the_other_fields_are_not_coerced_either(name: str) -> None:
    assert refusal(**{name: 3}) == ("invalid_type", name)


# ---- tools and templates -----------------------------------------------------------------------


def test_tools_pass_through_in_one_order() -> None:
    shuffled = {
        "function": {"parameters": {"default": None}, "description": "d", "name": "f"},
        "type": "function",
    }
    tools = only(chat_call({"messages": HELLO, "tools": [shuffled]})).tools
    assert [list(tool["function"]) for tool in tools] == [["name", "description", "parameters"]]
    assert tools[0]["function"]["parameters"] == {"default": None}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ("auto", None)),
        ("auto", ("auto", None)),
        ("none", ("none", None)),
        ("required", ("required", None)),
        ({"type": "function", "function": {"name": "f"}}, ("required", "f")),
    ],
)
def test_tool_choice_reaches_the_worker(choice: Any, expected: tuple[str, str | None]) -> None:
    request = only(chat_call({"messages": HELLO, "tools": [TOOL], "tool_choice": choice}))
    assert (request.tool_choice, request.tool_name) == expected
    assert request.tools == [TOOL]


def test_parallel_calls_and_the_reasoning_budget_reach_the_worker() -> None:
    fields = {"parallel_tool_calls": False, "reasoning_budget": 5}
    request = only(chat_call({"messages": HELLO, **fields}))
    assert (request.parallel_tool_calls, request.reasoning_budget) == (False, 5)
    default = only(chat_call({"messages": HELLO, "reasoning_budget": -1}))
    assert (default.parallel_tool_calls, default.reasoning_budget) == (True, None)


def test_response_formats_reach_the_worker() -> None:
    def format_of(value: Any) -> ResponseFormat:
        return only(chat_call({"messages": HELLO, "response_format": value})).response_format

    assert format_of({"type": "text"}) == ResponseFormat()
    assert format_of({"type": "json_object"}) == ResponseFormat("json_object")
    schema = {"type": "object", "properties": {}}
    wire = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    llama = format_of({"type": "json_object", "schema": schema})
    assert llama == ResponseFormat("json_schema", schema, "response_format.schema")
    param = "response_format.json_schema.schema"
    assert format_of(wire) == ResponseFormat("json_schema", schema, param)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tool_choice": "maybe"}, ("invalid_value", "tool_choice")),
        (
            {"tool_choice": {"type": "function"}},
            ("missing_required_parameter", "tool_choice.function"),
        ),
        ({"response_format": {"type": "xml"}}, ("invalid_value", "response_format.type")),
        (
            {"response_format": {"type": "json_schema"}},
            ("missing_required_parameter", "response_format.json_schema"),
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
            ("invalid_type", "response_format.json_schema.schema"),
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"enum": ["x" * 300_000]}},
                }
            },
            ("invalid_json_schema", "response_format.json_schema.schema"),
        ),
    ],
)
def test_bad_choices_and_formats_are_refused(
    fields: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert refusal(**fields) == expected


def test_a_tools_schema_is_bounded() -> None:
    function = {"name": "f", "parameters": {"enum": ["x" * 300_000]}}
    assert refusal(tools=[{"type": "function", "function": function}]) == (
        "invalid_json_schema",
        "tools[0].function.parameters",
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 0},
        {"max_completion_tokens": 0},
        {"prompt_cache_options": {"prewarm": True}, "max_tokens": 50},
    ],
)
def test_a_chat_may_only_warm_its_prompt(fields: dict[str, Any]) -> None:
    request = only(chat_call({"messages": HELLO, **fields}))
    assert request.persist and request.sampling.max_tokens == 0


def test_other_cache_options_are_ignored_and_named() -> None:
    call = chat_call({"messages": HELLO, "prompt_cache_options": {"ttl": 5, "prewarm": False}})
    assert call.ignored == ["prompt_cache_options.ttl"]
    assert not only(call).persist


@pytest.mark.parametrize(
    "name", ["../x", "a b", "", "x" * 65, "<|im_end|>", 'a"b', "a\n", "a\nb", "naïve"]
)
def test_tool_names_are_narrow(name: str) -> None:
    tool = {"type": "function", "function": {"name": name}}
    assert refusal(tools=[tool]) == ("invalid_value", "tools[0].function.name")


def test_tools_are_bounded() -> None:
    assert refusal(tools=[TOOL, TOOL]) == ("invalid_value", "tools[1].function.name")
    assert refusal(tools=[TOOL] * 129) == ("invalid_value", "tools")
    wrong = {"type": "function", "function": {"name": "f", "parameters": []}}
    assert refusal(tools=[wrong]) == ("invalid_type", "tools[0].function.parameters")


def test_every_effort_reaches_the_template() -> None:
    for effort in ("none", "minimal", "low", "medium", "high", "xhigh", "max"):
        call = chat_call({"messages": HELLO, "reasoning_effort": effort})
        assert only(call).template_kwargs == {"reasoning_effort": effort}
    assert refusal(reasoning_effort="more") == ("invalid_value", "reasoning_effort")


def test_template_variables_come_from_a_list() -> None:
    call = chat_call(
        {
            "messages": HELLO,
            "reasoning_effort": "low",
            "chat_template_kwargs": {"enable_thinking": False},
        }
    )
    assert only(call).template_kwargs == {"reasoning_effort": "low", "enable_thinking": False}
    assert refusal(chat_template_kwargs={"messages": []}) == (
        "unsupported_parameter",
        "chat_template_kwargs.messages",
    )


# ---- fields that do something else, or nothing --------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"best_of": 2},
        {"echo": True},
        {"verbosity": "low"},
        {"prompt": "x"},
        {"grammar": "root ::= x"},
        {"prompt_embeds": "x"},
        {"chat_template": "x"},
        {"lora": []},
        {"n_discard": 1},
        {"functions": [{"name": "f"}]},
        {"min_tokens": 3},
        {"samplers": ["top_k"]},
        {"adaptive_target": 0.4},
        {"min_keep": 3},
        {"n_cmpl": 2},
        {"n_indent": 4},
        {"t_max_predict_ms": 500},
        {"reasoning_budget_tokens": 0},
        {"tfs_z": 0.9},
        {"audio": {}},
        {"structured_outputs": {"regex": "[0-9]+"}},
        {"regex": "[0-9]+"},
        {"allowed_token_ids": [1]},
        {"bad_words": ["demo"]},
        {"stop_token_ids": [5]},
        {"stop_sequences": ["x"]},
        {"ignore_eos": True},
        {"include_stop_str_in_output": True},
        {"n_predict": 3},
        {"max_new_tokens": 3},
        {"continue_final_message": True},
        {"add_generation_prompt": False},
        {"use_beam_search": True},
        {"enable_thinking": False},
        {"thinking": {"type": "disabled"}},
        {"thinking_budget": 0},
        {"reasoning": {"effort": "none"}},
    ],
)
def test_what_is_known_and_not_honoured_is_refused(fields: dict[str, Any]) -> None:
    assert refusal(**fields) == ("unsupported_parameter", next(iter(fields)))


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("enable_thinking", " Send 'chat_template_kwargs.enable_thinking'."),
        ("thinking_budget", " Send 'reasoning_budget'."),
        ("n_predict", " Send 'max_tokens'."),
        ("n_cmpl", " Send 'n'."),
        ("reasoning_budget_tokens", " Send 'reasoning_budget'."),
        ("regex", ""),
    ],
)
def test_a_refusal_names_the_field_that_says_the_same(name: str, instead: str) -> None:
    with pytest.raises(UnsupportedParameter, match=f"supported[a-z ]*[.]{re.escape(instead)}$"):
        chat_call({"messages": HELLO, name: 5})


def test_choices_share_everything_but_their_seed() -> None:
    call = chat_call({"messages": HELLO, "n": 3, "seed": 2**32 - 2, "logprobs": True})
    first, second, third = call.requests
    assert [r.sampling.seed for r in call.requests] == [2**32 - 2, 2**32 - 1, 0]
    assert msgspec.structs.replace(third, sampling=first.sampling) == first
    assert (call.n, second.sampling.top_logprobs) == (3, 0)
    unseeded = chat_call({"messages": HELLO, "n": 2, "logprobs": True, "top_logprobs": 5}).requests
    assert [r.sampling.seed for r in unseeded] == [None, None]
    assert unseeded[1].sampling.top_logprobs == 5


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 3}, "top_logprobs"),
    ],
)
def test_choices_and_logprobs_are_bounded(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields) == ("invalid_value", param)


def test_no_effort_is_no_thought() -> None:
    def budget(**fields: Any) -> int | None:
        return only(chat_call({"messages": HELLO, **fields})).reasoning_budget

    assert budget(reasoning_effort="none") == 0
    assert budget(reasoning_effort="low") is None
    assert budget(reasoning_effort="none", reasoning_budget=7) == 7


@pytest.mark.parametrize(
    ("model", "params"),
    [
        (ChatBody, chat_params.CompletionCreateParamsStreaming),
        (CompletionBody, text_params.CompletionCreateParamsStreaming),
    ],
)
def test_every_field_that_openai_knows_is_known_here(model: type[Wire], params: type) -> None:
    known = {*model.model_fields, *HARMLESS, *NO_EFFECT, *REFUSED}
    assert set(get_type_hints(params)) - known == set()


def test_values_that_ask_for_nothing_special_are_fine() -> None:
    call = chat_call(
        {
            "messages": HELLO,
            "n": 1,
            "logprobs": False,
            "response_format": {"type": "text"},
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "grammar": "",
            "user": "u",
            "metadata": {"__class__": "x"},
            "store": False,
            "service_tier": "auto",
            "structured_outputs": None,
            "stop_token_ids": [],
            "bad_words": [],
            "ignore_eos": False,
            "n_predict": -1,
            "length_penalty": 1.0,
            "add_generation_prompt": True,
            "continue_final_message": False,
            "min_tokens": 0,
            "tfs_z": 1.0,
            "top_n_sigma": -1,
            "n_keep": 0,
            "adaptive_target": -1,
            "min_keep": 0,
            "n_cmpl": 1,
            "n_indent": 0,
            "t_max_predict_ms": -1,
            "reasoning_budget_tokens": -1,
            "json_schema": {},
            "functions": [],
            "samplers": [],
            "documents": [],
        }
    )
    assert call == chat_call({"messages": HELLO})


def test_what_a_completion_cannot_have_is_taken_where_it_asks_for_nothing() -> None:
    nothing = {"tools": [], "response_format": {"type": "text"}, "parallel_tool_calls": True}
    assert completion_call({"prompt": "x", **nothing}) == completion_call({"prompt": "x"})


def test_unknown_fields_are_ignored_by_name() -> None:
    call = chat_call(
        {"messages": HELLO, "foo": 1, "__class__": 2, "inference_configs": {"bar": 1, "top_k": 3}}
    )
    assert call.ignored == ["foo", "__class__", "inference_configs.bar"]


def test_words_of_schemas_that_nothing_enforces_are_named() -> None:
    item = {"type": "string", "format": "color", "not": {"const": 1}}
    schema = {"type": "array", "uniqueItems": True, "items": item}
    functions = [
        {"name": "a", "parameters": {"properties": {"x": schema}}},
        {"name": "b", "parameters": {"properties": {"x": schema}}, "strict": True},
        {"name": "c", "parameters": {"uniqueItems": False, "propertyNames": {"type": "string"}}},
        {"name": "d"},
    ]
    tools = [{"type": "function", "function": function} for function in functions]
    call = chat_call({"messages": HELLO, "tools": tools})
    assert call.ignored == ["tools.0.format", "tools.0.not", "tools.0.uniqueItems"]
    flat = [{"type": "function", **function} for function in functions]
    asked = responses_call({"input": "x", "tools": flat})
    assert asked.call.ignored == call.ignored


def test_load_configs_are_typed_bounded_and_closed() -> None:
    call = chat_call({"messages": HELLO, "load_model_configs": {"n_ctx": 32768, "n_batch": None}})
    assert call.overrides == {"n_ctx": 32768}
    for fields, expected in (
        ({"x": 1}, ("unsupported_parameter", "load_model_configs.x")),
        ({"n_ctx": "1"}, ("invalid_type", "load_model_configs.n_ctx")),
        ({"n_ctx": -1}, ("invalid_value", "load_model_configs.n_ctx")),
        ({"n_ctx": 10**9}, ("invalid_value", "load_model_configs.n_ctx")),
        ({"n_gpu_layers": 10**9}, ("invalid_value", "load_model_configs.n_gpu_layers")),
    ):
        assert refusal(load_model_configs=fields) == expected


def test_streaming() -> None:
    call = chat_call({"messages": HELLO, "stream": True, "stream_options": {"include_usage": True}})
    assert call.stream and call.include_usage
    assert refusal(stream_options={"include_usage": True}) == ("invalid_value", "stream_options")


def test_restoring_computes_the_prompt_only() -> None:
    call = restore_call(
        {"messages": HELLO, "stream": True, "inference_configs": {"max_tokens": 9, "top_k": 3}}
    )
    assert only(call).sampling.max_tokens == 0
    assert only(call).sampling.top_k == 3
    assert not call.stream


def test_set_model() -> None:
    call = set_model_call({"model_name": "x.gguf", "load_model_configs": {"n_ctx": 4096}, "y": 1})
    assert (call.model, call.overrides, call.ignored) == ("x.gguf", {"n_ctx": 4096}, ["y"])
    for body, code in (
        ({}, "missing_required_parameter"),
        ({"model_name": None}, "invalid_type"),
        ({"model_name": []}, "invalid_type"),
        ({"model_name": ""}, "invalid_value"),
        ({"model_name": "x" * 513}, "invalid_value"),
    ):
        with pytest.raises(ServerError) as caught:
            set_model_call(body)  # type: ignore[arg-type]
        assert (caught.value.info.code, caught.value.info.param) == (code, "model_name")


def test_a_refusal_never_repeats_the_input() -> None:
    with pytest.raises(ServerError) as caught:
        chat_call({"messages": HELLO, "temperature": "secret", "stop": {"secret": 1}})
    assert "secret" not in caught.value.info.message
