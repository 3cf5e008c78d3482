"""Pictures that are kept as encoded images in a dataset's data files, one a row, instead of in videos."""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8
from PIL import Image

from lamp.data.description import CameraFeature
from lamp.errors import DataError, unreadable

IMAGES_AT_ONCE = 64
GROUPS_KEPT = 4
"""Row groups of encoded images that stay in memory."""


class CorruptPicturesError(DataError):
    """An episode's pictures cannot be read; says where, for those who wish to go on without it."""

    def __init__(self, message: str, *, path: Path, episode: int):
        super().__init__(message)
        self.path, self.episode = path, episode

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors of worker processes are sent to the one that asked."""
        return _corrupt, (str(self), self.path, self.episode)


def _corrupt(message: str, path: Path, episode: int) -> CorruptPicturesError:
    return CorruptPicturesError(message, path=path, episode=episode)


@dataclass(frozen=True, kw_only=True)
class Refuse:
    """Pictures that cannot be read end the work; the error names file and episode."""


@dataclass(frozen=True, kw_only=True)
class LeaveOut:
    """What needs pictures that cannot be read is left out, named and counted; nothing else takes its place."""


OnCorrupt = Refuse | LeaveOut


def image_digests(path: Path, key: str, root: Path) -> list[bytes]:
    """Hashes of the encoded images in a column of a data file, row by row, without decoding.

    Args:
        path: The data file.
        key: The column.
        root: The dataset's folder, to which names of files are relative.

    Raises:
        DataError: The file is missing or corrupt, or lacks the column.
    """
    if not path.is_file():
        raise DataError(f"no file {path}; the dataset is incomplete")
    digests = []
    try:
        with pq.ParquetFile(path) as file:
            if key not in file.schema_arrow.names:
                raise DataError(f"{path} lacks the column {key}; it has {', '.join(file.schema_arrow.names)}")
            for batch in file.iter_batches(IMAGES_AT_ONCE, columns=[key]):
                for value in batch.column(0).to_pylist():
                    found = value if isinstance(value, Mapping) else {"bytes": value}
                    content = found.get("bytes") or str(found.get("path")).encode()
                    digest = hashlib.sha1(content, usedforsecurity=False)
                    if not found.get("bytes") and (named := root / str(found.get("path"))).is_file():
                        digest.update(named.read_bytes())
                    digests.append(digest.digest())
    except (pa.ArrowException, OSError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"cannot read {path} ({reason}); it is truncated or corrupt") from None
    return digests


class StoredImages:
    """Reads images out of Parquet columns, as LeRobot writes them: PNG bytes, or the name of a file."""

    def __init__(self, root: Path):
        self._root = root
        self._kept: OrderedDict[tuple[Path, str, int], list[Any]] = OrderedDict()

    def read(self, path: Path, camera: CameraFeature, rows: np.ndarray) -> UInt8[np.ndarray, "n h w 3"]:
        """Decodes the images of some rows of a data file.

        Raises:
            DataError: The file is missing or corrupt, lacks the column or a row, or an image is not what it should be.
        """
        out = np.empty((len(rows), camera.height, camera.width, 3), np.uint8)
        for place, (row, value) in enumerate(zip(rows.tolist(), self._values(path, camera.key, rows), strict=True)):
            out[place] = self._decoded(value, camera, f"{camera.key} in row {row} of {path}")
        return out

    def _values(self, path: Path, key: str, rows: np.ndarray) -> list[Any]:
        if not path.is_file():
            raise DataError(f"no file {path}; the dataset is incomplete")
        try:
            with pq.ParquetFile(path) as file:
                if key not in file.schema_arrow.names:
                    raise DataError(f"{path} lacks the column {key}; it has {', '.join(file.schema_arrow.names)}")
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
                starts = np.concatenate([[0], np.cumsum(sizes)])
                if len(rows) and rows.max() >= starts[-1]:
                    raise DataError(f"{path} ends before row {rows.max()}: it has {starts[-1]}; it is incomplete")
                groups = np.searchsorted(starts, rows, side="right") - 1
                return [
                    self._group(file, path, key, int(group))[int(row - starts[group])]
                    for row, group in zip(rows, groups, strict=True)
                ]
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            damaged = DataError(f"cannot read {path} ({reason}); it is truncated or corrupt")
            raise unreadable(path, error, damaged) from None

    def _group(self, file: pq.ParquetFile, path: Path, key: str, group: int) -> list[Any]:
        place = path, key, group
        if place not in self._kept:
            self._kept[place] = file.read_row_group(group, columns=[key])[key].to_pylist()
            if len(self._kept) > GROUPS_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(place)
        return self._kept[place]

    def _decoded(self, value: Any, camera: CameraFeature, where: str) -> UInt8[np.ndarray, "h w 3"]:
        content = value.get("bytes") if isinstance(value, dict) else value
        try:
            if not content and isinstance(value, dict) and value.get("path"):
                content = (self._root / value["path"]).read_bytes()
            if not content:
                raise DataError(f"{where} is empty; expected an encoded image")
            image = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        except OSError as error:
            raise DataError(f"{where} is no image ({error}); it is corrupt") from None
        if image.shape[:2] != (camera.height, camera.width):
            raise DataError(
                f"{where} is {image.shape[0]}x{image.shape[1]}; the description says {camera.height}x{camera.width}"
            )
        return image
