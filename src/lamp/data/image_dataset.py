"""Samples with their images, for what cannot be cached: augmentation, or a backbone that is trained along (LoRA)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from lamp.data.embodiment import OWN, Embodiment
from lamp.data.lerobot.reader import LeRobotDataset
from lamp.data.mixture import Samples
from lamp.data.policy_dataset import MixedSamples, PolicySamples, PolicyScaling, PolicyTargets
from lamp.data.stored_images import CorruptPicturesError, OnCorrupt
from lamp.errors import DataError
from lamp.files import atomic_path, safe_file_name
from lamp.json_files import read_json_object, write_json
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
    """As in `PolicyBatch`."""
    guided: bool | None = None
    """As in `PolicyBatch`."""


@dataclass(kw_only=True)
class ImageSamples(Samples):
    """(pictures, state, action chunk) of every fresh frame of some episodes."""

    dataset: LeRobotDataset
    pictures: FrameSource
    cameras: tuple[str, ...]
    episodes: tuple[int, ...]
    chunk: int
    """Actions per sample, H + 1 in the paper's count."""
    scaling: PolicyScaling
    embodiment: Embodiment = OWN
    on_corrupt: OnCorrupt = "refuse"
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
        self.targets = PolicyTargets(
            self.dataset,
            episodes=self.episodes,
            frames=frames,
            chunk=self.chunk,
            scaling=self.scaling,
            embodiment=self.embodiment,
        )
        self.frame, self.episode = self.targets.frame, self.targets.episode

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def cached(self) -> tuple[()]:
        return ()

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
            instructions=tuple(self.targets.instructions[i] for i in self.targets.instruction_index[kept].tolist()),
        )
        actions, mask = self.targets.chunks(kept)
        return ObservedBatch(
            observations=observations if self.encode is None else None,
            encoded=self.encode(observations) if self.encode is not None else None,
            state=self.targets.states(kept),
            actions=actions,
            action_mask=mask,
            left_out=tuple(left_out),
        )

    def _images(self, indices: Int64[np.ndarray, " b"]) -> tuple[dict[str, dict[int, np.ndarray]], list[LeftOut]]:
        """Pictures by camera and sample. Those of an episode are read together, in the order of the video."""
        by_camera: dict[str, dict[int, np.ndarray]] = {camera: {} for camera in self.cameras}
        left_out: list[LeftOut] = []
        for episode in np.unique(self.episode[indices]).tolist():
            inside = indices[self.episode[indices] == episode]
            ordered = np.unique(inside)  # samples of an episode are in the order of its frames
            try:
                for camera in self.cameras:
                    images = self.pictures.read(camera, episode, self.frame[ordered])
                    by_camera[camera].update(zip(ordered.tolist(), images, strict=True))
            except CorruptPicturesError as error:
                if self.on_corrupt == "refuse":
                    raise
                left_out.append(LeftOut(file=str(error.path), episode=episode, samples=len(inside), reason=str(error)))
        return by_camera, left_out


AnyPolicySamples = PolicySamples | MixedSamples | ImageSamples


FRAMES = "frames"


@dataclass(frozen=True, kw_only=True)
class Videos:
    """Decodes frames from the videos, seeking by keyframe."""

    dataset: LeRobotDataset

    def read(self, camera: str, episode: int, frames: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w 3"]:
        return self.dataset.frames(camera, episode, frames)


class DecodedFrames:
    """Frames decoded once, in files that are mapped into memory: ``frames/CAMERA/episode-000000.npy``.

    Many times the videos' size; for small datasets that are trained on with augmentation, where features cannot be cached.
    """

    def __init__(self, dataset: LeRobotDataset, folder: Path | None = None):
        self.dataset, self.folder = dataset, folder or dataset.root / FRAMES
        self._mapped: dict[Path, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Another process maps the files itself."""
        return {**self.__dict__, "_mapped": {}}

    def path(self, camera: str, episode: int) -> Path:
        return self.folder / safe_file_name(camera) / f"episode-{episode:06d}.npy"

    def build(self, cameras: Sequence[str], episodes: Sequence[int]) -> None:
        """Decodes what is not there yet, or was decoded from other pictures."""
        for camera in cameras:
            for episode in episodes:
                mark = self.path(camera, episode).with_suffix(".json")
                made_from = {"fingerprint": self.dataset.fingerprint(episode)}
                if self._is_current(camera, episode):
                    continue
                with atomic_path(self.path(camera, episode)) as path, open(path, "wb") as file:
                    np.save(file, self.dataset.frames(camera, episode), allow_pickle=False)
                write_json(mark, made_from)

    def _is_current(self, camera: str, episode: int) -> bool:
        path = self.path(camera, episode)
        if not (path.is_file() and path.with_suffix(".json").is_file()):
            return False
        mark = read_json_object(path.with_suffix(".json"), "mark of decoded frames")
        return mark.get("fingerprint") == self.dataset.fingerprint(episode)

    def read(self, camera: str, episode: int, frames: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w 3"]:
        """Frames of one episode.

        Raises:
            DataError: They were not decoded, or from other pictures than the dataset now has.
        """
        path = self.path(camera, episode)
        if path not in self._mapped:
            if not self._is_current(camera, episode):
                raise DataError(f"{path} is missing or of other pictures; decode the frames of episode {episode} again")
            self._mapped[path] = np.load(path, mmap_mode="r", allow_pickle=False)
        return np.asarray(self._mapped[path][frames])


FrameSource = Videos | DecodedFrames
