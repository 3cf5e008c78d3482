"""Augmented views of demonstrations' pictures, drawn once, so that the frozen backbone can encode them ahead of training.

Every view has an address (seed, view, episode, camera; for colours the frame too) and can be drawn again at any time. The crop is
the same for all frames of an episode in one view: what moves from frame to frame is then the scene and not the crop, so that
frames of an episode stay comparable. Colours are drawn for each frame. Stage 1 never sees augmented views: its targets are
positions in the picture as it is.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image, ImageEnhance

from lamp.configuration import to_json
from lamp.errors import ConfigError
from lamp.json_files import to_line

REVISION = 1
"""Raised whenever the same settings would give other pictures."""
COLOURS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """A part of the picture, enlarged to the whole picture's size."""

    area: tuple[float, float] = (0.9, 1.0)
    """Least and largest share of the picture's area."""
    aspect: tuple[float, float] = (1.0, 1.0)
    """Least and largest width over height, relative to the picture's own."""
    not_on: tuple[str, ...] = ()
    """Cameras that are left whole, such as one on the wrist."""

    def __post_init__(self) -> None:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ConfigError(f"augmentation: crops of {self.area} of the area given; expected 0 < least <= most <= 1.")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ConfigError(f"augmentation: aspect {self.aspect} given; expected 0 < least <= most, such as 0.9 1.1.")

    def box(self, random: np.random.Generator, height: int, width: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of a crop. [px]"""
        area, aspect = random.uniform(*self.area), np.exp(random.uniform(*np.log(self.aspect)))
        # Both sides fit into the picture, whatever the aspect: the area is then smaller than was drawn.
        wide, high = min(np.sqrt(area * aspect), 1.0) * width, min(np.sqrt(area / aspect), 1.0) * height
        left, top = random.random() * (width - wide), random.random() * (height - high)
        return float(left), float(top), float(min(left + wide, width)), float(min(top + high, height))


@dataclass(frozen=True, kw_only=True)
class ColourJitter:
    """Brightness, contrast and saturation times 1 +- as much at most; hue turned by up to this share of the circle."""

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05

    def __post_init__(self) -> None:
        for name, most in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise ConfigError(f"augmentation: {name} {getattr(self, name)} given; expected 0 to {most}.")

    def apply(self, image: Image.Image, random: np.random.Generator) -> Image.Image:
        """Returns the picture in other colours."""
        for kind, amount in zip(COLOURS, (self.brightness, self.contrast, self.saturation), strict=True):
            image = kind(image).enhance(random.uniform(1 - amount, 1 + amount))
        turn = round(random.uniform(-self.hue, self.hue) * 256)
        if not turn:
            return image
        hue, *rest = image.convert("HSV").split()
        turned = Image.fromarray(((np.asarray(hue).astype(np.int64) + turn) % 256).astype(np.uint8))
        return Image.merge("HSV", (turned, *rest)).convert("RGB")


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How many augmented views of each picture there are besides the picture itself, and what they are."""

    views: int = 0
    """0: none. Training takes one of the picture and its views for each sample and epoch."""
    crop: RandomResizedCrop | None = field(default_factory=RandomResizedCrop)
    colour: ColourJitter | None = field(default_factory=ColourJitter)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.views < 0 or self.seed < 0:
            raise ConfigError(f"augmentation: {self.views} views, seed {self.seed} given; expected 0 or more of each.")
        if self.views and self.crop is None and self.colour is None:
            raise ConfigError("augmentation: views without crop and colour would all be alike; give one, or 0 views.")

    @property
    def key(self) -> str:
        """Identifies what the views look like; equal for any number of them, since each is drawn by itself."""
        plain = to_line({"revision": REVISION, **to_json(replace(self, views=0))})
        return hashlib.sha256(plain.encode()).hexdigest()[:16]

    def view(
        self,
        view: int,
        images: Mapping[str, UInt8[np.ndarray, "n _ _ 3"]],
        *,
        episode: int,
        frames: Int64[np.ndarray, " n"],
    ) -> dict[str, UInt8[np.ndarray, "n _ _ 3"]]:
        """Draws a view of some frames.

        Args:
            view: Number of the view, from 1; 0 is the pictures themselves.
            images: The frames of each camera, at any size.
        """
        if view == 0:
            return dict(images)
        return {camera: self._of_camera(view, camera, of, episode, frames) for camera, of in images.items()}

    def _of_camera(
        self, view: int, camera: str, images: UInt8[np.ndarray, "n h w 3"], episode: int, frames: np.ndarray
    ) -> UInt8[np.ndarray, "n h w 3"]:
        height, width = images.shape[1:3]
        address = (self.seed, view, episode, zlib.crc32(camera.encode()))
        crop = None if self.crop is None or camera in self.crop.not_on else self.crop
        box = crop and crop.box(np.random.default_rng(address), height, width)
        out = np.empty_like(images)
        for place, frame in enumerate(frames.tolist()):
            image = Image.fromarray(images[place])
            if box is not None:
                image = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
            if self.colour is not None:
                image = self.colour.apply(image, np.random.default_rng((*address, frame)))
            out[place] = np.asarray(image)
        return out


NO_AUGMENTATION = Augmentation()


def sample_views(size: int, views: int, *, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    """Which view each sample is seen in during an epoch, 0 for the picture itself: the same however batches are made."""
    return np.random.default_rng((seed, epoch, zlib.crc32(b"views"))).integers(0, views + 1, size)
