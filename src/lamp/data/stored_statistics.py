"""Statistics of a dataset's numbers, computed once with exact quantiles and kept beside it until its data change."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from lamp.data.lerobot_format import Feature
from lamp.data.statistics import FeatureStatistics, statistics_of
from lamp.errors import DataError
from lamp.files import read_json, write_json
from lamp_client.child_processes import ProcessPool

FILE_NAME = "meta/lamp_statistics.json"
FORMAT, VERSION = "lamp-statistics", 1


@runtime_checkable
class Columns(Protocol):
    """What statistics are computed of."""

    root: Path
    features: dict[str, Feature]

    def all_values(self, name: str) -> np.ndarray:
        """A feature's values in all episodes."""
        ...


def stored_statistics(dataset: Columns, *, processes: int = 1) -> Mapping[str, FeatureStatistics]:
    """Statistics of every numeric feature over all frames; read where they are kept and the data are still the same.

    Args:
        dataset: The dataset. Where its folder cannot be written to, nothing is kept.
        processes: Worker processes, a feature each; 1 works in this one.

    Raises:
        DataError: The data cannot be read.
    """
    path, mark = dataset.root / FILE_NAME, _mark(dataset)
    kept = _kept(path, mark)
    if kept is not None:
        return kept
    names = list(dataset.features)
    if processes <= 1 or len(names) <= 1:
        parts = [_of_feature(dataset, name) for name in names]
    else:
        with ProcessPool(min(processes, len(names))) as pool:
            parts = list(pool.map(_of_feature, [dataset] * len(names), names))
    found = dict(zip(names, parts, strict=True))
    features = {name: statistics.to_json() for name, statistics in found.items()}
    with contextlib.suppress(OSError):  # a dataset on a read-only disk: computed anew each time
        write_json(path, {"format": FORMAT, "version": VERSION, "data": mark, "features": features})
    return found


def _of_feature(dataset: Columns, name: str) -> FeatureStatistics:
    return statistics_of(dataset.all_values(name))


def _kept(path: Path, mark: str) -> dict[str, FeatureStatistics] | None:
    """What the file holds, if it is of these data."""
    if not path.is_file():
        return None
    try:
        found = read_json(path, "file of statistics")
        if (found.get("format"), found.get("version"), found.get("data")) != (FORMAT, VERSION, mark):
            return None
        return {
            name: FeatureStatistics.from_json(entry, where=f"{path}: {name}")
            for name, entry in found["features"].items()
        }
    except (DataError, AttributeError, KeyError, TypeError):
        return None  # damaged: computed again


def _mark(dataset: Columns) -> str:
    """Tells one state of the data from another by files, sizes and times, without reading gigabytes."""
    digest = hashlib.sha256(repr(sorted(dataset.features.items())).encode())
    for path in sorted((dataset.root / "data").rglob("*.parquet")):
        state = path.stat()
        digest.update(f"{path.relative_to(dataset.root)} {state.st_size} {state.st_mtime_ns}\n".encode())
    info = dataset.root / "meta/info.json"
    digest.update(info.read_bytes())
    return digest.hexdigest()[:32]
