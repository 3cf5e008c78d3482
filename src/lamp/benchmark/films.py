"""Filming an episode: every few steps the reference camera's image, with what the policy foresaw drawn over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream

from lamp.data.video import encoder
from lamp.files import atomic_path
from lamp_client.rollout import Frame

Artist = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
"""Draws foresight (k, t + 1, 3), None where there is none, over an image (H, W, 3) and returns the picture; must pickle."""

FILM_EVERY = 4
"""Simulation steps from one film frame to the next; rendering is what makes filming slow."""
FILM_FPS = 10
"""Frames per second of the film: at 20 steps a second and `FILM_EVERY` 4, twice real time."""


def plain(image: np.ndarray, foresight: np.ndarray | None) -> np.ndarray:
    """The artist that draws nothing."""
    return image


class Film:
    """Collects pictures of an episode while it runs."""

    def __init__(self, artist: Artist) -> None:
        self.frames: list[np.ndarray] = []
        self._artist = artist

    def shoot(self, frame: Frame) -> None:
        """Takes a picture of a moment; to be passed to `run_episode`."""
        image = next(iter(frame.observation.images.values()))
        foresight = frame.chunk.foresight if frame.chunk is not None and not frame.success else None
        self.frames.append(self._artist(image, foresight))


def write_film(path: Path, frames: Sequence[np.ndarray]) -> None:
    """Encodes frames as an mp4 that browsers play, atomically."""
    height, width = (size // 2 * 2 for size in frames[0].shape[:2])
    name = encoder()
    options = {"crf": "25", "preset": "medium"} if name == "libx264" else {}
    with (
        atomic_path(path) as staged,
        av.open(str(staged), "w", format="mp4", options={"movflags": "faststart"}) as container,
    ):
        stream = cast(VideoStream, container.add_stream(name, rate=FILM_FPS, options={**options, "threads": "1"}))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, FILM_FPS)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FILM_FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
