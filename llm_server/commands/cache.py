"""`llm-server cache ...`: what is in the folder of cached prompts, seen and mended by a person.

Works beside a running server, to which a cleared chunk is a miss. Loads no model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_server.commands import output

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
    """List every chunk: model, positions, size, hits of the head that ends there, last use."""
    from llm_server.cache import survey

    found = survey.survey(_folder(cache_dir, models_dir))
    ends = {file.path for file in survey.head_ends(found.stored)}
    rows = []
    for file in sorted(found.stored, key=lambda f: -found.use(f).used):
        chunk, use, model = file.chunk, found.use(file), survey.model_of(file)
        kind = chunk.kind.name.lower() + (", head" if chunk.head else "")
        positions = f"{chunk.positions.start} to {chunk.positions.stop}"
        hits = str(use.hits) if file.path in ends else ""
        used = output.time_text(use.used)
        size = output.size_text(file.size)
        rows.append([found.name(model) or model, kind, positions, size, hits, used])
    output.print_table(["model", "kind", "tokens", "size", "hits", "last used"], rows)


@app.command()
def stats(cache_dir: CacheDir = None, models_dir: ModelsDir = None) -> None:
    """Count chunks, tokens and bytes by model."""
    from llm_server.cache import survey

    found = survey.survey(_folder(cache_dir, models_dir))
    rows = []
    for model, files in found.by_model().items():
        heads = sum(file.size for file in files if file.chunk.head)
        tokens = sum(len(file.chunk.positions) for file in files)
        total = sum(file.size for file in files)
        size = output.size_text
        name = found.name(model) or ""
        rows.append([name, model, str(len(files)), str(tokens), size(total), size(heads)])
    output.print_table(["model", "id", "chunks", "tokens", "size", "of that heads"], rows)
    total = sum(file.size for file in found.stored)
    typer.echo(f"{output.size_text(total)} in {_folder(cache_dir, models_dir)}")


@app.command()
def verify(cache_dir: CacheDir = None, models_dir: ModelsDir = None) -> None:
    """Read every chunk and check its checksum.

    Exit status 1 if any is damaged or cannot be read.
    """
    from rich.progress import Progress

    from llm_server.cache import survey

    files = survey.stored_chunks(_folder(cache_dir, models_dir))
    damaged = []
    console = output.console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for file in progress.track(files, description="Verifying"):
            try:
                reason = survey.damage(file)
            except OSError as error:
                reason = f"it cannot be read ({error.strerror})"
            if reason is not None:
                damaged.append(f"{file.path}: {reason}")
    for line in damaged:  # now, for the bar would take what goes to stdout along to stderr
        typer.echo(line)
    typer.echo(f"{len(files)} chunks read, {len(damaged)} damaged.")
    if damaged:
        raise typer.Exit(1)


@app.command()
def clear(
    cache_dir: CacheDir = None,
    models_dir: ModelsDir = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Delete every chunk of every model."""
    from llm_server.cache import survey

    folder = _folder(cache_dir, models_dir)
    if not yes:
        typer.confirm(f"Delete all cached prompts in {folder}?", abort=True)
    try:
        count, size = survey.clear(folder)
    except OSError as error:
        left = len(survey.stored_chunks(folder))
        output.fail(f"{error.filename}: {error.strerror}; all but {left} chunks are deleted")
    typer.echo(f"{count} chunks deleted, {output.size_text(size)} free again.")


def _folder(cache_dir: Path | None, models_dir: Path | None) -> Path:
    """The folder a server with these options, or the environment, would use; ends if it is none."""
    from llm_server import config, places

    folder = config.cache_dir(output.settings(cache_dir=cache_dir, models_dir=models_dir))
    if not places.is_folder(folder):
        typer.echo(f"There is no cache at {folder} yet.")
        raise typer.Exit
    return folder
