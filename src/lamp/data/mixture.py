"""Several datasets trained on together: how often each comes up, and batches of samples that each bring their own scaling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lamp.data.live_features import ordered
from lamp.data.motion_samples import MotionSamples, clamp_rate, joined_flow
from lamp.data.padding import Padding
from lamp.data.samples import PolicySamples
from lamp.errors import ConfigError, MismatchError
from lamp.types import Batch, Encoded, Motion, SceneFlow


def mixture_weights(lengths: Sequence[int], weights: Sequence[float] | None) -> Float[np.ndarray, " n"] | None:
    """How often to take each sample, for the `Sampler`.

    Args:
        lengths: Samples of each dataset.
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


class Mixture(Generic[Part]):
    """The samples of several datasets, one dataset after another."""

    def __init__(self, parts: Sequence[Part]) -> None:
        """
        Args:
            parts: At least one; with the same backbone, and alike in what `_traits` says.

        Raises:
            MismatchError: They are not alike in these.
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
        """Number of samples."""
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

    def batch(self, indices: Int64[np.ndarray, " b"], *, epoch: int = 0) -> Batch:
        """Collates samples, in the order of the indices."""
        batches, order = [], []
        for number, places in self._places(indices):
            batches.append(self.parts[number].batch(indices[places] - self._starts[number], epoch=epoch))
            order.append(places)
        if len(batches) == 1:
            return batches[0]
        back = torch.from_numpy(np.argsort(np.concatenate(order)))
        return _joined(batches, back, self.parts[0].features.padding)


class MixedSamples(Mixture[PolicySamples]):
    """Samples of Stage 2; each is scaled by its dataset's own normalisers."""

    def _traits(self, part: PolicySamples) -> dict[str, object]:
        actions, state = part.scaling.actions.width, part.scaling.state.width
        return {"chunk": part.chunk, "action width": actions, "state width": state}


class MixedMotionSamples(Mixture[MotionSamples]):
    """Samples of Stage 1, all with the same bounds: what the Motion Expert says of motion means the same in every dataset."""

    def __init__(self, parts: Sequence[MotionSamples]) -> None:
        """
        Raises:
            MismatchError: The datasets are not alike.
        """
        super().__init__(parts)
        first = self.parts[0]
        self.bounds, self.horizon, self.frames_per_step = first.bounds, first.horizon, first.frames_per_step
        self.camera, self.store = first.camera, first.store
        self.episode: Int64[np.ndarray, " n"] = np.concatenate([part.episode for part in self.parts])
        """The episode of each sample, in its own dataset."""
        self.frame: Int64[np.ndarray, " n"] = np.concatenate([part.frame for part in self.parts])

    def _traits(self, part: MotionSamples) -> dict[str, object]:
        grid = part.store.description.sampling.grid
        return {"grid": grid, "flow steps": part.horizon, "bounds": part.bounds}

    def flow(self, indices: Int64[np.ndarray, " b"]) -> SceneFlow:
        """The scene flow of some samples, in image fractions and metres."""
        found = [(self.parts[of].flow(indices[at] - self._starts[of]), at) for of, at in self._places(indices)]
        back = torch.from_numpy(np.argsort(np.concatenate([at for _, at in found])))
        return joined_flow([flow for flow, _ in found], back)

    def encoded(self, indices: Int64[np.ndarray, " b"]) -> Encoded:
        """The backbone's tokens of some samples."""
        found = [(self.parts[of].encoded(indices[at] - self._starts[of]), at) for of, at in self._places(indices)]
        back = torch.from_numpy(np.argsort(np.concatenate([at for _, at in found])))
        return ordered([encoded for encoded, _ in found], back, self.parts[0].features.padding)

    def earlier(self, indices: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        """The samples one flow step before, -1 where there is none."""
        out = np.full(len(indices), -1, np.int64)
        for of, at in self._places(indices):
            found = self.parts[of].earlier(indices[at] - self._starts[of])
            out[at] = np.where(found < 0, -1, found + self._starts[of])
        return out

    def clamp_rate(self) -> tuple[float, float, float]:
        """Share of the supervising increments of all datasets that lie beyond the bounds, per axis."""
        return clamp_rate(self.parts)


AnyMotionSamples = MotionSamples | MixedMotionSamples


def _joined(batches: Sequence[Batch], order: Int64[Tensor, " b"], padding: Padding) -> Batch:
    """Puts batches into one; where only some say which samples see the motion prior, the others' do."""
    found: dict[str, Any] = {}
    for field in fields(Batch):
        parts = [getattr(batch, field.name) for batch in batches]
        if field.name == "encoded" or all(part is None for part in parts):
            continue
        if field.name == "motion":
            values, mask = (torch.cat([getattr(part, name) for part in parts])[order] for name in ("values", "mask"))
            found[field.name] = Motion(values=values, mask=mask)
            continue
        if field.name == "prior_seen":
            parts = [_seen(batch) for batch in batches]
        elif any(part is None for part in parts):
            raise MismatchError(f"only some of the mixed datasets have {field.name}; expected all or none")
        found[field.name] = torch.cat(parts)[order]
    return Batch(encoded=ordered([batch.encoded for batch in batches], order, padding), **found)


def _seen(batch: Batch) -> Bool[Tensor, " b"]:
    return torch.ones(len(batch.encoded.mask), dtype=torch.bool) if batch.prior_seen is None else batch.prior_seen
