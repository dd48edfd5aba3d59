"""Published chat templates, read from the folder beside the checkout; none when it is absent."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from llm_server.chat.dialogue import Dialogue
from tests.chat.vocabulary import ByteVocabulary

FOLDER = Path(__file__).parents[2].parent / "shared" / "templates"

TEMPLATES: dict[str, str] = {
    path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.jinja"))
}


@cache
def dialogue_of(name: str) -> Dialogue:
    """The dialogue of a published template. Measured once, by the first test that needs it."""
    return Dialogue(TEMPLATES[name], ByteVocabulary(["<s>", "</s>"]))
