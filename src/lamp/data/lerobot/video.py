"""Frame-exact video: encode, describe, join files without re-encoding, and read frames in any order.

Files have a keyframe every few frames and no B-frames, so that packets are in display order: a random read decodes at most
`KEYFRAME_EVERY` frames, and joining files is a matter of shifting time stamps. A reader keeps files open, walks forward as
long as that is the shortest way, and seeks otherwise; files of other writers, with keyframes anywhere and B-frames, are read
as well. Everything runs on one thread; the calling process decides about parallelism.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream
from jaxtyping import Int64, UInt8, UInt16

from lamp.data.stored_images import bits_of, luma
from lamp.errors import DataError

KEYFRAME_EVERY = 8
"""Frames from one keyframe to the next in the files we write."""

_ENCODERS = {
    "libx264": {"crf": "18", "preset": "veryfast", "bf": "0"},
    "libsvtav1": {"crf": "20", "preset": "8", "svtav1-params": "pred-struct=1"},
    "mpeg4": {"qscale": "2", "bf": "0"},
}
CODEC_NAMES = {"libx264": "h264", "libsvtav1": "av1", "mpeg4": "mpeg4"}
"""LeRobot's name of each encoder's codec."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """A video file's frame count, size and rate."""

    height: int
    width: int
    frames: int
    codec: str
    extradata: bytes
    """The decoder's set-up; only files with equal set-ups can be joined without re-encoding."""


def encoder() -> str:
    """The best encoder that the bundled ffmpeg has."""
    for name in _ENCODERS:
        try:
            av.Codec(name, "w")
        except FFmpegError:
            continue
        return name
    raise DataError(f"the installed PyAV cannot encode video; expected one of the encoders {', '.join(_ENCODERS)}")


def frame_rate(fps: float | int) -> Fraction:
    """A rate as the fraction that is meant: 20, 25/2, 2997/100, 30000/1001."""
    return Fraction(fps).limit_denominator(1001)


def pixel_format(height: int, width: int) -> str:
    """How pixels are stored in the files `write_video` makes: with half the colour resolution, where both sizes are even."""
    return "yuv444p" if height % 2 or width % 2 else "yuv420p"


def write_video(path: Path, images: UInt8[np.ndarray, "n h w 3"], fps: float | int) -> None:
    """Encodes RGB frames, frame i at i / fps seconds.

    Raises:
        DataError: There are no frames, or the width or height is odd and the installed encoder cannot encode that.
    """
    count, height, width, _ = images.shape
    name, pixels, rate = encoder(), pixel_format(height, width), frame_rate(fps)
    if not images.size or (pixels != "yuv420p" and name != "libx264"):
        raise DataError(
            f"cannot encode {count} frames of {height}x{width} for {path.name} with {name}; expected frames of even size"
        )
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(
            name, rate=rate, options={**_ENCODERS[name], "g": str(KEYFRAME_EVERY), "threads": "1"}
        )
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = 1 / rate
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@contextmanager
def naming_video_errors(path: Path) -> Iterator[None]:
    """Makes ffmpeg's errors in the block name the file."""
    try:
        yield
    except FFmpegError as error:
        raise DataError(f"cannot read the video {path} ({error.strerror}); it is truncated or corrupt") from None


def open_video(path: Path) -> tuple[InputContainer, VideoStream]:
    """Opens a file and its video stream, on one thread; the caller closes it.

    Raises:
        DataError: There is no such file, or no video in it.
    """
    if not path.is_file():
        raise DataError(f"no video at {path}; the dataset's description refers to it")
    container = av.open(str(path))
    if not container.streams.video:
        container.close()
        raise DataError(f"{path} holds no video stream")
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    stream.thread_type = "NONE"
    return container, stream


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    with naming_video_errors(path):
        container, stream = open_video(path)
        with container:
            yield container, stream


def packet_digests(path: Path, fps: float | int) -> tuple[Int64[np.ndarray, " n"], list[bytes]]:
    """Hashes of the encoded frames of a video, without decoding: the numbers of the frames, ascending, and the hash of each.

    Raises:
        DataError: The file is missing, truncated or no video.
    """
    numbers, digests = [], []
    with _opened(path) as (container, stream):
        for packet in container.demux(stream):
            if packet.size and packet.pts is not None and packet.time_base is not None:
                numbers.append(round(float(packet.pts * packet.time_base) * fps))
                digests.append(hashlib.sha1(bytes(packet), usedforsecurity=False).digest())
    order = np.argsort(np.array(numbers, np.int64), kind="stable")
    return np.array(numbers, np.int64)[order], [digests[place] for place in order.tolist()]


def video_info(path: Path) -> VideoInfo:
    """Reads sizes and counts the frames' packets, without decoding.

    Raises:
        DataError: The file is missing, truncated or no video.
    """
    with _opened(path) as (container, stream):
        context = stream.codec_context
        frames = sum(packet.size > 0 for packet in container.demux(stream))
        extradata = bytes(context.extradata or b"")
        return VideoInfo(
            height=context.height, width=context.width, frames=frames, codec=context.name, extradata=extradata
        )


def join_videos(sources: Sequence[Path], target: Path, fps: float | int) -> list[int]:
    """Copies the packets of several videos of ours into one file, one after another, without re-encoding.

    Returns:
        The number of the first frame of each source in the joined file.

    Raises:
        DataError: A source is unreadable, or differs from the first in codec, size or encoder set-up.
    """
    first, start = [], 0
    extradata: bytes | None = None
    with av.open(str(target), "w", format="mp4") as output:
        copied = None
        for source in sources:
            first.append(start)
            with _opened(source) as (container, stream):
                if copied is None:
                    copied, extradata = output.add_stream_from_template(stream), stream.codec_context.extradata
                elif stream.codec_context.extradata != extradata:
                    raise DataError(f"{source} was encoded differently from {sources[0]}; they cannot share a file")
                for packet in container.demux(stream):
                    if packet.size == 0:
                        continue
                    packet.time_base = 1 / frame_rate(fps)
                    packet.pts = packet.dts = start
                    packet.duration = 1
                    packet.stream = copied
                    output.mux(packet)
                    start += 1
    return first


def cut_video(source: Path, target: Path, fps: float | int, *, first: int, count: int) -> None:
    """Copies the packets of `count` frames, from frame `first` on, into a file of their own, without re-encoding.

    Raises:
        DataError: The file is unreadable, does not begin anew at `first`, lacks frames, or has them in another order than shown.
    """
    rate, next_frame = frame_rate(fps), first
    with _opened(source) as (container, stream), av.open(str(target), "w", format="mp4") as output:
        copied = output.add_stream_from_template(stream)
        if stream.time_base is not None and first:
            # Half a frame late, so that rounding never lands before the keyframe that is meant.
            container.seek(int((first + 0.5) / rate / stream.time_base), stream=stream)
        for packet in container.demux(stream):
            if packet.size == 0 or packet.pts is None or packet.time_base is None:
                continue
            number = round(packet.pts * packet.time_base * rate)
            if number >= first + count:
                break
            if number != next_frame or (number == first and not packet.is_keyframe):
                raise DataError(
                    f"{source} cannot be cut at frame {first} without encoding it anew: frame {number} comes where {next_frame} "
                    "was expected, or needs others before it; expected a video that LaMP wrote"
                )
            packet.time_base = 1 / rate
            packet.pts = packet.dts = number - first
            packet.duration, packet.stream = 1, copied
            output.mux(packet)
            next_frame += 1
    if next_frame != first + count:
        raise DataError(f"{source} ends at frame {next_frame}; expected {first + count}: it is truncated or corrupt")


OPEN_FILES = 8
"""Videos that a process keeps open: enough for a few cameras of a few datasets, far from any limit of open files."""


class VideoReader:
    """One open video; frames go by their number, frame n being the one shown at n / fps seconds."""

    def __init__(self, path: Path, fps: float, *, depth: bool = False):
        """
        Args:
            depth: Whether its frames are codes of depth, rather than pictures.

        Raises:
            DataError: The file is missing, truncated or no video.
        """
        self.path, self.fps, self._depth = path, fps, depth
        self.decoded = 0
        """Frames decoded so far, those that were passed over included."""
        self._last: tuple[int, np.ndarray] | None = None
        self._next = 0
        self._pending: tuple[int, av.VideoFrame] | None = None
        with naming_video_errors(path):
            self._container, self._stream = open_video(path)
            if self._stream.time_base is None:
                raise DataError(f"the video {path} has no time base; it is corrupt")
            self._ticks_per_second = 1 / self._stream.time_base
            self._keyframes = self._find_keyframes()
            self._frames: Iterator[av.VideoFrame] | None = self._container.decode(self._stream)

    @property
    def size(self) -> tuple[int, int]:
        return self._stream.codec_context.height, self._stream.codec_context.width

    def close(self) -> None:
        self._frames = None
        self._container.close()

    @property
    def bits(self) -> int:
        """Of each value in the file."""
        kind = self._stream.codec_context.format
        return 8 if kind is None else bits_of(kind)

    def frame(self, number: int) -> UInt8[np.ndarray, "h w 3"] | UInt16[np.ndarray, "h w"]:
        """Decodes one frame: a picture or, with a reader of depth, its codes.

        Raises:
            DataError: The file is corrupt, lacks the frame, runs at another rate, or holds no colours that 8 bits could show, or
                codes of 8 bits.
        """
        if self._last is None or self._last[0] != number:
            with naming_video_errors(self.path):
                try:
                    if not self._is_ahead(number):
                        self._seek(number)
                    self._last = number, self._walk_to(number)
                except BaseException:
                    self._frames = None  # where the decoder stands now is unknown: the next frame is sought
                    raise
        return self._last[1]

    def _find_keyframes(self) -> np.ndarray:
        """Numbers of the keyframes, ascending.

        The index of an mp4 holds decoding times, which B-frames shift below the times of display; the first one, at which
        display starts, tells by how much. Where it is off nevertheless, `_seek` goes back one keyframe further.
        """
        entries = list(getattr(self._stream, "index_entries", ()))
        ticks = [entry.timestamp for entry in entries if entry.is_keyframe]
        if not ticks:
            return np.zeros(1, np.int64)
        shift = max(0, -entries[0].timestamp)
        numbers = np.round((np.array(ticks) + shift) / float(self._ticks_per_second) * self.fps)
        return np.unique(numbers.astype(np.int64))

    def _is_ahead(self, number: int) -> bool:
        """Whether decoding on is the shortest way to a frame: there is no keyframe to jump to in between."""
        if self._frames is None or number < self._next:
            return False
        before = self._keyframes[self._keyframes <= number]
        return len(before) == 0 or bool(before[-1] <= self._next)

    def _seek(self, number: int) -> None:
        """Goes to the last keyframe that is not after a frame."""
        starts = self._keyframes[self._keyframes <= number][::-1].tolist()
        for start in [*starts[:3], 0]:
            # Half a frame late, so that rounding never lands on the keyframe before the one that is meant.
            ticks = int((start + 0.5) / self.fps * self._ticks_per_second)
            self._container.seek(ticks, stream=self._stream)
            self._frames, self._pending, self._next = self._container.decode(self._stream), None, 0
            self._pending = self._decode()
            if self._pending is None or self._pending[0] <= number:
                return

    def _pixels(self, frame: av.VideoFrame) -> np.ndarray:
        if self._depth:
            return luma(frame, self.path)
        kind = frame.format
        if len(kind.components) < 3 and bits_of(kind) > 8:
            raise DataError(
                f"the video {self.path} is {kind.name}, gray of {bits_of(kind)} bits, which 8 bits cannot show; "
                "expected colours, or info.is_depth_map in its description if it is depth"
            )
        return frame.to_ndarray(format="rgb24")

    def _walk_to(self, number: int) -> np.ndarray:
        while (decoded := self._take()) is not None:
            present, frame = decoded
            if present > number:
                raise DataError(
                    f"the video {self.path} jumps over frame {number} to {present}; it does not run at {self.fps} fps"
                )
            if present == number:
                return self._pixels(frame)
        raise DataError(f"the video {self.path} ends before frame {number}; it is truncated")

    def _take(self) -> tuple[int, av.VideoFrame] | None:
        decoded, self._pending = self._pending or self._decode(), None
        if decoded is not None:
            self._next = decoded[0] + 1
        return decoded

    def _decode(self) -> tuple[int, av.VideoFrame] | None:
        for frame in self._frames or ():
            self.decoded += 1
            if frame.pts is not None:
                return round(float(frame.pts / self._ticks_per_second) * self.fps), frame
        return None


class VideoReaders:
    """Readers of the files that were read lately. They are of the process that opened them: a fork opens its own."""

    def __init__(self, limit: int = OPEN_FILES, *, depth: bool = False):
        self._limit, self._depth = limit, depth
        self._open: OrderedDict[tuple[Path, float], tuple[tuple[int, int], VideoReader]] = OrderedDict()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, object]:
        """Open files stay behind when this is sent to another process."""
        return {"_limit": self._limit, "_depth": self._depth, "_open": OrderedDict(), "_process": -1}

    def close(self) -> None:
        if self._process == os.getpid():
            for _, reader in self._open.values():
                reader.close()
        self._open = OrderedDict()

    def reader(self, path: Path, fps: float) -> VideoReader:
        """Opens a video, or finds it open.

        Raises:
            DataError: The file is missing, truncated or no video.
        """
        if self._process != os.getpid():
            # The parent reads from the same descriptors; closing them here does not touch it, reading would.
            self._open, self._process = OrderedDict(), os.getpid()
        state = path.stat() if path.is_file() else None
        version = (state.st_size, state.st_mtime_ns) if state else (0, 0)
        known = self._open.pop((path, fps), None)
        if known is not None and known[0] != version:
            known[1].close()
            known = None
        self._open[path, fps] = known or (version, VideoReader(path, fps, depth=self._depth))
        if len(self._open) > self._limit:
            self._open.popitem(last=False)[1][1].close()
        return self._open[path, fps][1]

    def read(
        self, path: Path, numbers: Sequence[int] | np.ndarray, fps: float
    ) -> UInt8[np.ndarray, "n h w 3"] | UInt16[np.ndarray, "n h w"]:
        """Decodes the frames with the given numbers, which must be sorted; repeats are allowed. Of depth, its codes.

        Raises:
            DataError: The file is missing, truncated or corrupt, lacks one of the frames, or holds codes of 8 bits.
        """
        wanted = [int(number) for number in numbers]
        if any(later < earlier for earlier, later in pairwise(wanted)) or (wanted and wanted[0] < 0):
            raise ValueError("frame numbers must be sorted and not negative")
        reader = self.reader(path, fps)
        size = (len(wanted), *reader.size)
        out = np.empty(size, np.uint16) if self._depth else np.empty((*size, 3), np.uint8)
        for row, number in enumerate(wanted):
            out[row] = reader.frame(number)
        return out


def read_frames(path: Path, numbers: Sequence[int] | np.ndarray, fps: float | int) -> UInt8[np.ndarray, "n h w 3"]:
    """Decodes the frames with the given numbers, which must be sorted; repeats are allowed.

    Raises:
        DataError: The file is missing, truncated or corrupt, or lacks one of the frames.
    """
    readers = VideoReaders(limit=1)
    try:
        return readers.read(path, numbers, float(fps))
    finally:
        readers.close()
