"""Observations, raw connections and servers for the tests of serving."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect

from lamp.serve.config import ServerConfig
from lamp.serve.policy_spec import FakePolicy
from lamp.serve.server import PolicyServer, served
from lamp_client import wire
from lamp_client.layouts import RequestLayout
from lamp_client.types import Observation

SIDE = 32
LIBERO = RequestLayout(
    images=(("agentview", "observation/image"), ("wrist", "observation/wrist_image")),
    state=(("observation/state", 8),),
    image_size=None,
)


def observation(seed: int = 0, side: int = SIDE) -> Observation:
    generator = np.random.default_rng(seed)
    images = {name: generator.integers(0, 256, (side, side, 3), dtype=np.uint8) for name in ("agentview", "wrist")}
    state = generator.normal(size=8).astype(np.float32)
    return Observation(images=images, state=state, instruction=f"task {seed}")


def request(seed: int = 0, **more: Any) -> dict[str, Any]:
    """An openpi request; keys of ours under `lamp_...`."""
    return LIBERO.request(observation(seed)) | {key.replace("lamp_", "lamp/"): value for key, value in more.items()}


def example(seed: int = 0) -> dict[str, Any]:
    """One of starVLA's examples."""
    seen = observation(seed)
    return {"image": list(seen.images.values()), "lang": seen.instruction, "state": seen.state}


@contextlib.contextmanager
def running(policy: Any = None, *, artist: Any = None, **settings: Any) -> Iterator[PolicyServer]:
    """A server on a free port of loopback."""
    policy = policy or FakePolicy(side=SIDE)
    with served(policy, ServerConfig(port=0, **settings), artist=artist) as server:
        yield server


@contextlib.contextmanager
def connected(server: PolicyServer, *, path: str = "", **options: Any) -> Iterator[ClientConnection]:
    """A raw connection that has been greeted."""
    with connect(server.address + path, compression=None, max_size=None, proxy=None, **options) as connection:
        connection.recv(timeout=10)
        yield connection


def asked(connection: ClientConnection, message: Any) -> Any:
    """Sends a message and returns the reply: a map, or the text of an error."""
    connection.send(message if isinstance(message, str | bytes) else wire.pack(message))
    reply = connection.recv(timeout=20)
    return reply if isinstance(reply, str) else wire.unpack(reply)
