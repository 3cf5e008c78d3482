"""A policy without a checkpoint, for measuring and testing: a small random model whose replies repeat what was asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np

from lamp.serve.policy_spec import CameraSize, PolicySpec
from lamp_client.types import ActionChunk, Observation

WIDTH = 7
STATE = 8


def fingerprint(observation: Observation, noise_seed: Sequence[int]) -> np.ndarray:
    """(2, 7) float32 that no other request has: sums of each image, the state, the seed and the instruction."""
    sums = [float(image.sum(dtype=np.int64) % 1_000_003) for image in observation.images.values()]
    seed, words = float(sum(noise_seed) % 1_000_003), float(sum(observation.instruction.encode()) % 1_000_003)
    told = [*observation.state[:STATE], *sums, seed, words, float(len(noise_seed))]
    return np.resize(np.asarray([*told, *[0.0] * (2 * WIDTH)][: 2 * WIDTH], np.float32), (2, WIDTH))


class FakePolicy:
    """Looks at images through a random two-layer network; the first two actions of a reply are the request's fingerprint.

    Args:
        side: Height and width of both cameras' images [px].
        chunk: Actions in a reply.
        pause_s: How much longer than its arithmetic it takes, whatever the batch [s].
    """

    def __init__(self, *, side: int = 224, chunk: int = 10, pause_s: float = 0.0, hidden: int = 256) -> None:
        self.spec = PolicySpec(
            cameras=tuple(CameraSize(name=name, height=side, width=side) for name in ("agentview", "wrist")),
            state_width=STATE,
            action_width=WIDTH,
            chunk=chunk,
            execute=max(1, chunk // 2),
            dataset="stand-in",
            foresees=True,
            about={"fps": 20, "uses_motion": True},
        )
        generator = np.random.default_rng(0)
        self.first = generator.normal(size=(2 * 8 * 8 * 3 + STATE, hidden)).astype(np.float32) / 16
        self.second = generator.normal(size=(hidden, (chunk - 2) * WIDTH)).astype(np.float32) / 16
        self.pause_s, self.batches = pause_s, list[int]()
        self.threads = set[int]()

    def act_batch(
        self, observations: Sequence[Observation], noise_seeds: Sequence[tuple[int, ...]], foresight: bool = False
    ) -> list[ActionChunk]:
        """See `lamp.serve.policy_spec.ServedPolicy`."""
        self.threads.add(threading.get_ident())
        self.batches.append(len(observations))
        if len(self.batches) > 10_000:
            del self.batches[:5000]
        time.sleep(self.pause_s)
        inputs = np.stack([self._input(observation) for observation in observations])
        planned = (np.tanh(inputs @ self.first) @ self.second).reshape(len(inputs), -1, WIDTH)
        chunks = []
        for observation, seed, plan in zip(observations, noise_seeds, planned, strict=True):
            actions = np.concatenate([fingerprint(observation, seed), plan.astype(np.float32)])
            points = self._flow(observation) if foresight else None
            chunks.append(ActionChunk(actions=actions, foresight=points, gate=0.5, timing_ms={"act": 0.1}))
        return chunks

    @staticmethod
    def _input(observation: Observation) -> np.ndarray:
        pools = []
        for image in observation.images.values():
            step = image.shape[0] // 8
            pools.append(image[::step, ::step][:8, :8].reshape(-1).astype(np.float32) / 255)
        return np.concatenate([*pools, observation.state[:STATE]])

    @staticmethod
    def _flow(observation: Observation) -> np.ndarray:
        """(400, 9, 3) points that swirl around the middle of the image."""
        middle = (np.arange(20) + 0.5) / 20
        start = np.stack(np.meshgrid(middle, middle), axis=-1).reshape(-1, 1, 2) - 0.5
        turn = np.linspace(0, 0.6, 9)[None, :, None] * (np.linalg.norm(start, axis=-1, keepdims=True) < 0.3)
        cosine, sine = np.cos(turn), np.sin(turn)
        turned = np.concatenate(
            [start[..., :1] * cosine - start[..., 1:] * sine, start[..., :1] * sine + start[..., 1:] * cosine], axis=-1
        )
        return np.concatenate([turned + 0.5, np.zeros((*turned.shape[:2], 1))], axis=-1).astype(np.float32)
