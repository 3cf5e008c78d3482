"""One episode and camera of the scene-flow store, as Zarr arrays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import Int
from zarr.codecs import BloscCodec, Crc32cCodec

from lamp.errors import ConfigError, DataError, MismatchError
from lamp.files import safe_file_name
from lamp.types import Camera, Tracks

MAX_FRAMES_PER_SHARD = 1024


@dataclass(frozen=True, kw_only=True)
class CameraFlow:
    """An episode's scene flow in one camera."""

    frames: Int[np.ndarray, " f"]
    tracks: Tracks
    """With the frames as only batch axis."""
    camera: Camera


@dataclass(frozen=True, kw_only=True)
class StoredEpisode:
    """An opened episode and camera: small arrays in memory, large ones on disk."""

    folder: Path
    frames: np.ndarray
    intrinsics: np.ndarray
    world_from_cam: np.ndarray
    large: dict[str, Any] = field(repr=False)

    @classmethod
    def open(cls, folder: Path, camera: str) -> StoredEpisode:
        group = zarr.open_group(folder / safe_file_name(camera), mode="r", zarr_format=3)
        small = {name: np.asarray(_array(group, name)[...]) for name in ("frames", "intrinsics", "world_from_cam")}
        return cls(folder=folder, large={name: _array(group, name) for name in ("points", "visible", "valid")}, **small)

    def rows(self, frames: np.ndarray) -> np.ndarray:
        """Entries of the given frames."""
        rows = np.searchsorted(self.frames, frames).clip(max=len(self.frames) - 1)
        missing = frames[self.frames[rows] != frames]
        if len(missing):
            raise DataError(
                f"frame {missing[0]} has no scene flow in {self.folder}; stored are {len(self.frames)} frames from "
                f"{self.frames[0]} to {self.frames[-1]}"
            )
        return rows

    def entries(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Rows of a large array; many of them are read in one go."""
        array = self.large[name]
        with readable(self.folder):
            if len(rows) * 4 > len(self.frames):
                return np.asarray(array[...])[rows]
            return np.stack([np.asarray(array[int(row)]) for row in rows]) if len(rows) else np.asarray(array[:0])


def _array(group: zarr.Group, name: str) -> Any:
    return group[name]


def write_camera(group: zarr.Group, flow: CameraFlow) -> None:
    """Writes the arrays of one camera into its group."""
    tracks = {"points": flow.tracks.points, "visible": flow.tracks.visible, "valid": flow.tracks.valid}
    for name, tensor in tracks.items():
        values = tensor.numpy(force=True)
        group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=(1, *values.shape[1:]),
            shards=(min(max(len(values), 1), MAX_FRAMES_PER_SHARD), *values.shape[1:]),
            compressors=[BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"), Crc32cCodec()],
            dimension_names=["frame", "keypoint", "moment", "uvd"][: values.ndim],
        )[...] = values
    small = {"intrinsics": flow.camera.intrinsics.double(), "world_from_cam": flow.camera.world_from_cam.double()}
    for name, tensor in small.items():
        group.create_array(name, data=tensor.numpy(force=True), compressors=[Crc32cCodec()])
    group.create_array("frames", data=flow.frames.astype(np.int32), compressors=[Crc32cCodec()])


def check_files(folder: Path) -> None:
    """Zarr reads a missing shard as zeros; the sizes written last tell it from a whole one."""
    sizes: Any = zarr.open_group(folder, mode="r", zarr_format=3).attrs["files"]
    for name, size in sizes.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            raise ValueError(f"{name} has {found or 'no'} bytes, {size} were written")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns whatever Zarr raises over broken files into one line."""
    try:
        yield
    except (DataError, MismatchError, ConfigError):
        raise
    except Exception as error:
        raise DataError(
            f"cannot read the scene flow in {path} ({type(error).__name__}: {error}); "
            "remove that folder and run `lamp flow build` again"
        ) from None
