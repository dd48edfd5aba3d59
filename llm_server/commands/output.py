"""What the commands share: the folder they mean, sizes, tables, and a way out with one line."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from llm_server.config import Settings

ModelsDir = Annotated[
    Path | None,
    typer.Option(help="folder with GGUF files; default as the server has it", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="JSON for programs instead of a table")]

_ANY_WIDTH = 10_000


def settings(**given: Any) -> Settings:
    """The settings a server would have, with the options that were given."""
    from llm_server import config

    return config.settings_from_environment({k: v for k, v in given.items() if v is not None})


def console(stderr: bool = False) -> Console:
    """A console for tables and progress; nothing in it is marked up or coloured by guesses."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout; what a terminal has no room for is folded and never cut off.

    In a pipe or a file nothing is, so that each row is a line. Empty names, no header.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    shown = console()
    if not shown.is_terminal:
        shown.width = _ANY_WIDTH
    shown.print(table)


def is_styled() -> bool:
    """Whether to dim, colour and replace lines on stdout (no-color.org for NO_COLOR)."""
    return (
        sys.stdout.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM", "dumb") != "dumb"
    )


def say(text: str) -> None:
    """A line on stdout."""
    typer.echo(printable(text))


def argument(name: str) -> str:
    """A name as a shell takes it, also one that looks like an option."""
    return f"{'-- ' if name.startswith('-') else ''}{shlex.quote(name)}"


def printable(text: str) -> str:
    """Without what a terminal would obey: some texts come out of files, or name them."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


def print_json(value: object) -> None:
    """One JSON document on stdout, with escapes for what a terminal would obey."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    typer.echo("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def fail(message: str, status: int = 1) -> NoReturn:
    """End the program with one line on stderr."""
    typer.echo(f"llm-server: {printable(message)}", err=True)
    raise typer.Exit(status)


def size_text(n_bytes: float) -> str:
    """Bytes as people read them, in decimal units with three digits."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} GB" if n_bytes < 999.5 else f"{n_bytes:.0f} GB"


def time_text(seconds: float) -> str:
    """Seconds since the epoch as people read them, where they are."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def cell(column: str, row: Mapping[str, Any]) -> str:
    """A value of a row as a person reads it; "?" where it is not known."""
    value = row[column]
    if value is None:
        return "?"
    if column == "size":
        return size_text(value)
    if column == "changed":
        return time_text(value)
    if column == "parameters":
        return f"{value / 1e9:.3g} B" if value >= 1e9 else f"{value / 1e6:.3g} M"
    return str(value)
