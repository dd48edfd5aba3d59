"""`llm-server`: the commands. Each is a few lines over the module that does the work."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

from llm_server import __version__
from llm_server.commands import bench, cache, cluster, doctor, fit, models, run
from llm_server.programs import fill_standard_streams

app = typer.Typer(
    name="llm-server",
    help="A local, OpenAI-compatible server for GGUF models.\n\n"
    "To begin: `llm-server run` chats in this terminal, `llm-server serve` answers over HTTP. A "
    "small demo model is built in; `llm-server pull` gets a real one.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    # Plain help: rich would load a Markdown parser to print it.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llm-server {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="tell it and exit"),
    ] = False,
) -> None:
    pass


@app.command(
    # All options are those of the settings, which read them, explain them and check them.
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    },
)
def serve(context: typer.Context) -> None:
    """Serve the models of a folder. `llm-server serve --help` lists the options."""
    from llm_server import server

    raise typer.Exit(server.main(context.args, prog="llm-server serve"))


app.command()(run.run)
app.command()(models.pull)
app.command("list")(models.list_models)
app.command()(models.show)
app.command()(fit.fit)
app.command()(models.rm)
app.add_typer(cache.app, name="cache")
app.add_typer(cluster.app, name="cluster")
app.command()(doctor.doctor)
app.command()(bench.bench)


def main() -> None:
    """Entry point of the installed command."""
    fill_standard_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # names of files may have any character
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except OSError as error:
        # The interpreter tries again to write what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        place = f"{error.filename}: " if error.filename else ""
        print(f"llm-server: {place}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)
