"""`llm-server.toml`: where it is looked for, what may stand in it, and what is wrong with it.

It holds server settings by the names of the options, and a table for each model that needs its
own. Flags and environment win over it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, TomlConfigSettingsSource

from llm_server import places
from llm_server.api.parameters import (
    LoadFields,
    SamplingFields,
    Wire,
    overrides_of,
    sampling_fields,
)
from llm_server.errors import InvalidRequest
from llm_server.models.plan import ModelDefaults

NAME = "llm-server.toml"

_ELSEWHERE = {
    "api_key": "keys do not belong into this file: use api_key_file, or LLM_SERVER_API_KEY",
    "config": "this is the configuration file already",
}
"""Settings that may not stand in the file, and why."""


class ConfigFileError(ValueError):
    """What is wrong with the file, in one line for the person at the terminal."""


class ModelSampling(SamplingFields):
    """`[models.NAME.sampling]`: what requests get that leave it out."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="after")
    def _check(self) -> ModelSampling:
        if self.seed is not None:
            raise ValueError("a seed for all requests makes equal ones alike: send it with them")
        try:
            sampling_fields(self)
        except InvalidRequest as error:
            raise ValueError(str(error)) from None
        return self


ModelAlias = Annotated[str, StringConstraints(min_length=1, max_length=512)]


class ReplicaFields(BaseModel):
    """`[models.NAME.cluster]`: how a cluster runs a model. One machine does not look at it.

    Names and meanings are Ray Serve's. What is left out is as in `[cluster]`, and what is left out
    there follows from what the model takes.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    min_replicas: Annotated[int, Field(ge=0, le=100_000)] = 0
    max_replicas: Annotated[int, Field(ge=1, le=100_000)] = 1
    target_ongoing_requests: Annotated[float, Field(gt=0)] | None = None
    """Requests a replica shall have on average; None for as many as it computes at once."""
    upscale_delay_s: Annotated[float, Field(ge=0)] = 5.0
    downscale_delay_s: Annotated[float, Field(ge=0)] = 600.0
    graceful_shutdown_timeout_s: Annotated[float, Field(ge=0)] = 300.0
    """Time for the running answers of a replica that is replaced or not needed any more."""
    num_cpus: Annotated[float, Field(ge=0)] | None = None
    num_gpus: Annotated[float, Field(ge=0)] | None = None
    memory: ByteSize | None = None
    resources: dict[str, float] = {}
    """Custom resources of Ray that a replica's node must have."""


class ClusterTable(ReplicaFields):
    """`[cluster]`: what holds for the whole cluster, and for models that say nothing themselves."""

    ingress_replicas: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Copies of the API; each is one process."""
    routing: Literal["prefix", "load"] = "prefix"
    """Whether requests go to who knows their head, or to the less busy of any two replicas."""
    gpu_memory: ByteSize | None = None
    """Bytes a graphics card has: what a replica takes of it follows. None: no cards are used."""

    def of(self, model: ReplicaFields) -> ReplicaFields:
        """What holds for a model. Raises ValueError where the two do not go together."""
        shared = self.model_dump(include=set(ReplicaFields.model_fields), exclude_unset=True)
        both = ReplicaFields(**{**shared, **model.model_dump(exclude_unset=True)})
        if both.min_replicas > both.max_replicas:
            raise ValueError(
                f"min_replicas is {both.min_replicas}, more than max_replicas {both.max_replicas}"
            )
        return both

    @model_validator(mode="after")
    def _check(self) -> ClusterTable:
        self.of(ReplicaFields())
        return self


class ModelTable(Wire):
    """`[models.NAME]`: more names for a model, and its own defaults."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    alias: Annotated[
        list[ModelAlias],
        BeforeValidator(lambda told: [told] if isinstance(told, str) else told),
        Field(validation_alias=AliasChoices("alias", "aliases")),
    ] = []
    load: LoadFields = LoadFields()
    sampling: ModelSampling = ModelSampling()
    cluster: ReplicaFields = ReplicaFields()

    def defaults(self) -> ModelDefaults:
        """What loads and requests of this model start from."""
        return ModelDefaults(overrides_of(self.load), sampling_fields(self.sampling))


_TABLES: dict[str, type[BaseModel]] = {
    "load": LoadFields,
    "sampling": ModelSampling,
    "cluster": ReplicaFields,
}
"""The tables of `[models.NAME]`."""


class FileSource(TomlConfigSettingsSource):
    """The file as a source of settings. Relative paths in it begin at its own folder."""

    def __init__(self, settings: type[BaseSettings], path: Path) -> None:
        """Raises ConfigFileError."""
        self._path = path
        try:
            super().__init__(settings, path)
        except tomllib.TOMLDecodeError as error:
            raise ConfigFileError(f"{path} is no TOML: {error}") from None
        except UnicodeDecodeError:
            raise ConfigFileError(f"{path} is not UTF-8 text") from None
        except OSError as error:
            raise ConfigFileError(f"{path} cannot be read: {error.strerror}") from None

    def __call__(self) -> dict[str, Any]:
        """The settings. Raises ConfigFileError for those that may not stand there."""
        for name in self.toml_data:
            # Keys of clients also have the names of their variables.
            reason = _ELSEWHERE.get(name.lower().removeprefix("llm_server_").rstrip("s"))
            if reason is not None:
                raise ConfigFileError(f"{self._path}: {name}: {reason}")
        values = super().__call__()
        for name, value in values.items():
            field = self.settings_cls.model_fields.get(name)
            if field is None or not _is_path(field.annotation):
                continue
            if value and isinstance(value, str):
                values[name] = self._path.parent / places.expanded(value)
        return values


def found() -> Path | None:
    """The file of the working directory, else that of the user, if there is one."""
    if places.is_file(NAME):
        return Path(NAME).absolute()
    of_user = places.user_config_dir() / NAME
    return of_user if places.is_file(of_user) else None


def explained(error: ErrorDetails, path: Path, settings: type[BaseSettings]) -> str:
    """What pydantic says of a value in the file at `path`, in one line."""
    steps = [str(step) for step in error["loc"] if not str(step).startswith(("(", "["))]
    place = ".".join(steps)
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key {place}{_hint(steps, error['input'], settings)}"
    return f"{path}: {place}: {error['msg'].removeprefix('Value error, ')}"


def aliases_of(models: Mapping[str, ModelTable]) -> dict[str, str]:
    """Which model each alias stands for. Raises ValueError for one that is given twice."""
    aliases: dict[str, str] = {}
    for name, table in models.items():
        for alias in table.alias:
            if aliases.setdefault(alias, name) != name:
                raise ValueError(f"the alias {alias} is given to {aliases[alias]} and to {name}")
    return aliases


def _hint(steps: Sequence[str], value: object, settings: type[BaseSettings]) -> str:
    """What may be meant by the unknown key at `steps` with this value; "" if nothing comes near."""
    *before, name = steps
    near = get_close_matches(name, _names_at(before, settings), n=3, cutoff=0.5)
    if len(before) == 2 and before[0] == "models":
        deeper = [table for table, model in _TABLES.items() if name in model.model_fields]
        near = [".".join([*before, table, name]) for table in deeper] or near
        if not near and isinstance(value, dict):
            return '; names with dots need quotes: [models."..."]'
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _names_at(steps: Sequence[str], settings: type[BaseSettings]) -> list[str]:
    """The keys that are known where `steps` lead to."""
    model: type[BaseModel] = settings
    if steps and steps[0] == "cluster":
        model = ClusterTable
    elif steps:
        model = _TABLES[steps[2]] if len(steps) > 2 else ModelTable
    return [name for name in model.model_fields if name not in _ELSEWHERE]


def _is_path(annotation: object) -> bool:
    return annotation in (Path, Path | None)
