"""Normalisers with exact inverses, and the state transform: what the models see, and the way back.

Every normaliser is affine per dimension, works on NumPy arrays and torch tensors alike (the last axis holds the dimensions),
and is a frozen dataclass of plain numbers that `lamp.configuration` turns into JSON and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lamp.data.actions import AxisAngle, StateRotationFormat
from lamp.errors import ConfigError, MismatchError

Values = TypeVar("Values", np.ndarray, Tensor)
Ranged = TypeVar("Ranged", bound="AffineRange")

SMALLEST_SPREAD = 1e-6
"""Without a rule of its own units (`HardlyMoved`), a dimension that varies less than this is centred and not scaled."""
CONSTANT = 1e-6
"""A dimension that varies by less than this share of its largest value never moved: float32 rounds more coarsely than that."""
NOISE = 0.5
"""Values whose correlation with the next frame's is below this have no course in time, as noise has none."""


@dataclass(frozen=True, kw_only=True)
class Affine:
    """What the normalisers share: normalised = (value - centre) / scale, per dimension."""

    masked: tuple[int, ...] = ()
    """Dimensions that are left as they are."""
    binary: tuple[int, ...] = ()
    """Dimensions with values 0 and 1 (such as a gripper that is closed or open), which become -1 and 1."""
    floored: tuple[int, ...] = ()
    """Dimensions that were found to vary too little to be divided by their own spread, and have another scale."""
    smallest: float = SMALLEST_SPREAD
    """A dimension with a smaller scale is not scaled at all; 0 where a rule has given each dimension a scale of its own units."""

    def _affine(self) -> tuple[Sequence[float], Sequence[float]]:
        """Centre and scale per dimension, before masks."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        centre, scale = self._affine()
        if len(centre) != len(scale):
            raise ConfigError(f"{type(self).__name__} has {len(centre)} and {len(scale)} values; expected as many")
        outside = [index for index in (*self.masked, *self.binary) if not 0 <= index < len(centre)]
        if outside or set(self.masked) & set(self.binary):
            raise ConfigError(
                f"masked {self.masked} and binary {self.binary} must be distinct and in 0 to {len(centre) - 1}"
            )

    @property
    def width(self) -> int:
        return len(self._affine()[0])

    def centre_and_scale(self) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
        """Centre and scale of each dimension, masked, binary and constant ones included."""
        centre, scale = (np.array(values, np.float64) for values in self._affine())
        scale[scale < self.smallest] = 1
        centre[list(self.masked)], scale[list(self.masked)] = 0, 1
        centre[list(self.binary)], scale[list(self.binary)] = 0.5, 0.5
        return centre, scale

    def _constants(self, values: Any) -> tuple[Any, Any]:
        if values.shape[-1] != self.width:
            raise MismatchError(f"values have {values.shape[-1]} dimensions; this normaliser is made for {self.width}")
        centre, scale = self.centre_and_scale()
        return _like(values, centre), _like(values, scale)

    def normalise(self, values: Values) -> Values:
        """To what the models see.

        Raises:
            MismatchError: The last axis does not fit.
        """
        centre, scale = self._constants(values)
        return (values - centre) / scale

    def invert(self, values: Values) -> Values:
        """Back to the data's units; values beyond the data's range are not clamped.

        Raises:
            MismatchError: The last axis does not fit.
        """
        centre, scale = self._constants(values)
        return values * scale + centre


@dataclass(frozen=True, kw_only=True)
class Standardise(Affine):
    """To mean 0 and standard deviation 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def _affine(self) -> tuple[Sequence[float], Sequence[float]]:
        return self.mean, self.std

    @classmethod
    def fit(
        cls,
        values: Float[np.ndarray, "n d"],
        *,
        masked: Sequence[int] = (),
        binary: Sequence[int] = (),
        least: float = 0.0,
    ) -> Standardise:
        """From data; dimensions with a deviation below `least` are divided by that instead."""
        mean, std = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
        chosen = _dimensions(values, masked, binary)
        left = {*chosen["masked"], *chosen["binary"]}
        floored = tuple(index for index in range(len(std)) if std[index] < least and index not in left)
        return cls(mean=_plain(mean), std=_plain(np.maximum(std, least)), floored=floored, **chosen)

    def with_scale(self, scale: Float[np.ndarray, " d"], **changes: Any) -> Standardise:
        return replace(self, std=_plain(scale), **changes)


@dataclass(frozen=True, kw_only=True)
class AffineRange(Affine):
    """A range of values that is mapped to [-1, 1]."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def _affine(self) -> tuple[Sequence[float], Sequence[float]]:
        pairs = list(zip(self.low, self.high, strict=True))
        return [(low + high) / 2 for low, high in pairs], [(high - low) / 2 for low, high in pairs]

    def with_scale(self: Ranged, scale: Float[np.ndarray, " d"], **changes: Any) -> Ranged:
        middle = np.array(self._affine()[0], np.float64)
        return replace(self, low=_plain(middle - scale), high=_plain(middle + scale), **changes)


@dataclass(frozen=True, kw_only=True)
class MinMax(AffineRange):
    """The range of the data to [-1, 1]."""

    @classmethod
    def fit(cls, values: Float[np.ndarray, "n d"], *, masked: Sequence[int] = (), binary: Sequence[int] = ()) -> MinMax:
        low, high = _plain(values.min(0)), _plain(values.max(0))
        return cls(low=low, high=high, **_dimensions(values, masked, binary))


@dataclass(frozen=True, kw_only=True)
class Quantile(AffineRange):
    """The range between two quantiles to [-1, 1]; rarer values fall outside."""

    @classmethod
    def fit(
        cls,
        values: Float[np.ndarray, "n d"],
        *,
        masked: Sequence[int] = (),
        binary: Sequence[int] = (),
        between: tuple[float, float] = (0.01, 0.99),
    ) -> Quantile:
        low, high = np.quantile(values.astype(np.float64), between, axis=0)
        return cls(low=_plain(low), high=_plain(high), **_dimensions(values, masked, binary))


@dataclass(frozen=True, kw_only=True)
class ClampedRange(AffineRange):
    """`MinMax` to the letter of the authors' release: clamped on the way back; a dimension without a range becomes 0."""

    switches: tuple[int, ...] = ()
    """Dimensions that are 1 above 0.5 and 0 otherwise, in the data's units and for the model alike (a gripper)."""
    hidden: tuple[int, ...] = ()
    """Dimensions that the model sees as 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        width = len(self.low)
        if any(not 0 <= index < width for index in (*self.switches, *self.hidden)):
            raise ConfigError(f"switches {self.switches} and hidden {self.hidden} must be in 0 to {width - 1}")

    def normalise(self, values: Values) -> Values:
        ranged, switch = self._kinds(values)
        return super().normalise(values) * ranged * self._seen(values) + (values > 0.5) * switch * self._seen(values)

    def invert(self, values: Values) -> Values:
        ranged, switch = self._kinds(values)
        return super().invert(values.clip(-1, 1) * ranged) * (1 - switch) + (values > 0.5) * switch

    def _kinds(self, values: Any) -> tuple[Any, Any]:
        """1 for dimensions with a range, and 1 for switches; 0 otherwise."""
        ranged, switch = np.array(self._affine()[1]) >= SMALLEST_SPREAD, np.zeros(self.width)
        switch[list(self.switches)] = 1
        return _like(values, ranged * (1 - switch)), _like(values, switch)

    def _seen(self, values: Any) -> Any:
        seen = np.ones(self.width)
        seen[list(self.hidden)] = 0
        return _like(values, seen)


@dataclass(frozen=True, kw_only=True)
class Identity(Affine):
    """Values as they are."""

    dimensions: int

    def _affine(self) -> tuple[Sequence[float], Sequence[float]]:
        return (0.0,) * self.dimensions, (1.0,) * self.dimensions

    @classmethod
    def fit(
        cls, values: Float[np.ndarray, "n d"], *, masked: Sequence[int] = (), binary: Sequence[int] = ()
    ) -> Identity:
        return cls(dimensions=values.shape[1], **_dimensions(values, masked, binary))


Normaliser = Standardise | MinMax | Quantile | ClampedRange | Identity


Scaled = TypeVar("Scaled", Standardise, MinMax, Quantile)


@dataclass(frozen=True, kw_only=True)
class HardlyMoved:
    """Which dimensions hardly moved in the demonstrations, and what they are divided by in place of their noise.

    A dimension never moved if all its values are one; it hardly moved if it varies by less than `share` of the one that varies
    most, and without a course in time, as noise does. A small motion, such as one of millimetres beside one of degrees, has a
    course, and is divided by its own spread like any other.
    """

    share: float = 0.05
    at_most: float | None = None
    """None, for a policy's inputs: such a dimension is divided by the largest spread of all, so that a value never seen in
    training stays small. A number, for a policy's outputs: it is divided by `share` of the largest spread, but by no more than
    this many times its own; one that never moved comes back as its one value."""

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1 or (self.at_most is not None and self.at_most < 1):
            raise ConfigError(
                f"HardlyMoved: share {self.share}, at_most {self.at_most}; expected a share in [0, 1), and at least 1 time"
            )

    def settle(self, fitted: Scaled, values: Float[np.ndarray, "n d"]) -> Scaled:
        """Gives such dimensions their scale.

        Args:
            values: One frame after another.
        """
        spread = np.array(fitted._affine()[1], np.float64)
        others = [index for index in range(len(spread)) if index not in (*fitted.masked, *fitted.binary)]
        constant = [index for index in others if _is_constant(values[:, index])]
        moving = [index for index in others if index not in constant]
        for index in moving:  # between two quantiles, one that moves seldom does not move at all
            spread[index] = spread[index] or np.ptp(values[:, index]) / 2
        largest = max((float(spread[index]) for index in moving), default=1.0)
        scale, floored = spread.copy(), list(fitted.floored)
        for index in constant:
            value = float(np.abs(values[0, index]))
            near = value if value > 0 else min((float(spread[index]) for index in moving), default=1.0)
            scale[index] = largest if self.at_most is None else 1e-4 * near
        for index in moving:
            if spread[index] < self.share * largest and _is_noise(values[:, index]):
                capped = largest if self.at_most is None else min(self.at_most * spread[index], self.share * largest)
                scale[index] = max(capped, float(spread[index]))
                floored.append(index)
        # Of dimensions with a scale of their own, such as binary ones, only a zero would be in the way.
        scale[scale <= 0] = 1
        return fitted.with_scale(scale, floored=tuple(sorted({*floored, *constant})), smallest=0.0)


def floors(fitted: Normaliser, names: Sequence[str]) -> str:
    """In words, which dimensions are not divided by their own spread; empty where all are."""
    scale = fitted.centre_and_scale()[1]
    return ", ".join(f"{names[index]} by {scale[index]:.2g}" for index in fitted.floored)


def _is_constant(values: Float[np.ndarray, " n"]) -> bool:
    low, high = float(values.min()), float(values.max())
    return high - low <= CONSTANT * max(abs(low), abs(high))


def _is_noise(values: Float[np.ndarray, " n"]) -> bool:
    centred = values.astype(np.float64) - values.mean(dtype=np.float64)
    return len(centred) > 2 and float(centred[1:] @ centred[:-1]) < NOISE * float(centred @ centred)


@dataclass(frozen=True, kw_only=True)
class ByDeviation:
    """Recipe setting: fit `Standardise`."""

    least: float = 0.0
    """Smallest deviation to divide by: a dimension that hardly varies (the tilt of a hand that points down) then stays small,
    and its noise does not fill the loss. In the units of the data, so it is for one dataset."""
    hardly_moved: HardlyMoved | None = None
    """The same for data of any units; None: dimensions are divided by what they vary, whatever that is."""

    def __post_init__(self) -> None:
        if self.least < 0:
            raise ConfigError(f"ByDeviation: least {self.least} given, 0 or more expected")

    def fit(
        self, values: Float[np.ndarray, "n d"], *, masked: Sequence[int] = (), binary: Sequence[int] = ()
    ) -> Standardise:
        fitted = Standardise.fit(values, masked=masked, binary=binary, least=self.least)
        return fitted if self.hardly_moved is None else self.hardly_moved.settle(fitted, values)


@dataclass(frozen=True, kw_only=True)
class ByRange:
    """Recipe setting: fit `MinMax`."""

    hardly_moved: HardlyMoved | None = None
    """As for `ByDeviation`."""

    def fit(
        self, values: Float[np.ndarray, "n d"], *, masked: Sequence[int] = (), binary: Sequence[int] = ()
    ) -> MinMax:
        fitted = MinMax.fit(values, masked=masked, binary=binary)
        return fitted if self.hardly_moved is None else self.hardly_moved.settle(fitted, values)


@dataclass(frozen=True, kw_only=True)
class ByQuantiles:
    """Recipe setting: fit `Quantile`."""

    low: float = 0.01
    high: float = 0.99
    hardly_moved: HardlyMoved | None = None
    """As for `ByDeviation`."""

    def fit(
        self, values: Float[np.ndarray, "n d"], *, masked: Sequence[int] = (), binary: Sequence[int] = ()
    ) -> Quantile:
        fitted = Quantile.fit(values, masked=masked, binary=binary, between=(self.low, self.high))
        return fitted if self.hardly_moved is None else self.hardly_moved.settle(fitted, values)


@dataclass(frozen=True, kw_only=True)
class Unchanged:
    """Recipe setting: leave values as they are (but for binary dimensions)."""

    def fit(
        self, values: Float[np.ndarray, "n d"], *, masked: Sequence[int] = (), binary: Sequence[int] = ()
    ) -> Identity:
        return Identity.fit(values, masked=masked, binary=binary)


NormaliserFit = ByDeviation | ByRange | ByQuantiles | Unchanged


@dataclass(frozen=True, kw_only=True)
class RawState:
    """State transform: the state as the environment gives it."""

    def width(self, raw: int) -> int:
        """Width of the policy's state for a raw state of width `raw`."""
        return raw

    def apply(self, state: Values) -> Values:
        return state


@dataclass(frozen=True, kw_only=True)
class ContinuousRotation:
    """State transform: a rotation of three or four values becomes the first two columns of its matrix, 6 values.

    Near half a turn an axis-angle flips its sign between frames although the hand hardly moves, and roll, pitch and yaw jump; a
    quaternion may turn its sign anywhere. The matrix does not.

    Deviation: the paper does not say how s_t represents rotation.
    """

    start: int = 3
    """Where the values are in the raw state."""
    rotation: StateRotationFormat = field(default_factory=AxisAngle)
    """What they are."""

    def width(self, raw: int) -> int:
        return raw + 6 - self.rotation.SIZE

    def apply(self, state: Values) -> Values:
        """The raw state (..., s) to the policy's state (..., s + 3), or + 2 of a quaternion.

        Raises:
            MismatchError: The state is too narrow to hold a rotation there.
        """
        size = self.rotation.SIZE
        if state.shape[-1] < self.start + size:
            number = {3: "three", 4: "four"}[size]
            raise MismatchError(
                f"a state of {state.shape[-1]} values has no rotation of {number} values at {self.start}; expected at least "
                f"{self.start + size} values, or another place"
            )
        if isinstance(state, Tensor):
            return torch.as_tensor(self.apply(state.detach().cpu().numpy()), dtype=state.dtype, device=state.device)
        before, angles, after = np.split(state, [self.start, self.start + size], axis=-1)
        columns = np.swapaxes(self.rotation.matrix(angles)[..., :2], -1, -2).reshape(*angles.shape[:-1], 6)
        return np.concatenate([before, columns.astype(state.dtype), after], axis=-1)


@dataclass(frozen=True, kw_only=True)
class NoState:
    """State transform: no proprioception at all (SimplerEnv's protocol has none)."""

    def width(self, raw: int) -> int:
        return 0

    def apply(self, state: Values) -> Values:
        return state[..., :0]


StateTransform = RawState | ContinuousRotation | NoState


def _dimensions(values: Float[np.ndarray, "n d"], masked: Sequence[int], binary: Sequence[int]) -> dict[str, Any]:
    """Counts negative dimensions from the end; those out of range are left for the constructor to refuse."""
    width = values.shape[1]
    return {
        name: tuple(index + width if -width <= index < 0 else index for index in chosen)
        for name, chosen in (("masked", masked), ("binary", binary))
    }


def _like(values: Any, constants: np.ndarray) -> Any:
    return values.new_tensor(constants) if isinstance(values, Tensor) else constants.astype(values.dtype)


def _plain(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
