"""When a point counts as moving: one definition for errors, bounds of increments, and pictures.

A point moves where its path leaves its start by more than a threshold, measured in the image, at any moment that is known. Needs
no torch, since simulator processes draw films.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np

Values = TypeVar("Values")
MOVING = 0.01
"""The threshold of everything that is measured: 1% of the image."""
DRAWN = 0.02
"""That of pictures of what one sample predicts, whose noise moves still points too."""


def leaves_start(offsets: Values, known: Values, threshold: float = MOVING) -> Values:
    """Says which points move; takes and returns NumPy's arrays or torch's tensors.

    Args:
        offsets: (..., points, moments, 2 or more): how far each point is from its start along u and v [fraction of the image];
            what else there is, such as depth, does not count. Not-a-number and whatever is not known does not either.
        known: (..., points, moments): whether the point is known there.
        threshold: [fraction of the image]
    """
    away = (offsets[..., :2] ** 2).sum(-1) ** 0.5  # pyright: ignore[reportIndexIssue, reportGeneralTypeIssues, reportOperatorIssue]
    with np.errstate(invalid="ignore"):
        return ((away > threshold) & known).any(-1)
