"""API keys: whose request it is, found in constant time, and the cache namespace that is theirs.

Keys are kept as SHA-256 digests. It knows nothing of HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_FILE_BYTES = 1 << 20


class InvalidKey(ValueError):
    """Why keys cannot be used, for the person who starts the server; never the key itself."""


@dataclass(frozen=True, slots=True)
class Key:
    """A known key: its digest, and the salt of its prompt cache (secret like the key itself)."""

    digest: bytes
    salt: str

    @classmethod
    def of(cls, key: str) -> Key:
        """The record of a key in plain text."""
        salt = hmac.new(key.encode(), b"llm-server cache namespace", hashlib.sha256).hexdigest()
        return cls(hashlib.sha256(key.encode()).digest(), salt)


class Keyring:
    """The keys that are accepted now: those given at the start, and those of a file."""

    def __init__(self, given: Iterable[str] = (), file: Path | None = None) -> None:
        """Raises InvalidKey."""
        self._given = [Key.of(check_key(key)) for key in given]
        self._file = file
        self._keys: Sequence[Key] = ()
        self.reload()

    def __bool__(self) -> bool:
        """Whether keys are asked for at all."""
        return bool(self._given) or self._file is not None

    @property
    def several(self) -> bool:
        """Whether there is more than one, so that some have to be kept from others."""
        return len(self._keys) > 1

    def reload(self) -> None:
        """Read the file again. Raises InvalidKey; the keys before it stay in force then."""
        read = read_key_file(self._file) if self._file is not None else []
        self._keys = [*self._given, *map(Key.of, read)]

    def find(self, presented: bytes) -> Key | None:
        """The key that was presented, if it is one. Takes the same time whichever it is."""
        digest = hashlib.sha256(presented).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def read_key_file(path: Path) -> list[str]:
    """The keys of a file: one a line; blank lines and those that begin with # do not count.

    Raises InvalidKey, also for a file without keys: it would lock everybody out.
    """
    try:
        if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
            raise InvalidKey(f"{path} is not a file of keys")
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InvalidKey(f"{path} cannot be read: {reason}") from None
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise InvalidKey(f"{path} holds no key")
    for key in keys:
        check_key(key)
    return keys


def check_key(key: str) -> str:
    """The key, which must fit into a header. Raises InvalidKey without repeating it."""
    if not key or not all("!" <= c <= "~" for c in key) or len(key) > 512:
        raise InvalidKey("a key is 1 to 512 visible ASCII characters without blanks")
    return key
