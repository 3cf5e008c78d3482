"""What samples of one dataset and of several have in common; those of several are each scaled by their own normalisers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lamp.data.feature_cache.cache import Features
from lamp.errors import ConfigError, MismatchError


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


Kind = TypeVar("Kind", bound="Samples")


class Samples:
    """The samples of one dataset."""

    @property
    def parts(self: Kind) -> tuple[Kind, ...]:
        """The samples of each dataset."""
        return (self,)

    @property
    def cached(self: Kind) -> tuple[Kind, ...]:
        """Those of `parts` that take the backbone's tokens from its features, cached or live."""
        return self.parts

    def part_of(self, indices: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        """Which of `parts` each sample is of."""
        return np.zeros(len(indices), np.int64)

    def __len__(self) -> int:
        raise NotImplementedError


class FeatureSamples(Samples):
    """Samples of one dataset with the backbone's tokens."""

    features: Features


Part = TypeVar("Part", bound=FeatureSamples)
Collated = TypeVar("Collated")


class Mixture(Generic[Part]):
    """The samples of several datasets, one dataset after another; as `Samples` otherwise."""

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

    @property
    def cached(self) -> tuple[Part, ...]:
        return self.parts

    def part_of(self, indices: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
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
