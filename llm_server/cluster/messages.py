"""What crosses the cluster between an ingress and a replica: msgpack, in the worker's own messages.

A call carries `Submit`s and is answered by one `Opening` with the first events, then by lists of
events, those of one engine step together. It knows nothing of Ray.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from llm_server.errors import ErrorInfo
from llm_server.worker.messages import Asked, Event, Loaded, Submit


class Opening(msgspec.Struct, frozen=True, omit_defaults=True):
    """The first answer to a call: what serves it and how it begins, or why nothing does.

    `first_id` is the id of the call's first request in its events. They come with it because a
    message of their own would cost every first token a millisecond.
    """

    first_id: int = 0
    loaded: Loaded | None = None
    error: ErrorInfo | None = None
    events: list[Event] = []


_encoder = msgspec.msgpack.Encoder()


def encode_call(requests: Sequence[Asked], owner: str) -> bytes:
    """Requests that make one answer."""
    return _encoder.encode([Submit(i, request, owner) for i, request in enumerate(requests)])


decode_call = msgspec.msgpack.Decoder(list[Submit]).decode
"""The requests of a call. Raises msgspec.DecodeError."""

encode_opening = _encoder.encode
decode_opening = msgspec.msgpack.Decoder(Opening).decode
"""The first answer. Raises msgspec.DecodeError."""
