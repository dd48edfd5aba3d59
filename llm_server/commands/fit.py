"""`llm-server fit`: whether a model runs here, with what context, and what it takes by part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llm_server.commands import output
from llm_server.commands.output import Json, ModelsDir

if TYPE_CHECKING:
    from llm_server.models.plan import Fit

ModelName = Annotated[
    str, typer.Argument(help="a name as in `list`, or a file", show_default=False)
]
NCtx = Annotated[
    int | None,
    typer.Option(min=0, max=1 << 24, help="context in tokens; default as the server would"),
]
Memory = Annotated[
    str | None, typer.Option(help="as for `serve`, such as 8GB or 80%", show_default=False)
]
KvType = Annotated[
    str | None, typer.Option(help="f16, q8_0 or q4_0, for keys and values", show_default=False)
]


def fit(
    model: ModelName,
    n_ctx: NCtx = None,
    kv_type: KvType = None,
    memory: Memory = None,
    models_dir: ModelsDir = None,
    json: Json = False,
) -> None:
    """Say whether a model runs here, and how.

    By its header alone, before anything is loaded, into the machine's own memory: that of graphics
    cards is not counted. Exit status 1 if it does not fit.
    """
    from llm_server.config import make_planner, make_registry
    from llm_server.demo import demo_model_path
    from llm_server.errors import ServerError

    if kv_type not in (None, "f16", "q8_0", "q4_0"):
        output.fail("--kv-type: f16, q8_0 or q4_0", 2)
    settings = output.settings(model_name=model, models_dir=models_dir, memory=memory)
    registry = make_registry(settings, demo_model_path())
    registry.scan()
    planner = make_planner(settings, registry)
    told = {"n_ctx": n_ctx, "type_k": kv_type, "type_v": kv_type}
    try:
        file = registry.find(model)
        overrides = {name: value for name, value in told.items() if value is not None}
        found = planner.fit(file, planner.asked(file, overrides))
    except ServerError as error:
        output.fail(str(error))
    if json:
        import msgspec

        from llm_server.api.models import fit_json

        output.print_json(msgspec.to_builtins(fit_json(found)))
    else:
        _print(found)
    if not found.fits:
        raise typer.Exit(1)


def _print(found: Fit) -> None:
    memory, config = found.plan.memory, found.plan.config
    parts = {
        "weights": memory.weights,
        f"context of {config.n_ctx} tokens": memory.kv,
        "computing": memory.compute,
        "prompts on their way to the disk and back": memory.prompt_cache,
        "the process itself": memory.process,
        "together": memory.total,
        "models may take": found.budget,
    }
    output.print_table(["", ""], [(name, output.size_text(size)) for name, size in parts.items()])
    trained = found.plan.facts.n_ctx_train
    name = found.plan.model.name
    if not found.largest_n_ctx:
        typer.echo(f"{name} does not fit with any context.")
        return
    if found.largest_n_ctx == trained and config.n_ctx > trained:
        longest = f"It has no longer context than {trained} tokens, which fits."
    elif found.largest_n_ctx == trained:
        longest = f"Its longest context, {trained} tokens, fits."
    else:
        longest = f"The longest context that fits is {found.largest_n_ctx} of {trained} tokens."
    typer.echo(f"{name} {'fits' if found.fits else 'does not fit with that context'}. {longest}")
