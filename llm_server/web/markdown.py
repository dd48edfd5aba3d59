"""Markdown from a model to HTML that a page may insert: rendered, highlighted, sanitised.

The text is hostile. The renderer passes no HTML through, and what it makes is cut down to a list of
allowed tags and attributes once more by a sanitiser that knows nothing of Markdown.
"""

from __future__ import annotations

from functools import cache
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

MAX_HIGHLIGHTED = 64 * 1024
"""Characters of one code block beyond which it stays plain: lexers are slow."""

_TAGS = set(
    "p br hr h1 h2 h3 h4 h5 h6 em strong s code pre blockquote ul ol li a span "
    "table thead tbody tr th td".split()
)
_ATTRIBUTES = {"a": {"href", "title"}, "span": {"class"}, "code": {"class"}, "ol": {"start"}}
_SCHEMES = {"http", "https", "mailto"}


def render(text: str) -> str:
    """`text` as HTML that is safe to insert: no script, no image, no style, no id.

    Links open in a tab of their own, so that a running answer and an unsent text stay.
    """
    # Imported at the first use: a start should not wait for it.
    import nh3

    return nh3.clean(
        _parser().render(text),
        tags=_TAGS,
        attributes=_ATTRIBUTES,
        url_schemes=_SCHEMES,
        set_tag_attribute_values={"a": {"target": "_blank"}},
        link_rel="noopener noreferrer nofollow",
        strip_comments=True,
    )


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    options = {"html": False, "linkify": False, "highlight": _highlight}
    return MarkdownIt("commonmark", options).enable(["table", "strikethrough"]).disable("image")


def _highlight(code: str, language: str, _: str) -> str:
    """The inside of a code block, in spans with Pygments's short class names."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    if not language or len(code) > MAX_HIGHLIGHTED:
        return escape(code)
    try:
        lexer = get_lexer_by_name(language, stripnl=False)
    except ClassNotFound:
        return escape(code)
    return str(highlight(code, lexer, HtmlFormatter(nowrap=True)))
