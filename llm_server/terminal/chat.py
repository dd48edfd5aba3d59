"""A conversation in a terminal: lines in, answers out, and a few commands that begin with a slash.

It knows neither where lines come from nor how a terminal is driven: the caller gives both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

from llm_server.terminal.client import Call, ChatClient, ChatError, End, Message, Text
from llm_server.terminal.screen import Screen, figures

HELP = '''\
Write a message and press Enter. Three quotes (""") begin and end one of several lines.
  /system TEXT   what the model is to be or do; without TEXT, show it
  /model NAME    go on with another model; without NAME, show the current one
  /clear         forget the conversation, keep the system prompt
  /bye           leave, as does Ctrl-D
Ctrl-C stops an answer.'''
_QUOTES = '"""'

ReadLine = Callable[[str], str]
"""Shows a prompt and returns a line; raises EOFError at the end, KeyboardInterrupt for Ctrl-C."""


class Chat:
    """One conversation: `ask` sends one message, `converse` reads them until the person leaves."""

    def __init__(self, client: ChatClient, screen: Screen, model: str, system: str = "") -> None:
        self._client = client
        self._screen = screen
        self._model = model
        self._system = system
        self._turns: list[Message] = []

    def converse(self, read_line: ReadLine) -> None:
        """Until the person leaves."""
        while True:
            try:
                if not self._go_on(_read_message(read_line)):
                    return
            except EOFError:
                self._screen.note("")
                return
            except KeyboardInterrupt:  # May also come while an answer is being stopped.
                self._screen.note("(/bye or Ctrl-D leaves)")

    def ask(self, text: str) -> str:
        """Send a message and show its answer. The figures of it, in a line.

        Raises ChatError, after which the conversation is as it was before, and KeyboardInterrupt
        where Ctrl-C stopped it: what was said until then belongs to the conversation.
        """
        turn: Message = {"role": "user", "content": text}
        said: list[str] = []
        notes: list[str] = []
        try:
            with closing(self._client.answer(self._messages(turn), self._model)) as pieces:
                for piece in pieces:
                    self._screen.show(piece)
                    if isinstance(piece, Text):
                        said.append(piece.text)
                    elif isinstance(piece, Call) and piece.name:
                        notes.append("tools are not run here")
                    elif isinstance(piece, End):
                        notes.append(figures(piece))
        except KeyboardInterrupt:
            self._remember(turn, said)
            raise
        finally:
            self._screen.end_line()
        self._remember(turn, said)
        return " · ".join(filter(None, notes))

    def _remember(self, turn: Message, said: Sequence[str]) -> None:
        self._turns += [turn, {"role": "assistant", "content": "".join(said)}]

    def _go_on(self, text: str) -> bool:
        """Do what a message or a command asks for. Whether the conversation goes on."""
        if text.startswith("/"):
            name, _, argument = text[1:].partition(" ")
            if name == "bye":
                return False
            self._command(name.strip(), argument.strip())
        elif text.strip():
            self._exchange(text.strip())
        return True

    def _exchange(self, text: str) -> None:
        try:
            self._screen.note(self.ask(text))
        except (ChatError, KeyboardInterrupt) as error:
            self._screen.note(str(error) or "stopped")
        self._screen.note("")

    def _messages(self, turn: Message) -> list[Message]:
        system: list[Message] = []
        if self._system:
            system = [{"role": "system", "content": self._system}]
        return [*system, *self._turns, turn]

    def _command(self, name: str, argument: str) -> None:
        if name == "clear":
            self._turns.clear()
            self._screen.note("The conversation is forgotten.")
        elif name == "system":
            self._system = argument or self._system
            self._screen.note(self._system or "There is no system prompt.")
        elif name == "model":
            self._switch(argument)
        elif name == "help":
            self._screen.note(HELP)
        else:
            self._screen.note(
                f"There is no /{name}; /help lists what there is. To send a line that begins with "
                "a slash, put a space before it."
            )

    def _switch(self, model: str) -> None:
        try:
            if model:
                self._screen.status(f"Loading {model} ...")
                self._model = self._client.load(model)
            self._screen.note(f"Current model: {self._model or 'the one the server chooses'}")
        except (ChatError, KeyboardInterrupt) as error:
            self._screen.note(str(error) or "stopped")


def _read_message(read_line: ReadLine) -> str:
    """A message: one line, or everything between lines with three quotes."""
    line = read_line(">>> ")
    if not line.lstrip().startswith(_QUOTES):
        return line
    lines = [line.lstrip().removeprefix(_QUOTES)]
    while not lines[-1].rstrip().endswith(_QUOTES):
        lines.append(read_line("... "))
    lines[-1] = lines[-1].rstrip().removesuffix(_QUOTES)
    return "\n".join(lines).strip()
