"""Published chat templates, read from the folder beside the checkout; none when it is absent."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[2].parent / "shared" / "templates"

TEMPLATES: dict[str, str] = {
    path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.jinja"))
}
