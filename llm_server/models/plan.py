"""How a model would be loaded: what is asked for, settled and weighed before the load."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import msgspec

from llm_server.errors import InsufficientMemory, InvalidRequest, ModelLoadFailed
from llm_server.gguf.header import InvalidGguf, read_header
from llm_server.machine import physical_cores
from llm_server.models.effect import effect, is_in_force
from llm_server.models.facts import Facts
from llm_server.models.known import Identity
from llm_server.models.memory import (
    Extras,
    Memory,
    embeds,
    estimate,
    in_blocks,
    largest_n_ctx,
    layer_bytes,
    n_idle,
    pooling,
    settled,
    smaller_contexts,
)
from llm_server.models.registry import ModelFile, Registry
from llm_server.worker.config import Adapter, KvType, LoadConfig
from llm_server.worker.messages import Loaded

logger = logging.getLogger(__name__)

Source: TypeAlias = Literal["default", "option", "file", "request", "fitted"]
"""Where a setting is from: ours, the command line (or environment, or top of the configuration
file), a model's table in that file, or a client; the last was left open and settled."""

GB = 1_000_000_000


@dataclass(frozen=True, slots=True)
class ModelDefaults:
    """What the configuration says of one model: fields of `LoadConfig` and of `Sampling`."""

    load: Mapping[str, object] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """A load that has been thought through."""

    model: ModelFile
    asked: LoadConfig
    """What was told to the server, 0 for what was left to it."""
    config: LoadConfig
    """The same with every open number settled."""
    effect: LoadConfig
    """What that comes to: what the worker is told, and what other plans are compared with."""
    facts: Facts
    memory: Memory
    adapters: tuple[ModelFile, ...] = ()
    """The files of the LoRA adapters."""
    template: ModelFile | None = None
    """The file of the chat template that replaces the model's own."""
    layer_bytes: tuple[int, ...] = ()
    """What each layer takes with its cells, the output layer last."""
    n_idle: int = 0
    """Idle prompts that a memory of whole states holds."""
    smaller_n_ctx: tuple[int, ...] = ()
    """Contexts to try in turn where the memory does not hold this one, which was left open."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a model runs here, and with what."""

    plan: Plan
    budget: int
    fits: bool
    largest_n_ctx: int
    """The longest context that fits; 0 if the model does not fit at all."""


@dataclass(slots=True)
class Planner:
    """Makes plans under one budget, and learns from what loads really took.

    `by_model` are defaults for single models, by any of their names; they win over `defaults`.
    """

    registry: Registry
    budget: int
    """Bytes that all loaded models may take together."""
    defaults: LoadConfig = field(default_factory=LoadConfig)
    by_model: Mapping[str, ModelDefaults] = field(default_factory=dict)
    cache: bool = True
    """Whether there is a prompt cache on disk."""
    n_threads: int = field(default_factory=physical_cores)
    """What `n_threads` 0 comes to."""
    _corrections: dict[Identity, int] = field(default_factory=dict)

    def asked(
        self, model: ModelFile, overrides: Mapping[str, object], base: LoadConfig | None = None
    ) -> LoadConfig:
        """What a request asks for: over what is in force (`base`), else over the defaults."""
        if base is None:
            base = msgspec.structs.replace(self.defaults, **self.named(self.told(model).load))
        return msgspec.structs.replace(base, **self.named(overrides))

    def named(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """`overrides` with files by their names in the folder, so that equal ones are equal.

        Raises InvalidRequest for a file that is not there, as of the last scan.
        """
        named = dict(overrides)
        if adapters := named.get("lora"):
            files = [(self.registry.adapter(adapter.name), adapter.scale) for adapter in adapters]
            named["lora"] = tuple(sorted(Adapter(file.name, scale) for file, scale in files))
        if template := named.get("chat_template"):
            named["chat_template"] = self.registry.template(template).name
        return named

    def plan(self, model: ModelFile, asked: LoadConfig) -> Plan:
        """The plan for a load. Blocks for the disk; safe in a thread.

        Raises:
            ModelLoadFailed: llama.cpp would not take the file.
            InsufficientMemory: it takes more than all of the budget.
            InvalidRequest: it does with the `n_ctx` of a request, and would fit with a smaller one.
        """
        fit = self.fit(model, asked)
        if fit.fits:
            return fit.plan
        hint = "It does not fit with any context."
        if fit.largest_n_ctx:
            hint = f"The longest context that fits is {fit.largest_n_ctx}."
        of_request = asked.n_ctx != self.asked(model, {}).n_ctx
        refusal = InvalidRequest if of_request and fit.largest_n_ctx else InsufficientMemory
        raise refusal(
            f"{model.name} with a context of {fit.plan.config.n_ctx} tokens needs about "
            f"{fit.plan.memory.total / GB:.1f} GB, and models may take {self.budget / GB:.1f} GB "
            f"here (--memory). {hint}",
            param="load_model_configs.n_ctx" if fit.largest_n_ctx else "model",
        )

    def fit(self, model: ModelFile, asked: LoadConfig) -> Fit:
        """Whether the model fits, as asked and at most. Blocks; raises ModelLoadFailed."""
        plan = self.weigh(model, asked)
        extras = self._extras(model, plan.adapters)
        return Fit(
            plan=plan,
            budget=self.budget,
            fits=plan.memory.total <= self.budget,
            largest_n_ctx=largest_n_ctx(plan.facts, plan.config, self.budget, extras),
        )

    def weigh(self, model: ModelFile, asked: LoadConfig | None = None) -> Plan:
        """What a load would take, whether that fits or not. Blocks for the disk.

        Raises:
            ModelLoadFailed: llama.cpp would not take the file, or an adapter with it.
            InvalidRequest: the settings exclude each other, or do not suit the model.
        """
        asked = self.asked(model, {}) if asked is None else asked
        facts = self.registry.facts(model)
        _check_classifier(facts, asked)
        adapters = tuple(self.registry.adapter(adapter.name) for adapter in asked.lora)
        for adapter in adapters:
            _check_adapter(facts, adapter)
        template = self.registry.template(asked.chat_template) if asked.chat_template else None
        extras = self._extras(model, adapters)
        config = self._settled(facts, asked, extras)
        return Plan(
            model,
            asked,
            config,
            effect(facts, config),
            facts,
            estimate(facts, config, extras),
            adapters,
            template,
            layer_bytes(facts, config),
            n_idle(facts.shape, config),
            smaller_contexts(config.n_ctx) if asked.n_ctx == 0 else (),
        )

    def as_loaded(self, plan: Plan, loaded: Loaded) -> Plan:
        """`plan` with the context that the memory held, if that is one of its smaller ones."""
        if loaded.n_ctx not in plan.smaller_n_ctx:
            return plan
        facts, config = plan.facts, msgspec.structs.replace(plan.config, n_ctx=loaded.n_ctx)
        return replace(
            plan,
            config=config,
            effect=effect(facts, config),
            memory=estimate(facts, config, self._extras(plan.model, plan.adapters)),
            layer_bytes=layer_bytes(facts, config),
            smaller_n_ctx=smaller_contexts(loaded.n_ctx),
        )

    def _settled(self, facts: Facts, asked: LoadConfig, extras: Extras) -> LoadConfig:
        config = settled(facts, asked, self.budget, extras)
        config = msgspec.structs.replace(config, n_threads=config.n_threads or self.n_threads)
        if not embeds(facts, config):
            _check_kv_types(facts, config)
        return config

    def in_force(self, plan: Plan, loaded: Loaded, overrides: Mapping[str, Any]) -> bool:
        """Whether a model that was loaded by `plan` is what `overrides`, named, ask for."""
        asked = msgspec.structs.replace(plan.asked, **overrides)
        if asked == plan.asked:
            return True
        if (asked.lora, asked.chat_template) != (plan.asked.lora, plan.asked.chat_template):
            return False
        # What was left open and is left open stays as it was fitted.
        fitted = {
            name: getattr(plan.config, name)
            for name in ("n_ctx", "parallel")
            if getattr(asked, name) == getattr(plan.asked, name)
        }
        asked = msgspec.structs.replace(asked, **fitted)
        try:
            config = self._settled(plan.facts, asked, self._extras(plan.model, plan.adapters))
        except InvalidRequest:
            return False
        return is_in_force(effect(plan.facts, config), plan.effect, loaded)

    def sources(self, plan: Plan) -> dict[str, Source]:
        """Where each setting of a plan is from."""
        told = self.told(plan.model).load
        with contextlib.suppress(InvalidRequest):  # A file that it names may be gone by now.
            told = self.named(told)
        sources: dict[str, Source] = {}
        for name in LoadConfig.__struct_fields__:
            asked, config = getattr(plan.asked, name), getattr(plan.config, name)
            if asked != config:
                sources[name] = "fitted"
            elif name in told and asked == told[name]:
                sources[name] = "file"
            elif asked != getattr(self.defaults, name):
                sources[name] = "request"
            else:
                sources[name] = "default" if asked == getattr(LoadConfig(), name) else "option"
        return sources

    def sampling(self, plan: Plan) -> dict[str, Any]:
        """Fields of `Sampling` for requests to a model that leave them out.

        What the configuration file says, before what the model's file recommends; of a
        `logit_bias` the tokens that the model has.
        """
        told = dict(self.told(plan.model).sampling)
        if bias := told.get("logit_bias"):
            n_vocab = plan.facts.shape.n_vocab
            told["logit_bias"] = {id: value for id, value in bias.items() if id < n_vocab}
        return {**plan.facts.sampling, **told}

    def warn_of_unknown_tokens(self, plan: Plan) -> None:
        """Log which tokens of the configuration file's `logit_bias` the model lacks."""
        told = self.told(plan.model).sampling.get("logit_bias", {})
        if unknown := told.keys() - self.sampling(plan).get("logit_bias", {}).keys():
            logger.warning(
                "%s has no token %s, so the configuration file's logit_bias does without.",
                plan.model.name,
                ", ".join(map(str, sorted(unknown))),
            )

    def told(self, model: ModelFile) -> ModelDefaults:
        """What the configuration file says of a model."""
        means = self.registry.means
        return next((d for name, d in self.by_model.items() if means(name, model)), ModelDefaults())

    def _extras(self, model: ModelFile, adapters: Sequence[ModelFile]) -> Extras:
        return Extras(
            adapters=sum(adapter.size for adapter in adapters),
            cache=self.cache,
            correction=self._corrections.get(model.identity, 0),
        )

    def learn(self, plan: Plan, taken: int) -> int:
        """A load took that many bytes, 0 if that is unknown. What to count it as from now on."""
        if taken == 0:
            return plan.memory.total
        # A plan may be older than the last correction: what it was weighed with does not matter.
        extras = self._extras(plan.model, plan.adapters)
        plain = estimate(plan.facts, plan.config, replace(extras, correction=0))
        # The prompt cache's queue is empty after a load.
        beyond = taken - (plain.total - plain.prompt_cache)
        self._corrections[plan.model.identity] = beyond
        return plain.total + beyond


def _check_adapter(facts: Facts, adapter: ModelFile) -> None:
    """Raises ModelLoadFailed for an adapter of another kind of model. Blocks for the disk."""
    try:
        made_for = read_header(adapter.path).metadata.get("general.architecture")
    except (InvalidGguf, OSError):
        return  # The load says what is wrong with it.
    if made_for != facts.architecture:
        raise ModelLoadFailed(
            f"The adapter {adapter.name} cannot be used with this model: it changes models of "
            f"another architecture than {facts.architecture}.",
            param="load_model_configs.lora",
        )


def _check_classifier(facts: Facts, config: LoadConfig) -> None:
    """Raises ModelLoadFailed for what is to rerank and cannot."""
    if pooling(facts, config) == "rank" and not facts.classifies:
        raise ModelLoadFailed(
            "This model cannot rerank: its file has no classifier that makes scores (cls.output). "
            "Use a reranker's file that has; to have embeddings of this one, set "
            "load_model_configs.pooling to mean, cls or last.",
            param="load_model_configs.pooling",
        )


def _check_kv_types(facts: Facts, config: LoadConfig) -> None:
    """Raises InvalidRequest for types of keys and values that llama.cpp would not take."""
    if config.flash_attn == "off" and config.type_v != "f16":
        raise InvalidRequest(
            "Values can only be quantized (type_v) with flash attention: set flash_attn to auto, "
            "or type_v to f16.",
            param="load_model_configs.flash_attn",
        )
    shape = facts.shape
    for name, lengths in (("type_k", shape.key_lengths), ("type_v", shape.value_lengths)):
        kind: KvType = getattr(config, name)
        odd = [length for length in lengths if not in_blocks(length, kind)]
        if odd:
            raise InvalidRequest(
                f"The heads of this model are {odd[0]} numbers long, which {kind} cannot divide "
                f"into its blocks: set {name} (or kv_type) to f16.",
                param=f"load_model_configs.{name}",
            )
