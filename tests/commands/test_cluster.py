"""`llm-server cluster serve`: what can be told without Ray."""

from __future__ import annotations

from typer.testing import CliRunner

from llm_server.cli import app


def test_help_needs_no_ray() -> None:
    told = CliRunner().invoke(app, ["cluster", "serve", "--help"])
    assert told.exit_code == 0
    assert "--models-dir" in told.output
