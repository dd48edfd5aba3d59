"""`llm-server pull`, `list`, `show` and `rm`: the models folder, as a person sees and fills it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_server.commands import adapters, output
from llm_server.commands.output import Json, ModelsDir
from llm_server.gguf.parts import model_parts

if TYPE_CHECKING:
    from llm_server.models.download import Progress
    from llm_server.models.hub import Pick
    from llm_server.models.registry import ModelFile, Registry

Source = Annotated[
    str,
    typer.Argument(
        help="hf:owner/repo, hf:owner/repo:Q5_K_M, hf:owner/repo:file.gguf, or an https:// address",
        show_default=False,
    ),
]
ModelName = Annotated[
    str, typer.Argument(help="name as in `list`; for `show` also a file", show_default=False)
]
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 and SIGINT."""


def pull(source: Source, models_dir: ModelsDir = None) -> None:
    """Download a model into the models folder.

    From a Hugging Face repository, the quantization Q4_K_M is taken unless another is named. An
    interrupted download continues where it stopped when the command is given again. Set HF_TOKEN
    for private or gated repositories.
    """
    from llm_server.models import hub
    from llm_server.models.connection import DownloadError

    folder = output.settings(models_dir=models_dir).models_dir
    try:
        choice = hub.choose(source)
        _announce(choice)
        _fetch_all(choice, folder)
    except DownloadError as error:
        output.fail(str(error))
    except KeyboardInterrupt:
        output.fail("stopped; the same command continues where this one ended", INTERRUPTED)


def _announce(choice: Pick) -> None:
    """What is about to be fetched, and what could be fetched instead."""
    first = choice.files[0].name
    more = f" and {len(choice.files) - 1} more parts" if len(choice.files) > 1 else ""
    sizes = [remote.size for remote in choice.files]
    total = f", {output.size_text(sum(s for s in sizes if s))}" if all(sizes) else ""
    output.say(f"{first}{more}{total}")
    if choice.others:
        output.say(f"(also there: {', '.join(choice.others)})")


def _fetch_all(choice: Pick, folder: Path) -> None:
    from llm_server.gguf.header import read_kind
    from llm_server.models import download

    with _told(folder):
        download.check_space(folder, choice.files)
    for remote in choice.files:
        with _told(folder), _progress_bar(remote.name) as progress:
            here = (folder / remote.name).exists()
            path = download.fetch(remote, folder, progress)
        checked = "SHA-256 as announced" if remote.sha256 else "no hash was announced"
        output.say(f"{path} ({'here already, ' if here else ''}{checked})")
    name = output.argument(choice.model_name)
    if read_kind(path) == "adapter":
        output.say(f"It is a LoRA adapter. What it is for: llm-server show {name}")
    else:
        output.say(f"Try it: llm-server run {name}")


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Ends the program where the disk of the models refuses."""
    try:
        yield
    except OSError as error:
        output.fail(f"{error.filename or folder}: {error.strerror}")


@contextmanager
def _progress_bar(name: str) -> Iterator[Progress]:
    """Bytes, speed and time left, on stderr, and nothing where that is no terminal."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = output.console(stderr=True)
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(output.printable(name), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def list_models(models_dir: ModelsDir = None, json: Json = False) -> None:
    """List the models of the folder.

    LoRA adapters, chat templates, and what is not finished or not whole, are told below.
    """
    from llm_server.models import download

    registry = _registry(models_dir)
    rows = [_summary(registry, model) for model in registry.models()]
    parts = sorted(registry.folder.glob("*.part"))
    unfinished = {download.name_of_part(part): part.stat().st_size for part in parts}
    found = adapters.rows(registry)
    if json:
        templates = [template.name for template in registry.templates()]
        beside = {"adapters": found, "chat_templates": templates, "unfinished": unfinished}
        incomplete = {n: [str(path) for path in paths] for n, paths in registry.incomplete.items()}
        output.print_json({"models": rows, **beside, "incomplete": incomplete})
        return
    columns = ["model", "parameters", "quantization", "context", "size", "changed"]
    output.print_table(columns, [[output.cell(column, row) for column in columns] for row in rows])
    for row in rows:
        if row["error"] is not None:
            output.say(row["error"])
    adapters.print_list(registry, found)
    for name, size in unfinished.items():
        output.say(f"{name} is not finished: {output.size_text(size)} so far. Pull it again.")
    for name in registry.incomplete:
        output.say(f"{name} is incomplete: parts of it are missing. Pull it again, or remove it.")
    for name in registry.leading_out:
        output.say(f"{name} is a link out of this folder: served with --follow-symlinks only.")
    if rows and registry.is_stand_in(registry.models()[0]):
        output.say(f"There is no model in {registry.folder}: the demo model serves instead.")


def show(name: ModelName, models_dir: ModelsDir = None, json: Json = False) -> None:
    """Show what a model or a LoRA adapter is and what it needs.

    By its header alone, with an estimate of the memory a model would take in a server with these
    settings. A chat template is printed.
    """
    from llm_server.config import make_planner
    from llm_server.errors import ServerError

    registry = _registry(models_dir, name)
    if (companion := adapters.find(registry, name)) is not None:
        adapters.show(companion, json)
        return
    try:
        model = registry.find(name)
        facts = registry.facts(model)
        planner = make_planner(output.settings(models_dir=models_dir, model_name=name), registry)
        plan = planner.weigh(model)
    except ServerError as error:
        output.fail(str(error))
    about = {
        **_summary(registry, model),
        "title": facts.name,
        "architecture": facts.architecture,
        "chat_template": facts.template_sha256 is not None,
        "pooling": facts.pooling,
        "sampling": facts.sampling,
        "files": [str(path) for path in model.parts],
        "n_ctx": plan.config.n_ctx,
        "memory": plan.memory.total,
    }
    if json:
        output.print_json(about)
        return
    lines = {
        column: output.cell(column, about) for column in ("model", "parameters", "quantization")
    }
    lines |= {"title": facts.name or "-", "architecture": facts.architecture}
    lines["context"] = f"{facts.n_ctx_train} tokens"
    lines["chat template"] = "yes" if facts.template_sha256 else "no"
    if facts.pooling == "rank":
        lines["reranker"] = "yes"
    elif facts.pooling:
        lines["embeddings"] = f"yes, pooling {facts.pooling}"
    if facts.sampling:
        lines["sampling"] = ", ".join(f"{name} {value:g}" for name, value in facts.sampling.items())
    lines["size"] = output.cell("size", about)
    lines["memory"] = f"about {output.size_text(plan.memory.total)} with n_ctx {plan.config.n_ctx}"
    lines["files"] = "\n".join(about["files"])
    output.print_table(["", ""], lines.items())


def rm(
    names: Annotated[list[str], typer.Argument(help="names as in `list`", show_default=False)],
    models_dir: ModelsDir = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
) -> None:
    """Delete models, LoRA adapters or chat templates from the folder.

    All parts of a split model, also where some are missing, and what unfinished downloads have
    left. What lies elsewhere, or the configuration file loads a model with, stays.
    """
    registry = _registry(models_dir)
    doomed: dict[str, list[Path]] = {}
    for name in names:
        _refuse_in_use(registry, name, models_dir)
        file_name, paths = _files_of(registry, name)
        doomed[file_name] = paths
    for name, paths in doomed.items():
        size = sum(path.lstat().st_size for path in paths if not path.is_symlink())
        files = f"{len(paths)} files, " if len(paths) > 1 else ""
        if not yes:
            shown = output.printable(name)
            typer.confirm(f"Delete {shown} ({files}{output.size_text(size)})?", abort=True)
        try:
            for path in paths:
                path.unlink(missing_ok=True)
        except OSError as error:
            output.fail(f"{error.filename}: {error.strerror}")
        output.say(f"{name} deleted, {output.size_text(size)} free again.")


def _registry(models_dir: Path | None, model_name: str | None = None) -> Registry:
    """The models as a server with these settings would have them."""
    from llm_server import places
    from llm_server.config import make_registry
    from llm_server.demo import demo_model_path

    settings = output.settings(models_dir=models_dir, model_name=model_name)
    folder = settings.models_dir
    if "models_dir" in settings.model_fields_set and not places.is_folder(folder):
        output.fail(f"--models-dir: there is no folder {folder}")
    registry = make_registry(settings, demo_model_path())
    registry.scan()
    return registry


def _refuse_in_use(registry: Registry, name: str, models_dir: Path | None) -> None:
    file = adapters.find(registry, name)
    if file is None:
        return
    if users := list(adapters.named_by(output.settings(models_dir=models_dir), registry, file)):
        output.fail(
            f"{file.name} is what the configuration file loads {' and '.join(users)} with; take it "
            "out there first"
        )


def _files_of(registry: Registry, name: str) -> tuple[str, list[Path]]:
    """The name of a model's file, its files, and what downloads of them have left."""
    from llm_server.errors import ModelNotFound

    if (companion := adapters.find(registry, name)) is not None:
        return companion.name, [companion.path]
    try:
        model = registry.find(name)
    except ModelNotFound as error:
        return _remains(registry, name) or output.fail(str(error))
    if registry.is_stand_in(model):
        output.fail("the demo model is part of the package and cannot be deleted")
    if not model.path.parent.resolve().is_relative_to(registry.folder.resolve()):
        output.fail(f"{model.path} is not in the models folder: delete it yourself")
    return model.name, [*model.parts, *_unfinished(model.parts)]


def _remains(registry: Registry, name: str) -> tuple[str, list[Path]] | None:
    """What is there of a model that is not whole, under its name; None if there is nothing."""
    for file_name in (name, f"{name}.gguf"):
        if parts := registry.incomplete.get(file_name):
            return file_name, [*parts, *_unfinished(model_parts(parts[0]))]
        if left := _unfinished([registry.folder / file_name]):
            return file_name, left
    return None


def _unfinished(files: Iterable[Path]) -> list[Path]:
    """What downloads of these files have left."""
    from llm_server.models import download

    return [left for file in files for left in download.unfinished(file.parent, file.name)]


def _summary(registry: Registry, model: ModelFile) -> dict[str, Any]:
    """What a row of the list holds; facts are null where the header cannot be read."""
    from llm_server.errors import ModelLoadFailed

    facts = error = None
    try:
        facts = registry.facts(model)
    except ModelLoadFailed as failed:
        error = str(failed)
    return {
        "model": model.name,
        "parameters": facts and facts.n_params,
        "quantization": facts and facts.quantization,
        "context": facts and facts.n_ctx_train,
        "size": model.size,
        "changed": model.modified,
        "error": error,
    }
