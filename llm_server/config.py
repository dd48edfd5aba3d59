"""The settings of the server: the only reader of flags, environment and configuration file.

Every field of `Settings` is a flag (`--n-ctx`, `--n_ctx`), a variable (`LLM_SERVER_N_CTX`) and a
key of `llm-server.toml`; flags win over variables, and those over the file. Only that has tables
for single models (`config_file.py`). Nothing here touches models or the network.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import (
    AliasChoices,
    BeforeValidator,
    ByteSize,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from llm_server import config_file, places
from llm_server.api.parameters import GpuLayers
from llm_server.cache.budget import default_budget
from llm_server.config_environment import PREFIX, VariableSource, is_address, is_table
from llm_server.config_file import ClusterTable, ConfigFileError, FileSource, ModelTable
from llm_server.machine import Memory, memory
from llm_server.models.plan import Planner
from llm_server.models.policy import budget_bytes, keep_alive_seconds
from llm_server.models.registry import Registry
from llm_server.worker.config import MAX_PARALLEL, CacheConfig, LoadConfig

CacheWrite = Literal["all", "auto", "off"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]


def _texts(value: object) -> object:
    """A list with commas, and flags that were repeated, as the texts in them."""
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        return parts
    split = (part.split(",") if isinstance(part, str) else [part] for part in parts)
    return tuple(text.strip() if isinstance(text, str) else text for part in split for text in part)


T = TypeVar("T")
Texts: TypeAlias = Annotated[tuple[T, ...], NoDecode, BeforeValidator(_texts)]
"""Several texts, given as one with commas, or by repeating a flag."""


class Settings(BaseSettings):
    """What the server was told at its start, checked."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        validate_default=False,
        populate_by_name=True,
    )

    config: Path | None = Field(
        default=None,
        description="file with settings by the names of these options, and with tables for single "
        "models, default llm-server.toml here or in the per-user configuration folder",
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(
        default=8000, ge=0, le=65535, description="port to listen on, 0 for any free one"
    )
    model_name: str | None = Field(
        default=None,
        min_length=1,
        description="model to load at the start, a name in the models folder or the path of a "
        "file; default the first by name that makes text",
    )
    models_dir: Path = Field(
        default_factory=lambda: places.default_models_dir(),
        description="folder with GGUF files, default ./models or the per-user data folder",
    )
    n_ctx: int = Field(
        default=0,
        ge=0,
        le=1 << 24,
        description="context in tokens, 0 for what model and memory allow",
    )
    parallel: int = Field(
        default=0,
        ge=0,
        le=MAX_PARALLEL,
        description="requests computed at once, 0 lets the server choose",
    )
    threads: int = Field(
        default=0, ge=0, le=1024, description="threads to compute with, 0 for one per fast core"
    )
    n_gpu_layers: GpuLayers = Field(
        default=-1, description="layers to put on the GPU, -1 for all, auto for as many as fit"
    )
    draft_max: int = Field(
        default=16,
        ge=0,
        le=64,
        description="tokens to guess in one step where an answer copies its prompt, 0 for none",
    )
    queue_size: int = Field(
        default=64,
        ge=0,
        le=100_000,
        description="requests that may wait beyond those that all loaded models compute at once",
    )
    max_body_bytes: int = Field(
        default=8 * 1024 * 1024, ge=1024, description="longest request body in bytes"
    )
    grace_seconds: float = Field(
        default=20.0,
        ge=0,
        le=3600,
        description="time running answers get when the server is stopped",
    )
    api_key: Texts[SecretStr] = Field(
        default=(),
        validation_alias=AliasChoices("LLM_SERVER_API_KEY", "LLM_SERVER_API_KEYS"),
        description="key that clients must send; several as a list with commas or by repetition. "
        "Other users of this machine see flags: prefer the variable or --api-key-file",
    )
    api_key_file: Path | None = Field(
        default=None, description="file with such keys, one a line; SIGHUP reads it again"
    )
    insecure_no_auth: bool = Field(
        default=False, description="listen beyond this machine without an API key"
    )
    shared_cache: bool = Field(
        default=False, description="let clients with different keys share cached prompts"
    )
    allowed_hosts: Texts[str] = Field(
        default=(),
        description="names this server is reached by, beside its addresses, localhost and the "
        "machine's own; * for any",
    )
    allowed_origins: Texts[str] = Field(
        default=(),
        description="origins such as http://localhost:3000 whose web pages may use this server; "
        "* for any",
    )
    max_connections: int = Field(
        default=1024, ge=1, le=65_536, description="connections that may be open at once"
    )
    cache_dir: Path | None = Field(
        default=None,
        description="folder for prompts on disk, default cache/ beside the models folder",
    )
    cache_size: ByteSize | None = Field(
        default=None,
        description="disk space for prompts such as 500MB, 0 for none, default a tenth of what is "
        "free or taken by them, and at most 10GB",
    )
    cache_write: CacheWrite = Field(
        default="auto", description="what is written of them: auto (what is worth it), all or off"
    )
    no_sandbox: bool = Field(
        default=False,
        description="let the process that runs the model do whatever this user may",
    )
    worker_memory: ByteSize | None = Field(
        default=None,
        description="most memory a worker may have beside the mapped model file, such as 4GB; it "
        "is ended and started again beyond that",
    )
    memory: str | None = Field(
        default=None,
        description="memory that all loaded models may take together, such as 8GB or 80%, default "
        "what is free at the start less a tenth of all",
    )
    keep_alive: str = Field(
        default="-1",
        description="how long a model stays loaded without requests: seconds, 5m, -1 for ever",
    )
    follow_symlinks: bool = Field(
        default=False, description="serve what links lead to outside of the models folder, too"
    )
    log_level: LogLevel = Field(default="info", description="debug, info, warning or error")
    log_format: LogFormat = Field(
        default="text", description="text, or json: one object a line for a program to read"
    )

    models: dict[str, ModelTable] = Field(
        default={}, description="more names and own defaults of single models, by their names"
    )
    cluster: ClusterTable = Field(
        default=ClusterTable(),
        validate_default=True,
        description="how many replicas, and where, in a cluster",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, environment, and the file that `config` names. Raises ConfigFileError."""
        variables = VariableSource(settings_cls)
        path = init_settings().get("config")
        if path is None:
            return init_settings, variables
        return init_settings, variables, FileSource(settings_cls, Path(path))

    @field_validator("models_dir", "cache_dir", "api_key_file", mode="before")
    @classmethod
    def _as_path(cls, told: object) -> object:
        """As a shell would have it: none has looked at the variables of a service."""
        return places.expanded(told) if isinstance(told, str | Path) else told

    @field_validator("memory", "keep_alive", mode="before")
    @classmethod
    def _as_text(cls, told: object) -> object:
        """A file may have plain numbers."""
        return str(told) if isinstance(told, int | float) and not isinstance(told, bool) else told

    @field_validator("models")
    @classmethod
    def _check_models(cls, told: dict[str, ModelTable]) -> dict[str, ModelTable]:
        config_file.aliases_of(told)
        return told

    @field_validator("cluster")
    @classmethod
    def _check_cluster(cls, told: ClusterTable, info: ValidationInfo) -> ClusterTable:
        for name, table in info.data.get("models", {}).items():
            try:
                told.of(table.cluster)
            except ValueError as error:
                raise ValueError(f"with [models.{name}.cluster], {error}") from None
        return told

    @field_validator("memory")
    @classmethod
    def _check_memory(cls, told: str | None) -> str | None:
        budget_bytes(told, Memory(0, 0))
        return told

    @field_validator("keep_alive")
    @classmethod
    def _check_keep_alive(cls, told: str) -> str:
        keep_alive_seconds(told)
        return told


def make_registry(settings: Settings, stand_in: Path | None) -> Registry:
    """The models folder as the settings want it read; nothing has been read yet."""
    return Registry(
        settings.models_dir,
        stand_in,
        given=_given(settings),
        aliases=config_file.aliases_of(settings.models),
        follow_symlinks=settings.follow_symlinks,
    )


def _given(settings: Settings) -> str | None:
    """The model file that is meant by its path, and not by a name in the models folder."""
    name = settings.model_name or ""
    path = Path(name)
    is_path = path.is_absolute() or name.startswith(("./", "../"))
    in_folder = not is_path and places.is_file(settings.models_dir / path)
    return name if name.endswith(".gguf") and places.is_file(path) and not in_folder else None


def make_planner(settings: Settings, registry: Registry) -> Planner:
    """How models are loaded with these settings, and what they may take."""
    return Planner(
        registry,
        budget=budget_bytes(settings.memory, memory()),
        defaults=LoadConfig(
            n_ctx=settings.n_ctx,
            parallel=settings.parallel,
            n_threads=settings.threads,
            draft_max=settings.draft_max,
            n_gpu_layers=settings.n_gpu_layers,
        ),
        by_model={name: table.defaults() for name, table in settings.models.items()},
        cache=settings.cache_size != 0,
    )


def cache_dir(settings: Settings) -> Path:
    """The folder of the prompt cache."""
    return (settings.cache_dir or settings.models_dir.absolute().parent / "cache").absolute()


def cache_config(settings: Settings) -> CacheConfig | None:
    """The prompt cache that workers are to use; None if there is to be none on disk."""
    folder = cache_dir(settings)
    size = settings.cache_size
    if size is None:
        size = ByteSize(default_budget(folder))
    return CacheConfig(folder, int(size), settings.cache_write) if size else None


def settings_from_args(args: Sequence[str], prog: str) -> Settings:
    """Settings from flags, environment and file. A wrong one is a line on stderr and status 2."""
    return _settings(vars(_parser(prog).parse_args(args)), prog)


def settings_from_environment(given: Mapping[str, Any] | None = None) -> Settings:
    """Settings from environment and file, and `given` ones that win over them.

    A wrong one is a line on stderr and exit status 2.
    """
    return _settings(given or {}, "llm-server")


def _settings(given: Mapping[str, Any], prog: str) -> Settings:
    told = given.get("config") or os.environ.get(_variable("config"))
    path = places.expanded(told).absolute() if told else config_file.found()
    try:
        if told and path is not None and not places.is_file(path):
            raise ConfigFileError(f"--config: there is no file {path}")
        return Settings(**{**given, "config": path})
    except ValidationError as error:
        reason = _explained(error, given, path)
    except (ConfigFileError, SettingsError) as error:
        reason = str(error)
    print(f"{prog}: {reason}", file=sys.stderr)
    sys.exit(2)


def _explained(error: ValidationError, given: Mapping[str, Any], path: Path | None) -> str:
    """The first thing that is wrong, and where it stands."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    variable = os.environ.get(_variable(name))
    in_file = variable is None or is_address(name, variable)
    if path is not None and name not in given and in_file:
        return config_file.explained(first, path, Settings)
    source = _flag(name) if name in given else _variable(name)
    return f"{source}: {first['msg'].removeprefix('Value error, ').lower()}"


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Serve the GGUF models of a folder over an OpenAI-compatible API.",
        epilog="Each option can also be set by its variable, such as LLM_SERVER_N_CTX.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(
        "model_name", nargs="?", metavar="MODEL", help="the same as --model-name MODEL"
    )
    for name, field in Settings.model_fields.items():
        if is_table(field):
            continue
        shown = not field.default_factory and field.default not in (None, ())
        default = f" [{field.default}]" if shown else ""
        text = f"{field.description}{default}".replace("%", "%%")
        # The underscore spelling is accepted, and kept out of the help.
        flags = dict.fromkeys([_flag(name), "--" + name])
        if field.annotation is bool:
            action = parser.add_argument(*flags, dest=name, action="store_true", help=text)
        else:
            action = parser.add_argument(
                *flags,
                dest=name,
                action="append" if field.default == () else "store",
                metavar=_metavar(name),
                help=text,
            )
        action.option_strings = [_flag(name)]
    return parser


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _metavar(name: str) -> str:
    return name.rpartition("_")[2].upper()
