"""The sampling that a file recommends, as far as a request could ask for the same."""

from __future__ import annotations

from llm_server.api.parameters import SamplingFields
from llm_server.models.recommended import _FIELDS, recommended_sampling


def test_names_are_those_of_requests_and_numbers_those_that_were_meant() -> None:
    said = {"general.sampling.temp": 0.30000001192092896, "general.sampling.top_k": 20}
    said |= {"general.sampling.penalty_repeat": 1.1, "general.sampling.penalty_last_n": 64.0}
    found = recommended_sampling(said)
    wanted = {"temperature": 0.3, "top_k": 20, "repeat_penalty": 1.1, "repeat_last_n": 64}
    assert found == wanted
    assert isinstance(found["repeat_last_n"], int)


def test_what_cannot_be_meant_is_left_out() -> None:
    said = {"temp": float("nan"), "top_k": "40", "top_p": 0.0, "min_p": 1.5, "mirostat": True}
    assert recommended_sampling({f"general.sampling.{k}": v for k, v in said.items()}) == {}


def test_a_request_may_ask_for_either_end() -> None:
    for name, least, most in _FIELDS.values():
        SamplingFields.model_validate({name: least})
        SamplingFields.model_validate({name: most})
