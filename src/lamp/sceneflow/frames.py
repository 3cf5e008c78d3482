"""Which frames of a dataset have an image of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lamp.errors import DataError, unreadable


def reference_frames(root: Path, lengths: dict[int, int], every: int) -> dict[int, np.ndarray]:
    """Every n-th frame whose image is its own (`observation.fresh`), by episode; all are where the dataset does not say.

    Raises:
        DataError: The dataset's frames are unreadable, or do not fit the recordings.
    """
    fresh = {episode: np.ones(length, bool) for episode, length in lengths.items()}
    columns = ["episode_index", "frame_index", "observation.fresh"]
    for file in sorted(root.glob("data/chunk-*/file-*.parquet")):
        try:
            if columns[-1] not in pq.read_schema(file).names:
                continue
            table = pq.read_table(file, columns=columns)
        except (OSError, pa.ArrowException) as error:
            damaged = DataError(f"cannot read {file} ({error}); restore the dataset or collect it again")
            raise unreadable(file, error, damaged) from None
        episodes, frames, values = (np.array(table[name].to_pylist()).reshape(len(table)) for name in columns)
        for episode in np.unique(episodes).tolist():
            if episode not in fresh:
                continue
            rows = episodes == episode
            if rows.sum() != lengths[episode]:
                raise DataError(
                    f"episode {episode} has {rows.sum()} frames in {file} but {lengths[episode]} in its recorded simulation; "
                    "expected as many; collect it again"
                )
            fresh[episode][frames[rows]] = values[rows]
    return {episode: np.flatnonzero(mask)[::every] for episode, mask in fresh.items()}
