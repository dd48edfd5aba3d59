"""`llm-server run`: a chat in the terminal, with a server of its own or one that runs."""

from __future__ import annotations

import io
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_server.commands import output
from llm_server.commands.output import ModelsDir
from llm_server.programs import exit_on_signals

if TYPE_CHECKING:
    from llm_server.terminal.chat import ReadLine
    from llm_server.terminal.client import ChatClient
    from llm_server.terminal.screen import Screen

Model = Annotated[
    str | None,
    typer.Argument(
        help="name as in `list`, or a file; default: the first of the models folder, or the demo"
    ),
]
Url = Annotated[
    str | None,
    typer.Option(help="a running server, such as http://127.0.0.1:8000; default: an own one"),
]
ApiKey = Annotated[
    str | None,
    typer.Option(help="key for --url; default: LLM_SERVER_API_KEY", show_default=False),
]
System = Annotated[str, typer.Option(help="system prompt", show_default=False)]


def run(
    model: Model = None,
    url: Url = None,
    api_key: ApiKey = None,
    system: System = "",
    models_dir: ModelsDir = None,
) -> None:
    """Chat with a model in the terminal.

    Text on standard input is taken as one message: `echo hi | llm-server run`. Inside, /help lists
    the commands, Ctrl-C stops an answer, Ctrl-D leaves.
    """
    from llm_server.terminal.chat import Chat
    from llm_server.terminal.child import ServerEnded
    from llm_server.terminal.client import ChatError
    from llm_server.terminal.screen import Screen

    exit_on_signals()  # so that the own server ends in order
    piped = None if sys.stdin.isatty() else _piped()
    if piped == "":
        output.fail("there is no message on standard input", 2)
    if api_key is not None and url is None:
        output.fail("--api-key is for a server that runs: say where with --url", 2)
    key = _key(api_key)
    screen = Screen(sys.stdout, output.is_styled())
    with ExitStack() as stack:
        try:
            client, model = _connected(stack, screen, model, url, key, models_dir)
            chat = Chat(client, screen, model, _text(system))
            if piped is None:
                screen.note(f"{model or 'Ready'} (/help lists commands, Ctrl-D leaves)")
                chat.converse(_line_reader())
            else:
                figures = chat.ask(piped)
                if sys.stderr.isatty():
                    typer.echo(figures, err=True)
        except (ChatError, ServerEnded) as error:
            screen.end_line()
            output.fail(str(error))
        except KeyboardInterrupt:
            screen.end_line()
            raise typer.Exit(130) from None


def _connected(
    stack: ExitStack,
    screen: Screen,
    model: str | None,
    url: str | None,
    key: str | None,
    models_dir: Path | None,
) -> tuple[ChatClient, str]:
    """A client of the server that is meant, and the full name of the model that is loaded there.

    "" where models do not stay loaded, and the server chooses.
    """
    from llm_server.terminal.child import OwnServer
    from llm_server.terminal.client import ChatClient

    if url is not None:
        client = stack.enter_context(ChatClient(url, key))
        return client, client.load(_text(model)) if model else client.wait_ready(screen.status)
    options = ["--log-level", "warning"]
    if models_dir is not None:
        options.append(f"--models-dir={models_dir}")
    if model is not None:
        options.append(f"--model-name={model}")
    screen.status("Starting ...")
    own = stack.enter_context(OwnServer(options))
    client = stack.enter_context(ChatClient(own.url, key, own.require))
    return client, client.wait_ready(screen.status)


def _piped() -> str:
    """The message on standard input, which may be as long as a request."""
    limit = output.settings().max_body_bytes
    data = sys.stdin.buffer.read(limit + 1)
    if len(data) > limit:
        output.fail(f"the message on standard input is longer than {limit} bytes", 2)
    return data.decode(errors="replace").strip()


def _key(given: str | None) -> str | None:
    """The key to show: as given, else one of those that a server with these settings accepts."""
    from llm_server.api.keys import InvalidKey, check_key, read_key_file

    settings = output.settings()
    try:
        if given is not None:
            return check_key(given)
        if settings.api_key:
            return check_key(settings.api_key[0].get_secret_value())
        return read_key_file(settings.api_key_file)[0] if settings.api_key_file else None
    except InvalidKey as error:
        output.fail(f"--api-key: {error}", 2)


def _text(argument: str) -> str:
    """An argument of the command line; bytes in it that are no text are marked as such."""
    return argument.encode(errors="surrogateescape").decode(errors="replace")


def _line_reader() -> ReadLine:
    """`input`, with the editing and the history of readline where there is one.

    Bytes that are no text are marked as such, as those on a pipe are.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    try:
        import readline  # noqa: F401
    except ImportError:
        pass  # Windows: the console edits lines itself.
    return input
