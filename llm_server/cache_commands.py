"""`llm-server cache ...`: what is in the folder of cached prompts, seen and mended by a person.

Works beside a running server, to which a cleared chunk is a miss. Loads no model.
"""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from llm_server import config
from llm_server.cache import survey
from llm_server.cache.index import Stored

app = typer.Typer(help="Look at, verify or clear the prompts kept on disk.", no_args_is_help=True)

CacheDir = Annotated[
    Path | None,
    typer.Option(help="folder of the cache; default as the server has it", show_default=False),
]
ModelsDir = Annotated[
    Path | None,
    typer.Option(help="models folder, beside which the cache is", show_default=False),
]


@app.command("ls")
def list_chunks(cache_dir: CacheDir = None, models_dir: ModelsDir = None) -> None:
    """List every chunk: model, positions, size, last use."""
    table = Table("model", "kind", "tokens", "size", "last used")
    for file in sorted(_stored(cache_dir, models_dir), key=lambda f: -f.used):
        chunk = file.chunk
        kind = chunk.kind.name.lower() + (", head" if chunk.head else "")
        positions = f"{chunk.start} to {chunk.start + chunk.n_tokens}"
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(file.used))
        table.add_row(survey.model_of(file), kind, positions, _size(file.size), used)
    Console().print(table)


@app.command()
def stats(cache_dir: CacheDir = None, models_dir: ModelsDir = None) -> None:
    """Count chunks, tokens and bytes by model."""
    by_model: dict[str, list[Stored]] = defaultdict(list)
    for file in _stored(cache_dir, models_dir):
        by_model[survey.model_of(file)].append(file)
    table = Table("model", "chunks", "tokens", "size", "of that heads")
    for model, files in sorted(by_model.items()):
        heads = sum(file.size for file in files if file.chunk.head)
        tokens = sum(file.chunk.n_tokens for file in files)
        total = sum(file.size for file in files)
        table.add_row(model, str(len(files)), str(tokens), _size(total), _size(heads))
    console = Console()
    console.print(table)
    total = sum(file.size for files in by_model.values() for file in files)
    console.print(f"{_size(total)} in {_folder(cache_dir, models_dir)}")


@app.command()
def verify(cache_dir: CacheDir = None, models_dir: ModelsDir = None) -> None:
    """Read every chunk and check its checksum. Exit status 1 if any is damaged."""
    files = _stored(cache_dir, models_dir)
    damaged = 0
    with Progress(transient=True) as progress:
        for file in progress.track(files, description="Verifying"):
            reason = survey.damage(file)
            if reason is not None:
                damaged += 1
                progress.console.print(f"{file.path}: {reason}")
    Console().print(f"{len(files)} chunks read, {damaged} damaged.")
    if damaged:
        raise typer.Exit(1)


@app.command()
def clear(
    cache_dir: CacheDir = None,
    models_dir: ModelsDir = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Delete every chunk of every model."""
    folder = _folder(cache_dir, models_dir)
    if not yes:
        typer.confirm(f"Delete all cached prompts in {folder}?", abort=True)
    count, size = survey.clear(folder)
    Console().print(f"{count} chunks deleted, {_size(size)} free again.")


def _folder(cache_dir: Path | None, models_dir: Path | None) -> Path:
    """The folder a server with these options, or the environment, would use."""
    given = {"cache_dir": cache_dir, "models_dir": models_dir}
    settings = config.settings_from_environment({k: v for k, v in given.items() if v is not None})
    return config.cache_dir(settings)


def _stored(cache_dir: Path | None, models_dir: Path | None) -> list[Stored]:
    return survey.stored_chunks(_folder(cache_dir, models_dir))


def _size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} GB"
