"""Samples with their pictures, for what cannot be cached: augmentation, or a backbone that is trained along."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lamp.data.embodiment import OWN, Embodiment
from lamp.data.frame_sources import FrameSource
from lamp.data.lerobot_reader import LeRobotDataset
from lamp.data.samples import PolicyScaling, PolicyTargets
from lamp.data.stored_images import CorruptPicturesError, OnCorrupt, Refuse
from lamp.errors import DataError
from lamp.types import Encoded, Observations, OnDevice


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Samples that are missing from a batch, since their pictures cannot be read."""

    file: str
    episode: int
    samples: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class ObservedBatch(OnDevice):
    """A batch of observations with the actions that follow, normalised."""

    observations: Observations | None
    """None where the loader has encoded them."""
    encoded: Encoded | None
    state: Float[Tensor, "b s"]
    actions: Float[Tensor, "b h a"]
    action_mask: Bool[Tensor, "b h"]
    """False past the end of the episode, and after an action that was overridden."""
    left_out: tuple[LeftOut, ...] = ()
    prior_seen: Bool[Tensor, " b"] | None = None
    """As in `Batch`."""
    guided: bool | None = None
    """As in `Batch`."""


@dataclass(kw_only=True)
class ImageSamples:
    """(pictures, state, action chunk) of every fresh frame of some episodes."""

    dataset: LeRobotDataset
    pictures: FrameSource
    cameras: tuple[str, ...]
    episodes: tuple[int, ...]
    chunk: int
    """Actions per sample, H + 1 in the paper's count."""
    scaling: PolicyScaling
    embodiment: Embodiment = OWN
    on_corrupt: OnCorrupt = field(default_factory=Refuse)
    encode: Callable[[Observations], Encoded] | None = None
    """Encodes where the pictures are decoded, in the loader's workers; None: the batch holds the pictures."""

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: The chunk is empty, or the dataset lacks a camera.
            DataError: There are no episodes, or a value is not finite.
        """
        for camera in self.cameras:
            self.dataset.camera_key(camera)
        frames = [np.flatnonzero(self.dataset.fresh(episode)) for episode in self.episodes]
        self._targets = PolicyTargets(
            self.dataset,
            episodes=self.episodes,
            frames=frames,
            chunk=self.chunk,
            scaling=self.scaling,
            embodiment=self.embodiment,
        )
        self.frame, self.episode = self._targets.frame, self._targets.episode

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.frame)

    @torch.no_grad()
    def batch(self, indices: Int64[np.ndarray, " b"], *, epoch: int = 0) -> ObservedBatch:
        """Collates samples; every epoch is alike.

        Raises:
            DataError: All of the batch's pictures are corrupt, or one is and `on_corrupt` refuses.
        """
        images, left_out = self._images(indices)
        gone = {fault.episode for fault in left_out}
        kept = np.array([index for index in indices.tolist() if int(self.episode[index]) not in gone], np.int64)
        if len(kept) == 0:
            raise DataError(f"no picture of a whole batch can be read; the first: {left_out[0].reason}")
        observations = Observations(
            images={
                camera: torch.from_numpy(np.stack([of[index] for index in kept.tolist()]))
                for camera, of in images.items()
            },
            instructions=tuple(self._targets.texts[place] for place in self._targets.text[kept].tolist()),
        )
        actions, mask = self._targets.chunks(kept)
        return ObservedBatch(
            observations=observations if self.encode is None else None,
            encoded=self.encode(observations) if self.encode is not None else None,
            state=self._targets.states(kept),
            actions=actions,
            action_mask=mask,
            left_out=tuple(left_out),
        )

    def _images(self, indices: Int64[np.ndarray, " b"]) -> tuple[dict[str, dict[int, np.ndarray]], list[LeftOut]]:
        """Pictures by camera and sample. Those of an episode are read together, in the order of the video."""
        found: dict[str, dict[int, np.ndarray]] = {camera: {} for camera in self.cameras}
        left_out: list[LeftOut] = []
        for episode in np.unique(self.episode[indices]).tolist():
            inside = indices[self.episode[indices] == episode]
            ordered = np.unique(inside)  # samples of an episode are in the order of its frames
            try:
                for camera in self.cameras:
                    images = self.pictures.read(camera, episode, self.frame[ordered])
                    found[camera].update(zip(ordered.tolist(), images, strict=True))
            except CorruptPicturesError as error:
                if isinstance(self.on_corrupt, Refuse):
                    raise
                left_out.append(LeftOut(file=str(error.path), episode=episode, samples=len(inside), reason=str(error)))
        return found, left_out
