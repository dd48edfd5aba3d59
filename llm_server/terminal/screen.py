"""How an answer looks in a terminal: thoughts and figures dim, no escape sequences of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TextIO

from llm_server.terminal.client import Call, End, Piece, Text, Thought, Waiting

# A model's text may hold escape sequences, which could rewrite what stands above them.
_CONTROLS = {chr(code): chr(0x2400 + code) for code in range(0x20) if code not in (0x09, 0x0A)}
_CONTROLS |= dict.fromkeys(map(chr, (0x7F, *range(0x80, 0xA0))), "\ufffd")
_SHOWN = str.maketrans(_CONTROLS)


class Screen:
    """Writes to `out`; with `styled` it dims by escape sequences, else it is plain text."""

    def __init__(self, out: TextIO, styled: bool) -> None:
        self._out = out
        self._styled = styled
        self._kind: type[Piece] | None = None
        self._column = 0
        self._status = ""

    def show(self, piece: Piece) -> None:
        """The next piece of an answer."""
        if isinstance(piece, Waiting):
            if self._kind is None:
                self.status(piece.text)
        elif isinstance(piece, Text):
            self._enter(Text)
            self._write(piece.text)
        elif isinstance(piece, Thought):
            self._enter(Thought)
            self._write(piece.text, dim=True)
        elif isinstance(piece, Call):
            if piece.name is not None:
                self._kind = None
                self._enter(Call)
                self._write(f"calls {piece.name} ", dim=True)
            self._write(piece.arguments, dim=True)

    def end_line(self) -> None:
        """What comes next begins a line."""
        if self._column:
            self._write("\n")
        self._kind = None

    def note(self, text: str) -> None:
        """A line of our own, dim."""
        self.end_line()
        self._write(text + "\n", dim=True)

    def status(self, text: str) -> None:
        """A line that the next one replaces; only on a terminal. An empty one removes it."""
        if self._styled and text != self._status:
            self._status = text
            self._out.write("\r\x1b[K" + (f"\x1b[2m{_safe(text)}\x1b[0m" if text else ""))
            self._out.flush()

    def _enter(self, kind: type[Piece]) -> None:
        if self._kind is not None and self._kind is not kind:
            self._write("\n" if self._column == 0 else "\n\n")
        elif self._kind is None and self._column:
            self._write("\n")
        self._kind = kind

    def _write(self, text: str, dim: bool = False) -> None:
        if not text:
            return
        self.status("")
        text = _safe(text)
        self._column = 0 if text.endswith("\n") else 1
        self._out.write(f"\x1b[2m{text}\x1b[0m" if dim and self._styled else text)
        self._out.flush()


def figures(end: End) -> str:
    """What an answer took: tokens a second, and how much of the prompt was not computed."""
    t: Mapping[str, float] = end.timings
    if not t:
        return ""
    shown = f"{t['predicted_n']:.0f} tokens, {t['predicted_per_second']:.1f}/s"
    n_prompt = t["cache_n"] + t["prompt_n"]
    shown += f" · prompt {n_prompt:.0f}, {t['cache_n']:.0f} from the cache"
    if t.get("cache_disk_n"):
        shown += f" ({t['cache_disk_n']:.0f} from disk)"
    if t["prompt_ms"]:
        shown += f", rest in {t['prompt_ms'] / 1000:.2f} s"
    return shown + (" · cut off at the token limit" if end.reason == "length" else "")


def _safe(text: str) -> str:
    return text.translate(_SHOWN)
