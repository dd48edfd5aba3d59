"""How downloads reach the network: as the environment's proxies and certificates have it."""

from __future__ import annotations

import os
from collections.abc import Mapping

import httpx2

_VARIABLES = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"}


class DownloadError(Exception):
    """Why a file could not be fetched, in one line for the person at the terminal."""


def connect(headers: Mapping[str, str] | None = None) -> httpx2.Client:
    """A client that sends `headers` with each request.

    Raises DownloadError where what the environment says cannot be followed.
    """
    # A compressed answer would make nonsense of lengths and ranges.
    headers = {"Accept-Encoding": "identity", **(headers or {})}
    timeout = httpx2.Timeout(30, connect=10)
    try:
        return httpx2.Client(headers=headers, timeout=timeout, follow_redirects=True)
    except (ImportError, OSError, ValueError, httpx2.InvalidURL) as error:
        told = [name for name in os.environ if name.upper() in _VARIABLES]
        raise DownloadError(f"{', '.join(told) or 'the network'} cannot be used: {error}") from None
