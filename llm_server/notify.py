"""What systemd is told of a service of `Type=notify`: ready, alive, stopping (sd_notify(3)).

Nothing happens outside of systemd, which is where `NOTIFY_SOCKET` comes from.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket


def ready() -> None:
    """The listener is open; /health says when a model is loaded."""
    _send("READY=1")


def stopping() -> None:
    """Running answers get their time, then the process ends."""
    _send("STOPPING=1")


async def keep_alive() -> None:
    """Say so twice in each of the watchdog's intervals, as long as the event loop turns."""
    interval_s = _watchdog_s()
    while interval_s is not None:
        _send("WATCHDOG=1")
        await asyncio.sleep(interval_s / 2)


def _watchdog_s() -> float | None:
    """Within how many seconds a sign of life is expected; None where nobody does."""
    wanted = os.environ.get("WATCHDOG_USEC", "")
    watched = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not wanted.isdecimal() or int(wanted) == 0 or watched != str(os.getpid()):
        return None
    return int(wanted) / 1e6


def _send(state: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel,
    ):
        channel.setblocking(False)
        channel.sendto(state.encode(), address)
