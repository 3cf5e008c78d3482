"""z_m of samples, computed ahead of Stage 2 and read from shards: several noise draws of each, and of each of its views."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float16, Int64
from torch import Tensor

from lamp.data.feature_store import FeatureStore
from lamp.data.shards import MappedShards

HIDDEN = "hidden"
"""The name of the values in a shard: (draw, frame, token, channel), of augmented views with the view before that."""
HIDDEN_MANIFEST = "hidden.json"


@runtime_checkable
class HiddenStates(Protocol):
    """z_m of some samples."""

    @property
    def draws(self) -> int:
        """Noise draws of each."""
        ...

    def __len__(self) -> int:
        """How many samples."""
        ...

    def take(
        self, samples: Int64[np.ndarray, " b"], draws: Int64[np.ndarray, " b"], views: Int64[np.ndarray, " b"] | None
    ) -> Float16[np.ndarray, "b m dm"]:
        """Reads a draw of each of some samples, in the view that it is seen in."""
        ...


class StoredHidden:
    """z_m of some samples, in shards that are mapped into memory."""

    def __init__(
        self, store: FeatureStore, *, episode: Int64[np.ndarray, " n"], place: Int64[np.ndarray, " n"], draws: int
    ) -> None:
        """
        Args:
            store: The shards; those of these episodes must be there.
            episode: Of each sample.
            place: Which of its episode's fresh frames it is.
            draws: Noise draws to take turns; there may be more in the shards.
        """
        self._pictures = MappedShards(store.pictures)
        self._views = None if store.views is None else MappedShards(store.views)
        self._episode, self._place, self.draws = episode, place, draws

    def __len__(self) -> int:
        """How many samples."""
        return len(self._episode)

    def take(
        self, samples: Int64[np.ndarray, " b"], draws: Int64[np.ndarray, " b"], views: Int64[np.ndarray, " b"] | None
    ) -> Float16[np.ndarray, "b m dm"]:
        """Reads a draw of each of some samples, in the view that it is seen in."""
        numbers = np.zeros(len(samples), np.int64) if views is None else views
        found = [
            self._value(int(self._episode[sample]), int(view), int(draw), int(self._place[sample]))
            for sample, view, draw in zip(samples, numbers, draws, strict=True)
        ]
        return torch.stack(found).numpy()

    def _value(self, episode: int, view: int, draw: int, place: int) -> Tensor:
        if view == 0:
            return self._pictures[episode][HIDDEN][draw, place]
        assert self._views is not None
        return self._views[episode][HIDDEN][view - 1, draw, place]
