"""docs/clients.md shows what the tests run, and all of it."""

from __future__ import annotations

from tests.clients.snippets import PAGE, filled, pieces, shown


def test_the_page_shows_what_is_tested() -> None:
    page = PAGE.read_text()
    assert filled(page) == page, "run: python -m tests.clients.snippets"
    assert sorted(shown(page)) == sorted(pieces())
