"""Names and colours that all parts of a report share."""

from __future__ import annotations

from pathlib import Path

from lamp.benchmark.controls import CONTROLS

COLOURS = {
    "with_motion": 0,
    "without_motion": 1,
    "zero_motion": 1,
    "one_sample": 0,
    "mean_of_4": 2,
    "constant_velocity": 7,
}


def label(folder: Path) -> str:
    """An evaluation's folder as people tell several apart: `object/evaluation`."""
    return f"{folder.resolve().parent.name}/{folder.name}"


def words(name: str) -> str:
    """A condition's or predictor's name as people write it."""
    return name.replace("_", " ")


def colour_of(name: str, index: int = 0) -> int:
    """The style sheet's colour of a condition or predictor; controls are grey."""
    return COLOURS.get(name, 7 if name in CONTROLS else 2 + index % 5)
