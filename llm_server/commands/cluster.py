"""`llm-server cluster serve`: the server on a cluster, for who does not use Ray's own commands."""

from __future__ import annotations

import typer

from llm_server.commands import output

app = typer.Typer(
    help="The same server on several machines, with Ray Serve: pip install 'llm-server[cluster]'",
    no_args_is_help=True,
)


@app.callback()
def cluster() -> None:
    """The same server on several machines, with Ray Serve."""


@app.command(
    # All options are those of the settings, as for `serve`.
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    },
)
def serve(context: typer.Context) -> None:
    """Serve the models of a folder on the Ray cluster of RAY_ADDRESS, else on one made here."""
    from llm_server.config import settings_from_args

    settings = settings_from_args(context.args, prog="llm-server cluster serve")
    try:
        from llm_server.cluster import tuning

        tuning.apply()
        from llm_server.cluster import running
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        output.fail("Ray is not installed: pip install 'llm-server[cluster]'")
    raise typer.Exit(running.main(settings))
