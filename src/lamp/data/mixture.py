"""Samples of several datasets together: each scaled by its own normalisers, all with the same shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lamp.data.live_features import concatenate_encoded
from lamp.data.motion_dataset import MotionSamples, clamp_rate, concatenate_flow
from lamp.data.policy_dataset import PolicySamples
from lamp.errors import ConfigError, MismatchError
from lamp.types import Encoded, MotionBatch, PolicyBatch, SceneFlow


def mixture_weights(lengths: Sequence[int], weights: Sequence[float] | None) -> Float[np.ndarray, " n"] | None:
    """How often to take each sample, for the `Sampler`.

    Args:
        weights: The share of each dataset's samples, relative to the others'. None: by length, so that every sample comes up
            once an epoch.

    Raises:
        ConfigError: There are not as many weights as datasets, or one is not positive.
    """
    if weights is None:
        return None
    if len(weights) != len(lengths) or not all(0 < weight < np.inf for weight in weights):
        raise ConfigError(
            f"weights {list(weights)} for {len(lengths)} datasets; expected one above 0 for each (or none: by length)"
        )
    each = np.asarray(weights, np.float64) / np.asarray(lengths)
    return np.repeat(each / each.max(), lengths)


Part = TypeVar("Part", PolicySamples, MotionSamples)
Collated = TypeVar("Collated")


class Mixture(Generic[Part]):
    """The samples of several datasets, one dataset after another."""

    def __init__(self, parts: Sequence[Part]) -> None:
        """
        Raises:
            MismatchError: The datasets have different backbones, or differ in `_traits`.
        """
        self.parts = tuple(parts)
        first = self.parts[0]
        for part in self.parts[1:]:
            mine, others = ({"backbone": one.features.key, **self._traits(one)} for one in (first, part))
            for name, one in mine.items():
                if one != others[name]:
                    raise MismatchError(
                        f"{part.features.dataset.root} has {name} {others[name]}, {first.features.dataset.root} {one}; "
                        "datasets that are mixed must agree"
                    )
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in self.parts])])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def part_of(self, indices: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        """Which dataset each sample is of."""
        return np.searchsorted(self._starts, indices, side="right") - 1

    def _traits(self, part: Part) -> dict[str, object]:
        """In what the datasets must be alike, by name."""
        raise NotImplementedError

    def _places(self, indices: Int64[np.ndarray, " b"]) -> Iterator[tuple[int, Int64[np.ndarray, "..."]]]:
        """Each dataset that some samples are of, and where in the indices these are."""
        of = self.part_of(indices)
        for number in np.unique(of).tolist():
            yield number, np.flatnonzero(of == number)

    def _each(
        self, indices: Int64[np.ndarray, " b"], collate: Callable[[Part, Int64[np.ndarray, " n"]], Collated]
    ) -> tuple[list[Collated], Int64[Tensor, " b"]]:
        """What is collated of each dataset's samples, and the order that brings all of them back to that of the indices."""
        parts = [(collate(self.parts[of], indices[at] - self._starts[of]), at) for of, at in self._places(indices)]
        return [one for one, _ in parts], torch.from_numpy(np.argsort(np.concatenate([at for _, at in parts])))


class MixedSamples(Mixture[PolicySamples]):
    """Samples of Stage 2; each is scaled by its dataset's own normalisers."""

    def batch(self, indices: Int64[np.ndarray, " b"], *, epoch: int = 0) -> PolicyBatch:
        """Collates samples, in the order of the indices.

        Raises:
            MismatchError: Only some of the datasets have z_m cached.
        """
        batches, order = self._each(indices, lambda part, of_part: part.batch(of_part, epoch=epoch))
        if len(batches) == 1:
            return batches[0]
        hidden = [batch.motion_hidden for batch in batches if batch.motion_hidden is not None]
        if hidden and len(hidden) < len(batches):
            raise MismatchError("only some of the mixed datasets have motion_hidden; expected all or none")
        seen = [
            torch.ones(len(one.state), dtype=torch.bool) if one.prior_seen is None else one.prior_seen
            for one in batches
        ]
        return PolicyBatch(
            encoded=concatenate_encoded([batch.encoded for batch in batches], order, self.parts[0].features.padding),
            state=torch.cat([batch.state for batch in batches])[order],
            actions=torch.cat([batch.actions for batch in batches])[order],
            action_mask=torch.cat([batch.action_mask for batch in batches])[order],
            motion_hidden=torch.cat(hidden)[order] if hidden else None,
            prior_seen=torch.cat(seen)[order] if any(one.prior_seen is not None for one in batches) else None,
        )

    def _traits(self, part: PolicySamples) -> dict[str, object]:
        actions, state = part.scaling.actions.width, part.scaling.state.width
        return {"chunk": part.chunk, "action width": actions, "state width": state}


class MixedMotionSamples(Mixture[MotionSamples]):
    """Samples of Stage 1, all with the same bounds: the Motion Expert's outputs mean the same motion in every dataset."""

    def __init__(self, parts: Sequence[MotionSamples]) -> None:
        super().__init__(parts)
        first = self.parts[0]
        self.bounds, self.horizon, self.frames_per_step = first.bounds, first.horizon, first.frames_per_step
        self.camera, self.store = first.camera, first.store
        self.pairing: Int64[np.ndarray, " n"] | None = None
        """As in `MotionSamples`, over all datasets."""
        self.episode: Int64[np.ndarray, " n"] = np.concatenate([part.episode for part in self.parts])
        """The episode of each sample, in its own dataset."""
        self.frame: Int64[np.ndarray, " n"] = np.concatenate([part.frame for part in self.parts])

    def _traits(self, part: MotionSamples) -> dict[str, object]:
        grid = part.store.description.sampling.grid
        return {"grid": grid, "flow steps": part.horizon, "bounds": part.bounds}

    def flow(self, indices: Int64[np.ndarray, " b"]) -> SceneFlow:
        return concatenate_flow(*self._each(indices, MotionSamples.flow))

    def encoded(self, indices: Int64[np.ndarray, " b"]) -> Encoded:
        encoded, order = self._each(indices, MotionSamples.encoded)
        return concatenate_encoded(encoded, order, self.parts[0].features.padding)

    def batch(self, indices: Int64[np.ndarray, " b"], *, epoch: int = 0) -> MotionBatch:
        shown = indices if self.pairing is None else self.pairing[indices]
        return MotionBatch(encoded=self.encoded(indices), motion=self.bounds.motion(self.flow(shown)))

    def earlier(self, indices: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        out = np.full(len(indices), -1, np.int64)
        for of, at in self._places(indices):
            before = self.parts[of].earlier(indices[at] - self._starts[of])
            out[at] = np.where(before < 0, -1, before + self._starts[of])
        return out

    def clamp_rate(self) -> tuple[float, float, float]:
        """Share of the supervising increments of all datasets that lie beyond the bounds, per axis."""
        return clamp_rate(self.parts)


AnyMotionSamples = MotionSamples | MixedMotionSamples
