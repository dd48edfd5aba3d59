"""Who may speak to the server: names, pages, keys."""

from __future__ import annotations

import hmac
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.datastructures import Headers
from starlette.routing import BaseRoute

from llm_server.api.access import PUBLIC, Access, Forbidden, host_name
from llm_server.api.app import access_of, create_app
from llm_server.api.keys import InvalidKey, Keyring
from llm_server.config import Settings, settings_from_args
from llm_server.server import CannotStart, check_exposure, listen
from tests.fake_live import Live, add_models, live_server, one_machine, until
from tests.test_server import running

PAGE = "http://localhost:3000"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server that asks for keys and knows one page."""
    models = tmp_path_factory.mktemp("models")
    add_models(models, "a.gguf")
    with live_server(
        models, api_key=("first-key", "second-key"), allowed_origins=(PAGE,)
    ) as server:
        yield server


def code(response: httpx.Response) -> tuple[int, str]:
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"].startswith("req_")
    return response.status_code, response.json()["error"]["code"]


# ---- Host --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST.", "localhost:8000", "127.0.0.1:1", "[::1]:1", "[::1]", "192.168.0.7"],
)
def test_own_names_and_addresses_are_served(live: Live, host: str) -> None:
    assert live.client.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.com", "localhost.evil.com", "127.0.0.1.nip.io", "localhost:80:80", "localhost:x"]
    + ["", ".", "[localhost]"],
)
def test_other_names_are_not(live: Live, host: str) -> None:
    assert code(live.client.get("/health", headers={"host": host})) == (403, "host_not_allowed")


@one_machine("HAProxy refuses them, in words of its own")
@pytest.mark.parametrize(
    "host", ["a/b?x", "localhost@evil.com", "[::1", "evil.com#localhost", "loc alhost"]
)
def test_what_is_no_name_is_not(live: Live, host: str) -> None:
    assert code(live.client.get("/health", headers={"host": host})) == (403, "host_not_allowed")


def test_the_name_comes_before_the_key(locked: Live) -> None:
    response = locked.client.post("/setModel", headers={"host": "evil.com"})
    assert code(response) == (403, "host_not_allowed")


def test_a_path_never_comes_from_the_name(locked: Live) -> None:
    named = {"host": "localhost", "x-forwarded-host": "/", "x-api-key": "first-key"}
    response = locked.client.get("/nope", headers=named)
    assert code(response) == (404, "unknown_url")


def test_names_can_be_added() -> None:
    access = Access(hosts=["LLM.example.com."])
    headers = Headers({"host": "llm.example.com:443"})
    access.check_host(headers)
    with pytest.raises(Forbidden):
        Access().check_host(headers)
    Access(hosts=["*"]).check_host(Headers({"host": "a/b"}))


def test_host_names_are_taken_apart_exactly() -> None:
    assert host_name("A.b.:80") == "a.b"
    assert host_name("[FE80::1]:80") == "fe80::1"
    assert host_name("a:123456") is None


# ---- Origin ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin", ["http://evil.com", "null", "http://notlocalhost", "http://localhost:3001", ""]
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_pages_from_elsewhere_get_nothing(locked: Live, method: str, origin: str) -> None:
    headers = {"origin": origin, "access-control-request-method": "POST"}
    response = locked.client.request(method, "/setModel", headers=headers)
    assert code(response) == (403, "origin_not_allowed")
    assert "access-control-allow-origin" not in response.headers


def test_an_allowed_page_may_ask_and_read_the_refusal(locked: Live) -> None:
    asked = locked.client.options(
        "/v1/chat/completions",
        headers={"origin": PAGE, "access-control-request-method": "POST"},
    )
    assert asked.status_code == 204
    assert "authorization" in asked.headers["access-control-allow-headers"]
    for names, allowed in (
        ("authorization,x-stainless-os,x-stainless-timeout", True),
        ("x-a, x-b", True),
        ("x-a; x-b", False),
        ("x" * 5000, False),
    ):
        asked = locked.client.options(
            "/v1/chat/completions",
            headers={
                "origin": PAGE,
                "access-control-request-method": "POST",
                "access-control-request-headers": names,
            },
        )
        assert (asked.headers["access-control-allow-headers"] == names) == allowed
    refused = locked.client.get("/v1/models", headers={"origin": PAGE})
    for response in (asked, refused):
        assert response.headers["access-control-allow-origin"] == PAGE
        assert "access-control-allow-credentials" not in response.headers
        assert response.headers["vary"] == "Origin"
    assert code(refused) == (401, "invalid_api_key")


def test_pages_of_the_server_itself_need_no_permission(locked: Live) -> None:
    own = str(locked.client.base_url).rstrip("/")
    headers = {"origin": own, "x-api-key": "first-key"}
    response = locked.client.get("/v1/models", headers=headers)
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers


def test_pages_from_elsewhere_load_nothing_without_an_origin(live: Live) -> None:
    image = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    for path, headers in (("/v1/models", image), ("/ui", image), ("/v1/models", link)):
        assert code(live.client.get(path, headers=headers)) == (403, "origin_not_allowed")
    for path in ("/", "/ui", "/ui/"):
        response = live.client.get(path, headers=link, follow_redirects=True)
        assert response.status_code == 200
    for site in ("none", "same-origin", "same-site"):
        headers = {**image, "sec-fetch-site": site}
        assert live.client.get("/v1/models", headers=headers).status_code == 200


def test_an_allowed_page_may_ask_from_another_site() -> None:
    foreign = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}
    Access(origins=[PAGE]).check_site("/v1/models", Headers({**foreign, "origin": PAGE}))
    Access(origins=["*"]).check_site("/v1/models", Headers(foreign))
    with pytest.raises(Forbidden):
        Access(origins=[PAGE]).check_site("/v1/models", Headers(foreign))


# ---- keys --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer first-key"},
        {"authorization": "bearer second-key"},
        {"authorization": "Bearer  first-key"},
        {"x-api-key": "second-key"},
        {"x-api-key": "first-key", "authorization": "Bearer first-key"},
    ],
)
def test_a_key_opens(locked: Live, headers: dict[str, str]) -> None:
    assert locked.client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer x")],
        [(b"authorization", b"Basic first-key")],
        [(b"authorization", b"first-key")],
        [(b"authorization", b"Bearer first-key x")],
        [(b"authorization", b"Bearer first-keyfirst-key")],
        [(b"authorization", b"Bearer \xe9\xff")],
        [(b"x-api-key", b"")],
        pytest.param(
            [(b"x-api-key", b"x" * 30_000)], marks=one_machine("HAProxy reads heads of 16 KB")
        ),
        [(b"x-api-key", b"first-key"), (b"authorization", b"Bearer second-key")],
        [(b"authorization", b"Bearer first-key"), (b"authorization", b"Bearer x")],
    ],
)
def test_anything_else_does_not(locked: Live, headers: list[tuple[bytes, bytes]]) -> None:
    response = locked.client.get("/v1/models", headers=headers)
    assert code(response) == (401, "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"
    assert "first-key" not in response.text


def _paths(routes: list[BaseRoute]) -> Iterator[str]:
    for route in routes:
        if path := getattr(route, "path", None):
            yield path
        yield from _paths(getattr(route, "routes", None) or [])


def test_every_route_wants_a_key_but_the_public_ones(locked: Live, tmp_path: Path) -> None:
    documented = create_app(Settings(models_dir=tmp_path)).openapi()["paths"]
    paths = {*documented, *_paths(create_app(Settings(models_dir=tmp_path)).routes)}
    assert PUBLIC <= paths and len(paths) > 8
    for path in paths | {"/nope", "//health", "/health/", "/%68ealth/x"}:
        concrete = path.replace("{name:path}", "a.gguf").replace("{name}", "a.gguf")
        for method in ("GET", "POST", "HEAD", "OPTIONS"):
            status = locked.client.request(method, concrete).status_code
            assert (status != 401) == (path in PUBLIC), (method, path)


def test_health_tells_strangers_the_status_alone(locked: Live) -> None:
    for headers in ({}, {"authorization": "Bearer x"}, {"x-api-key": "first"}):
        response = locked.client.get("/health", headers=headers)
        assert (response.status_code, response.json()) == (200, {"status": "ok"})
    known = locked.client.get("/health", headers={"x-api-key": "first-key"}).json()
    assert known == {"status": "ok", "message": "a.gguf is loaded.", "sandbox": ""}


def test_health_tells_strangers_nothing_of_a_load_that_failed(tmp_path: Path) -> None:
    add_models(tmp_path, "broken.gguf")
    with live_server(tmp_path, wait=False, api_key=("key",)) as server:
        until(lambda: server.client.get("/health").json()["status"] == "failed")
        assert "broken" not in server.client.get("/health").text.lower()
        known = server.client.get("/health", headers={"x-api-key": "key"}).json()
        assert "It is broken." in known["message"]


def test_each_key_has_a_cache_of_its_own(locked: Live, tmp_path: Path) -> None:
    def salt(server: Live, key: str) -> str:
        body = {"messages": [{"role": "user", "content": "report"}]}
        headers = {"authorization": f"Bearer {key}"}
        answer = server.client.post("/v1/chat/completions", json=body, headers=headers).json()
        content = answer["choices"][0]["message"]["content"]
        request = httpx.Response(200, text=content).json()
        return str(request.get("cache_salt", ""))

    first, second = salt(locked, "first-key"), salt(locked, "second-key")
    assert len({first, second, ""}) == 3 and "key" not in first
    assert salt(locked, "first-key") == first
    add_models(tmp_path, "a.gguf")
    with live_server(tmp_path, api_key=("first-key",), shared_cache=True) as shared:
        assert salt(shared, "first-key") == ""


def test_a_file_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# mine\nalpha,1\n\n  beta  \n")
    ring = Keyring(["given"], path)
    assert all(ring.find(key) for key in (b"alpha,1", b"beta", b"given"))
    assert not any(ring.find(key) for key in (b"# mine", b"", b"alpha", b"gamma"))
    path.write_text("gamma\n")
    ring.reload()
    assert ring.find(b"gamma") and ring.find(b"given") and not ring.find(b"beta")
    for wrong in ("", "# nothing\n", "a b\n", "\u00e9\n", "x" * 513):
        path.write_text(wrong)
        with pytest.raises(InvalidKey):
            ring.reload()
        assert ring.find(b"gamma"), "the keys before stay in force"
    path.unlink()
    with pytest.raises(InvalidKey):
        ring.reload()
    os.mkfifo(path)
    with pytest.raises(InvalidKey):
        ring.reload()


def test_keys_are_compared_in_constant_time_all_of_them_and_as_digests_of_one_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By what is compared: times say nothing on a machine that others use."""
    real, compared = hmac.compare_digest, []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return real(a, b)

    ring = Keyring(["first-key", "second-key", "x" * 512])
    monkeypatch.setattr(hmac, "compare_digest", compare)
    for presented in (b"first-key", b"x" * 512, b"", b"first-kez", b"\xff" * 30_000):
        ring.find(presented)
        assert compared == [(32, 32)] * 3
        compared.clear()


def test_keys_never_leave_the_settings() -> None:
    settings = settings_from_args(["--api-key", "one,two", "--api-key", "three"], "x")
    assert [key.get_secret_value() for key in settings.api_key] == ["one", "two", "three"]
    assert "three" not in repr(settings)


def test_hangup_reads_the_keys_again_and_nothing_of_them_is_logged(tmp_path: Path) -> None:
    add_models(tmp_path, "a.gguf")
    keys = tmp_path / "keys.txt"
    keys.write_text("old-key-123\n")
    with running(tmp_path, "--api-key-file", str(keys)) as server:

        def allowed(key: str) -> bool:
            headers = {"authorization": f"Bearer {key}"}
            return httpx.get(server.url + "/v1/models", headers=headers).status_code == 200

        assert allowed("old-key-123") and not allowed("new-key-456")
        keys.write_text("new-key-456\n")
        server.process.send_signal(signal.SIGHUP)
        while not allowed("new-key-456"):
            pass
        assert not allowed("old-key-123")
        server.process.terminate()
        assert server.wait() == 0
        assert "key-123" not in server.log and "key-456" not in server.log
        assert "GET /v1/models 401" in server.log


# ---- being reached from elsewhere --------------------------------------------------------------


@pytest.mark.parametrize(
    ("server", "served"),
    [
        (("127.0.0.1", 8000), True),
        (("127.8.8.8", 8000), True),
        (("::1", 8000), True),
        (("::ffff:127.0.0.1", 8000), True),
        (("/run/llm-server.sock", None), True),
        (("192.168.0.7", 8000), False),
        (("fe80::1", 8000), False),
        (("::ffff:10.0.0.1", 8000), False),
    ],
)
def test_an_app_that_others_can_reach_wants_a_key_whoever_listens_for_it(
    tmp_path: Path, server: tuple[str, int | None], served: bool
) -> None:
    def allowed(**settings: object) -> bool:
        access = access_of(Settings(models_dir=tmp_path, **settings))  # type: ignore[arg-type]
        try:
            access.check_exposure({"type": "http", "server": server})
        except Forbidden as error:
            assert error.info.code == "api_key_not_configured"
            return False
        return True

    assert allowed() == served
    assert allowed(api_key=("key",)) and allowed(insecure_no_auth=True)


def test_nobody_is_served_beyond_this_machine_by_mistake() -> None:
    with listen("0.0.0.0", 0) as wide, listen("127.0.0.1", 0) as narrow:
        check_exposure(settings_from_args([], "x"), narrow)
        with pytest.raises(CannotStart, match="--api-key-file"):
            check_exposure(settings_from_args(["--host", "0.0.0.0"], "x"), wide)
        for told in (["--insecure-no-auth"], ["--api-key", "k"]):
            check_exposure(settings_from_args(["--host", "0.0.0.0", *told], "x"), wide)
        with pytest.raises(CannotStart, match="visible ASCII"):
            check_exposure(settings_from_args(["--api-key", "two words"], "x"), wide)
