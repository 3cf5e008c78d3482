"""Who may connect: API keys from a file, compared in constant time, and pages of the same origin only."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lamp.errors import DataError

SHORTEST = 8
"""Characters of a key."""


@dataclass(frozen=True)
class ApiKeys:
    """The keys that let a client in, kept as hashes; without any, everybody is let in."""

    digests: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, keys: list[str]) -> ApiKeys:
        """Keeps the hashes of the keys."""
        return cls(tuple(_digest(key) for key in keys))

    @classmethod
    def read(cls, path: Path) -> ApiKeys:
        """Reads a file of one key a line.

        Raises:
            DataError: There is no such file, others may read it, or it holds no key or one that is too short.
        """
        try:
            mode = os.stat(path).st_mode
            lines = path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            raise DataError(f"no API key file at {path}; expected one key a line.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read the API key file {path}: {error}.") from None
        if mode & 0o077:
            raise DataError(f"others may read the API key file {path}; expected that only you can: chmod 600 {path}")
        keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not keys:
            raise DataError(f"the API key file {path} holds no key; expected one a line.")
        if short := [number for number, key in enumerate(keys, start=1) if len(key) < SHORTEST]:
            raise DataError(f"key {short[0]} of {path} is too short; expected at least {SHORTEST} characters.")
        return cls.of(keys)

    @property
    def needed(self) -> bool:
        """Whether a key is asked for."""
        return bool(self.digests)

    def admit(self, authorization: str | None) -> bool:
        """Says whether a request with this `Authorization` header is let in.

        `Api-Key KEY`, `Bearer KEY` and, for browsers, `Basic` with the key as the password are understood.
        """
        if not self.digests:
            return True
        given = _digest(_key_in(authorization or ""))
        # All are compared, whichever fits, so that the time tells nothing.
        return sum([hmac.compare_digest(given, digest) for digest in self.digests]) > 0


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _key_in(header: str) -> str:
    scheme, _, value = header.strip().partition(" ")
    if scheme.lower() in ("api-key", "bearer"):
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode("utf-8", "replace").partition(":")[2]
        except ValueError:  # binascii.Error is one; other letters than ASCII are another
            return ""
    return ""


def same_origin(origin: str | None, host: str | None) -> bool:
    """Says whether a browser's page comes from this very server; programs send no origin."""
    try:
        return origin is None or (host is not None and urlsplit(origin).netloc.lower() == host.lower())
    except ValueError:  # such as http://[
        return False
