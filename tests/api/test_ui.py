"""The files of the page, who is sent to it, and Markdown that stays inert whatever it says."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from llm_server.web.assets import assets
from tests.fake_live import Live

ALLOWED = set(
    "p br hr h1 h2 h3 h4 h5 h6 em strong s code pre blockquote ul ol li a span "
    "table thead tbody tr th td".split()
)


def test_a_browser_is_sent_to_the_page_and_a_program_is_not(live: Live) -> None:
    browser = live.client.get("/", headers={"accept": "text/html,*/*;q=0.8"})
    assert (browser.status_code, browser.headers["location"]) == (303, "/ui")
    program = live.client.get("/", headers={"accept": "*/*"})
    assert program.json()["name"] == "llm-server"
    assert program.headers["vary"] == browser.headers["vary"] == "accept"


@pytest.mark.parametrize("path", sorted(assets()))
def test_every_file_is_served_under_a_strict_policy(live: Live, path: str) -> None:
    answer = live.client.get(path)
    assert answer.status_code == 200
    assert answer.content == assets()[path].body
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self';") and "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = live.client.get(path, headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_page_is_found_with_a_slash_too(live: Live) -> None:
    answer = live.client.get("/ui/")
    assert (answer.status_code, answer.headers["location"]) == (307, "/ui")


def test_nothing_but_the_files_is_served_below_ui(live: Live) -> None:
    for path in ("/ui/index.html", "/ui/__init__.py", "/ui/../api/app.py", "/ui/%2e%2e/x"):
        assert live.client.get(path).status_code == 404


def test_the_page_has_no_inline_code_and_names_no_other_host() -> None:
    for path, asset in assets().items():
        text = asset.body.decode()
        if path.endswith(".js"):
            assert set(re.findall(r'from "([^"]+)"', text)) <= {
                f"./{other.removeprefix('/ui/')}" for other in assets()
            }
        urls = set(re.findall(r"https?://[^\s\"']+", text))
        assert urls <= {"http://www.w3.org/2000/svg"}
    page = assets()["/ui"].body.decode()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)


class Tags(HTMLParser):
    """What a piece of HTML holds."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt&colon;alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "[x](vbscript:msgbox(1))",
    "[x]: javascript:alert(1)\n\n[x]",
    "<javascript:alert(1)>",
    "![x](http://example.org/pixel.png)",
    '![x](x "onerror=alert(1)")',
    '[x](http://a "\\" onmouseover=\\"alert(1)")',
    '```"><img src=x onerror=alert(1)>\ncode\n```',
    "```html\n<script>alert(1)</script>\n```",
    "`<svg onload=alert(1)>`",
    "<svg><style><img src=x onerror=alert(1)></style></svg>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=1'>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<form action=/api/cache/clear method=post><button>x</button></form>",
    "<a id=main name=body href=/ui>x</a>",
    "<style>body{display:none}</style>",
    "| <b onclick=alert(1)> |\n|---|\n| <img src=x> |",
    "text\n\ndata: [DONE]\n\nevent: error",
    "\x00<\x00script>alert(1)",
    "> " * 200 + "<script>alert(1)</script>",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_output_of_a_model_stays_inert(live: Live, text: str) -> None:
    answer = live.post("/api/render", {"texts": [text]})
    assert answer.status_code == 200
    for tag, attributes in Tags(answer.json()["html"][0]).found:
        assert tag in ALLOWED
        assert set(attributes) <= {"href", "title", "target", "rel", "class", "start"}
        assert not re.match(r"(?!https?:|mailto:)\s*\w+:", attributes.get("href") or "")


def test_a_stream_with_hostile_text_is_framed_as_any_other(live: Live) -> None:
    text = "a\n\ndata: [DONE]\n\n<script>"
    answer = live.chat(text, stream=True)
    pieces = [line for line in answer.text.split("\n\n") if line]
    assert all(piece.startswith(("data: ", ":")) for piece in pieces)
    assert [piece for piece in pieces if piece == "data: [DONE]"] == ["data: [DONE]"]


def test_markdown_becomes_html_with_highlighted_code(live: Live) -> None:
    texts = ["# Title\n\n**bold** ~~not~~", "```python\ndef f(): pass\n```", "| a |\n|---|\n| 1 |"]
    title, code, table = live.post("/api/render", {"texts": texts}).json()["html"]
    assert "<h1>Title</h1>" in title and "<strong>bold</strong>" in title and "<s>not</s>" in title
    assert '<span class="k">def</span>' in code
    assert "<td>1</td>" in table


def test_a_body_that_is_no_list_of_texts_is_refused(live: Live) -> None:
    answer = live.post("/api/render", {"texts": "one"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "texts")
