"""Images to patches: equal to PIL and to the model's own image processor, to the last bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from lamp.model.qwen_processor import PatchRule, resize

transformers = pytest.importorskip("transformers")

PUBLISHED = (65_536, 16_777_216)
"""Least and largest number of pixels in the published models' settings."""


def pictures(n: int, height: int, width: int) -> Tensor:
    """Noise, then black and white: the filter's overshoot is cut off in nearly every pixel of the latter."""
    images = np.random.default_rng(height * width).integers(0, 256, (n, height, width, 3), dtype=np.uint8)
    images[1::2] = (images[1::2] > 127) * 255
    return torch.from_numpy(images)


def by_pil(images: Tensor, size: tuple[int, int]) -> Tensor:
    rows, columns = size
    resized = [Image.fromarray(image.numpy()).resize((columns, rows), Image.Resampling.BICUBIC) for image in images]
    return torch.from_numpy(np.stack([np.asarray(image) for image in resized]))


def processor(folder: Path, pixels: tuple[int, int], mean: float = 0.5, std: float = 0.5):
    """The class that the published models name, with their settings."""
    made = transformers.Qwen2VLImageProcessorPil(
        patch_size=16,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": pixels[0], "longest_edge": pixels[1]},
        image_mean=[mean, mean / 2, mean / 3],
        image_std=[std, std / 2, std / 3],
    )
    made.save_pretrained(folder)
    return made


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((224, 224), (256, 256)),
        ((256, 256), (224, 224)),
        ((256, 256), (32, 32)),
        ((100, 100), (33, 33)),
        ((7, 7), (96, 96)),
        ((480, 640), (224, 224)),
        ((53, 64), (53, 90)),
        ((1, 5), (4, 4)),
    ],
)
def test_resizing_is_pils(old: tuple[int, int], new: tuple[int, int]) -> None:
    images = pictures(2, *old)
    assert torch.equal(resize(images, new), by_pil(images, new))


def test_resizing_a_tall_image_is_nearly_pils() -> None:
    """PIL may take the columns first; only rounding and the cutting off of overshoot tell the difference."""
    images = pictures(1, 640, 480)
    difference = resize(images, (224, 224)).int() - by_pil(images, (224, 224)).int()
    assert difference.abs().max() <= 2


def test_floating_point_interpolation_would_not_do() -> None:
    images = pictures(2, 224, 224)
    x = images.permute(0, 3, 1, 2).float()
    other = functional.interpolate(x, (256, 256), mode="bicubic", antialias=True, align_corners=False)
    other = other.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    assert (other != by_pil(images, (256, 256))).float().mean() > 0.01


@pytest.mark.parametrize("side", [224, 256, 100, 512])
@pytest.mark.parametrize("pixels", [PUBLISHED, (4096, 40_000)], ids=["published", "smaller"])
def test_patches_are_the_processors(tmp_path: Path, side: int, pixels: tuple[int, int]) -> None:
    theirs = processor(tmp_path, pixels, mean=0.48, std=0.27)
    rule, images = PatchRule.read(tmp_path), pictures(3, side, side)
    expected = theirs(images=list(images.numpy()), return_tensors="pt")
    found = rule.patches(images, side)
    assert found.dtype == torch.float32 and torch.equal(found.flatten(0, 1), expected["pixel_values"])
    assert [[1, *rule.grid(side)]] * 3 == expected["image_grid_thw"].tolist()
    assert rule.tokens(side) * 4 == found.shape[1]


def test_the_published_rule_enlarges_small_images(tmp_path: Path) -> None:
    processor(tmp_path, PUBLISHED)
    rule = PatchRule.read(tmp_path)
    assert rule.resized(224, 224) == (256, 256) and rule.tokens(224) == rule.tokens(256) == 64
    assert rule.tokens(448) == 196


def test_images_of_another_size_are_brought_to_the_cameras_first(tmp_path: Path) -> None:
    processor(tmp_path, PUBLISHED)
    rule, images = PatchRule.read(tmp_path), pictures(2, 120, 160)
    assert torch.equal(rule.patches(images, 224), rule.patches(by_pil(images, (224, 224)), 224))
    assert not torch.equal(rule.patches(images, 224), rule.patches(images, 256))


@pytest.mark.gpu
def test_a_gpu_gives_the_same(tmp_path: Path) -> None:
    processor(tmp_path, PUBLISHED, mean=0.48, std=0.27)
    rule, images = PatchRule.read(tmp_path), pictures(4, 480, 640)
    assert torch.equal(rule.patches(images.cuda(), 224).cpu(), rule.patches(images, 224))
