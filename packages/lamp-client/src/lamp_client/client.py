"""Policies as a rollout sees them: in this process, or behind openpi's websocket protocol."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, Protocol

import numpy as np

from lamp_client import wire
from lamp_client.connection import PROTOCOL_VERSION, Connection
from lamp_client.errors import ConnectionLostError, LampClientError, ServerBusyError, WireError
from lamp_client.layouts import LIBERO_REQUEST, RequestLayout, frame_request
from lamp_client.types import ActionChunk, Observation

NoiseSeed = tuple[int, ...]

_BUSY_S = 0.1
LARGEST_ACTION = 1e9
"""Of any action's values, whatever a server says; metres, radians and encoders' ticks are far below."""

__all__ = [
    "PROTOCOL_VERSION",
    "InProcessPolicy",
    "NoiseSeed",
    "Policy",
    "WebsocketPolicy",
    "action_units",
    "chunk_from_reply",
]


class Policy(Protocol):
    """Chooses actions."""

    def act(self, observation: Observation, *, noise_seed: NoiseSeed | None = None) -> ActionChunk:
        """Returns the next actions; the same observation and seed give the same actions."""
        ...

    @property
    def metadata(self) -> dict[str, Any]:
        """What the policy says about itself. ``action_units`` is ``dataset`` (as the demonstrations were recorded; the default,
        converted by the environment's adapter) or ``environment`` (executed as they are). ``gripper`` says what the gripper's
        value is where it is open and where it is closed (`GripperUnits`); 1 and 0 where it is missing."""
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

    It connects when first needed. A connection that breaks is opened again and the request repeated, since a request changes
    nothing in the world. A LaMP server also gets the noise seed and may return its foresight; any other server's actions are
    taken to be in the environment's units, as openpi documents.

    Args:
        host: Name, address, or a whole ``ws://`` or ``wss://`` address.
        port: Ignored if `host` is a whole address.
        api_key: Sent as ``Authorization: Api-Key ...``.
        layout: Keys of the request; None: a LaMP server is sent its cameras by name and as they are, any other LIBERO's keys.
        connect_timeout_s: How long to keep trying to connect [s]; covers a server that is still starting, or restarts, also
            behind a tunnel, a container's port or a proxy. What waiting cannot mend (a refused key, an invalid certificate, no
            policy server) is an error at once.
        reply_timeout_s: How long to wait for one reply [s]; a request without a reply is not repeated.
        retries: How often a request is repeated after the connection broke or the server was too busy.
        max_message_bytes: Larger messages are refused both ways.
        foresight: Ask a LaMP server for its predicted motion.
        ca_file: PEM file of the authority or certificate to trust for ``wss://``; None: those that the system trusts.
    """

    def __init__(
        self,
        host: str,
        port: int = 8000,
        api_key: str | None = None,
        *,
        layout: RequestLayout | None = None,
        connect_timeout_s: float = 10.0,
        reply_timeout_s: float = 120.0,
        retries: int = 2,
        max_message_bytes: int = wire.MAX_MESSAGE_BYTES,
        foresight: bool = False,
        ca_file: str | os.PathLike[str] | None = None,
    ) -> None:
        self.retries = retries
        self._layout = layout
        self._foresight = foresight
        self._episode: NoiseSeed | None = None
        self._connection = Connection(
            host if "://" in host else f"ws://{host}:{port}",
            api_key=api_key,
            connect_timeout_s=connect_timeout_s,
            reply_timeout_s=reply_timeout_s,
            limits=wire.Limits(message_bytes=max_message_bytes, array_bytes=max_message_bytes),
            ca_file=ca_file,
        )

    @property
    def address(self) -> str:
        return self._connection.address

    @property
    def metadata(self) -> dict[str, Any]:
        """What the server sent on connecting."""
        return self._connection.open()

    @property
    def layout(self) -> RequestLayout:
        if self._layout is not None:
            return self._layout
        metadata = self.metadata
        cameras, width = metadata.get("cameras"), metadata.get("state_width")
        if "lamp" in metadata and isinstance(cameras, dict) and isinstance(width, int):
            return frame_request(list(cameras), width, needs_prompt=metadata.get("takes_language", True) is not False)
        return LIBERO_REQUEST

    def _layout_for(self, observation: Observation) -> RequestLayout:
        """The keys of a request whose state is as the policy takes it, or the whole of what it is taken from."""
        metadata, layout = self.metadata, self.layout
        recorded = metadata.get("recorded_state_width")
        if (
            self._layout is None
            and "lamp" in metadata
            and len(observation.state) == recorded != metadata["state_width"]
        ):
            return replace(layout, state=(("observation.state", recorded),))
        return layout

    def act(self, observation: Observation, *, noise_seed: NoiseSeed | None = None) -> ActionChunk:
        """Sends the observation and returns the chunk.

        Raises:
            ConnectionFailedError: if it cannot be reached, does not reply in time, or closes the connection.
            ServerError: if it replies with an error.
            WireError: if its reply is not one of the protocol's, or contradicts the server's greeting.
            InvalidValueError: if the observation does not fit, or the actions of the reply can be no actions.
        """
        started = time.perf_counter()
        chunk = chunk_from_reply(
            self._request_with_retries(lambda: self._request(observation, noise_seed)), self.metadata
        )
        timing = {**chunk.timing_ms, "client.total_ms": 1000.0 * (time.perf_counter() - started)}
        return ActionChunk(actions=chunk.actions, timing_ms=timing, foresight=chunk.foresight, gate=chunk.gate)

    def reset(self, noise_seed: NoiseSeed | None = None) -> None:
        """Begins an episode at a LaMP server; nothing is sent to any other.

        Args:
            noise_seed: The noise of calls without a seed of their own is numbered from here, so that the episode can be repeated.
        """
        self._episode = noise_seed
        self._request_with_retries(self._reset_request)

    def close(self) -> None:
        """Closes the connection; the next request opens another."""
        self._connection.close()

    def __enter__(self) -> WebsocketPolicy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request_with_retries(self, request: Callable[[], dict[str, Any] | None]) -> Any:
        """Sends a request and returns the reply; a request of None is not sent."""
        for attempt in range(self.retries + 1):
            try:
                message = request()
                return None if message is None else self._connection.request(message)
            except (ConnectionLostError, ServerBusyError) as error:
                if attempt == self.retries:
                    raise
                if isinstance(error, ServerBusyError):
                    time.sleep(_BUSY_S * (attempt + 1))
        raise AssertionError("unreachable")

    def _request(self, observation: Observation, noise_seed: NoiseSeed | None) -> dict[str, Any]:
        fresh = not self._connection.is_open
        message = self._layout_for(observation).request(observation)
        if "lamp" in self.metadata:
            if fresh and self._episode is not None:  # a new connection knows nothing of the episode
                self._connection.request(self._reset_request() or {})
            if noise_seed is not None:
                message["lamp/noise_seed"] = [int(part) for part in noise_seed]
            if observation.committed is not None:
                message["lamp/committed"] = observation.committed.actions
                message["lamp/delay"] = observation.committed.delay
            if self._foresight:
                message["lamp/foresight"] = True
        return message

    def _reset_request(self) -> dict[str, Any] | None:
        if "lamp" not in self.metadata:
            return None
        seed = {} if self._episode is None else {"lamp/noise_seed": [int(part) for part in self._episode]}
        return {"lamp/reset": True, **seed}


def chunk_from_reply(reply: Any, greeting: Mapping[str, Any] | None = None) -> ActionChunk:
    """Reads a server's reply.

    Args:
        reply: The message.
        greeting: The metadata that the server sent on connecting; what contradicts it reaches no robot. `action_width` and
            `chunk` give the shape of `actions`, `action_low` and `action_high` their limits.

    Raises:
        WireError: if it holds no actions, what should be numbers is none, or it contradicts the greeting.
        InvalidValueError: if they have another shape or are no finite numbers.
    """
    if not isinstance(reply, dict) or "actions" not in reply:
        kind = f"a map with {', '.join(map(str, reply))[:300]}" if isinstance(reply, dict) else type(reply).__name__
        raise WireError(f"the server replied with {kind}; expected a map with 'actions'.")
    try:
        chunk = _chunk(reply)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise WireError(f"the server's reply cannot be read: {error}.") from error
    _check_promised(chunk.actions, greeting or {})
    return chunk


def _chunk(reply: Mapping[str, Any]) -> ActionChunk:
    timing = {
        f"{part.removesuffix('_timing')}.{name}": float(value)
        for part in ("policy_timing", "server_timing")
        for name, value in dict(reply.get(part) or {}).items()
    }
    foresight, gate = reply.get("lamp/foresight"), reply.get("lamp/gate")
    return ActionChunk(
        actions=_floats(reply["actions"], "actions"),
        timing_ms=timing,
        foresight=None if foresight is None else _floats(foresight, "lamp/foresight"),
        gate=None if gate is None else float(gate),
    )


def _floats(value: Any, name: str) -> np.ndarray:
    """An array of numbers as float32; text that could be read as numbers is none, nor are true and false."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name!r} is of type {array.dtype.str}; expected numbers")
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        return array.astype(np.float32)


def _check_promised(actions: np.ndarray, greeting: Mapping[str, Any]) -> None:
    for axis, key in enumerate(("chunk", "action_width")):
        if "lamp" in greeting and greeting.get(key) not in (None, actions.shape[axis]):
            raise WireError(
                f"the server replied with actions of shape {actions.shape}; its greeting promised {key} {greeting[key]}.",
                hint="Nothing of it was executed. Is it another server than before?",
            )
    if (beyond := np.abs(actions) > LARGEST_ACTION).any():
        raise WireError(
            f"the server replied with the action value {actions[beyond][0]:g}; nothing beyond {LARGEST_ACTION:g} is executed."
        )
    low, high = greeting.get("action_low"), greeting.get("action_high")
    if low is None or high is None or len(low) != actions.shape[1]:
        return
    outside = (actions < np.asarray(low)) | (actions > np.asarray(high))
    if outside.any():
        step, place = np.argwhere(outside)[0]
        raise WireError(
            f"the server replied with {actions[step, place]:g} for value {place} of action {step}; its data have "
            f"{low[place]:g} to {high[place]:g} there, with room to spare.",
            hint="Nothing of it was executed.",
        )
