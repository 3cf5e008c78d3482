"""Corrupted images against SciPy, against plain loops, and against what they promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lamp_client.envs.perturbations import (
    CORRUPTIONS,
    Corruption,
    Fog,
    GaussianBlur,
    GaussianNoise,
    GlassBlur,
    MotionBlur,
    ZoomBlur,
    corruption_numbered,
)
from lamp_client.errors import InvalidValueError

EVERY = [*(family[severity] for family in CORRUPTIONS for severity in (0, 4, 9)), GaussianNoise(std=0.1)]


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Smooth parts, edges, and a bright spot near the border."""
    rows, columns = np.mgrid[:96, :96]
    smooth = np.stack([rows * 2, columns * 2, (rows + columns)], axis=-1)
    smooth[30:60, 40:70] = (250, 10, 120)
    smooth[2:5, 90:93] = 255
    return smooth.astype(np.uint8)


class Fixed:
    """A generator that gives what it was told to."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def uniform(self, low: float, high: float) -> float:
        assert low <= self.values["uniform"] <= high
        return self.values["uniform"]

    def integers(self, low: int, high: int, size: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng(self.values["seed"]).integers(low, high, size=size)


@pytest.mark.parametrize("corruption", EVERY, ids=str)
def test_the_same_draw_gives_the_same_picture_and_the_original_is_kept(
    corruption: Corruption, image: np.ndarray
) -> None:
    before = image.copy()
    first = corruption(image, np.random.default_rng(3))
    assert first.dtype == np.uint8 and first.shape == image.shape and (first != image).any()
    np.testing.assert_array_equal(corruption(image, np.random.default_rng(3)), first)
    np.testing.assert_array_equal(image, before)
    if isinstance(corruption, MotionBlur | Fog | GlassBlur | GaussianNoise):
        assert (corruption(image, np.random.default_rng(4)) != first).any()


@pytest.mark.parametrize("family", range(len(CORRUPTIONS)))
def test_severities_grow(family: int, image: np.ndarray) -> None:
    def damage(severity: int) -> float:
        seeds = range(3)
        made = [CORRUPTIONS[family][severity](image, np.random.default_rng(seed)) for seed in seeds]
        return float(np.mean([np.abs(picture.astype(float) - image).mean() for picture in made]))

    assert damage(0) < min(damage(4), damage(9))


def test_gaussian_blur_is_scipys(image: np.ndarray) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    for sigma in (1, 4, 10):
        theirs = ndimage.gaussian_filter(image / 255.0, (sigma, sigma, 0), mode="nearest", truncate=4.0)
        ours = GaussianBlur(sigma=sigma)(image, np.random.default_rng(0))
        assert np.abs(ours.astype(int) - (theirs * 255).astype(np.uint8)).max() <= 1


def test_zoom_blur_is_the_mean_of_scipys_zooms(image: np.ndarray) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    blur, original = ZoomBlur(until=1.31, step=0.03), image / 255.0
    total = original.copy()
    factors = np.arange(1, 1.31, 0.03)
    for factor in factors:
        part = int(np.ceil(96 / factor))
        top = (96 - part) // 2
        zoomed = ndimage.zoom(original[top : top + part, top : top + part], (factor, factor, 1), order=1)
        trim = (len(zoomed) - 96) // 2
        total += zoomed[trim : trim + 96, trim : trim + 96]
    theirs = (total / (len(factors) + 1) * 255).astype(np.uint8)
    assert np.abs(blur(image, np.random.default_rng(0)).astype(int) - theirs).max() <= 1


@pytest.mark.parametrize(("reach", "extent"), [(1, 224), (4, 60)])
def test_glass_blur_exchanges_pixels_one_after_another(image: np.ndarray, reach: int, extent: int) -> None:
    blur = GlassBlur(sigma=0.01, reach=reach, rounds=1, extent=extent)  # so little that it blurs nothing
    last = min(extent, 96) - reach
    size = last - reach
    offsets = np.random.default_rng(5).integers(-reach, reach, size=(size * size, 2)).reshape(size, size, 2)
    naive = image.copy()
    for row in range(last, reach, -1):
        for column in range(last, reach, -1):
            # LIBERO-Plus' loop ends one row short of an image's last one where the image is larger than it takes it for.
            if row >= 96 or column >= 96:
                continue
            down, right = offsets[row - reach - 1, column - reach - 1]
            naive[row, column] = naive[row + down, column + right]
    ours = blur(image, Fixed(seed=5))  # pyright: ignore[reportArgumentType]
    assert np.abs(ours.astype(int) - naive).max() <= 1  # there and back again between bytes and floats
    assert (naive != image).mean() > 0.1


def test_motion_blur_smears_to_one_side_along_its_direction() -> None:
    spot = np.zeros((41, 41, 3), np.uint8)
    spot[20, 20] = 255
    for angle, (down, right) in ((0.0, (0, -1)), (45.0, (-1, -1)), (-45.0, (1, -1))):
        blurred = MotionBlur(radius=4, sigma=3)(spot, Fixed(uniform=angle))  # pyright: ignore[reportArgumentType]
        lit = set(zip(*np.nonzero(blurred[..., 0]), strict=True))
        assert (20, 20) in lit and len(lit) > 4
        steps = [max(abs(int(row) - 20), abs(int(column) - 20)) for row, column in lit]
        assert lit == {(20 + down * step, 20 + right * step) for step in steps}
        values = [int(blurred[20 + down * step, 20 + right * step, 0]) for step in sorted(set(steps))]
        # On a slant several steps may fall on one pixel.
        assert values == sorted(values, reverse=True) or angle


def test_fog_keeps_dark_and_bright_within_the_image_s_range() -> None:
    dark = np.full((64, 64, 3), 20, np.uint8)
    for severity in range(10):
        foggy = CORRUPTIONS[3][severity](dark, np.random.default_rng(severity))
        assert foggy.max() <= 20 and foggy.min() >= 0 and foggy.std() > 0


def test_noise_has_the_strength_it_says() -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    noisy = GaussianNoise(std=0.05)(grey, np.random.default_rng(0)).astype(float)
    assert noisy.std() == pytest.approx(0.05 * 255, rel=0.05) and noisy.mean() == pytest.approx(127.5, abs=0.7)


def test_numbers_count_through_the_families() -> None:
    assert corruption_numbered(1) == MotionBlur(radius=5, sigma=2) and corruption_numbered(10) == MotionBlur(
        radius=35, sigma=20
    )
    assert corruption_numbered(17) == GaussianBlur(sigma=7) and corruption_numbered(30) == ZoomBlur(
        until=1.56, step=0.03
    )
    assert corruption_numbered(31) == Fog(density=0.5, smoothness=3.0) and corruption_numbered(50) == GlassBlur(
        sigma=2.5, reach=5, rounds=1
    )
    for number in (0, 51):
        with pytest.raises(InvalidValueError, match="expected 1 to 50"):
            corruption_numbered(number)
