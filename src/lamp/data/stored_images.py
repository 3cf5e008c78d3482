"""Pictures and depth maps that are kept as encoded images in a dataset's data files, and depth in metres.

LeRobot keeps depth in three ways. A video holds 12-bit codes in its luma, spaced evenly in depth or in log(depth + shift)
between `depth_min` and `depth_max`; code 0 is what the sensor did not see, and a value at `depth_max` may have been any larger
one. Images hold millimetres as integers, or metres as floating point. Unknown depth is NaN.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float32, UInt8, UInt16
from PIL import Image

from lamp.data.lerobot.episodes import open_parquet
from lamp.data.lerobot.format import CameraFeature, DepthFeature
from lamp.errors import DataError
from lamp.files import path_inside

LARGEST_CODE = 4095
"""Of LeRobot's quantised depth, whatever the video's format."""
MILLIMETRE = 1e-3


def bits_of(kind: av.VideoFormat) -> int:
    """Of each value of a pixel format."""
    components: Sequence[Any] = kind.components
    return components[0].bits if components else 8


def luma(frame: av.VideoFrame, path: Path) -> UInt16[np.ndarray, "h w"]:
    """The codes that a frame holds, untouched by any conversion of colours.

    Raises:
        DataError: The frame has 8 bits, or colours.
    """
    kind = frame.format
    _check_bits(kind, path)
    plane = frame.planes[0]
    codes = np.frombuffer(bytes(plane), ">u2" if kind.is_big_endian else "<u2").reshape(
        plane.height, plane.line_size // 2
    )
    return codes[:, : plane.width].astype(np.uint16)


def _check_bits(kind: av.VideoFormat, path: Path) -> None:
    bits = bits_of(kind)
    if kind.is_rgb or bits <= 8:
        raise DataError(
            f"the video {path} is {kind.name}, of {bits} bits: it shows depth, but not in metres; expected "
            "gray12le or gray16le with more than 8 bits"
        )


def check_video_of_depth(kind: av.VideoFormat, depth: DepthFeature, path: Path) -> None:
    """
    Raises:
        DataError: A video of this pixel format holds no depth in metres.
    """
    _check_bits(kind, path)
    if depth.code is None and bits_of(kind) != 16:
        raise _no_code(depth, bits_of(kind), f"the video {path}")


def _no_code(depth: DepthFeature, bits: int, where: str) -> DataError:
    return DataError(
        f"{where} holds depth in {bits} bits, and the description of {depth.key} lacks the depth they stand for; expected "
        "info with video.depth_min, video.depth_max, video.shift and video.use_log, as LeRobot writes them"
    )


def metres_of_codes(
    codes: UInt16[np.ndarray, "n h w"], depth: DepthFeature, bits: int, where: str
) -> Float32[np.ndarray, "n h w"]:
    """Metres of a video's codes; NaN where nothing was seen.

    Args:
        codes: As `luma` gives them.
        bits: Of the video's format.

    Raises:
        DataError: The description lacks the depth that the codes stand for, or the values are no codes.
    """
    code = depth.code
    if code is None and bits == 16:
        metres = codes.astype(np.float32) * np.float32(depth.unit or MILLIMETRE)
    elif code is None:
        raise _no_code(depth, bits, where)
    else:
        if codes.size and codes.max() > LARGEST_CODE:
            raise DataError(f"{where} holds the code {codes.max()}; expected 12-bit codes, 0 to {LARGEST_CODE}")
        share = np.arange(LARGEST_CODE + 1) / LARGEST_CODE
        if code.use_log:
            low, high = (math.log(end + code.shift) for end in (code.depth_min, code.depth_max))
            table = np.exp(low + share * (high - low)) - code.shift
        else:
            table = code.depth_min + share * (code.depth_max - code.depth_min)
        metres = np.clip(table, code.depth_min, code.depth_max).astype(np.float32)[codes]
    metres[codes == 0] = np.nan
    return metres


def metres_of_image(image: Image.Image, depth: DepthFeature, where: str) -> Float32[np.ndarray, "h w"]:
    """Metres of a depth image; NaN where it is 0, negative or not finite.

    Raises:
        DataError: It is a picture of depth, of 8 bits or in colours.
    """
    if image.mode.startswith("I"):
        unit = depth.unit or MILLIMETRE
    elif image.mode == "F":
        unit = depth.unit or 1.0
    else:
        raise DataError(
            f"{where} is a picture of depth ({image.mode}, 8 bits), not depth in metres; expected 16-bit millimetres or "
            "floating-point metres"
        )
    metres = (np.asarray(image).astype(np.float64) * unit).astype(np.float32)
    metres[~(np.isfinite(metres) & (metres > 0))] = np.nan
    return metres


IMAGES_AT_ONCE = 64
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "PPM")
BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, OverflowError, MemoryError,
    Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow raises for content that is no image, or no longer."""
GROUPS_KEPT = 4
"""Row groups of encoded images that stay in memory."""


class CorruptPicturesError(DataError):
    """An episode's pictures cannot be read; holds file and episode, so that a caller can go on without it."""

    def __init__(self, message: str, *, path: Path, episode: int):
        super().__init__(message)
        self.path, self.episode = path, episode

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles with all fields: worker processes send their errors to the parent."""
        return partial(CorruptPicturesError, path=self.path, episode=self.episode), (str(self),)


OnCorrupt = Literal["refuse", "leave_out"]
"""Pictures that cannot be read end the work with an error that names file and episode, or what needs them is left out, named and
counted; nothing else takes its place."""


def image_digests(path: Path, key: str, root: Path) -> list[bytes]:
    """Hashes of the encoded images in a column of a data file, row by row, without decoding.

    Args:
        root: The dataset's folder, to which names of files are relative.

    Raises:
        DataError: The file is missing or corrupt, or lacks the column.
    """
    digests = []
    with open_parquet(path, [key]) as file:
        for batch in file.iter_batches(IMAGES_AT_ONCE, columns=[key]):
            for value in batch.column(0).to_pylist():
                content, name = _content_and_name(value)
                digest = hashlib.sha1(content or str(name).encode(), usedforsecurity=False)
                if not content:
                    named = path_inside(root, str(name), f"image path of {key} in {path}")
                    digest.update(named.read_bytes() if named.is_file() else b"")
                digests.append(digest.digest())
    return digests


def _content_and_name(value: Any) -> tuple[Any, Any]:
    """The encoded image in a cell, and the name of its file; LeRobot keeps one of the two."""
    return (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)


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
        images = [self._decoded(value, camera, where) for value, where in self._with_places(path, camera, rows)]
        return np.stack(images) if images else np.empty((0, camera.height, camera.width, 3), np.uint8)

    def read_depth(self, path: Path, depth: DepthFeature, rows: np.ndarray) -> Float32[np.ndarray, "n h w"]:
        """Decodes the depth of some rows of a data file, in metres; NaN where it is not known.

        Raises:
            DataError: The file is missing or corrupt, lacks the column or a row, or an image holds no depth.
        """
        maps = [
            metres_of_image(self._opened(value, depth, where), depth, where)
            for value, where in self._with_places(path, depth, rows)
        ]
        return np.stack(maps) if maps else np.empty((0, depth.height, depth.width), np.float32)

    def check(self, path: Path, camera: CameraFeature, row: int) -> None:
        """Decodes an image.

        Raises:
            DataError: It cannot be read, or is not what it should be, such as a picture of depth without its metres.
        """
        read: Any = self.read_depth if camera.is_depth else self.read
        read(path, camera, np.array([row]))

    def _with_places(self, path: Path, camera: CameraFeature, rows: np.ndarray) -> Iterator[tuple[Any, str]]:
        for row, value in zip(rows.tolist(), self._values(path, camera.key, rows), strict=True):
            yield value, f"{camera.key} in row {row} of {path}"

    def _values(self, path: Path, key: str, rows: np.ndarray) -> list[Any]:
        with open_parquet(path, [key]) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            starts = np.concatenate([[0], np.cumsum(sizes)])
            if len(rows) and rows.max() >= starts[-1]:
                raise DataError(f"{path} ends before row {rows.max()}: it has {starts[-1]}; it is incomplete")
            groups = np.searchsorted(starts, rows, side="right") - 1
            return [
                self._group(file, path, key, int(group))[int(row - starts[group])]
                for row, group in zip(rows, groups, strict=True)
            ]

    def _group(self, file: pq.ParquetFile, path: Path, key: str, group: int) -> list[Any]:
        place = path, key, group
        if place not in self._kept:
            self._kept[place] = file.read_row_group(group, columns=[key])[key].to_pylist()
            if len(self._kept) > GROUPS_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(place)
        return self._kept[place]

    def _opened(self, value: Any, camera: CameraFeature, where: str) -> Image.Image:
        content, name = _content_and_name(value)
        if not content and isinstance(name, str) and name:
            path = path_inside(self._root, name, f"image path of {where}")
            if not path.is_file():
                raise DataError(f"{where} is in {path}, which is not there; the dataset is incomplete")
            content = path.read_bytes()
        if not content:
            raise DataError(f"{where} is empty; expected an encoded image")
        if not isinstance(content, bytes):
            raise DataError(f"{where} is {type(content).__name__}; expected an encoded image")
        try:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            # Before anything is decoded: a small file may claim to be a huge picture.
            if (image.height, image.width) != (camera.height, camera.width):
                raise DataError(
                    f"{where} is {image.height}x{image.width}; the description says {camera.height}x{camera.width}"
                )
            image.load()
        except BROKEN as error:
            raise DataError(f"{where} is no image ({error}); it is corrupt") from None
        return image

    def _decoded(self, value: Any, camera: CameraFeature, where: str) -> UInt8[np.ndarray, "h w 3"]:
        """Colours as they were recorded: gray is spread over them, a palette looked up, what is transparent shown as it is."""
        image = self._opened(value, camera, where)
        if image.mode[0] in "IF":
            raise DataError(
                f"{where} is gray of more than 8 bits ({image.mode}), which no picture of 8 bits shows; expected colours, or "
                "info.is_depth_map in its description if it is depth"
            )
        return np.asarray(image.convert("RGB"))
