"""The fields of bodies, whatever the endpoint: which count, of which type, how errors are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from llm_server.api.body import Json, printable
from llm_server.api.parameters import SamplingFields, Wire, sampling_fields
from llm_server.api.wire import (
    HARMLESS,
    INSTEAD,
    NO_EFFECT,
    REFUSED,
    GenerationFields,
    StreamOptions,
)
from llm_server.errors import InvalidRequest, UnsupportedParameter
from llm_server.models.policy import keep_alive_seconds

W = TypeVar("W", bound=Wire)


def check_names(body: dict[str, Json], model: type[Wire], prefix: str = "") -> list[str]:
    """The unknown fields of `body`. Raises UnsupportedParameter for those we must not ignore."""
    ignored = []
    for name, value in body.items():
        if name in model.model_fields or name in HARMLESS or value is None:
            continue
        if name in REFUSED or (name in NO_EFFECT and value not in NO_EFFECT[name]):
            raise UnsupportedParameter(_refusal(name, model), param=prefix + name)
        if name not in NO_EFFECT:
            ignored.append(prefix + name)
    return ignored


def _refusal(name: str, model: type[Wire]) -> str:
    instead = INSTEAD.get(name, "")
    with_value = " with this value" if name in NO_EFFECT else ""
    hint = f" Send '{instead}'." if instead.partition(".")[0] in model.model_fields else ""
    return f"The parameter '{name}' is not supported{with_value}.{hint}"


def check_generation(
    body: dict[str, Json], model: type[GenerationFields], parts: Mapping[str, type[Wire]] = {}
) -> list[str]:
    """`check_names` for a request that generates, with the objects in it; `parts` are its own."""
    shared: dict[str, type[Wire]] = {
        "inference_configs": SamplingFields,
        "stream_options": StreamOptions,
    }
    ignored = check_names(body, model) + _check_parts(body, shared)
    if isinstance(body.get("stream_options"), dict) and not body.get("stream"):
        raise InvalidRequest("stream_options needs stream: true.", param="stream_options")
    return ignored + _check_parts(body, parts)


def _check_parts(body: dict[str, Json], parts: Mapping[str, type[Wire]]) -> list[str]:
    ignored = []
    for name, model in parts.items():
        if isinstance(part := body.get(name), dict):
            ignored += check_names(part, model, f"{name}.")
    return ignored


def validated(model: type[W], body: dict[str, Json]) -> W:
    """`body` as that model. Raises InvalidRequest."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise _invalid(error.errors(include_url=False, include_context=False)[0]) from None


_IN_JSON = {
    "dict_type": "Input should be an object",
    "model_type": "Input should be an object",
    "list_type": "Input should be an array",
}
"""What JSON calls the types that pydantic names as Python does."""


_NEVER_TRUE = "Input should be False"
"""What pydantic says of a flag that is only known for its name."""


def _invalid(error: ErrorDetails) -> InvalidRequest:
    """A pydantic error in our words. The client's own input is never repeated."""
    param = _param(error["loc"])
    kind = error["type"]
    if kind == "missing":
        return missing(param)
    if kind in ("extra_forbidden", "none_required"):
        return UnsupportedParameter("This parameter is not supported.", param=param)
    if kind == "literal_error" and error["msg"] == _NEVER_TRUE:
        told = f"'{param}' is not supported: send false, or leave it out."
        return UnsupportedParameter(told, param=param)
    wrong_type = kind.endswith("_type") or (
        kind == "literal_error" and not isinstance(error["input"], str)
    )
    code = "invalid_type" if wrong_type else "invalid_value"
    message = _IN_JSON.get(kind, error["msg"]).replace(" after validation", "")
    if message.startswith("Input "):
        return InvalidRequest(f"'{param}' {message[6:]}.", param=param, code=code)
    return InvalidRequest(f"'{param}': {message[0].lower()}{message[1:]}.", param=param, code=code)


def missing(param: str) -> InvalidRequest:
    """What is told of a field that has to be there."""
    message = f"Missing required parameter: '{param}'."
    return InvalidRequest(message, param=param, code="missing_required_parameter")


def _param(location: tuple[int | str, ...]) -> str:
    """A location as clients write it: messages[0].content."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not step.startswith(("(", "[")):  # A tag of one of our unions, or "[key]".
            path += f".{step}" if path else step
    return printable(path)


def chosen_sampling(body: GenerationFields) -> dict[str, Any]:
    """The fields of `Sampling` that a request sets, top level over `inference_configs`.

    An unset field is None in both places.
    """
    inner = sampling_fields(body.inference_configs) if body.inference_configs else {}
    return inner | sampling_fields(body)


def prompts_of(
    prompt: str | list[str] | list[int] | list[list[int]],
) -> Sequence[str | list[int]]:
    """The prompts, whether one or several were given."""
    if isinstance(prompt, str):
        return [prompt]
    tokens = [token for token in prompt if isinstance(token, int)]
    return [tokens] if tokens else [text for text in prompt if not isinstance(text, int)]


def keep_alive_of(told: float | str | None) -> float | None:
    """Seconds that a model shall stay loaded, less than 0 for ever. Raises InvalidRequest."""
    try:
        return None if told is None else keep_alive_seconds(told)
    except ValueError as error:
        raise InvalidRequest(f"'keep_alive': {error}.", param="keep_alive") from None
