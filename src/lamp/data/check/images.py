"""Faults of a dataset's pictures: videos that are missing, short, of another size or rate, or that do not decode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from lamp.data.check.faults import DatasetFault
from lamp.data.lerobot.episodes import EpisodeMetadata
from lamp.data.lerobot.format import CameraFeature, DepthFeature
from lamp.data.lerobot.video import naming_video_errors, open_video
from lamp.data.stored_images import StoredImages, check_video_of_depth
from lamp.errors import DataError


@dataclass(frozen=True, kw_only=True)
class PictureFile:
    """A file that should hold a camera's pictures of some episodes."""

    root: Path
    path: Path
    camera: CameraFeature
    episodes: tuple[EpisodeMetadata, ...]
    firsts: tuple[int, ...]
    """Number, in the file, of each episode's first picture."""
    fps: float
    whole: bool
    """Whether the file holds these episodes and nothing else."""
    decode: bool

    def fault(self, problem: str, number: int | None = None) -> DatasetFault:
        """A fault at one of the file's pictures, or of the file."""
        name = str(self.path.relative_to(self.root))
        place = None if number is None else self._place(number)
        if place is None:
            episode = self.episodes[0].index if len(self.episodes) == 1 else None
            return DatasetFault(problem=problem, file=name, episode=episode, key=self.camera.key)
        return DatasetFault(problem=problem, file=name, episode=place[0], frame=place[1], key=self.camera.key)

    def _place(self, number: int) -> tuple[int, int] | None:
        for episode, first in zip(self.episodes, self.firsts, strict=True):
            if first <= number < first + episode.length:
                return episode.index, number - first
        return None


@dataclass(frozen=True, kw_only=True)
class PictureFileResult:
    """What one file holds."""

    faults: tuple[DatasetFault, ...]
    count: int


def check_pictures(file: PictureFile) -> PictureFileResult:
    """Reads a file's pictures."""
    if not file.camera.in_videos:
        return _check_images(file)
    try:
        with naming_video_errors(file.path):
            container, stream = open_video(file.path)
            with container:
                faults = [*_check_stream(file, stream)]
                numbers = _numbers(container, stream, file.fps)
                faults += _check_numbers(file, numbers)
        if file.decode:
            faults += _check_decoding(file, len(numbers))
    except DataError as error:
        return PictureFileResult(faults=tuple(file.fault(str(error), first) for first in file.firsts), count=0)
    return PictureFileResult(faults=tuple(faults), count=len(numbers))


def _check_stream(file: PictureFile, stream: VideoStream) -> Iterator[DatasetFault]:
    """Size and rate, depth without known metres, and pictures claimed by two episodes."""
    context, camera = stream.codec_context, file.camera
    if (context.height, context.width) != (camera.height, camera.width):
        problem = f"is {context.height}x{context.width}; the description says {camera.height}x{camera.width}"
        yield file.fault(problem)
    rate = float(stream.average_rate) if stream.average_rate else 0.0
    if rate and abs(rate - file.fps) > 0.01 * file.fps:
        yield file.fault(f"runs at {rate:.4g} fps; the description says {file.fps:g}")
    if isinstance(camera, DepthFeature) and context.format is not None:
        try:
            check_video_of_depth(context.format, camera, file.path)
        except DataError as error:
            yield file.fault(str(error))
    spans = sorted(zip(file.firsts, (episode.length for episode in file.episodes), strict=True))
    for (first, length), (later, _) in pairwise(spans):
        if later < first + length:
            yield file.fault("shares pictures with the episode before it; expected each in one episode", later)


def _numbers(container: InputContainer, stream: VideoStream, fps: float) -> list[int]:
    """The numbers of the pictures, by their times of display."""
    times = [float(packet.pts * packet.time_base) for packet in container.demux(stream) if packet.pts is not None]
    return sorted(round(time * fps) for time in times)


def _check_numbers(file: PictureFile, numbers: Sequence[int]) -> Iterator[DatasetFault]:
    present = np.array(numbers, np.int64)
    needed = max((first + episode.length for first, episode in zip(file.firsts, file.episodes, strict=True)), default=0)
    gaps = np.flatnonzero(present != np.arange(len(present)))
    if len(gaps):
        number = int(gaps[0])
        shown, expected = present[number] / file.fps, number / file.fps
        problem = f"picture {number} of the video is shown at {shown:.6g} s; expected {expected:.6g} s"
        yield file.fault(problem, number)
    for episode, first in zip(file.episodes, file.firsts, strict=True):
        have = max(0, min(len(present) - first, episode.length))
        if have < episode.length:
            problem = f"the video ends after {have} pictures of the episode; expected {episode.length}"
            name = str(file.path.relative_to(file.root))
            yield DatasetFault(problem=problem, file=name, episode=episode.index, frame=have, key=file.camera.key)
    if file.whole and len(present) > needed:
        yield file.fault(f"the video has {len(present)} pictures; expected {needed}")


def _check_decoding(file: PictureFile, count: int) -> Iterator[DatasetFault]:
    """Decodes everything; a frame that the decoder repaired or dropped is a fault too."""
    decoded = 0
    container, stream = open_video(file.path)
    with container:
        try:
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    yield file.fault("the picture is corrupt", decoded)
                decoded += 1
        except FFmpegError as error:
            yield file.fault(f"the picture does not decode ({error.strerror}); the video is corrupt", decoded)
            return
    if decoded < count:
        yield file.fault(f"only {decoded} of {count} pictures decode; the video is corrupt", decoded)


def _check_images(file: PictureFile) -> PictureFileResult:
    """Images in a data file, one a row. A file that is missing is the data file's own fault."""
    images, faults, count = StoredImages(file.root), [], 0
    for episode, first in zip(file.episodes, file.firsts, strict=True):
        for number in range(first, first + episode.length) if file.path.is_file() else ():
            try:
                images.check(file.path, file.camera, number)
                count += 1
            except DataError as error:
                faults.append(file.fault(str(error), number))
                if "row" not in str(error) or "ends before" in str(error):
                    break  # of the whole file, not of this picture
    return PictureFileResult(faults=tuple(faults), count=count)
