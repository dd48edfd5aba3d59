"""Connections by hand: framing that nobody should accept, sizes, deadlines, and what follows."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from functools import partial
from http.client import HTTPConnection
from pathlib import Path

import pytest

from llm_server.api.transport import Connection, Limits
from tests.fake_live import Live, add_models, chat_body, events, live_server, until
from tests.raw import Answer, connect, talk

LIMITS = Limits(head_s=0.3, body_s=0.3, body_s_per_mb=0, write_s=0.5, connections=12, refused=4)


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server that waits for nobody."""
    models = tmp_path_factory.mktemp("models")
    add_models(models, "a.gguf")
    with live_server(models, limits=LIMITS) as server:
        yield server


def url(live: Live) -> str:
    return str(live.client.base_url).rstrip("/")


def post(path: bytes, body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: localhost", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def assert_refused(answer: Answer, status: int, code: str) -> None:
    assert answer.statuses == [status]
    assert answer.closed
    assert answer.header("connection") == b"close"
    assert (answer.header("x-request-id") or b"").startswith(b"req_")
    assert set(answer.error) == {"message", "type", "param", "code"}
    assert answer.error["code"] == code


SECOND = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
JSON = b"Content-Type: application/json"

MALFORMED = {
    "both lengths": post(
        b"/setModel", b"0\r\n\r\n" + SECOND, b"Content-Length: 4", b"Transfer-Encoding: chunked"
    ),
    "two lengths": post(b"/setModel", b"abcd", b"Content-Length: 4", b"Content-Length: 5"),
    "the same length twice": post(b"/setModel", b"abcd", *[b"Content-Length: 4"] * 2),
    "negative length": post(b"/setModel", b"", b"Content-Length: -1"),
    "signed length": post(b"/setModel", b"abcd", b"Content-Length: +4"),
    "unknown encoding": post(b"/setModel", b"0\r\n\r\n", b"Transfer-Encoding: xchunked"),
    "chunked not last": post(b"/setModel", b"0\r\n\r\n", b"Transfer-Encoding: chunked, identity"),
    "chunk too large": post(b"/setModel", b"f" * 17 + b"\r\n", b"Transfer-Encoding: chunked"),
    "chunk in no hex": post(b"/setModel", b"0x1\r\na\r\n0\r\n\r\n", b"Transfer-Encoding: chunked"),
    "bare line feeds": b"GET /health HTTP/1.1\nHost: localhost\n\n",
    "folded header": b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: b\r\n c\r\n\r\n",
    "NUL in a header": b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: b\0c\r\n\r\n",
    "bare CR": b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: b\rB: c\r\n\r\n",
    "blank before the colon": b"GET /health HTTP/1.1\r\nHost: localhost\r\nA : b\r\n\r\n",
    "no Host": b"GET /health HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "HTTP/0.9": b"GET /health\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "lower-case method": b"get /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "CONNECT": b"CONNECT evil:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "raw bytes in the path": b"GET /\xff\xe9 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "WebSocket": b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests_are_refused_and_what_follows_is_not_read(live: Live, name: str) -> None:
    assert_refused(talk(url(live), MALFORMED[name] + SECOND), 400, "invalid_http")


def test_sizes_of_heads_are_bounded(live: Live) -> None:
    limits = Limits()

    def get(path: bytes, *headers: bytes) -> bytes:
        return b"\r\n".join([b"GET " + path + b" HTTP/1.1", b"Host: localhost", *headers, b"", b""])

    fits = b"/health?" + b"x" * (limits.url - 8)
    assert talk(url(live), get(fits), responses=1).statuses == [200]
    assert_refused(talk(url(live), get(fits + b"x")), 414, "url_too_long")
    many = [b"A: b"] * (limits.headers - 1)
    assert talk(url(live), get(b"/health", *many), responses=1).statuses == [200]
    assert_refused(talk(url(live), get(b"/health", *many, b"A: b")), 431, "headers_too_large")
    longest = limits.header_bytes - len(b"Host: localhost\r\n") - len(b"A: \r\n")
    large = b"A: " + b"x" * longest
    assert talk(url(live), get(b"/health", large), responses=1).statuses == [200]
    assert_refused(talk(url(live), get(b"/health", large + b"x")), 431, "headers_too_large")
    endless = b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: " + b"x" * 600_000
    assert_refused(talk(url(live), endless), 431, "headers_too_large")
    trailers = b"0\r\n" + b"A: bbbb\r\n" * 20_000
    request = post(b"/setModel", trailers, JSON, b"Transfer-Encoding: chunked")
    assert_refused(talk(url(live), request), 431, "headers_too_large")


def test_trailers_are_no_headers(live: Live) -> None:
    body = b"2\r\n{}\r\n0\r\nContent-Type: application/json\r\n\r\n"
    answer = talk(url(live), post(b"/setModel", body, b"Transfer-Encoding: chunked"), responses=1)
    assert answer.statuses == [415]


def test_pipelined_requests_are_answered_in_order(live: Live) -> None:
    first = json.dumps({"model_name": "a.gguf"}).encode()
    second = json.dumps(chat_body("hello")).encode()
    requests = [
        post(path, body, JSON, b"Content-Length: %d" % len(body))
        for path, body in ((b"/setModel", first), (b"/chat/completions", second))
    ]
    answer = talk(url(live), b"".join(requests), responses=2)
    assert answer.statuses == [200, 200]
    assert answer.received.index(b'"status":"ok"') < answer.received.index(b"chat.completion")


def test_few_requests_may_wait_behind_another(live: Live) -> None:
    most = 1 + Limits().pipelined
    assert talk(url(live), SECOND * most, responses=most).statuses == [200] * most
    answer = talk(url(live), SECOND * (most + 1))
    assert answer.statuses == [200] and answer.closed


@pytest.mark.parametrize("at_once", [True, False])
def test_who_leaves_is_noticed_though_another_request_waits(live: Live, at_once: bool) -> None:
    cancelled = len(live.notes("cancels.log"))
    body = json.dumps(chat_body("hang")).encode()
    first = post(b"/chat/completions", body, JSON, b"Content-Length: %d" % len(body))
    with connect(url(live)) as connection:
        connection.sendall(first + SECOND if at_once else first)
        until(lambda: bool(live.client.get("/").json()["running"] == 1))
        if not at_once:
            connection.sendall(SECOND)
    until(lambda: len(live.notes("cancels.log")) > cancelled)
    until(live.is_quiet)


def test_nothing_follows_an_answer_that_closes(live: Live) -> None:
    last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = talk(url(live), last + SECOND)
    assert answer.statuses == [200] and answer.closed


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_to_http_1_0_has_no_chunks(live: Live, stream: bool) -> None:
    body = json.dumps(chat_body("hello there", stream=stream)).encode()
    request = post(b"/chat/completions", body, JSON, b"Content-Length: %d" % len(body))
    answer = talk(url(live), request.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert answer.statuses == [200] and answer.closed
    head, _, text = answer.received.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower() and b"connection: close" in head
    assert (b"content-length: %d\r\n" % len(text) in head) is not stream
    if stream:
        assert events(text.decode())[-1] == "[DONE]"
        assert text.startswith(b"data: ")
    else:
        assert json.loads(text)["choices"]


def test_rubbish_behind_a_request_does_not_spoil_its_answer(live: Live) -> None:
    answer = talk(url(live), SECOND + b"\x00rubbish\r\n\r\n")
    assert answer.statuses == [200] and answer.closed


def test_an_offer_of_http_2_is_ignored_with_the_body_kept(live: Live) -> None:
    body = json.dumps(chat_body("hello")).encode()
    offer = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEA")
    request = post(b"/chat/completions", body, JSON, *offer, b"Content-Length: %d" % len(body))
    assert talk(url(live), request + SECOND, responses=2).statuses == [200, 200]
    with contextlib.closing(HTTPConnection(url(live).removeprefix("http://"))) as java:
        for _ in range(3):
            java.request("GET", "/nope", headers={"Connection": "Upgrade", "Upgrade": "h2c"})
            answer = java.getresponse()
            assert answer.status == 404 and json.load(answer)
            assert java.sock is not None  # It is not closed.


def test_an_offer_of_http_2_behind_an_unanswered_request_is_refused(live: Live) -> None:
    offer = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEA")
    request = b"GET /health HTTP/1.1\r\n" + b"\r\n".join([b"Host: localhost", *offer, b"", b""])
    answer = talk(url(live), request * 2)
    assert answer.statuses == [200] and answer.closed


def test_a_body_that_is_too_long_is_refused_before_it_is_sent(live: Live) -> None:
    head = post(b"/setModel", b"", JSON, b"Content-Length: 99999999999999999")
    assert_refused(talk(url(live), head), 413, "request_too_large")
    # The rest is on its way: the client still reads why.
    assert_refused(talk(url(live), head + b"x" * 4_000_000), 413, "request_too_large")


def test_a_body_of_many_tiny_pieces_is_refused(live: Live) -> None:
    def request(piece: bytes, n: int) -> bytes:
        pieces = [json.dumps(chat_body("hello")).encode(), *[piece] * n, b""]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        return post(b"/chat/completions", chunks, JSON, b"Transfer-Encoding: chunked")

    most = Limits().tiny_pieces - 1
    assert talk(url(live), request(b" ", most), responses=1).statuses == [200]
    assert_refused(talk(url(live), request(b" ", most + 1)), 400, "invalid_http")
    large = b" " * Limits().piece_bytes
    assert talk(url(live), request(large, 3 * most), responses=1).statuses == [200]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", []),
        (b"\r\n\r\n", []),
        (b"GET /he", [408]),
        (b"GET /health HTTP/1.1\r\nHost: local", [408]),
        (post(b"/setModel", b"{", JSON, b"Content-Length: 100"), [408]),
        (post(b"/setModel", b"1\r\n{", JSON, b"Transfer-Encoding: chunked"), [408]),
        (SECOND + b"GET /he", [200, 408]),
    ],
)
def test_a_request_that_does_not_arrive_is_given_up(
    hasty: Live, sent: bytes, status: list[int]
) -> None:
    answer = talk(url(hasty), sent)
    assert answer.statuses == status and answer.closed


def test_a_client_of_anthropics_is_refused_in_that_shape(hasty: Live) -> None:
    begun = post(b"/v1/messages", b"{", JSON, b"Content-Length: 100")
    answer = talk(url(hasty), begun)
    told = json.loads(answer.received.rpartition(b"\r\n\r\n")[2])
    assert (told["type"], told["error"]["type"]) == ("error", "invalid_request_error")
    assert told["request_id"].encode() == answer.header("x-request-id")


def test_a_client_that_does_not_read_is_cut_off(hasty: Live) -> None:
    cancelled = len(hasty.notes("cancels.log"))
    body = json.dumps(chat_body("flood", stream=True)).encode()
    with connect(url(hasty)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        length = b"Content-Length: %d" % len(body)
        connection.sendall(post(b"/chat/completions", body, JSON, length))
        until(lambda: len(hasty.notes("cancels.log")) > cancelled)
        until(hasty.is_quiet)


class Line:
    """A transport that somebody reads from, and a loop with one timer, which a test lets run."""

    def __init__(self, unread: int) -> None:
        self.unread = unread
        self.aborted = False
        self._timer: Callable[[], None] | None = None

    def get_write_buffer_size(self) -> int:
        return self.unread

    def abort(self) -> None:
        self.aborted = True

    def call_later(self, _seconds: float, callback: Callable[..., None], *args: object) -> object:
        self._timer = partial(callback, *args)
        return None

    def wait(self) -> None:
        assert self._timer is not None
        self._timer()


def test_a_client_may_read_slowly_but_not_stop() -> None:
    line = Line(unread=11_000_000)
    connection = Connection.__new__(Connection)
    connection.limits, connection.loop = Limits(), line  # type: ignore[assignment]
    connection.transport = line  # type: ignore[assignment]
    connection._expect_reading()
    for _ in range(50):
        line.unread -= 200_000
        line.wait()
        assert not line.aborted
    line.unread -= 1000
    line.wait()
    assert line.aborted


def test_beyond_the_last_connection_there_is_an_answer_too(hasty: Live) -> None:
    with contextlib.ExitStack() as stack:
        body = json.dumps(chat_body("hang", stream=True)).encode()
        request = post(b"/chat/completions", body, JSON, b"Content-Length: %d" % len(body))
        for _ in range(LIMITS.connections):
            connection = stack.enter_context(connect(url(hasty)))
            connection.sendall(request)
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
        answer = talk(url(hasty), b"")
        assert_refused(answer, 503, "too_many_connections")
        assert answer.header("retry-after") == b"1"
    until(hasty.is_quiet)


def test_who_is_refused_and_stays_leaves_room_for_others(hasty: Live) -> None:
    n_new = 40 * LIMITS.refused
    with contextlib.ExitStack() as stack:
        body = json.dumps(chat_body("hang", stream=True)).encode()
        request = post(b"/chat/completions", body, JSON, b"Content-Length: %d" % len(body))
        crowd = [stack.enter_context(connect(url(hasty))) for _ in range(LIMITS.connections)]
        for connection in crowd:
            connection.sendall(request)
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
        told = 0
        for _ in range(n_new):  # None of them leaves when it has been told.
            connection = stack.enter_context(connect(url(hasty)))
            with contextlib.suppress(ConnectionError):
                told += connection.recv(12) == b"HTTP/1.1 503"
        assert LIMITS.refused <= told < n_new
    until(hasty.is_quiet)


def test_idle_connections_make_room(hasty: Live) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(3 * LIMITS.connections):
            connection = stack.enter_context(connect(url(hasty)))
            connection.sendall(SECOND)
            assert connection.recv(15) == b"HTTP/1.1 200 OK"


@pytest.mark.parametrize("begun", [b"", SECOND[:1], SECOND[:-1]])
def test_who_is_silent_or_does_not_end_a_head_makes_room(tmp_path: Path, begun: bytes) -> None:
    add_models(tmp_path, "a.gguf")
    limits = Limits(head_s=300.0, connections=4)
    with live_server(tmp_path, limits=limits) as live, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(url(live))) for _ in range(limits.connections)]
        for connection in silent:
            connection.sendall(begun)
        until(lambda: talk(url(live), SECOND, responses=1).statuses == [200])
        answers = []
        for connection in silent:
            with contextlib.suppress(ConnectionError):
                connection.sendall(SECOND.removeprefix(begun))
                answers.append(connection.recv(15))
        assert answers.count(b"HTTP/1.1 200 OK") == limits.connections - 1


def test_slow_heads_are_nobody_elses_business(hasty: Live) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(LIMITS.connections - 2):
            stack.enter_context(connect(url(hasty))).sendall(b"GET / HTTP/1.1\r\n")
        assert talk(url(hasty), SECOND, responses=1).statuses == [200]


def test_blank_lines_do_not_keep_a_connection_open(hasty: Live) -> None:
    with connect(url(hasty)) as connection:
        connection.sendall(SECOND)
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        connection.sendall(b"\r\n")
        while connection.recv(65536):
            pass
