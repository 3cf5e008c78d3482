"""Several datasets trained on together: how often each comes up, and batches of samples that each bring their own scaling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lamp.data.live_features import ordered
from lamp.data.padding import Padding
from lamp.data.samples import PolicySamples
from lamp.errors import ConfigError, MismatchError
from lamp.types import Batch


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


class MixedSamples:
    """The samples of several datasets, one dataset after another; each is scaled by its dataset's own normalisers."""

    def __init__(self, parts: Sequence[PolicySamples]) -> None:
        """
        Args:
            parts: At least one; with the same backbone, chunk, and widths of state and action.

        Raises:
            MismatchError: They are not alike in these.
        """
        self.parts = tuple(parts)
        first = self.parts[0]
        for part in self.parts[1:]:
            for name, one, other in (
                ("backbone", first.features.key, part.features.key),
                ("chunk", first.chunk, part.chunk),
                ("action width", first.scaling.actions.width, part.scaling.actions.width),
                ("state width", first.scaling.state.width, part.scaling.state.width),
            ):
                if one != other:
                    raise MismatchError(
                        f"{part.features.dataset.root} has {name} {other}, {first.features.dataset.root} {one}; "
                        "datasets that are mixed must agree"
                    )
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in self.parts])])

    def __len__(self) -> int:
        """Number of samples."""
        return int(self._starts[-1])

    def part_of(self, indices: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        """Which dataset each sample is of."""
        return np.searchsorted(self._starts, indices, side="right") - 1

    def batch(self, indices: Int64[np.ndarray, " b"], *, epoch: int = 0) -> Batch:
        """Collates samples, in the order of the indices."""
        of = self.part_of(indices)
        batches, order = [], []
        for number in np.unique(of).tolist():
            places = np.flatnonzero(of == number)
            batches.append(self.parts[number].batch(indices[places] - self._starts[number], epoch=epoch))
            order.append(places)
        if len(batches) == 1:
            return batches[0]
        back = torch.from_numpy(np.argsort(np.concatenate(order)))
        return _joined(batches, back, self.parts[0].features.padding)


def _joined(batches: Sequence[Batch], order: Int64[Tensor, " b"], padding: Padding) -> Batch:
    """Puts batches of Stage 2 into one; where only some say which samples see the motion prior, the others' do."""
    found: dict[str, Any] = {}
    for field in fields(Batch):
        parts = [getattr(batch, field.name) for batch in batches]
        if field.name in ("encoded", "motion") or all(part is None for part in parts):
            continue
        if field.name == "prior_seen":
            parts = [_seen(batch) for batch in batches]
        elif any(part is None for part in parts):
            raise MismatchError(f"only some of the mixed datasets have {field.name}; expected all or none")
        found[field.name] = torch.cat(parts)[order]
    return Batch(encoded=ordered([batch.encoded for batch in batches], order, padding), **found)


def _seen(batch: Batch) -> Bool[Tensor, " b"]:
    return torch.ones(len(batch.encoded.mask), dtype=torch.bool) if batch.prior_seen is None else batch.prior_seen
