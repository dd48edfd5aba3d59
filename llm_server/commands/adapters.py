"""LoRA adapters and chat templates of the models folder, as `list`, `show` and `rm` have them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from llm_server.commands import output

if TYPE_CHECKING:
    from llm_server.config import Settings
    from llm_server.models.registry import ModelFile, Registry


def rows(registry: Registry) -> list[dict[str, Any]]:
    """What the list says of each adapter; facts are null where the header cannot be read."""
    return [row(adapter) for adapter in registry.adapters()]


def row(adapter: ModelFile) -> dict[str, Any]:
    """What is said of one."""
    from llm_server.gguf.header import InvalidGguf
    from llm_server.models.adapters import adapter_facts

    facts = error = None
    try:
        facts = adapter_facts(adapter.path)
    except InvalidGguf as invalid:
        error = f"{adapter.name} cannot be used: {invalid}."
    return {
        "adapter": adapter.name,
        "architecture": facts and facts.architecture,
        "base": facts and facts.base,
        "rank": facts and facts.rank,
        "parameters": facts and facts.n_params,
        "size": adapter.size,
        "changed": adapter.modified,
        "error": error,
    }


def print_list(registry: Registry, told: list[dict[str, Any]]) -> None:
    """The adapters and templates below the models; nothing where there are none."""
    if told:
        typer.echo()
        columns = ["adapter", "architecture", "rank", "parameters", "size", "changed"]
        output.print_table(columns, [[output.cell(c, row) for c in columns] for row in told])
        for row in told:
            if row["error"] is not None:
                output.say(row["error"])
    if templates := [template.name for template in registry.templates()]:
        output.say(f"\nchat templates: {', '.join(templates)}")


def find(registry: Registry, name: str) -> ModelFile | None:
    """The adapter or template of that name; None where it is a model's."""
    return None if registry.knows(name) else registry.companion(name)


def show(adapter: ModelFile, json: bool) -> None:
    """One adapter, and how it is used; a template as it is, or as a terminal may have it."""
    if not adapter.name.endswith(".gguf"):
        template = adapter.path.read_text(encoding="utf-8", errors="replace")
        typer.echo(output.printable(template) if sys.stdout.isatty() else template)
        return
    about = row(adapter)
    if json:
        output.print_json(about)
        return
    if about["error"] is not None:
        output.fail(about["error"])
    lines = {name: output.cell(name, about) for name in ("adapter", "architecture", "base")}
    lines |= {name: output.cell(name, about) for name in ("rank", "parameters", "size")}
    lines["file"] = str(adapter.path)
    output.print_table(["", ""], lines.items())
    output.say(f'Use it: "load_model_configs": {{"lora": [{{"name": "{adapter.name}"}}]}}')


def named_by(settings: Settings, registry: Registry, file: ModelFile) -> Iterator[str]:
    """The models whose table in the configuration file names that adapter or template."""
    for model, table in settings.models.items():
        named = [adapter.name for adapter in table.load.lora or ()]
        named += [table.load.chat_template] if table.load.chat_template else []
        if any(registry.companion(name) == file for name in named):
            yield model
