"""What a served policy takes and gives; the policy of a checkpoint, and one without a checkpoint for measuring and testing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from lamp.errors import MismatchError
from lamp_client.client import LARGEST_ACTION
from lamp_client.types import ActionChunk, GripperUnits, Observation

RealTimeName = Literal["auto", "guided", "identity", "trained"]
ActionLimits = tuple[tuple[float, ...], tuple[float, ...]]
ROOM = 20.0
"""Limits of actions are so many times as far from the middle as the data's spread: a trained policy stays within a few."""
ASPECT_TOLERANCE = 0.02
"""Images are resized to the policy's size only where the proportions agree so well."""


@dataclass(frozen=True, kw_only=True)
class CameraSize:
    """A camera of the policy."""

    name: str
    height: int
    """[px]"""
    width: int


@dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """What the policy takes and gives, so that requests are checked before they wait for others."""

    cameras: tuple[CameraSize, ...]
    """The reference camera of the predicted flow first."""
    state_width: int
    action_width: int
    chunk: int
    """Actions in a reply."""
    execute: int
    """Actions to carry out before asking again."""
    dataset: str = "lamp"
    """Which data the actions' units come from; starVLA calls it the unnorm key."""
    takes_language: bool = True
    """Whether the instruction must say something: that of the demonstrations did."""
    grippers: tuple[GripperUnits, ...] = ()
    """What the grippers' values in the actions are where they are open and where they are closed; none where the data do not
    say."""
    kind: str = "delta"
    """What the actions are: delta, absolute, or relative, which are absolute when they leave the policy."""
    state_features: Mapping[str, int] = field(default_factory=dict)
    """The dataset's features that the state is taken from, and how many values each has; empty where that is not known."""
    state_columns: tuple[int, ...] = ()
    """Where the state's values are in those features, one after another."""
    camera_features: Mapping[str, str] = field(default_factory=dict)
    """Camera -> the dataset's feature, where that is known."""
    action_limits: ActionLimits | None = None
    """The least and the largest of each of an action's values in the dataset's units: far outside the data, and beyond them no
    action of theirs; None: unknown."""
    foresees: bool = False
    """Whether it can predict scene flow."""
    about: dict[str, Any] = field(default_factory=dict)
    """Further metadata for clients, as plain values."""

    @property
    def reference(self) -> str:
        """The camera whose image the predicted flow is drawn over."""
        return self.cameras[0].name

    @property
    def wrist(self) -> str | None:
        """The camera that foreign requests call the wrist's: named so, or else the second; None where there is one camera."""
        others = [camera.name for camera in self.cameras[1:]]
        return next((name for name in others if "wrist" in name or "hand" in name), others[0] if others else None)

    def example(self) -> Observation:
        """An observation that fits, for warming up."""
        images = {camera.name: np.zeros((camera.height, camera.width, 3), np.uint8) for camera in self.cameras}
        return Observation(images=images, state=np.zeros(self.state_width, np.float32), instruction="do something")

    def fitted(self, observation: Observation) -> Observation:
        """Returns the observation with its images at the policy's sizes.

        Raises:
            MismatchError: A camera is missing, or an image has other proportions.
        """
        images = {}
        for camera in self.cameras:
            image = observation.images.get(camera.name)
            if image is None:
                have = ", ".join(observation.images) or "none"
                raise MismatchError(f"the observation has no camera {camera.name!r}; it has {have}. {self.expected}")
            images[camera.name] = self._resized(image, camera)
        state = observation.state
        if len(state) == self.recorded_state_width != self.state_width:
            state = state[list(self.state_columns)]
        if len(state) != self.state_width:
            recorded = self.recorded_state_width
            whole = f", or {recorded} as recorded" if recorded != self.state_width else ""
            raise MismatchError(f"the state has {len(state)} values; expected {self.state_width}{whole}.")
        return replace(observation, images=images, state=state)

    @property
    def recorded_state_width(self) -> int:
        """Number of values of the features that the state is taken from; the state's own where that is not known."""
        return sum(self.state_features.values()) if self.state_columns else self.state_width

    @property
    def expected(self) -> str:
        """The cameras in words."""
        return "Expected " + ", ".join(f"{camera.name} {camera.width}x{camera.height}" for camera in self.cameras) + "."

    def _resized(self, image: np.ndarray, camera: CameraSize) -> np.ndarray:
        height, width = image.shape[:2]
        if (height, width) == (camera.height, camera.width):
            return image
        aspect = camera.width / camera.height
        if abs(width / height / aspect - 1) > ASPECT_TOLERANCE:
            raise MismatchError(
                f"image {camera.name!r} is {width}x{height}, of other proportions than in training. {self.expected}"
            )
        # Shrinking, this is a triangle filter over all pixels that it covers, so nothing aliases.
        return np.asarray(Image.fromarray(image).resize((camera.width, camera.height), Image.Resampling.BILINEAR))


@runtime_checkable
class ServedPolicy(Protocol):
    """What the server needs of a policy."""

    @property
    def spec(self) -> PolicySpec: ...

    @property
    def act_batch(self) -> Callable[..., list[ActionChunk]]:
        """(observations, noise seeds, foresight=whether to predict flow too) -> a chunk for each observation."""
        ...


@dataclass(frozen=True, kw_only=True)
class CheckpointPolicy:
    """A trained policy with its spec."""

    spec: PolicySpec
    act_batch: Callable[..., list[ActionChunk]]


def open_checkpoint(
    path: Path,
    *,
    device: str,
    threads: int | None,
    fast: bool = True,
    precision: str = "auto",
    dataset: str | None = None,
    real_time: RealTimeName = "auto",
) -> CheckpointPolicy:
    """Opens the policy of a checkpoint folder.

    Args:
        path: The checkpoint, or the run that holds it.
        device: Where to compute.
        threads: CPU threads of the policy; None leaves them as they are.
        fast: Prepare the fast path.
        precision: Of the experts: float32, bfloat16, or auto for what `LaMPPolicy` takes by itself.
        dataset: The one of its datasets whose robot it acts as; None: its own, the first.
        real_time: How it goes on from committed actions (`LaMPPolicy.real_time`).

    Raises:
        ConfigError: There is no such device, or it was not trained on such a dataset.
        DataError: There is no checkpoint, or it is damaged.
        MismatchError: It is no policy, or an oracle's.
    """
    import torch

    from lamp.policy import LaMPPolicy
    from lamp.train.checkpoint_metadata import read_description
    from lamp.train.config import BFloat16, Float32
    from lamp.train.run_folder import check_device

    check_device(device, "--device")
    if threads is not None:
        torch.set_num_threads(threads)
    read_description(path).check_usable(path)
    dtype = {"float32": Float32(), "bfloat16": BFloat16()}.get(precision)
    policy = LaMPPolicy.from_checkpoint(path, device=device, precision=dtype)
    policy = policy if dataset is None else policy.of_dataset(dataset)
    policy = policy.compile() if fast else policy
    policy.real_time = real_time
    spec = policy_spec(policy)
    # Not the whole path, which is nobody's business.
    named = "/".join(part for part in path.resolve().parts[-3:] if part not in ("/", "checkpoint"))
    return CheckpointPolicy(spec=replace(spec, about={**spec.about, "checkpoint": named}), act_batch=policy.act_batch)


def action_limits(record: Any) -> ActionLimits | None:
    """Limits of a policy's actions in the units in which they leave, so wide that only what is broken is beyond them.

    Each dimension is tried at `ROOM` of its normaliser's units. One that depends on others or on the state, or whose spread
    the normaliser does not know, has no limits; None where no dimension has any.

    Args:
        record: The policy's `lamp.train.checkpoint_metadata.PolicyRecord`.
    """
    from lamp.data.normalizers import Identity

    scaling = record.scaling.actions
    width, places = scaling.width, np.arange(scaling.width)
    tried = np.zeros((1 + 2 * width, 1, width))
    tried[1 + 2 * places, 0, places], tried[2 + 2 * places, 0, places] = -ROOM, ROOM

    def leaving(state: float) -> np.ndarray:
        states = np.full((len(tried), record.state_width), state, np.float32)
        with np.errstate(all="ignore"):
            return record.embodiment.recorded(scaling.invert(tried), states)[:, 0]

    at_rest, elsewhere = leaving(0.0), leaving(0.5)
    own = np.zeros(at_rest.shape, bool)
    own[0], own[1 + 2 * places, places], own[2 + 2 * places, places] = True, True, True
    unknown = ((at_rest != elsewhere) | ((at_rest != at_rest[0]) & ~own) | ~np.isfinite(at_rest)).any(0)
    unknown[list(scaling.masked)] = True
    if isinstance(scaling, Identity) or unknown.all():
        return None
    low, high = at_rest.min(0), at_rest.max(0)
    slack = 0.01 * (high - low) + 1e-3  # of rounding, where the normaliser clamps
    low, high = np.where(unknown, -LARGEST_ACTION, low - slack), np.where(unknown, LARGEST_ACTION, high + slack)
    return tuple(low.tolist()), tuple(high.tolist())


def policy_spec(policy: Any) -> PolicySpec:
    """Reads the spec of a `lamp.policy.LaMPPolicy` from its checkpoint's description."""
    cameras = tuple(
        CameraSize(name=camera.name, height=camera.height, width=camera.width)
        for camera in policy.description.backbone.cameras
    )
    metadata, record = policy.metadata, policy.record
    about = {
        key: metadata[key]
        for key in (
            *(
                "fps",
                "actions",
                "embodiment",
                "action_names",
                "action_value_units",
                "uses_motion",
                "step",
                "weights_sha256",
                "real_time",
            ),
            "code",
        )
    }
    return PolicySpec(
        cameras=cameras,
        state_width=record.state_width,
        action_width=record.scaling.actions.width,
        chunk=policy.chunk,
        execute=policy.execute,
        dataset=policy.dataset,
        takes_language=not policy.description.data.tasks or any(map(str.strip, policy.description.data.tasks)),
        grippers=GripperUnits.all_of(metadata),
        kind=metadata["actions"],
        state_features=record.state_features if record.state_width else {},
        state_columns=record.embodiment.state_columns(record.state_features)
        if record.state_width and record.state_features
        else (),
        camera_features=record.embodiment.cameras or {},
        action_limits=action_limits(record),
        foresees=policy.uses_motion,
        about=about,
    )


FAKE_ACTION_WIDTH = 7
FAKE_STATE_WIDTH = 8


def fingerprint(observation: Observation, noise_seed: Sequence[int]) -> np.ndarray:
    """(2, 7) float32 that no other request has: sums of each image, the state, the seed and the instruction."""
    sums = [float(image.sum(dtype=np.int64) % 1_000_003) for image in observation.images.values()]
    seed, words = float(sum(noise_seed) % 1_000_003), float(sum(observation.instruction.encode()) % 1_000_003)
    values = [*observation.state[:FAKE_STATE_WIDTH], *sums, seed, words, float(len(noise_seed))]
    return np.resize(
        np.asarray([*values, *[0.0] * (2 * FAKE_ACTION_WIDTH)][: 2 * FAKE_ACTION_WIDTH], np.float32),
        (2, FAKE_ACTION_WIDTH),
    )


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
            state_width=FAKE_STATE_WIDTH,
            action_width=FAKE_ACTION_WIDTH,
            chunk=chunk,
            execute=max(1, chunk // 2),
            dataset="stand-in",
            foresees=True,
            about={"fps": 20, "uses_motion": True},
        )
        generator = np.random.default_rng(0)
        self.first = generator.normal(size=(2 * 8 * 8 * 3 + FAKE_STATE_WIDTH, hidden)).astype(np.float32) / 16
        self.second = generator.normal(size=(hidden, (chunk - 2) * FAKE_ACTION_WIDTH)).astype(np.float32) / 16
        self.pause_s, self.batches = pause_s, list[int]()
        self.threads = set[int]()

    def act_batch(
        self, observations: Sequence[Observation], noise_seeds: Sequence[tuple[int, ...]], foresight: bool = False
    ) -> list[ActionChunk]:
        self.threads.add(threading.get_ident())
        self.batches.append(len(observations))
        if len(self.batches) > 10_000:
            del self.batches[:5000]
        time.sleep(self.pause_s)
        inputs = np.stack([self._input(observation) for observation in observations])
        planned = (np.tanh(inputs @ self.first) @ self.second).reshape(len(inputs), -1, FAKE_ACTION_WIDTH)
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
        return np.concatenate([*pools, observation.state[:FAKE_STATE_WIDTH]])

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
