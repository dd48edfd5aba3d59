"""`llm-server doctor`: looks at machine and installation, and says what to do."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llm_server import __version__
from llm_server.commands import output
from llm_server.commands.output import Json, ModelsDir

if TYPE_CHECKING:
    from llm_server.config import Settings
    from llm_server.doctor.finding import Finding


def doctor(models_dir: ModelsDir = None, json: Json = False) -> None:
    """Find what is wrong here and how to mend it.

    Looks at the machine and at the installation.

    Exit status 1 if something does not work. Writes and removes 32 MB where the cache is.
    """
    findings = []
    for finding in examine(output.settings(models_dir=models_dir)):
        findings.append(finding)
        if not json:
            _print(finding)
    failed = [finding for finding in findings if finding.status == "fail"]
    if json:
        about = {"version": __version__, "python": platform.python_version()}
        about["system"] = platform.platform()
        rows = [dataclasses.asdict(finding) for finding in findings]
        output.print_json({**about, "ok": not failed, "findings": rows})
    if failed:
        raise typer.Exit(1)


def examine(settings: Settings, root: Path = Path("/")) -> Iterator[Finding]:
    """Every finding, as it is made. `root` stands for `/`, for tests."""
    import psutil

    from llm_server import config, machine
    from llm_server.demo import demo_model_path
    from llm_server.doctor import checks, native

    built = native.examine(sandbox=not settings.no_sandbox)
    if isinstance(built, native.Native):
        yield native.version_finding(built)
        yield native.feature_finding(built, machine.cpu_flags(root))
        yield native.gpu_finding(built, machine.graphics_cards(root))
    else:
        yield built
    cores = machine.cores(root)
    yield checks.thread_finding(settings.threads or cores.fast, cores, machine.cpu_quota(root))
    registry = config.make_registry(settings, demo_model_path())
    registry.scan()
    largest = max((model.size for model in registry.models()), default=0)
    total, swap = psutil.virtual_memory().total, psutil.swap_memory()
    available, limit = machine.memory(root).available, machine.memory_limit(root)
    yield checks.memory_finding(total, available, limit, largest)
    yield checks.swap_finding(swap.total, swap.used)
    yield checks.folder_finding("models", settings.models_dir, needs_write=False)
    folder = config.cache_dir(settings)
    if settings.cache_size != 0:
        found = checks.folder_finding("cache", folder, needs_write=True)
        yield found
        if found.status == "ok":
            yield checks.disk_finding(folder)
    yield checks.port_finding(settings.host, settings.port)


def _print(finding: Finding) -> None:
    colour = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}
    status = f"{finding.status:<4}"
    if output.is_styled():
        status = typer.style(status, fg=colour[finding.status])
    typer.echo(f"{status}  {finding.check:<9}  {finding.detail}")
    if finding.fix is not None:
        typer.echo(f"{'':17}-> {finding.fix}")
