"""A websocket to a policy server: opened when needed, closed after a failure, every failure reported in one line."""

from __future__ import annotations

import errno
import logging
import math
import os
import random
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

from lamp_client import wire
from lamp_client.errors import (
    ConnectionFailedError,
    ConnectionLostError,
    InvalidValueError,
    LampClientError,
    MissingSoftwareError,
    ServerBusyError,
    ServerError,
    WireError,
)

PROTOCOL_VERSION = 1
"""Version of LaMP's additions to openpi's protocol; a server announces it as ``{"lamp": {"protocol": 1}}``."""

log = logging.getLogger("lamp_client")

_RETRY_S, _LONGEST_RETRY_S = 0.2, 2.0
"""Between the first attempts to connect, and later ones [s]."""
_LAST_ATTEMPT_S = 0.1
_LOG_AFTER_S = 1.0
"""Waiting that lasts longer is logged, once."""
_HANDSHAKE_S = 5.0
"""How long the first handshake may take, and each later one twice as long: a tunnel may swallow one for good [s]."""
_TRY_AGAIN_LATER = 1013
_NOT_YET_CODES = (1001, 1006, 1012, 1013, None)
"""Closing codes before the greeting of a server that stops, restarts or is too busy, and of none behind a tunnel."""
_NOT_YET_STATUS = (429, 502, 503, 504)
_NOT_YET_ERRORS = {
    getattr(errno, name)
    for name in (
        "ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "EPIPE", "ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH", "EHOSTDOWN",
        "ENETDOWN", "EADDRNOTAVAIL", "EAGAIN",
    )
    if hasattr(errno, name)
}  # fmt: skip
_NOT_YET_TLS = ("UNEXPECTED_EOF_WHILE_READING", "TLSV1_ALERT_INTERNAL_ERROR", "SSLV3_ALERT_UNEXPECTED_MESSAGE")


class Connection:
    """Sends requests and returns replies, one after the other.

    Args:
        address: ``ws://host:port`` or ``wss://host:port``.
        api_key: Sent as ``Authorization: Api-Key ...``.
        connect_timeout_s: How long to keep trying to connect, until the server's greeting [s].
        reply_timeout_s: How long to wait for one reply [s].
        limits: Larger messages are refused both ways.
        ca_file: PEM file to trust for ``wss://``.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None,
        connect_timeout_s: float,
        reply_timeout_s: float,
        limits: wire.Limits,
        ca_file: str | os.PathLike[str] | None,
    ) -> None:
        api_key = api_key and api_key.strip()  # as it is read from a file, with the end of its line
        if api_key and not api_key.isprintable():
            raise InvalidValueError(
                "the API key holds a line break or another character that cannot be sent.", hint="Pass one key alone."
            )
        self.address, self._api_key, self._ca_file = address, api_key, ca_file
        self._connect_timeout_s, self._reply_timeout_s, self._limits = connect_timeout_s, reply_timeout_s, limits
        self._socket: Any = None
        self._metadata: dict[str, Any] = {}

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._socket is not None

    def open(self) -> dict[str, Any]:
        """Connects where there is no connection, and returns what the server sent on connecting.

        Raises:
            ConnectionFailedError: it cannot be reached, or refuses the client.
            WireError: it does not speak the protocol.
        """
        if self._socket is None:
            self._socket, self._metadata = self._connect()
        return self._metadata

    def request(self, message: dict[str, Any]) -> Any:
        """Sends a request and returns the reply.

        Raises:
            ConnectionLostError: the connection broke; the request may be repeated.
            ConnectionFailedError: the server cannot be reached or does not reply in time.
            ServerBusyError: it has too much to do just now.
            ServerError: it replied with an error.
            WireError: its reply is not one of the protocol's.
        """
        encoded = wire.pack(message, limits=self._limits)
        self._check_size(len(encoded))
        try:
            self._socket.send(encoded)
            return self._receive(self._socket)
        except LampClientError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise ConnectionLostError(
                f"the policy server at {self.address} went away: {_error_text(error)}."
            ) from error

    def _check_size(self, size: int) -> None:
        """Compares a message with the server's announced limit: beyond it, it would close the connection again and again."""
        limits = self.open().get("limits")
        room = limits.get("message_bytes") if isinstance(limits, dict) else None
        if type(room) is int and 0 < room < size:
            raise WireError(
                f"the request has {size} bytes; the server at {self.address} takes {room}.",
                hint="Send smaller images: it resizes them anyway.",
            )

    def close(self) -> None:
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()

    def _connect(self) -> tuple[Any, dict[str, Any]]:
        """Tries until a server has greeted, or the time is over; errors that waiting cannot mend are raised at once."""
        connect, options = self._library()
        started = time.monotonic()
        deadline, warned = started + self._connect_timeout_s, False
        pause, handshake = _RETRY_S, _HANDSHAKE_S
        while True:
            left = max(deadline - time.monotonic(), 0.1)
            connection = None
            try:
                connection = connect(self.address, open_timeout=min(left, handshake), **options)
                greeting = self._receive(connection, timeout_s=max(deadline - time.monotonic(), 0.1))
                return connection, checked_metadata(greeting, self.address)
            except BaseException as error:
                if connection is not None:
                    _abandon(connection)
                if isinstance(error, _NotGreetedError) or not isinstance(error, Exception):
                    raise
                if isinstance(error, LampClientError) and not isinstance(error, ConnectionLostError | ServerBusyError):
                    raise
                pause_s = min(_retry_after(error, pause), deadline - time.monotonic() - _LAST_ATTEMPT_S)
                if not _not_yet(error) or pause_s <= 0:
                    raise self._unreachable(error) from error
                if not warned and time.monotonic() - started >= _LOG_AFTER_S:
                    warned = True
                    log.warning(
                        "waiting up to %g s for the policy server at %s (%s)",
                        self._connect_timeout_s, self.address, _reason(error),
                    )  # fmt: skip
            time.sleep(pause_s * random.uniform(0.8, 1.0))  # several robots should not all come back at the same moment
            pause, handshake = min(1.5 * pause, _LONGEST_RETRY_S), 2 * handshake

    def _library(self) -> tuple[Any, dict[str, Any]]:
        try:
            from websockets.sync.client import connect
            from websockets.version import version
        except ImportError as error:
            raise MissingSoftwareError("websockets is not installed.", hint="pip install websockets") from error
        options: dict[str, Any] = {"compression": None, "max_size": self._limits.message_bytes}
        if int(version.split(".")[0]) >= 15:
            # A policy may think longer than the default patience of keepalive, and is reached without a proxy.
            options.update(ping_interval=None, proxy=None)
        if self._api_key:
            options["additional_headers"] = {"Authorization": f"Api-Key {self._api_key}"}
        if self._ca_file is not None and self.address.startswith("wss:"):
            try:
                options["ssl"] = ssl.create_default_context(cafile=self._ca_file)
            except (OSError, ssl.SSLError) as error:
                raise ConnectionFailedError(
                    f"cannot read the certificates in {self._ca_file}: {_error_text(error)}."
                ) from error
        return connect, options

    def _unreachable(self, error: Exception) -> ConnectionFailedError:
        status = _status(error)
        within = f" within {self._connect_timeout_s:g} s" if _not_yet(error) else ""
        if status in (401, 403):
            problem = "requires an API key" if status == 401 and not self._api_key else "refused the API key"
            return ConnectionFailedError(
                f"the policy server at {self.address} {problem} (HTTP {status}).", hint="Pass its api_key."
            )
        if status is not None and status not in (502, 504):
            return ConnectionFailedError(
                f"the policy server at {self.address} refused{within} ({_reason(error)})."
                if status >= 400
                else f"what answers at {self.address} is no policy server ({_reason(error)})."
            )
        if isinstance(error, ssl.SSLError) and not _not_yet(error):
            return ConnectionFailedError(
                f"no trusted connection to {self.address}: {_error_text(error)}.",
                hint="Pass its certificate as ca_file, or use ws:// if the server has none.",
            )
        if isinstance(error, ValueError) or type(error).__name__ == "InvalidURI":
            return ConnectionFailedError(f"{self.address!r} is no address ({error}); expected such as ws://host:8000.")
        if not _not_yet(error) and not isinstance(error, OSError):
            return ConnectionFailedError(f"what answers at {self.address} is no policy server ({_reason(error)}).")
        if isinstance(error, ConnectionLostError):
            error = error.__cause__ if isinstance(error.__cause__, Exception) else error
        return ConnectionFailedError(
            f"cannot connect to a policy server at {self.address}{within}: {_reason(error)}.",
            hint="Is it running? Start one with `lamp serve`, or give another host or port.",
        )

    def _receive(self, connection: Any, timeout_s: float | None = None) -> Any:
        """Waits for a message: for the greeting, where `timeout_s` is given; for a reply, where it is None."""
        try:
            reply = connection.recv(timeout=self._reply_timeout_s if timeout_s is None else timeout_s)
        except TimeoutError as error:
            if timeout_s is not None:
                raise _NotGreetedError(
                    f"the policy server at {self.address} did not greet within {self._connect_timeout_s:g} s.",
                    hint="It may still be loading its policy: wait longer (connect_timeout_s), or see its log.",
                ) from error
            raise ConnectionFailedError(
                f"the policy server at {self.address} did not reply within {self._reply_timeout_s:g} s."
            ) from error
        except Exception as error:
            raise ConnectionLostError(
                f"the policy server at {self.address} went away: {_error_text(error)}."
            ) from error
        if isinstance(reply, str):
            raise self._error(connection, reply)
        return wire.unpack(reply, limits=self._limits)

    def _error(self, connection: Any, text: str) -> ServerError:
        """The error in a text frame; the code with which the server then closes decides whether to try again."""
        # openpi sends a whole traceback, whose last line is the error.
        lines = [line for line in text.strip().splitlines() if line.strip()] or ["no message"]
        try:
            connection.recv(timeout=0.5)
        except Exception as closed:
            code = getattr(getattr(closed, "rcvd", None), "code", None)
            if code == _TRY_AGAIN_LATER:
                return ServerBusyError(f"the policy server at {self.address} is too busy: {lines[-1].strip()}")
        return ServerError(f"the policy server at {self.address} failed: {lines[-1].strip()}")


class _NotGreetedError(ConnectionFailedError):
    """The server has accepted the connection and sends no greeting."""


def _abandon(connection: Any) -> None:
    """Closes a failed connection without waiting for the other side."""
    try:
        connection.close_timeout = 0.2
        connection.close()
    except Exception as error:  # it is gone in any case
        log.debug("closing: %s", error)


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _retry_after(error: BaseException, otherwise: float) -> float:
    """How long to wait before the next attempt: the server's Retry-After, within reason [s]."""
    headers = getattr(getattr(error, "response", None), "headers", None)
    try:
        requested = float(headers.get("Retry-After", "")) if headers is not None else 0.0
    except (ValueError, LookupError):  # a date, or several
        requested = 0.0
    return min(max(otherwise, requested), _LONGEST_RETRY_S) if requested >= 0 else otherwise


def _not_yet(error: BaseException | None) -> bool:
    """Whether the same may succeed in a moment, as the server, or the way to it, may still be starting."""
    if error is None:
        return False
    if (status := _status(error)) is not None:
        return status in _NOT_YET_STATUS
    if isinstance(error, ssl.SSLCertVerificationError):
        return False
    if isinstance(error, ssl.SSLError):
        ended = isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError)
        return ended or error.reason in _NOT_YET_TLS
    if isinstance(error, ServerBusyError | TimeoutError | EOFError | ConnectionError | socket.gaierror):
        return True
    if hasattr(error, "rcvd"):  # the library's ConnectionClosed, whose class has moved from version to version
        return getattr(getattr(error, "rcvd", None), "code", None) in _NOT_YET_CODES
    if isinstance(error, ConnectionLostError):
        return _not_yet(error.__cause__)
    if isinstance(error, OSError):
        return error.errno in _NOT_YET_ERRORS
    return _not_yet(error.__cause__)  # the library wraps the end of the stream in the handshake


def _reason(error: BaseException) -> str:
    """Why a connection did not come about, in few words."""
    status = _status(error)
    if status is None:
        return _error_text(error)
    body = getattr(getattr(error, "response", None), "body", None) or b""
    lines = bytes(body).decode("utf-8", "replace").strip().splitlines()
    return f"HTTP {status}: {lines[0][:300].rstrip('.') if lines else 'no reason given'}"


def checked_metadata(metadata: Any, address: str) -> dict[str, Any]:
    """Checks what a server greeted with, as far as this client uses it.

    Raises:
        WireError: it is no map, or a value of it is of another kind.
        ConnectionFailedError: it is a LaMP server of another version.
    """
    if not isinstance(metadata, dict):
        raise WireError(f"the server at {address} greeted with a {type(metadata).__name__}; expected a map.")
    lamp = metadata.get("lamp")
    if lamp is None:
        return {"action_units": "environment", **metadata}
    version = lamp.get("protocol") if isinstance(lamp, dict) else lamp
    if version != PROTOCOL_VERSION:
        raise ConnectionFailedError(
            f"the server at {address} speaks version {version!r} of LaMP's protocol; this client speaks {PROTOCOL_VERSION}.",
            hint="Install the same version of lamp-client and lamp.",
        )
    for key, (fits, expected) in _GREETING.items():
        if metadata.get(key) is not None and not fits(metadata[key]):
            raise WireError(
                f"the server at {address} greeted with {key} {str(metadata[key])[:60]!r}; expected {expected}."
            )
    low, high = metadata.get("action_low"), metadata.get("action_high")
    width = metadata.get("action_width")
    if low is not None and (high is None or len(low) != len(high) or width not in (None, len(low))):
        raise WireError(f"the server at {address} greeted with limits of actions of other widths than its actions.")
    return {"action_units": "environment", **metadata}


def _count(value: Any) -> bool:
    return type(value) is int and 0 < value < 1_000_000


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) in (int, float) and math.isfinite(each) for each in value)


_GREETING: dict[str, tuple[Callable[[Any], bool], str]] = {
    "chunk": (_count, "how many actions a reply has"),
    "execute": (_count, "how many actions to carry out"),
    "action_width": (_count, "how many values an action has"),
    "state_width": (lambda value: value == 0 or _count(value), "how many values a state has"),
    "recorded_state_width": (lambda value: value == 0 or _count(value), "how many values are recorded of a state"),
    "cameras": (lambda value: isinstance(value, dict) and all(type(name) is str for name in value), "a map of cameras"),
    "limits": (lambda value: isinstance(value, dict), "a map"),
    "fps": (lambda value: type(value) in (int, float) and 0 < value < 10_000, "steps per second"),
    "action_low": (_numbers, "a number for each of an action's values"),
    "action_high": (_numbers, "a number for each of an action's values"),
}
"""Key of a greeting -> whether a value will do, and what is expected."""


def _error_text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ").rstrip(".")
