"""Scene flow drawn over the image it starts from: trajectories from blue (now) to red (the end of the horizon)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

from lamp.sceneflow.motion_mask import DRAWN, MOVING, leaves_start

NOW = (38, 99, 255)
MIDWAY = (178, 62, 224)
LATER = (255, 42, 54)


@dataclass(frozen=True, kw_only=True)
class OverlayStyle:
    """How trajectories are drawn."""

    scale: int = 1
    """The image is enlarged by this factor first; lines stay thin and sharp."""
    width: float = 1.4
    """Width of a trajectory in [output pixels at 256 px image height]; grows with the image."""
    moving: float = MOVING
    """How far a point has to move to be drawn as a path (`lamp.sceneflow.motion_mask`). [fraction of the image]"""
    opacity: float = 0.92
    dim: float = 0.0
    """Share by which the picture is faded to grey below the lines, so that they stand out."""
    dots: bool = True
    """Whether still points are drawn as faint dots."""
    supersampling: int = 3


def time_colour(share: float) -> tuple[int, int, int]:
    """The colour of a moment: 0 is now (blue), 1 the end of the horizon (red), with violet between."""
    share = min(1.0, max(0.0, share))
    low, high, rest = (NOW, MIDWAY, share * 2) if share < 0.5 else (MIDWAY, LATER, share * 2 - 1)
    red, green, blue = (round(a + (b - a) * rest) for a, b in zip(low, high, strict=True))
    return red, green, blue


def moving_points(points: Float[np.ndarray, "k t1 c"], threshold: float) -> Bool[np.ndarray, " k"]:
    """Which points move (`lamp.sceneflow.motion_mask`) by more than `threshold` [fraction of the image]."""
    offsets = points[:, :, :2] - points[:, :1, :2]
    return np.asarray(leaves_start(offsets, np.asarray(np.isfinite(offsets).all(-1)), threshold))


def enlarged(image: UInt8[np.ndarray, "h w 3"], scale: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    if scale == 1:
        return image
    height, width = image.shape[:2]
    return np.asarray(Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.LANCZOS))


def draw_foresight(
    image: UInt8[np.ndarray, "h w 3"], points: Float[np.ndarray, "k t1 c"], style: OverlayStyle | None = None
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Draws point trajectories over an image.

    Args:
        image: The frame that the trajectories start from.
        points: (u, v) or (u, v, d) of each point now and after each flow step; not-a-number where unknown.
        style: How to draw; `OverlayStyle()` if None.

    Returns:
        The picture, enlarged by `style.scale`.
    """
    style = style or OverlayStyle()
    picture = enlarged(image, style.scale).astype(np.float32)
    if style.dim:
        grey = picture.mean(axis=-1, keepdims=True) * 0.6 + 70.0
        picture += (grey - picture) * style.dim
    height, width = picture.shape[:2]
    factor = style.supersampling
    canvas = Image.new("RGBA", (width * factor, height * factor), (0, 0, 0, 0))
    moving = moving_points(points, style.moving)
    stroke = max(1, round(style.width * height / 256 * factor))
    _draw(ImageDraw.Draw(canvas), points, moving, canvas.size, stroke, style)
    # Premultiplied while shrinking, else the empty canvas' black bleeds into the lines' edges.
    layer = np.asarray(canvas, dtype=np.float32) / 255.0
    layer[..., :3] *= layer[..., 3:]
    layer = layer.reshape(height, factor, width, factor, 4).mean(axis=(1, 3))
    picture = picture * (1 - layer[..., 3:] * style.opacity) + layer[..., :3] * 255.0 * style.opacity
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _draw(
    draw: ImageDraw.ImageDraw,
    points: Float[np.ndarray, "k t1 c"],
    moving: Bool[np.ndarray, " k"],
    size: tuple[int, int],
    stroke: int,
    style: OverlayStyle,
) -> None:
    places = points[:, :, :2] * np.asarray(size, dtype=np.float64)
    known = np.asarray(np.isfinite(places).all(axis=-1))
    steps = points.shape[1] - 1
    if style.dots:
        for (x, y), seen in zip(places[~moving, 0], known[~moving, 0], strict=True):
            if seen:
                _dot(draw, x, y, stroke * 0.6, (255, 255, 255, 110))
    # Step by step over all points, so that the future lies above the present and no trajectory hides another's end.
    for step in range(steps):
        colour = (*time_colour(step / max(1, steps - 1)), 255)
        for path, seen in zip(places[moving], known[moving], strict=True):
            if seen[step] and seen[step + 1]:
                (x0, y0), (x1, y1) = path[step], path[step + 1]
                draw.line((x0, y0, x1, y1), fill=colour, width=stroke)
                _dot(draw, x1, y1, stroke / 2, colour)
    for path, seen in zip(places[moving], known[moving], strict=True):
        if seen[0]:
            _dot(draw, path[0, 0], path[0, 1], stroke * 0.8, (*NOW, 255))
        if seen[-1]:
            _dot(draw, path[-1, 0], path[-1, 1], stroke * 1.1, (*LATER, 255))


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: tuple[int, int, int, int]) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


@dataclass(frozen=True, kw_only=True)
class ForesightArtist:
    """Draws what a policy foresaw over film frames; to be passed to `lamp.benchmark.evaluate.evaluate`."""

    style: OverlayStyle = field(default_factory=lambda: OverlayStyle(scale=2, moving=DRAWN))

    def __call__(
        self, image: UInt8[np.ndarray, "h w 3"], foresight: Float[np.ndarray, "k t1 3"] | None
    ) -> UInt8[np.ndarray, "h2 w2 3"]:
        """Returns the enlarged frame, with the foresight over it where there is one."""
        return enlarged(image, self.style.scale) if foresight is None else draw_foresight(image, foresight, self.style)
