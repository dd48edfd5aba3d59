"""How to pick tokens and how to load a model: what requests and the configuration file may say.

Strict pydantic models with names, types and bounds, and what their fields mean to a worker. This
is where OpenAI's and llama.cpp's names for the same thing meet.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator

from llm_server.errors import InvalidRequest
from llm_server.worker.config import MAX_PARALLEL, Adapter, FlashAttention, KvType

MAX_STOPS = 16
MAX_STOP_BYTES = 256
MAX_INT32 = 2**31 - 1


class Wire(BaseModel):
    """Base of all request bodies. Unknown fields are dropped here and reported elsewhere."""

    model_config = ConfigDict(
        strict=True, extra="ignore", allow_inf_nan=False, protected_namespaces=(), frozen=True
    )


def content_kind(value: object) -> str:
    """A tag for a text or a list of parts; tags never reach a client."""
    return "(parts)" if isinstance(value, list) else "(text)"


def choice_kind(value: object) -> str:
    """A tag for a word or an object that says more."""
    return "(object)" if isinstance(value, dict) else "(text)"


Probability = Annotated[float, Field(ge=0, le=1)]
PositiveProbability = Annotated[float, Field(gt=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_BYTES)]
Breakers = Annotated[list[StopText], Field(max_length=MAX_STOPS)]


class SamplingFields(Wire):
    """How to pick tokens: OpenAI's names and llama.cpp's. Null is the default."""

    max_tokens: Annotated[int, Field(ge=-1, le=MAX_INT32)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=-1, le=MAX_INT32)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_INT32)] | None = None
    top_p: Probability | None = None
    min_p: Probability | None = None
    typical_p: PositiveProbability | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    repeat_last_n: Annotated[int, Field(ge=-1, le=MAX_INT32)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    seed: int | None = None
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, Field(pattern=r"^[0-9]{1,10}$")],
                Annotated[float, Field(ge=-100, le=100)],
            ],
            Field(max_length=1024),
        ]
        | None
    ) = None
    stop: (
        Annotated[
            Annotated[StopText, Tag("(text)")]
            | Annotated[list[StopText], Field(max_length=MAX_STOPS), Tag("(parts)")],
            Discriminator(content_kind),
        ]
        | None
    ) = None
    mirostat: Annotated[int, Field(ge=0, le=2)] | None = None
    mirostat_tau: Annotated[float, Field(gt=0, le=100)] | None = None
    mirostat_eta: PositiveProbability | None = None
    dry_multiplier: Annotated[float, Field(ge=0, le=10)] | None = None
    dry_base: Annotated[float, Field(ge=1, le=10)] | None = None
    dry_allowed_length: Annotated[int, Field(ge=0, le=MAX_INT32)] | None = None
    dry_penalty_last_n: Annotated[int, Field(ge=-1, le=MAX_INT32)] | None = None
    dry_sequence_breakers: Breakers | None = None
    xtc_probability: Probability | None = None
    xtc_threshold: Probability | None = None


class AdapterFields(Wire):
    """A LoRA adapter of the models folder."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=512)]
    scale: Annotated[float, Field(ge=-100, le=100)] = 1.0


Yarn = Annotated[float, Field(ge=-1, le=1024)]


GpuLayers = Annotated[
    Annotated[Literal["auto"], Tag("(text)")]
    | Annotated[Annotated[int, Field(ge=-1, le=10_000)], Tag("(number)")],
    Discriminator(lambda value: "(text)" if value == "auto" else "(number)"),
]
"""A number of layers, -1 for all, or what fits."""


class LoadFields(Wire):
    """How to load a model. A field left out stays as it is; an unknown one is refused."""

    model_config = ConfigDict(extra="forbid")

    n_ctx: Annotated[int, Field(ge=0, le=1 << 24)] | None = None
    n_batch: Annotated[int, Field(ge=1, le=65_536)] | None = None
    n_ubatch: Annotated[int, Field(ge=1, le=65_536)] | None = None
    n_threads: Annotated[int, Field(ge=0, le=1024)] | None = None
    n_gpu_layers: GpuLayers | None = None
    parallel: Annotated[int, Field(ge=0, le=MAX_PARALLEL)] | None = None
    kv_type: KvType | None = None
    type_k: KvType | None = None
    type_v: KvType | None = None
    flash_attn: FlashAttention | None = None
    draft_max: Annotated[int, Field(ge=0, le=64)] | None = None
    pooling: Literal["auto", "mean", "cls", "last", "rank"] | None = None
    rope_scaling_type: Literal["auto", "none", "linear", "yarn", "longrope"] | None = None
    rope_freq_base: Annotated[float, Field(ge=0, le=1e12)] | None = None
    rope_freq_scale: Annotated[float, Field(ge=0, le=1024)] | None = None
    yarn_ext_factor: Yarn | None = None
    yarn_attn_factor: Yarn | None = None
    yarn_beta_fast: Yarn | None = None
    yarn_beta_slow: Yarn | None = None
    yarn_orig_ctx: Annotated[int, Field(ge=0, le=1 << 24)] | None = None
    lora: Annotated[list[AdapterFields], Field(max_length=8)] | None = None
    chat_template: Annotated[str, Field(max_length=512)] | None = None

    @field_validator("lora")
    @classmethod
    def _check_lora(cls, lora: list[AdapterFields] | None) -> list[AdapterFields] | None:
        names = [adapter.name.removesuffix(".gguf") for adapter in lora or ()]
        if len(set(names)) < len(names):
            raise ValueError("An adapter is named twice")
        return lora


def sampling_fields(fields: SamplingFields) -> dict[str, Any]:
    """The fields of `Sampling` that are set. Raises InvalidRequest for a stop string too long."""
    chosen = {
        name: value
        for name in SamplingFields.model_fields
        if (value := getattr(fields, name)) is not None
    }
    for other, name in (
        ("max_completion_tokens", "max_tokens"),
        ("repetition_penalty", "repeat_penalty"),
    ):
        if other in chosen:
            chosen[name] = chosen.pop(other)
    if chosen.get("max_tokens") == -1:  # llama.cpp's "as many as there is room for"
        chosen["max_tokens"] = None
    if isinstance(stop := chosen.get("stop"), str):
        chosen["stop"] = [stop]
    check_stops(chosen.get("stop", []), "stop")
    if (seed := chosen.get("seed")) is not None:
        # -1 is llama.cpp's "draw one"; it takes 32 bits, and OpenAI's clients may send 64.
        chosen["seed"] = None if seed == -1 else seed & 0xFFFFFFFF
    if "logit_bias" in chosen:
        chosen["logit_bias"] = {int(token): bias for token, bias in chosen["logit_bias"].items()}
    return chosen


def check_stops(stops: list[str], param: str) -> None:
    """Raises InvalidRequest for a stop string that is too long, which pydantic counts otherwise."""
    if any(len(text.encode()) > MAX_STOP_BYTES for text in stops):
        raise InvalidRequest(f"A stop string is longer than {MAX_STOP_BYTES} bytes.", param=param)


def overrides_of(fields: LoadFields | None) -> dict[str, object]:
    """How the model is to be loaded, as far as a request says."""
    given = fields.model_dump(exclude_none=True) if fields is not None else {}
    if (adapters := given.get("lora")) is not None:
        # One that has no part in the weights is as good as none.
        given["lora"] = tuple(Adapter(**a) for a in adapters if a["scale"] != 0)
    if (both := given.pop("kv_type", None)) is not None:
        given = {"type_k": both, "type_v": both} | given
    return given
