"""Frames of a recording: of a video, or of a folder of images."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

from lamp.data.lerobot.video import naming_video_errors
from lamp.data.stored_images import BROKEN, luma
from lamp.errors import DataError

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def as_colours(value: np.ndarray, name: str) -> UInt8[np.ndarray, "h w 3"]:
    if value.dtype != np.uint8:
        raise DataError(f"{name}: an image holds {value.dtype} values; expected 8-bit colours")
    return value if value.ndim == 3 else np.repeat(value[..., None], 3, axis=2)


def images_in(folder: Path) -> list[Path]:
    """Images of a folder, in the order of the numbers in their names."""
    found = [item for item in folder.iterdir() if item.suffix.lower() in (*IMAGES, ".npy") and item.name[0] != "."]
    return sorted(found, key=lambda item: ([int(number) for number in re.findall(r"\d+", item.stem)], item.name))


def frames_of(path: Path, name: str) -> VideoFrames | ImageFrames:
    return ImageFrames(path, name) if path.is_dir() else VideoFrames(path, name)


@dataclass
class ImageFrames:
    """Images of a folder."""

    path: Path
    name: str
    fps: float | None = None
    _size: tuple[int, ...] | None = field(default=None, repr=False)

    @cached_property
    def files(self) -> list[Path]:
        return images_in(self.path)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, first: int, last: int) -> list[np.ndarray]:
        """Some of the images, all of one size.

        Raises:
            DataError: One is damaged, or of another size.
        """
        found = []
        for file in self.files[first:last]:
            value = _read_image(file)
            self._size = self._size or value.shape[:2]
            if value.shape[:2] != self._size:
                raise DataError(
                    f"{self.name}: {file.name} is {value.shape[1]}x{value.shape[0]} px and those before are "
                    f"{self._size[1]}x{self._size[0]}; expected one size"
                )
            found.append(value)
        return found


def _read_image(file: Path) -> np.ndarray:
    try:
        if file.suffix.lower() == ".npy":
            return np.load(file, allow_pickle=False)
        with Image.open(file) as image:
            if image.mode.startswith("I") or image.mode == "F":
                value = np.asarray(image)
                return value.astype(np.uint16) if value.dtype.kind in "iu" and value.max(initial=0) < 1 << 16 else value
            return np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except BROKEN as error:
        raise DataError(f"cannot read the image {file} ({error}); it is truncated or corrupt") from None


EVEN_OUT = " (ffmpeg -i IN -vf fps=RATE OUT makes it so)"


def even_rate(times: Float64[np.ndarray, " n"], what: str, *, tick: float = 0.0, advice: str = "") -> float:
    """Frames a second of frames at these times [s].

    Args:
        tick: By so much times are rounded. [s]

    Raises:
        DataError: They are not even.
    """
    steps = np.diff(times)
    usual = float(np.median(steps))
    if usual <= 0 or np.abs(steps - usual).max() > max(0.02 * usual, 1.01 * tick, 0.0011):
        raise DataError(
            f"{what} has a variable frame rate, {1000 * steps.min():.1f} to {1000 * steps.max():.1f} ms a frame; expected an "
            f"even one{advice}"
        )
    return (len(times) - 1) / float(times[-1] - times[0])


class VideoFrames:
    """Frames of a video at an even rate, read forwards; a window may begin before the end of the last one."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        with naming_video_errors(path), av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path} holds no video")
            stream = container.streams.video[0]
            times = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
            base = stream.time_base
            gray = stream.codec_context.format
        if len(times) < 2 or base is None:
            raise DataError(f"{path} holds {len(times)} frames; motion needs at least 2")
        seconds = np.array(times) * float(base)
        self.fps: float | None = even_rate(seconds, f"{name}: {path.name}", tick=float(base), advice=EVEN_OUT)
        self._length, self._raw = len(times), gray is not None and gray.name.startswith("gray") and gray.name != "gray"
        self._kept: dict[int, np.ndarray] = {}
        self._next, self._frames = 0, iter(())

    def __len__(self) -> int:
        return self._length

    def read(self, first: int, last: int) -> list[np.ndarray]:
        """Some of the frames.

        Raises:
            DataError: The video is corrupt, or changes its size.
        """
        if first < min(self._kept, default=self._next):
            self._kept, self._next, self._frames = {}, 0, self._decoded()
        elif self._next == 0:
            self._frames = self._decoded()
        self._kept = {index: value for index, value in self._kept.items() if index >= first}
        while self._next < last:
            value = next(self._frames, None)
            if value is None:
                raise DataError(
                    f"{self.name}: {self.path.name} ends after {self._next} of its {self._length} frames; it is truncated or "
                    "corrupt"
                )
            if self._next >= first:
                self._kept[self._next] = value
            self._next += 1
        return [self._kept[index] for index in range(first, last)]

    def _decoded(self) -> Iterator[np.ndarray]:
        size: tuple[int, int] | None = None
        with naming_video_errors(self.path), av.open(str(self.path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                size = size or (frame.width, frame.height)
                if (frame.width, frame.height) != size:
                    raise DataError(
                        f"{self.name}: the camera changes its resolution in {self.path.name}, from {size[0]}x{size[1]} to "
                        f"{frame.width}x{frame.height} px; expected one size"
                    )
                yield luma(frame, self.path) if self._raw else frame.to_ndarray(format="rgb24")
