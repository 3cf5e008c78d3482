"""Statistics of features as LeRobot v3 stores them: extremes, mean, spread and five quantiles per dimension.

Exact quantiles are computed once and kept beside the dataset until its data change. Images are summarised per channel, in [0, 1]
and of shape (3, 1, 1), from a sample of frames and pixels."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int64, Shaped, UInt8

from lamp.data.lerobot.format import Feature
from lamp.errors import DataError
from lamp.json_files import read_json_object, write_json
from lamp_client.child_processes import ProcessPool

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
IMAGE_SIDE = 128
"""Images are sampled on a pixel grid of about this many rows and columns."""


@dataclass(frozen=True, kw_only=True)
class FeatureStatistics:
    """One feature's statistics; arrays have the feature's shape, (3, 1, 1) for images."""

    min: Float64[np.ndarray, "*s"]
    max: Float64[np.ndarray, "*s"]
    mean: Float64[np.ndarray, "*s"]
    std: Float64[np.ndarray, "*s"]
    """Population standard deviation."""
    count: Int64[np.ndarray, "1"]
    """How many frames were summarised."""
    q01: Float64[np.ndarray, "*s"]
    q10: Float64[np.ndarray, "*s"]
    q50: Float64[np.ndarray, "*s"]
    q90: Float64[np.ndarray, "*s"]
    q99: Float64[np.ndarray, "*s"]

    def to_json(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name).tolist() for field in fields(self)}

    @classmethod
    def lacking(cls, obj: Any) -> list[str]:
        """Which statistics an entry does not have; all, where it is no entry."""
        if not isinstance(obj, Mapping):
            return [field.name for field in fields(cls)]
        return [field.name for field in fields(cls) if field.name not in obj]

    @classmethod
    def from_json(cls, obj: Any, *, where: str) -> FeatureStatistics:
        """Reads what `to_json` wrote, or LeRobot did.

        Raises:
            DataError: A statistic is missing, or is not what it should be: numbers, as many as the others.
        """
        missing = cls.lacking(obj)
        if missing:
            raise DataError(
                f"{where} lacks {', '.join(missing)}; expected LeRobot v3 statistics with quantiles, "
                "which its augment_dataset_quantile_stats script adds"
            )
        arrays = {field.name: _array(obj[field.name], f"{where}: {field.name}") for field in fields(cls)}
        shapes = {name: values.shape for name, values in arrays.items() if name != "count"}
        other = next((name for name, shape in shapes.items() if shape != shapes["mean"]), None)
        if other is not None:
            raise DataError(f"{where}: {other} has the shape {shapes[other]}, mean {shapes['mean']}; expected the same")
        if arrays["count"].size != 1 or not 0 <= arrays["count"].item() <= 1 << 53:
            raise DataError(f"{where}: count is {arrays['count'].tolist()!r:.60}; expected one number of frames")
        return cls(**(arrays | {"count": arrays["count"].reshape(1).astype(np.int64)}))


def _array(value: Any, where: str) -> Float64[np.ndarray, "*s"]:
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise DataError(f"{where} is no array of numbers; compute the statistics again") from None
    if not np.isfinite(array).all():
        raise DataError(f"{where} holds a value that is not finite; compute the statistics again")
    return array


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Extremes, mean and spread of one feature in each of many episodes: what adds up over them."""

    episode: Int64[np.ndarray, " e"]
    count: Int64[np.ndarray, " e"]
    values: Float64[np.ndarray, "e 4 *s"]
    """Minimum, maximum, mean and population standard deviation."""

    def of(self, name: str) -> np.ndarray:
        """One of them by LeRobot's name, an episode a row."""
        return self.count[:, None] if name == "count" else self.values[:, MOMENTS.index(name)]

    def together(self) -> Moments:
        """Of all episodes as one, which is called -1."""
        weights = self.count / self.count.sum()
        mean = np.tensordot(weights, self.of("mean"), axes=1)
        second = np.tensordot(weights, self.of("std") ** 2 + (self.of("mean") - mean) ** 2, axes=1)
        values = [self.of("min").min(0), self.of("max").max(0), mean, np.sqrt(second)]
        return Moments(episode=np.array([-1]), count=self.count.sum(keepdims=True), values=np.stack(values)[None])


MOMENTS = ("min", "max", "mean", "std")


def moments_of(
    values: Shaped[np.ndarray, " n *s"],
    start: Int64[np.ndarray, " e"],
    stop: Int64[np.ndarray, " e"],
    episode: Int64[np.ndarray, " e"],
) -> Moments:
    """Moments of the rows from `start` to `stop` of some episodes, none of them empty, in ascending order and apart."""
    first, end = int(start[0]), int(stop[-1])
    numbers = values[first:end].astype(np.float64).reshape(end - first, *(values.shape[1:] or (1,)))
    # Every second of these is a gap between two episodes, or nothing.
    places = np.stack([start, stop], axis=1).reshape(-1)[:-1] - first
    count = (stop - start).astype(np.int64)
    shape = (-1, *[1] * (numbers.ndim - 1))
    low, high, total = (of.reduceat(numbers, places, axis=0)[::2] for of in (np.minimum, np.maximum, np.add))
    mean = total / count.reshape(shape)
    row = np.zeros(end - first, np.int64)
    row[start[1:] - first] = 1
    numbers -= mean[row.cumsum()]
    square = np.add.reduceat(np.square(numbers, out=numbers), places, axis=0)[::2]
    spread = np.sqrt(square / count.reshape(shape))
    return Moments(episode=episode, count=count, values=np.stack([low, high, mean, spread], axis=1))


def joined(parts: Sequence[Moments]) -> Moments:
    """Moments of several parts' episodes."""
    if len(parts) == 1:
        return parts[0]
    return Moments(
        **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Moments)}
    )


def statistics_of(values: Shaped[np.ndarray, " n *s"]) -> FeatureStatistics:
    """Statistics over the first axis; a feature of one value per frame has shape (1,)."""
    numbers = values.astype(np.float64).reshape(len(values), *(values.shape[1:] or (1,)))
    quantiles = np.quantile(numbers, list(QUANTILES.values()), axis=0)
    return FeatureStatistics(
        min=numbers.min(0),
        max=numbers.max(0),
        mean=numbers.mean(0),
        std=numbers.std(0),
        count=np.array([len(numbers)]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    )


def image_statistics(images: UInt8[np.ndarray, "n h w 3"]) -> FeatureStatistics:
    """Per-channel statistics in [0, 1] of evenly spaced frames and pixels, exact over that sample."""
    frames = np.unique(np.linspace(0, len(images) - 1, min(len(images), max(32, round(len(images) ** 0.75)))).round())
    step = max(1, min(images.shape[1:3]) // IMAGE_SIDE)
    sample = images[frames.astype(int), ::step, ::step]
    counts = np.stack([np.bincount(sample[..., channel].ravel(), minlength=256) for channel in range(3)])
    levels = np.arange(256) / 255
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ levels
    spread = np.sqrt(np.maximum(share @ levels**2 - mean**2, 0))
    cumulative = counts.cumsum(1) / counts.sum(1, keepdims=True)

    def column(per_channel: Any) -> Float64[np.ndarray, "3 1 1"]:
        return np.asarray(per_channel, np.float64).reshape(3, 1, 1)

    return FeatureStatistics(
        min=column([levels[row > 0][0] for row in counts]),
        max=column([levels[row > 0][-1] for row in counts]),
        mean=column(mean),
        std=column(spread),
        count=np.array([len(frames)]),
        **{name: column([levels[np.searchsorted(row, q)] for row in cumulative]) for name, q in QUANTILES.items()},
    )


def aggregate(parts: Sequence[FeatureStatistics]) -> FeatureStatistics:
    """Statistics of the union of several parts: exact, except quantiles, which are averaged by count as LeRobot does."""
    counts = np.concatenate([part.count for part in parts])
    values = np.stack([[getattr(part, name) for name in MOMENTS] for part in parts])
    whole = Moments(episode=np.arange(len(parts)), count=counts, values=values).together()
    quantiles = {
        name: np.tensordot(counts / counts.sum(), np.stack([getattr(part, name) for part in parts]), axes=1)
        for name in QUANTILES
    }
    return FeatureStatistics(**dict(zip(MOMENTS, whole.values[0], strict=True)), count=whole.count, **quantiles)


FILE_NAME = "meta/lamp_statistics.json"
FORMAT, VERSION = "lamp-statistics", 1


@runtime_checkable
class ColumnSource(Protocol):
    """What statistics are computed of."""

    root: Path
    features: dict[str, Feature]

    def all_values(self, name: str) -> np.ndarray:
        """A feature's values in all episodes."""
        ...


def stored_statistics(dataset: ColumnSource, *, processes: int = 1) -> Mapping[str, FeatureStatistics]:
    """Statistics of every numeric feature over all frames; read where they are kept and the data are still the same.

    Args:
        dataset: The dataset. Where its folder cannot be written to, nothing is kept.
        processes: Worker processes, a feature each; 1 works in this one.

    Raises:
        DataError: The data cannot be read.
    """
    path, mark = dataset.root / FILE_NAME, _data_state(dataset)
    kept = _read_stored(path, mark)
    if kept is not None:
        return kept
    names = list(dataset.features)
    if processes <= 1 or len(names) <= 1:
        parts = [_of_feature(dataset, name) for name in names]
    else:
        with ProcessPool(min(processes, len(names))) as pool:
            parts = list(pool.map(_of_feature, [dataset] * len(names), names))
    statistics_by_name = dict(zip(names, parts, strict=True))
    features = {name: statistics.to_json() for name, statistics in statistics_by_name.items()}
    with contextlib.suppress(OSError):  # a dataset on a read-only disk: computed anew each time
        write_json(path, {"format": FORMAT, "version": VERSION, "data": mark, "features": features})
    return statistics_by_name


def _of_feature(dataset: ColumnSource, name: str) -> FeatureStatistics:
    return statistics_of(dataset.all_values(name))


def _read_stored(path: Path, mark: str) -> dict[str, FeatureStatistics] | None:
    """What the file holds, if it is of these data."""
    if not path.is_file():
        return None
    try:
        stored = read_json_object(path, "file of statistics")
        if (stored.get("format"), stored.get("version"), stored.get("data")) != (FORMAT, VERSION, mark):
            return None
        return {
            name: FeatureStatistics.from_json(entry, where=f"{path}: {name}")
            for name, entry in stored["features"].items()
        }
    except (DataError, AttributeError, KeyError, TypeError):
        return None  # damaged: computed again


def _data_state(dataset: ColumnSource) -> str:
    """Tells one state of the data from another by files, sizes and times, without reading gigabytes."""
    digest = hashlib.sha256(repr(sorted(dataset.features.items())).encode())
    for path in sorted((dataset.root / "data").rglob("*.parquet")):
        state = path.stat()
        digest.update(f"{path.relative_to(dataset.root)} {state.st_size} {state.st_mtime_ns}\n".encode())
    info = dataset.root / "meta/info.json"
    digest.update(info.read_bytes())
    return digest.hexdigest()[:32]
