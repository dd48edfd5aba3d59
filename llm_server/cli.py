"""`llm-server`: the commands. Each is a few lines over the module that does the work."""

from __future__ import annotations

import typer

from llm_server import cache_commands

app = typer.Typer(
    name="llm-server",
    help="A local, OpenAI-compatible server for GGUF models.",
    no_args_is_help=True,
    add_completion=False,
)


app.add_typer(cache_commands.app, name="cache")


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


def main() -> None:
    """Entry point of the installed command."""
    app()
