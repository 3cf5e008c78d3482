"""Resizing images with NumPy alone, since the client has no image library."""

from __future__ import annotations

import functools

import numpy as np


def resize(image: np.ndarray, height: int, width: int | None = None) -> np.ndarray:
    """Resizes (H, W, 3) uint8 to (`height`, `width`, 3) with a triangle filter that is widened when shrinking.

    Without a width the result is square.
    """
    size = (height, height if width is None else width)
    if image.shape[:2] == size:
        return image
    rows, columns = (_weights(source, target) for source, target in zip(image.shape[:2], size, strict=True))
    resized = np.einsum("yh,hwc->ywc", rows, image.astype(np.float32))
    resized = np.einsum("xw,ywc->yxc", columns, resized)
    return np.clip(np.rint(resized), 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=16)
def _weights(source: int, target: int) -> np.ndarray:
    """(target, source) rows that sum to 1: how much each source pixel contributes."""
    scale = source / target
    reach = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    distances = np.abs(np.arange(source)[None, :] + 0.5 - centres[:, None]) / reach
    weights = np.maximum(1.0 - distances, 0.0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
