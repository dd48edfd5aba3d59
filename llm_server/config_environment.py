"""Variables as settings: all but the tables, and those that look like settings and are none."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource

from llm_server.config_file import ClusterTable, ModelTable

PREFIX = "LLM_SERVER_"

_OF_ORCHESTRATORS = re.compile(r"service_(host|port)|port_\d").match
"""Variables that Kubernetes and Docker set for a service of the name llm-server."""

_ADDRESS = re.compile(r"(tcp|udp|sctp)://\S+")
"""What they put into that service's LLM_SERVER_PORT."""


class VariableSource(EnvSettingsSource):
    """The environment as a source of settings: all but the tables, and addresses of services."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """As the class above has it."""
        if is_table(field):
            return None, field_name, False
        value, key, is_complex = super().get_field_value(field, field_name)
        return (None if is_address(field_name, value) else value), key, is_complex


def is_table(field: FieldInfo) -> bool:
    """Whether a setting is one of the tables of the file, and stands nowhere else."""
    return field.annotation in (dict[str, ModelTable], ClusterTable)


def is_address(name: str, value: object) -> bool:
    """Whether the variable of a setting tells no setting, but where a service of our name is."""
    return name == "port" and isinstance(value, str) and _ADDRESS.fullmatch(value) is not None


def unknown(variables: Iterable[str], settings: type[BaseSettings]) -> dict[str, str]:
    """Which of `variables` look like settings and are none.

    Each with the variable that may be meant, "" if none comes near.
    """
    names = {name for name, field in settings.model_fields.items() if not is_table(field)}
    names.add("api_keys")
    found = {}
    for variable in variables:
        name = variable.upper().removeprefix(PREFIX).lower()
        if not variable.upper().startswith(PREFIX) or name in names or _OF_ORCHESTRATORS(name):
            continue
        near = get_close_matches(name, names, n=1, cutoff=0.5)
        found[variable] = PREFIX + near[0].upper() if near else ""
    return found
