"""The frozen backbone's tokens without a cache: pictures are decoded, augmented in a view and encoded as batches need them.

Loading workers decode, which is processors' work; the process that trains encodes, where the backbone is. With the same views
the tokens are those of a cache, but for what its number format rounds off and how a backbone's batches are put together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from lamp.data.augmentation import NO_AUGMENTATION, Augmentation
from lamp.data.feature_cache.cache import Features, FrameIndex
from lamp.data.feature_cache.encode import FrozenBackbone, SequenceBackbone, camera_names
from lamp.data.feature_cache.manifest import cache_folder
from lamp.data.feature_cache.shards import EpisodeFingerprints
from lamp.data.lerobot.reader import LeRobotDataset
from lamp.data.observation_encoder import ObservationEncoder
from lamp.errors import MismatchError
from lamp.types import Encoded, Observations, Padding, RightPadding, padded


@dataclass(frozen=True, kw_only=True)
class Unencoded(Encoded):
    """A batch before it is encoded, as a loading worker makes it: the pictures, and no tokens yet."""

    parts: tuple[Observations, ...]
    """One a dataset."""
    order: Int64[Tensor, " b"]
    """Where each sample of the batch is among those of all parts."""

    @classmethod
    def of(cls, parts: Sequence[Observations], order: Int64[Tensor, " b"]) -> Unencoded:
        none = torch.zeros(len(order), 0, 0)
        return cls(tokens=none, mask=torch.zeros(len(order), 0, dtype=torch.bool), parts=tuple(parts), order=order)


class LiveFeatures(Features):
    """Tokens of the fresh frames of a dataset, encoded on demand."""

    def __init__(
        self,
        dataset: LeRobotDataset,
        backbone: FrozenBackbone,
        *,
        augmentation: Augmentation = NO_AUGMENTATION,
        root: Path | None = None,
    ):
        """
        Args:
            backbone: What encodes the pictures, on its device.
            augmentation: Which views of the pictures there are besides themselves; as many as one likes.
            root: The folder that caches are in, where z_m may be kept; None: the dataset's own.

        Raises:
            MismatchError: The dataset lacks a camera.
        """
        self.dataset, self.key, self.augmentation = dataset, backbone.key, augmentation
        self.cameras, self.width = camera_names(backbone), backbone.width
        missing = [camera for camera in self.cameras if camera not in dataset.cameras]
        if missing:
            raise MismatchError(f"{dataset.root} has no camera {missing[0]!r}; it has {', '.join(dataset.cameras)}")
        self.description = backbone.description
        self.left_out = ()
        self.index = FrameIndex.of(dataset)
        self.folder = cache_folder(dataset, backbone.key, root)
        self.fingerprints = EpisodeFingerprints(dataset, self.cameras, self.folder.parent)
        self._padding = backbone.padding if isinstance(backbone, SequenceBackbone) else RightPadding()
        self._encoder: ObservationEncoder | None = ObservationEncoder(backbone)

    def __getstate__(self) -> dict[str, Any]:
        """Another process decodes, and does not encode."""
        return {**self.__dict__, "_encoder": None}

    @property
    def backbone(self) -> FrozenBackbone | None:
        """What encodes; None in a loading worker, which does not."""
        return None if self._encoder is None else self._encoder.backbone

    @property
    def tokens(self) -> int | None:
        """Not known before an observation is encoded."""
        return None

    @property
    def padding(self) -> Padding:
        return self._padding

    def observed(self, rows: Int64[np.ndarray, " b"], views: Int64[np.ndarray, " b"] | None = None) -> Observations:
        """Decodes the pictures of some rows of `index`, each in its view.

        Raises:
            DataError: A picture cannot be read.
        """
        numbers = np.zeros(len(rows), np.int64) if views is None else views
        episodes, frames = self.index.episode[rows], self.index.frame[rows]
        images = {
            camera: np.empty((len(rows), *self.dataset.image_sizes[camera], 3), np.uint8) for camera in self.cameras
        }
        for episode in np.unique(episodes).tolist():
            inside = np.flatnonzero(episodes == episode)
            wanted, place = np.unique(frames[inside], return_inverse=True)
            decoded = {camera: self.dataset.frames(camera, episode, wanted) for camera in self.cameras}
            for view in np.unique(numbers[inside]).tolist():
                chosen = numbers[inside] == view
                some: dict[str, UInt8[np.ndarray, "..."]] = {
                    camera: of[place.reshape(-1)[chosen]] for camera, of in decoded.items()
                }
                augmented = self.augmentation.view(view, some, episode=episode, frames=frames[inside[chosen]])
                for camera, of in augmented.items():
                    images[camera][inside[chosen]] = of
        instructions = tuple(self.index.instructions[i] for i in self.index.instruction_index[rows].tolist())
        return Observations(
            images={camera: torch.from_numpy(of) for camera, of in images.items()}, instructions=instructions
        )

    @torch.no_grad()
    def encoded(self, rows: Int64[np.ndarray, " b"], views: Int64[np.ndarray, " b"] | None = None) -> Encoded:
        """The tokens of some rows of `index`; in a loading worker, the pictures that they are to be computed of."""
        observed = self.observed(rows, views)
        if self._encoder is None:
            return Unencoded.of([observed], torch.arange(len(rows)))
        return self._encoder.encode(observed)

    @torch.no_grad()
    def finished(self, encoded: Encoded) -> Encoded:
        """The tokens of what a loading worker has decoded."""
        if self._encoder is None or not isinstance(encoded, Unencoded):
            return encoded
        parts = [self._encoder.encode(part) for part in encoded.parts]
        return concatenate_encoded(parts, encoded.order, self.padding)


def concatenate_encoded(parts: Sequence[Encoded], order: Int64[Tensor, " b"], padding: Padding) -> Encoded:
    """Puts the tokens of several datasets' samples into one batch, in an order."""
    if unencoded := [part for part in parts if isinstance(part, Unencoded)]:
        starts = np.cumsum([0, *(len(part.mask) for part in parts[:-1])]).tolist()
        within = torch.cat([part.order + start for part, start in zip(unencoded, starts, strict=True)])
        return Unencoded.of([one for part in unencoded for one in part.parts], within[order])
    if len({part.tokens.shape[1] for part in parts}) == 1:
        tokens, mask = torch.cat([part.tokens for part in parts]), torch.cat([part.mask for part in parts])
        order = order.to(tokens.device)
        return Encoded(tokens=tokens[order], mask=mask[order])
    rows = [row[seen] for part in parts for row, seen in zip(part.tokens, part.mask, strict=True)]
    return padded([rows[place] for place in order.tolist()], padding)
