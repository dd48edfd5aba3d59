"""The server's API as a terminal needs it: which model is there, and an answer as it comes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import httpx2

_POLL_S = 0.05
_ANSWERING = httpx2.Timeout(120, connect=5)
"""A long prompt on a small machine may take minutes, but the server keeps the line alive."""
_LOADING = httpx2.Timeout(None, connect=5)
"""Nothing is said before a model is loaded, which may first wait for others' answers. Ctrl-C ends
it."""


class ChatError(Exception):
    """What the server refused or where it failed, in its own words."""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A piece of a tool call; the first one of each has a name."""

    name: str | None
    arguments: str


@dataclass(frozen=True, slots=True)
class End:
    """The end of an answer, with the server's `timings`."""

    reason: str
    timings: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Waiting:
    """What the server says while the answer has not begun."""

    text: str


Piece: TypeAlias = Text | Thought | Call | End | Waiting
Message: TypeAlias = Mapping[str, str]


class ChatClient:
    """A client of the server at `url`, to be closed by leaving its block.

    `url` may be as people write it: without http://, or with the path of the API or the page.
    `key` is one of the server's API keys, where it asks for them. `require` is called where the
    connection fails; what it raises ends the conversation. Raises ChatError for a `url` that cannot
    be one.
    """

    def __init__(
        self, url: str, key: str | None = None, require: Callable[[], None] = lambda: None
    ) -> None:
        # No proxy: this is for servers nearby.
        self._require = require
        headers = {"authorization": f"Bearer {key}"} if key else {}
        with self._plain_errors():
            self._http = httpx2.Client(
                base_url=_root(url), headers=headers, timeout=_ANSWERING, trust_env=False
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def wait_ready(self, tell: Callable[[str], None]) -> str:
        """Until a model is loaded; its name. `tell` gets what the server says meanwhile.

        "" where it has been unloaded again: a request that names no model has it loaded anew.
        Raises ChatError when no model can be loaded.
        """
        while True:
            health = self._json("GET", "/health", refused=(503,))
            message = str(health.get("message", ""))
            if health.get("status") == "ok":
                break
            if health.get("status") not in ("loading", "empty"):
                raise ChatError(message or "no model is loaded")
            tell(message)
            if health.get("status") == "empty":
                # Any request has a model loaded, and this one computes nothing.
                self._json("POST", "/tokenize", {"content": ""}, timeout=_LOADING)
                break
            time.sleep(_POLL_S)
        return str(self._json("GET", "/").get("model") or "")

    def load(self, model: str) -> str:
        """Load `model` and make it the current one; its full name. Raises ChatError."""
        body = {"model_name": model}
        return str(self._json("POST", "/setModel", body, timeout=_LOADING)["model"])

    def answer(self, messages: Sequence[Message], model: str) -> Generator[Piece, None, None]:
        """The answer to `messages` as it comes. To stop it is to close the iterator.

        `model` may be "", for the server's own choice.
        Raises ChatError, at once or where the answer breaks off.
        """
        body: dict[str, Any] = {"messages": list(messages), "stream": True}
        if model:
            body["model"] = model
        with (
            self._plain_errors(),
            self._http.stream("POST", "/v1/chat/completions", json=body) as response,
        ):
            if response.status_code != 200:
                response.read()
                raise ChatError(_message(response))
            for line in response.iter_lines():
                if line.startswith(": "):
                    yield Waiting(line.removeprefix(": "))
                elif line.startswith("data: ") and line != "data: [DONE]":
                    yield from _pieces(json.loads(line.removeprefix("data: ")))

    def _json(
        self,
        method: str,
        path: str,
        body: object = None,
        refused: Sequence[int] = (),
        timeout: httpx2.Timeout = _ANSWERING,
    ) -> dict[str, Any]:
        with self._plain_errors():
            response = self._http.request(method, path, json=body, timeout=timeout)
        if response.status_code != 200 and response.status_code not in refused:
            raise ChatError(_message(response))
        try:
            return dict(response.json())
        except ValueError:
            raise ChatError(f"{self._http.base_url} is not an llm-server") from None

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """Turns failures of the connection into ChatError."""
        try:
            yield
        except httpx2.ConnectError:
            self._require()
            raise ChatError("there is no server at that address") from None
        except (httpx2.InvalidURL, UnicodeError) as error:  # UnicodeError: no host has such a name
            raise ChatError(f"that is no address of a server: {error}") from None
        except httpx2.HTTPError as error:
            self._require()
            raise ChatError(f"the connection broke: {error}") from None


def _root(url: str) -> str:
    """The address of a server, of which `url` may be one of the addresses it gives away."""
    root = url.rstrip("/").removesuffix("/v1").removesuffix("/ui")
    return root if "://" in root else f"http://{root}"


def _message(response: httpx2.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {response.status_code}"


def _pieces(chunk: Mapping[str, Any]) -> Iterator[Piece]:
    if "error" in chunk:
        raise ChatError(str(chunk["error"].get("message", chunk["error"])))
    for choice in chunk.get("choices", ()):
        delta = choice["delta"]
        if delta.get("reasoning_content"):
            yield Thought(delta["reasoning_content"])
        if delta.get("content"):
            yield Text(delta["content"])
        for call in delta.get("tool_calls", ()):
            function = call["function"]
            yield Call(function.get("name"), function.get("arguments", ""))
        if choice.get("finish_reason"):
            yield End(choice["finish_reason"], chunk.get("timings", {}))
