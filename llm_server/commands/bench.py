"""`llm-server bench`: this server against its peers, on this machine, with a model of one's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def bench(
    model: Annotated[
        Path | None, typer.Option(help="a GGUF file; a synthetic model of 0.5B if left out")
    ] = None,
    llama_server: Annotated[Path | None, typer.Option(help="llama.cpp's server binary")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="how often to measure; medians count")] = 3,
    threads: Annotated[int, typer.Option(min=0, help="0 is all there are")] = 0,
    results: Annotated[Path, typer.Option(help="folder for table, JSON and plots")] = Path(
        "bench-results"
    ),
) -> None:
    """Compare this server with llama-server and llama_cpp.server. Needs the source checkout."""
    try:
        from bench import compare, synthetic
    except ImportError as error:
        typer.echo(
            f"llm-server bench: {error}. It runs from a source checkout: make bench installs "
            "what it needs.",
            err=True,
        )
        raise typer.Exit(1) from None
    n_threads = threads or os.cpu_count() or 1
    compare.compare(
        llama_server,
        model or synthetic.build(n_threads=n_threads),
        rounds=rounds,
        threads=n_threads,
        folder=results,
    )
