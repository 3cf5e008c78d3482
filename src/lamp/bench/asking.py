"""What the clients of `lamp bench serve` ask, and how a reply is told to be the one to its request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lamp.errors import MismatchError
from lamp.serve.contract import CameraSize, CheckpointPolicy
from lamp.serve.standin import STATE, fingerprint
from lamp_client.layouts import RequestLayout, frame_request
from lamp_client.types import Observation

SCENES = 4
"""Different images of each client."""

Seed = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Echoed:
    """Requests to the stand-in: state, words and seed are new every time, and the reply repeats them."""

    side: int
    """Height and width of the two images [px]."""

    @property
    def layout(self) -> RequestLayout:
        """The keys of a request."""
        return frame_request(("agentview", "wrist"), STATE)

    def scenes(self, client: int) -> list[Observation]:
        """What the client's requests begin with."""
        cameras = [CameraSize(name=name, height=self.side, width=self.side) for name in ("agentview", "wrist")]
        return _scenes(client, cameras, STATE)

    def question(self, scenes: Sequence[Observation], client: int, call: int) -> tuple[Observation, Seed]:
        """The client's next request and its seed."""
        state = np.random.default_rng((client, call)).normal(size=STATE).astype(np.float32)
        images = scenes[call % SCENES].images
        return Observation(images=images, state=state, instruction=f"client {client} call {call}"), (client, call)

    def off(self, actions: np.ndarray, seen: Observation, seed: Seed) -> float | None:
        """How far a reply is from what was expected; None: it answers another request."""
        return 0.0 if np.array_equal(actions[:2], fingerprint(seen, seed)) else None


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """Requests to a trained policy, whose replies were computed one by one beforehand.

    A batch rounds otherwise than a single observation, so the reply to a request is the one that is nearest to what was expected
    of it, among what is expected of all requests of all clients.
    """

    cameras: tuple[CameraSize, ...]
    state_width: int
    expected: Float[np.ndarray, "c s h a"]
    """Actions for (client, scene)."""

    @classmethod
    def of(cls, policy: CheckpointPolicy, clients: int) -> Known:
        """Computes what so many clients are to get.

        Raises:
            MismatchError: Two requests get the same actions, so that a swapped reply could not be told.
        """
        contract = policy.contract
        blank = cls(cameras=contract.cameras, state_width=contract.state_width, expected=np.zeros((0, 0, 0, 0)))
        chunks = [
            policy.act_batch([seen], [(client, number)], foresight=False)[0].actions
            for client in range(clients)
            for number, seen in enumerate(blank.scenes(client))
        ]
        flat = np.stack(chunks).reshape(len(chunks), -1)
        if len(np.unique(flat, axis=0)) < len(flat):
            raise MismatchError("the policy gives the same actions for different observations; expected a trained one.")
        expected = flat.reshape(clients, SCENES, *chunks[0].shape)
        return cls(cameras=contract.cameras, state_width=contract.state_width, expected=expected)

    @property
    def layout(self) -> RequestLayout:
        """The keys of a request."""
        return frame_request([camera.name for camera in self.cameras], self.state_width)

    def scenes(self, client: int) -> list[Observation]:
        """The client's requests."""
        return _scenes(client, self.cameras, self.state_width)

    def question(self, scenes: Sequence[Observation], client: int, call: int) -> tuple[Observation, Seed]:
        """The client's next request and its seed."""
        return scenes[call % SCENES], (client, call % SCENES)

    def off(self, actions: np.ndarray, seen: Observation, seed: Seed) -> float | None:
        """How far a reply is from what was expected; None: it answers another request."""
        client, scene = seed
        distances = np.abs(self.expected - actions).max(axis=(2, 3))
        own = float(distances[client, scene])
        return own if own <= distances.min() else None


Asking = Echoed | Known


def _scenes(client: int, cameras: Sequence[CameraSize], state_width: int) -> list[Observation]:
    generator = np.random.default_rng(client)
    return [
        Observation(
            images={
                camera.name: generator.integers(0, 256, (camera.height, camera.width, 3), dtype=np.uint8)
                for camera in cameras
            },
            state=generator.normal(size=state_width).astype(np.float32),
            instruction=f"do number {number}",
        )
        for number in range(SCENES)
    ]
