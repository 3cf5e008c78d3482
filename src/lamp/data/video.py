"""Frame-exact video: encode, describe, and join files without re-encoding (`lamp.data.video_reading` reads frames).

Files have a keyframe every few frames and no B-frames, so that packets are in display order: a random read decodes at most
`KEYFRAME_EVERY` frames, and joining files is a matter of shifting time stamps. Everything runs on one thread; parallelism is
the business of the process that calls.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream
from jaxtyping import Int64, UInt8

from lamp.errors import DataError

KEYFRAME_EVERY = 8
"""Frames from one keyframe to the next in the files we write."""

_ENCODERS = {
    "libx264": {"crf": "18", "preset": "veryfast", "bf": "0"},
    "libsvtav1": {"crf": "20", "preset": "8", "svtav1-params": "pred-struct=1"},
    "mpeg4": {"qscale": "2", "bf": "0"},
}
_CODEC_NAMES = {"libx264": "h264", "libsvtav1": "av1", "mpeg4": "mpeg4"}


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video file says about itself."""

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


def codec_name() -> str:
    """The codec of the files `write_video` makes, as LeRobot names it."""
    return _CODEC_NAMES[encoder()]


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
def explained(path: Path) -> Iterator[None]:
    """Says of ffmpeg's errors which file they are about."""
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
    with explained(path):
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
