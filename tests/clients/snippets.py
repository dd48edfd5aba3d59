"""The examples of docs/clients.md are pieces of the tests beside this file.

A piece stands between `docs: NAME` and `end` in comments; the page names it in a comment above its
code block. `python -m tests.clients.snippets` writes the pieces into the page.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "clients.md"

_PIECE = re.compile(r"^ *(?:#|//) docs: ([^\n]+)\n(.*?)^ *(?:#|//) end$", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"(<!-- ([^\n]+) -->\n```(?:python|js)\n).*?(^```$)", re.MULTILINE | re.DOTALL)
_ADDRESS = '"http://127.0.0.1:8000/v1"'


def pieces() -> dict[str, str]:
    """The pieces of all tests and scripts by name, indented as a file of their own."""
    found: dict[str, str] = {}
    for path in sorted([*HERE.glob("test_*.py"), *HERE.glob("javascript/*.mjs")]):
        for name, code in _PIECE.findall(path.read_text()):
            assert name not in found, f"two pieces are called {name}"
            found[name] = _with_address(textwrap.dedent(code))
    return found


def _with_address(code: str) -> str:
    """The code with a default server's address instead of the test's variable."""
    code = re.sub(r"=base_url\b", f"={_ADDRESS}", code)
    code = re.sub(r"=root_url\b", f"={_ADDRESS}".replace("/v1", ""), code)
    return re.sub(r"\bbaseURL,", f"baseURL: {_ADDRESS},", code)


def shown(page: str) -> list[str]:
    """The names of the pieces in the page, in its order."""
    return [match[2] for match in _BLOCK.finditer(page)]


def filled(page: str) -> str:
    """The page with its code blocks made anew. Raises KeyError for a name without a piece."""
    by_name = pieces()
    return _BLOCK.sub(lambda match: match[1] + by_name[match[2]] + match[3], page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
