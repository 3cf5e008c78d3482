"""Policies as a rollout sees them: in this process, or behind openpi's websocket protocol."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import numpy as np

from lamp_client import wire
from lamp_client.errors import ConnectionFailedError, LampClientError, MissingSoftwareError, ServerError, WireError
from lamp_client.layouts import LIBERO_REQUEST, RequestLayout
from lamp_client.types import ActionChunk, Observation

PROTOCOL_VERSION = 1
"""Version of LaMP's additions to openpi's protocol; a server announces it as ``{"lamp": {"protocol": 1}}``."""

NoiseSeed = tuple[int, ...]

_RETRY_S = 0.2


class Policy(Protocol):
    """Chooses actions."""

    def act(self, observation: Observation, *, noise_seed: NoiseSeed | None = None) -> ActionChunk:
        """Returns the next actions; the same observation and seed give the same actions."""
        ...

    @property
    def metadata(self) -> dict[str, Any]:
        """What the policy says about itself. ``action_units`` is ``dataset`` (gripper 1 = open; the default, converted by the
        environment's adapter) or ``environment`` (executed as they are)."""
        ...


def action_units(policy: Policy) -> Literal["dataset", "environment"]:
    """Reads the units of a policy's actions from its metadata.

    Raises:
        LampClientError: for units that do not exist.
    """
    units = policy.metadata.get("action_units", "dataset")
    if units not in ("dataset", "environment"):
        raise LampClientError(f"the policy's action_units are {units!r}.", hint="Known: dataset, environment.")
    return units


class InProcessPolicy:
    """Makes a policy of a function from (observation, noise seed) to actions."""

    def __init__(
        self,
        act: Callable[[Observation, NoiseSeed | None], ActionChunk | np.ndarray],
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self._act = act
        self._metadata = dict(metadata or {})

    def act(self, observation: Observation, *, noise_seed: NoiseSeed | None = None) -> ActionChunk:
        actions = self._act(observation, noise_seed)
        return actions if isinstance(actions, ActionChunk) else ActionChunk(actions=np.asarray(actions, np.float32))

    @property
    def metadata(self) -> dict[str, Any]:
        return self._metadata


class WebsocketPolicy:
    """Asks a server that speaks openpi's protocol: LaMP's, or openpi's own.

    It connects when first needed and again after a failure. A LaMP server is also told the noise seed and may return its
    foresight; any other server's actions are taken to be in the environment's units, as openpi documents.

    Args:
        host: Name, address, or a whole ``ws://`` or ``wss://`` address.
        port: Ignored if `host` is a whole address.
        api_key: Sent as ``Authorization: Api-Key ...``.
        layout: Keys of the request.
        connect_timeout_s: How long to keep trying to connect [s].
        reply_timeout_s: How long to wait for one reply [s].
        max_message_bytes: Larger messages are refused both ways.
        foresight: Ask a LaMP server for its predicted motion.
    """

    def __init__(
        self,
        host: str,
        port: int = 8000,
        api_key: str | None = None,
        *,
        layout: RequestLayout = LIBERO_REQUEST,
        connect_timeout_s: float = 10.0,
        reply_timeout_s: float = 120.0,
        max_message_bytes: int = wire.MAX_MESSAGE_BYTES,
        foresight: bool = False,
    ) -> None:
        self.address = host if "://" in host else f"ws://{host}:{port}"
        self.layout = layout
        self._api_key = api_key
        self._connect_timeout_s = connect_timeout_s
        self._reply_timeout_s = reply_timeout_s
        self._limits = wire.Limits(message_bytes=max_message_bytes)
        self._foresight = foresight
        self._connection: Any = None
        self._metadata: dict[str, Any] = {}

    @property
    def metadata(self) -> dict[str, Any]:
        """What the server sent on connecting."""
        self._connected()
        return self._metadata

    def act(self, observation: Observation, *, noise_seed: NoiseSeed | None = None) -> ActionChunk:
        """Asks the server.

        Raises:
            ConnectionFailedError: if it cannot be reached, does not reply in time, or closes the connection.
            ServerError: if it replies with an error.
            WireError: if its reply is not one of the protocol's.
        """
        connection = self._connected()
        request = self.layout.request(observation)
        if "lamp" in self._metadata:
            if noise_seed is not None:
                request["lamp/noise_seed"] = [int(part) for part in noise_seed]
            if self._foresight:
                request["lamp/foresight"] = True
        started = time.perf_counter()
        try:
            connection.send(wire.pack(request, limits=self._limits))
            reply = self._receive(connection)
        except LampClientError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise ConnectionFailedError(f"the policy server at {self.address} went away: {_words(error)}.") from error
        chunk = chunk_from_reply(reply)
        total_ms = 1000.0 * (time.perf_counter() - started)
        timing = {**chunk.timing_ms, "client.total_ms": total_ms}
        return ActionChunk(actions=chunk.actions, timing_ms=timing, foresight=chunk.foresight, gate=chunk.gate)

    def close(self) -> None:
        """Closes the connection; the next request opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __enter__(self) -> WebsocketPolicy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connected(self) -> Any:
        if self._connection is not None:
            return self._connection
        connection = self._connect()
        try:
            metadata = self._receive(connection)
            self._metadata = _checked_metadata(metadata, self.address)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _connect(self) -> Any:
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

    def _unreachable(self, error: Exception) -> ConnectionFailedError:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            return ConnectionFailedError(
                f"the policy server at {self.address} refused the API key (HTTP {status}).", hint="Pass its api_key."
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
            raise ConnectionFailedError(f"the policy server at {self.address} went away: {_words(error)}.") from error
        if isinstance(reply, str):
            # openpi sends a whole traceback; its last line says what happened.
            lines = [line for line in reply.strip().splitlines() if line.strip()] or ["no message"]
            raise ServerError(f"the policy server at {self.address} failed: {lines[-1].strip()}")
        return wire.unpack(reply, limits=self._limits)


def chunk_from_reply(reply: Any) -> ActionChunk:
    """Reads a server's reply.

    Raises:
        WireError: if it holds no actions.
        InvalidValueError: if they have another shape.
    """
    if not isinstance(reply, dict) or "actions" not in reply:
        kind = f"a map with {', '.join(map(str, reply))}" if isinstance(reply, dict) else type(reply).__name__
        raise WireError(f"the server replied with {kind}; expected a map with 'actions'.")
    timing = {
        f"{part.removesuffix('_timing')}.{name}": float(value)
        for part in ("policy_timing", "server_timing")
        for name, value in dict(reply.get(part) or {}).items()
    }
    foresight, gate = reply.get("lamp/foresight"), reply.get("lamp/gate")
    return ActionChunk(
        actions=np.asarray(reply["actions"], dtype=np.float32),
        timing_ms=timing,
        foresight=None if foresight is None else np.asarray(foresight, dtype=np.float32),
        gate=None if gate is None else float(gate),
    )


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
