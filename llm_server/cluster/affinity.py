"""Which replica a request should go to: one that knows its head, unless others are less busy.

Plain bookkeeping and arithmetic: it knows neither Ray nor what a prompt looks like to a model.
Each ingress keeps its own; where it knows nothing, all of them guess the same.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from typing import Generic, TypeVar

import msgspec

from llm_server.worker.messages import Asked, ChatRequest, CompletionRequest

BLOCK = 1024
"""Bytes of a prompt that are known or unknown together."""
MAX_MARKS = 512
"""Most places of one prompt that are remembered; those of a longer one lie further apart."""
BYTES_PER_REQUEST = 4096
"""What a replica has to compute of a prompt weighs as much as one request it is busy with, for
each so many bytes: about a thousand tokens, whose computing delays others as long as an answer."""
MAX_REMEMBERED = 200_000
"""Places of prompts an ingress remembers, about 30 MB; the least recently used are forgotten."""

_MARK = struct.Struct("<QI")

Replica = TypeVar("Replica", bound=Hashable)


def marks_of(request: Asked, session: str = "") -> bytes:
    """The places in a prompt up to which it may be known: of each a hash of all before, its bytes.

    In front stands a mark of the session, 0 if there is none, with the bytes of the head: tools and
    system messages. Questions and embeddings have no marks: no replica knows more of them than
    another.
    """
    if isinstance(request, ChatRequest):
        messages = request.messages
        n_head = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
        head = msgspec.json.encode([request.cache_salt, request.tools, messages[:n_head]])
        parts = [head, *map(msgspec.json.encode, messages[n_head:])]
    elif isinstance(request, CompletionRequest):
        prompt = msgspec.json.encode([request.cache_salt, request.prompt])
        parts = [prompt[:BLOCK], prompt[BLOCK:]]
    else:
        return b""
    step = max(BLOCK, sum(map(len, parts)) // (MAX_MARKS - min(len(parts), MAX_MARKS // 2)))
    marks = list(_chain(parts, step))
    # Of very many messages the last ones tell conversations apart, and the head is where to begin.
    n_head = -(-len(parts[0]) // step)
    marks = marks[:n_head] + marks[n_head:][-(MAX_MARKS - n_head) :]
    return _MARK.pack(_digest(session.encode()) if session else 0, len(parts[0])) + b"".join(marks)


def _chain(parts: list[bytes], step: int) -> Iterator[bytes]:
    size, rolling = 0, hashlib.blake2b(digest_size=8)
    for part in parts:
        for start in range(0, len(part), step):
            piece = part[start : start + step]
            size += len(piece)
            rolling.update(piece)
            yield _MARK.pack(int.from_bytes(rolling.digest(), "little"), size)


class Affinity(Generic[Replica]):
    """What one ingress remembers of where prompts were computed."""

    def __init__(self, max_remembered: int = MAX_REMEMBERED) -> None:
        self._holders: OrderedDict[int, dict[Replica, None]] = OrderedDict()
        self._max = max_remembered

    def __len__(self) -> int:
        return len(self._holders)

    def order(self, marks: bytes, loads: Mapping[Replica, int]) -> list[Replica]:
        """The replicas of `loads`, requests they are busy with, in the order to be tried.

        What a replica costs is its requests, and what it has to compute of the prompt at
        `BYTES_PER_REQUEST` for one. A session stays where it was.
        """
        places = list(_MARK.iter_unpack(marks))
        total = places[-1][1] if places else 0
        known = dict.fromkeys(loads, 0)
        # Unknown heads have one place for all ingresses.
        head = next((mark for mark, size in places[1:] if size == places[0][1]), 0)
        guess = max(loads, key=lambda replica: _score(replica, head), default=None)
        if guess is not None and not self._holders.get(head):
            known[guess] = places[0][1] if places else 0
        for mark, size in places[1:]:
            for replica in self._holders.get(mark, ()):
                if replica in known:
                    known[replica] = max(known[replica], size)
        session = self._holders.get(places[0][0], {}) if places else {}

        def cost(replica: Replica) -> tuple[bool, float, int]:
            missing = (total - known[replica]) / BYTES_PER_REQUEST
            return replica not in session, loads[replica] + missing, -_score(replica, head)

        return sorted(loads, key=cost)

    def note(self, marks: bytes, replica: Replica) -> None:
        """That prompt goes to that replica."""
        for index, (mark, _) in enumerate(_MARK.iter_unpack(marks)):
            if not mark:
                continue
            if index == 0:
                self._holders[mark] = {}  # A session is in one place.
            self._holders.setdefault(mark, {})[replica] = None
            self._holders.move_to_end(mark)
        while len(self._holders) > self._max:
            self._holders.popitem(last=False)

    def forget(self, replica: Replica) -> None:
        """That replica is gone, with all it knew."""
        for mark in [mark for mark, holders in self._holders.items() if replica in holders]:
            del self._holders[mark][replica]
            if not self._holders[mark]:
                del self._holders[mark]


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _score(replica: Hashable, mark: int) -> int:
    """Rendezvous hashing: the highest of all replicas is the place, whoever computes it."""
    return _digest(f"{replica} {mark}".encode())
