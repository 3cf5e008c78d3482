"""What can be changed of a LIBERO scene while it runs: camera, arm, lights, images (corruptions), instruction.

The corruptions are blurs, fog and noise in plain NumPy, with the parameters that LIBERO-Plus gives them. LIBERO-Plus takes its
blurs from ImageMagick and scikit-image; these give the same pictures without either (docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lamp_client.errors import InvalidValueError


@dataclass(frozen=True, kw_only=True)
class MotionBlur:
    """A smear to one side, in a direction drawn for every image."""

    radius: int
    """Length [px]."""
    sigma: float
    """Standard deviation of the half Gaussian that weighs it [px]."""
    max_angle: float = 45.0
    """The direction lies within so many degrees of the horizontal."""

    def __call__(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        angle = np.deg2rad(generator.uniform(-self.max_angle, self.max_angle))
        steps = np.arange(2 * self.radius + 1)
        weights = np.exp(-(steps**2) / (2.0 * self.sigma**2))
        across = np.ceil(steps * np.cos(angle) - 0.5).astype(int)
        down = np.ceil(steps * np.sin(angle) - 0.5).astype(int)
        height, width = image.shape[:2]
        total = np.zeros(image.shape, dtype=np.float64)
        for weight, dx, dy in zip(weights / weights.sum(), across, down, strict=True):
            rows = np.clip(np.arange(height) + dy, 0, height - 1)
            columns = np.clip(np.arange(width) + dx, 0, width - 1)
            total += weight * image[rows[:, None], columns]
        return np.floor(total + 1e-9).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class GaussianBlur:
    """Out of focus."""

    sigma: float
    """[px]"""

    def __call__(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return _to_bytes(_smoothed(image / 255.0, self.sigma))


@dataclass(frozen=True, kw_only=True)
class ZoomBlur:
    """The mean of the image and its enlargements about the centre."""

    until: float
    """The largest enlargement."""
    step: float
    """From one enlargement to the next, beginning with 1."""

    def __call__(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        factors = np.arange(1.0, self.until, self.step)
        original = image / 255.0
        return _to_bytes((original + sum(_enlarged(original, factor) for factor in factors)) / (len(factors) + 1))


@dataclass(frozen=True, kw_only=True)
class Fog:
    """White swathes, drawn anew for every image."""

    density: float
    """Of the fog where it is thickest, in units of full brightness."""
    smoothness: float
    """By what the swathes' roughness falls from one scale to the next finer."""

    def __call__(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        height, width = image.shape[:2]
        size = 1 << max(height - 1, width - 1).bit_length()
        original = image / 255.0
        brightest = original.max()
        veil = _swathes(size, self.smoothness, generator)[:height, :width, None]
        return _to_bytes((original + self.density * veil) * brightest / (brightest + self.density))


@dataclass(frozen=True, kw_only=True)
class GlassBlur:
    """As through frosted glass: pixels exchanged for near ones, between two blurs."""

    sigma: float
    """Of both blurs [px]."""
    reach: int
    """How far a pixel is taken from [px]."""
    rounds: int
    """How often every pixel is exchanged."""
    extent: int = 224
    """Rows and columns from here on are blurred but not exchanged: LIBERO-Plus takes images for smaller than they are."""

    def __call__(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        shuffled = _to_bytes(_smoothed(image / 255.0, self.sigma))
        for _ in range(self.rounds):
            shuffled = self._exchanged(shuffled, generator)
        return _to_bytes(_smoothed(shuffled / 255.0, self.sigma))

    def _exchanged(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Goes through the pixels from the last to the first; each takes the value that a near one has by then."""
        height, width = image.shape[:2]
        rows = np.arange(self.reach + 1, min(self.extent - self.reach, height - self.reach) + 1)
        columns = np.arange(self.reach + 1, min(self.extent - self.reach, width - self.reach) + 1)
        here = (rows[:, None] * width + columns).reshape(-1)
        offsets = generator.integers(-self.reach, self.reach, size=(len(here), 2))
        source = np.arange(height * width)
        source[here] = here + offsets[:, 0] * width + offsets[:, 1]
        # A pixel further on has been exchanged already, so its own source counts; chains of those are followed to their end.
        changed = np.zeros(height * width, dtype=bool)
        changed[here] = True
        follow = np.where(changed[source] & (source > np.arange(height * width)), source, -1)
        for _ in range(int(height * width).bit_length()):
            linked = follow >= 0
            if not linked.any():
                break
            source = np.where(linked, source[follow], source)
            follow = np.where(linked, follow[follow], -1)
        return image.reshape(height * width, -1)[source].reshape(image.shape)


@dataclass(frozen=True, kw_only=True)
class GaussianNoise:
    """Independent noise in every pixel and channel; not in LIBERO-Plus."""

    std: float
    """As a fraction of full brightness."""

    def __call__(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return _to_bytes(image / 255.0 + self.std * generator.standard_normal(image.shape))


Corruption = MotionBlur | GaussianBlur | ZoomBlur | Fog | GlassBlur | GaussianNoise

SEVERITIES = 10

_MOTION = ((5, 2), (8, 3), (10, 4), (12, 5), (15, 6), (18, 8), (20, 10), (25, 12), (30, 15), (35, 20))
_ZOOM = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03), (1.36, 0.01), (1.41, 0.01), (1.46, 0.02),
         (1.51, 0.02), (1.56, 0.03))  # fmt: skip
_FOG = (
    (0.5, 3.0),
    (1.0, 2.8),
    (1.5, 2.5),
    (2.0, 2.2),
    (2.5, 2.0),
    (3.0, 1.8),
    (3.5, 1.6),
    (4.0, 1.5),
    (4.5, 1.4),
    (5.0, 1.3),
)
_GLASS = ((0.5, 1, 3), (0.7, 1, 3), (0.9, 2, 3), (1.0, 2, 2), (1.1, 3, 2), (1.3, 3, 2), (1.5, 4, 2), (1.8, 4, 2), (2.2, 5, 1),
          (2.5, 5, 1))  # fmt: skip

CORRUPTIONS: tuple[tuple[Corruption, ...], ...] = (
    tuple(MotionBlur(radius=radius, sigma=sigma) for radius, sigma in _MOTION),
    tuple(GaussianBlur(sigma=sigma) for sigma in range(1, SEVERITIES + 1)),
    tuple(ZoomBlur(until=until, step=step) for until, step in _ZOOM),
    tuple(Fog(density=density, smoothness=smoothness) for density, smoothness in _FOG),
    tuple(GlassBlur(sigma=sigma, reach=reach, rounds=rounds) for sigma, reach, rounds in _GLASS),
)
"""LIBERO-Plus' five families of corruptions, ten severities each."""


def corruption_numbered(number: int) -> Corruption:
    """The corruption that LIBERO-Plus numbers 1 to 50, family by family.

    Raises:
        InvalidValueError: There is no such number.
    """
    if not 1 <= number <= len(CORRUPTIONS) * SEVERITIES:
        raise InvalidValueError(f"noise {number} does not exist; expected 1 to {len(CORRUPTIONS) * SEVERITIES}.")
    return CORRUPTIONS[(number - 1) // SEVERITIES][(number - 1) % SEVERITIES]


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return (np.clip(image, 0.0, 1.0) * 255).astype(np.uint8)


def _smoothed(image: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian filter over rows and columns, cut at four standard deviations, with the edge's values beyond the edge."""
    radius = int(4.0 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        size = image.shape[axis]
        padded = np.pad(image, [(radius, radius) if i == axis else (0, 0) for i in range(image.ndim)], mode="edge")
        image = np.zeros(image.shape)
        for start, weight in enumerate(weights):
            image += weight * np.take(padded, range(start, start + size), axis=axis)
    return image


def _enlarged(image: np.ndarray, factor: float) -> np.ndarray:
    """The middle of a square image, enlarged to the image's size, interpolated linearly."""
    size = image.shape[0]
    part = int(np.ceil(size / factor))
    first = (size - part) // 2
    crop = image[first : first + part, first : first + part]
    full = round(part * factor)
    at = np.arange(full) * ((part - 1) / (full - 1))
    low = np.minimum(at.astype(int), part - 2)
    weight = at - low
    crop = crop[low] * (1 - weight)[:, None, None] + crop[low + 1] * weight[:, None, None]
    crop = crop[:, low] * (1 - weight)[None, :, None] + crop[:, low + 1] * weight[None, :, None]
    trim = (full - size) // 2
    return crop[trim : trim + size, trim : trim + size]


def _swathes(size: int, smoothness: float, generator: np.random.Generator) -> np.ndarray:
    """A random height map from 0 to 1 on a torus, by the diamond-square rule; `size` is a power of two."""
    heights = np.zeros((size, size))
    step, roughness = size, 100.0

    def middle(total: np.ndarray) -> np.ndarray:
        # LIBERO-Plus' fog multiplies by the roughness twice.
        return total / 4 + roughness * generator.uniform(-roughness, roughness, total.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        rows = corners + np.roll(corners, -1, axis=0)
        heights[half::step, half::step] = middle(rows + np.roll(rows, -1, axis=1))
        centres, corners = heights[half::step, half::step], heights[::step, ::step]
        beside = centres + np.roll(centres, 1, axis=0)
        heights[::step, half::step] = middle(beside + corners + np.roll(corners, -1, axis=1))
        below = centres + np.roll(centres, 1, axis=1)
        heights[half::step, ::step] = middle(below + corners + np.roll(corners, -1, axis=0))
        step, roughness = half, roughness / smoothness
    heights -= heights.min()
    return heights / heights.max()


@dataclass(frozen=True, kw_only=True, eq=False)
class CameraPose:
    """Where the reference camera is, and what it sees."""

    position: np.ndarray
    """(3,) in the world [m]."""
    quaternion: np.ndarray
    """(4,) (w, x, y, z): from the camera's axes (it looks along -z, y is up) to the world's."""
    fov: float
    """Vertical field of view [deg]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Lights:
    """The lights of a scene, and the one at the camera (`head`)."""

    diffuse: np.ndarray
    """(l, 3) colours, 0 to 1 and more."""
    specular: np.ndarray
    """(l, 3)"""
    position: np.ndarray
    """(l, 3) in the world [m]."""
    direction: np.ndarray
    """(l, 3) unit vectors in the world."""
    shadows: np.ndarray
    """(l,) bool: whether the light casts them."""
    focus: np.ndarray
    """(l,) exponent of the cosine by which a lamp's light fades off its axis; 0 for light from infinitely far. Never changed."""
    head: np.ndarray
    """(3, 3): ambient, diffuse and specular colour of the light at the camera."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ArmStart:
    """Other initial joints of the arm."""

    joints: np.ndarray
    """(7,) [rad]"""
    moved: bool
    """Whether the arm stands there. If not, only its controller begins there, and the stored state then puts the arm where it
    always was: what LIBERO-Plus' robot tasks do. The controller keeps the orientation and the posture that it began with, so
    that the hand turns towards them while the scene settles."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Effects:
    """All that is changed in an episode; None leaves a thing as it is."""

    camera: CameraPose | None = None
    arm: ArmStart | None = None
    lights: Lights | None = None
    corruption: Corruption | None = None
    """Of the reference camera's images."""
    instruction: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class StandardScene:
    """The scene as it is, for those who change it."""

    camera: CameraPose
    lights: Lights
    joints: np.ndarray
    """(7,) initial joints of the arm [rad]."""
    robot: str
    """Name of the robot's class, `MountedPanda` or `OnTheGroundPanda`."""
    instruction: str


NOTHING = Effects()


@dataclass(frozen=True, kw_only=True)
class SampledPerturbation:
    """What a perturbation drew for an episode."""

    effects: Effects
    numbers: Mapping[str, object] = field(default_factory=dict)
    """The same as JSON values, for the record."""
