"""A websocket to a policy server: opened when needed, closed after a failure, every failure told in one line."""

from __future__ import annotations

import os
import ssl
import time
from typing import Any

from lamp_client import wire
from lamp_client.errors import (
    ConnectionFailedError,
    ConnectionLostError,
    LampClientError,
    MissingSoftwareError,
    ServerBusyError,
    ServerError,
    WireError,
)

PROTOCOL_VERSION = 1
"""Version of LaMP's additions to openpi's protocol; a server announces it as ``{"lamp": {"protocol": 1}}``."""

_RETRY_S = 0.2
_TRY_AGAIN_LATER = 1013


class Connection:
    """Sends requests and returns replies, one after the other.

    Args:
        address: ``ws://host:port`` or ``wss://host:port``.
        api_key: Sent as ``Authorization: Api-Key ...``.
        connect_timeout_s: How long to keep trying to connect [s].
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
            connection = self._connected()
            try:
                self._metadata = _checked_metadata(self._receive(connection), self.address)
            except BaseException:
                connection.close()
                raise
            self._socket = connection
        return self._metadata

    def ask(self, message: dict[str, Any]) -> Any:
        """Sends a request and returns the reply.

        Raises:
            ConnectionLostError: the connection broke; the same may be asked again.
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
            raise ConnectionLostError(f"the policy server at {self.address} went away: {_words(error)}.") from error

    def _check_size(self, size: int) -> None:
        """Compares a message with what the server says it takes: it would close the connection, again and again."""
        told = self.open().get("limits")
        room = told.get("message_bytes") if isinstance(told, dict) else None
        if isinstance(room, int) and size > room:
            raise WireError(
                f"the request has {size} bytes; the server at {self.address} takes {room}.",
                hint="Send smaller images: it resizes them anyway.",
            )

    def close(self) -> None:
        """Closes the connection, if there is one."""
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()

    def _connected(self) -> Any:
        connect, options = self._library()
        deadline = time.monotonic() + self._connect_timeout_s
        while True:
            try:
                return connect(self.address, open_timeout=max(deadline - time.monotonic(), 0.1), **options)
            except ConnectionRefusedError as error:  # the server may still be loading its weights
                if time.monotonic() + _RETRY_S >= deadline:
                    raise self._unreachable(error) from error
                time.sleep(_RETRY_S)
            except Exception as error:
                raise self._unreachable(error) from error

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
        if self._api_key is not None:
            options["additional_headers"] = {"Authorization": f"Api-Key {self._api_key}"}
        if self._ca_file is not None and self.address.startswith("wss:"):
            try:
                options["ssl"] = ssl.create_default_context(cafile=self._ca_file)
            except (OSError, ssl.SSLError) as error:
                raise ConnectionFailedError(
                    f"cannot read the certificates in {self._ca_file}: {_words(error)}."
                ) from error
        return connect, options

    def _unreachable(self, error: Exception) -> ConnectionFailedError:
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", None)
        if status in (401, 403):
            return ConnectionFailedError(
                f"the policy server at {self.address} refused the API key (HTTP {status}).", hint="Pass its api_key."
            )
        if status is not None:
            told = (getattr(response, "body", None) or b"").decode("utf-8", "replace").strip().splitlines()
            why = told[0][:300].rstrip(".") if told else "no reason given"
            return ConnectionFailedError(f"the policy server at {self.address} refused (HTTP {status}): {why}.")
        if isinstance(error, ssl.SSLError):
            return ConnectionFailedError(
                f"no trusted connection to {self.address}: {_words(error)}.",
                hint="Pass its certificate as ca_file, or use ws:// if the server has none.",
            )
        return ConnectionFailedError(
            f"cannot connect to a policy server at {self.address} within {self._connect_timeout_s:g} s: {_words(error)}.",
            hint="Is it running? Start one with `lamp serve`, or give another host or port.",
        )

    def _receive(self, connection: Any) -> Any:
        try:
            reply = connection.recv(timeout=self._reply_timeout_s)
        except TimeoutError as error:
            raise ConnectionFailedError(
                f"the policy server at {self.address} did not reply within {self._reply_timeout_s:g} s."
            ) from error
        except Exception as error:
            raise ConnectionLostError(f"the policy server at {self.address} went away: {_words(error)}.") from error
        if isinstance(reply, str):
            raise self._error(connection, reply)
        return wire.unpack(reply, limits=self._limits)

    def _error(self, connection: Any, text: str) -> ServerError:
        """What a text frame says; the code with which the server then closes tells whether to try again."""
        # openpi sends a whole traceback; its last line says what happened.
        lines = [line for line in text.strip().splitlines() if line.strip()] or ["no message"]
        try:
            connection.recv(timeout=0.5)
        except Exception as closed:
            code = getattr(getattr(closed, "rcvd", None), "code", None)
            if code == _TRY_AGAIN_LATER:
                return ServerBusyError(f"the policy server at {self.address} is too busy: {lines[-1].strip()}")
        return ServerError(f"the policy server at {self.address} failed: {lines[-1].strip()}")


def _checked_metadata(metadata: Any, address: str) -> dict[str, Any]:
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
    return {"action_units": "environment", **metadata}


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ").rstrip(".")
