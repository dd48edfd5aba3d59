"""Who may speak to the server at all: Host, Origin and API key; denied unless known.

A browser says which page asks and which name it believes to speak to, so a page from elsewhere, or
one whose name was rebound to this machine, is told apart. Decisions only; `edge.py` acts on them.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import Scope

from llm_server.api.keys import Key, Keyring
from llm_server.errors import InvalidRequest
from llm_server.web.assets import assets

PUBLIC = frozenset({"/health", "/ui/", *assets()})
"""Paths that answer without a key, exactly as written; what `/health` tells depends on it. The
others are the files of the page, which asks for the key."""

_LINKED = frozenset({"/", "/ui", "/ui/"})
"""Where a link on a page from elsewhere may lead: to our own page, whatever a person then does."""

EXPOSED_HEADERS = b"x-request-id, retry-after, x-should-retry, x-ignored-parameters"


class Forbidden(InvalidRequest):
    """The page, or the name it uses, is not one this server serves."""

    status = 403
    code = "origin_not_allowed"


class InvalidApiKey(InvalidRequest):
    """No key, an unknown one, or two that differ."""

    status = 401
    code = "invalid_api_key"


class Access:
    """The rules. `hosts` and `origins` are what the server was told beyond the obvious.

    `everybody` serves other machines also where no key is asked for.
    """

    def __init__(
        self,
        hosts: Iterable[str] = (),
        origins: Iterable[str] = (),
        keyring: Keyring | None = None,
        everybody: bool = False,
    ) -> None:
        self.keyring = keyring if keyring is not None else Keyring()
        self._everybody = everybody
        self._hosts = own_names() | {host.lower().rstrip(".") for host in hosts}
        self._origins = {origin.lower().rstrip("/") for origin in origins}

    def check_exposure(self, scope: Scope) -> None:
        """Raises Forbidden on an address others can reach, unless there are keys or it was told to.

        `server.py` does not even listen there; an ASGI server that somebody else started does.
        """
        address = (scope.get("server") or ("",))[0]
        if not (self.keyring or self._everybody) and not _is_loopback(address):
            raise Forbidden(
                "This server asks for no API key, and so serves only its own machine. Start it "
                "with LLM_SERVER_API_KEY, or allow everybody with LLM_SERVER_INSECURE_NO_AUTH=1.",
                code="api_key_not_configured",
            )

    def check_host(self, headers: Headers) -> None:
        """Raises Forbidden unless the server is called by a name of its own."""
        names = headers.getlist("host")
        if len(names) != 1 or not self._host_allowed(names[0]):
            raise Forbidden(
                "This server does not go by the name in the Host header. If it should, start it "
                "with --allowed-hosts.",
                code="host_not_allowed",
            )

    def _host_allowed(self, host: str) -> bool:
        if "*" in self._hosts:
            return True
        name = host_name(host)
        if name is None:
            return False
        # An address cannot be rebound to another machine: only names can.
        return name in self._hosts or _is_address(name)

    def check_site(self, path: str, headers: Headers) -> None:
        """Raises Forbidden for what a page from elsewhere loads without saying which page it is.

        Browsers send no Origin for images, scripts and links, but whether the page is of this site.
        """
        foreign = headers.get("sec-fetch-site") == "cross-site" and "origin" not in headers
        follows_link = headers.get("sec-fetch-mode") == "navigate" and path in _LINKED
        if foreign and not follows_link and "*" not in self._origins:
            raise Forbidden("Web pages from elsewhere may not load anything of this server.")

    def cors(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """What an answer tells the browser about the page that asks. Raises Forbidden."""
        origin = headers.get("origin")
        if origin is None:
            return []
        scheme, separator, rest = origin.lower().partition("://")
        same = separator and scheme in ("http", "https") and rest == headers.get("host", "").lower()
        if same:
            return []
        if "*" in self._origins:
            allowed = b"*"
        elif origin.lower() in self._origins:
            allowed = origin.encode("latin-1")
        else:
            raise Forbidden(
                "Web pages of this origin may not use this server. If they should, start it with "
                "--allowed-origins."
            )
        return [
            (b"access-control-allow-origin", allowed),
            (b"access-control-expose-headers", EXPOSED_HEADERS),
            (b"vary", b"Origin"),
        ]

    def key(self, path: str, headers: Headers) -> Key | None:
        """The key of a request; None where none is asked for or needed. Raises InvalidApiKey."""
        if not self.keyring:
            return None
        presented = {key.encode("latin-1") for key in headers.getlist("x-api-key")}
        for value in headers.getlist("authorization"):
            scheme, _, token = value.partition(" ")
            presented.add(token.strip().encode("latin-1") if scheme.lower() == "bearer" else b"")
        found = self.keyring.find(presented.pop()) if len(presented) == 1 else None
        to_page = path == "/" and wants_page(headers)
        if found is None and path not in PUBLIC and not to_page:
            raise InvalidApiKey(
                "A valid API key is needed: send the header 'Authorization: Bearer YOUR_KEY'."
            )
        return found


def wants_page(headers: Headers) -> bool:
    """Whether this is a browser that was given our address: it is sent to the page."""
    return "text/html" in headers.get("accept", "")


_USUAL_HEADERS = "authorization, content-type, x-api-key"
_HEADER_NAMES = re.compile(r"[\w!#$%&'*+.^`|~-]+( *, *[\w!#$%&'*+.^`|~-]+)*", re.ASCII)


def preflight(headers: Headers) -> list[tuple[bytes, bytes]]:
    """What a page of an allowed origin may send: any headers, as SDKs have many of their own."""
    asked = headers.get("access-control-request-headers", "").strip()
    names = asked if len(asked) <= 2048 and _HEADER_NAMES.fullmatch(asked) else _USUAL_HEADERS
    return [
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-allow-headers", names.encode("latin-1")),
        (b"access-control-max-age", b"600"),
        (b"content-length", b"0"),
    ]


def host_name(host: str) -> str | None:
    """The name in a Host header, lower case, without port and final dot; None if it is none."""
    name, bracket, port = host.lower(), "", ""
    if name.startswith("["):
        name, bracket, port = name[1:].partition("]")
        if not bracket or (port and not port.startswith(":")) or not _is_address(name):
            return None
        port = port[1:]
    else:
        name, _, port = name.partition(":")
    if port and not (port.isascii() and port.isdigit() and len(port) <= 5):
        return None
    name = name.removesuffix(".")
    return name if name and all(c.isalnum() or c in "-_.:" for c in name) else None


def own_names() -> frozenset[str]:
    """What this machine is called by those around it: also by multicast DNS."""
    name = socket.gethostname().lower().rstrip(".")
    return frozenset({"localhost", name, name.partition(".")[0] + ".local"} - {"", ".local"})


def _is_loopback(address: str) -> bool:
    """Whether only this machine reaches `address`: also a socket in its file system."""
    if not _is_address(address):
        return True
    found = ipaddress.ip_address(address)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
