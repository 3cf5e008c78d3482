"""Parsing the names of LIBERO-Plus tasks: the task of LIBERO that each is made of, and what is changed in it.

A name is LIBERO's own with one of these behind it::

    _view_30_15_100_0_0_initstate_0            the camera: azimuth, elevation, distance in percent, pan, tilt
    _view_0_0_100_0_0_initstate_352            the robot's initial joints, by number
    _view_0_0_100_0_0_initstate_0_noise_17     corrupted images, by number
    _language_5_view_0_0_100_0_0_initstate_0   another wording, which the task's file holds
    _light_3, _table_4, _tb_4, _add_5          light, surfaces, surfaces and walls, further objects
    _level2_sample1, _moved_level2_sample1     objects displaced
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lamp_client.errors import InvalidValueError

SUITES = {"libero_spatial": 2402, "libero_object": 2518, "libero_goal": 2591, "libero_10": 2519}
"""Suite -> number of tasks; 10,030 in all."""

CATEGORIES = ("camera", "robot", "language", "light", "background", "noise", "layout")
"""The seven dimensions, in the order of published tables."""

SIZES = {
    "camera": 1599,
    "robot": 1550,
    "language": 1537,
    "light": 1142,
    "background": 1076,
    "noise": 1601,
    "layout": 1525,
}
"""Dimension -> number of tasks."""


@dataclass(frozen=True, kw_only=True)
class CameraView:
    """Another camera pose."""

    category: ClassVar[str] = "camera"
    azimuth: int
    """Degrees about the vertical through the world's origin, 0 to 359."""
    elevation: int
    """Degrees upwards about a horizontal axis 0.8 m above the origin."""
    distance: int
    """Percent of the distance to the point 0.8 m above the origin."""
    pan: int
    """Degrees that the camera then turns in place about the vertical, 0 to 359."""
    tilt: int
    """Degrees that the camera then turns in place about the world's y axis, 0 to 359."""


STANDARD_VIEW = CameraView(azimuth=0, elevation=0, distance=100, pan=0, tilt=0)


@dataclass(frozen=True, kw_only=True)
class RobotStart:
    """Other joint positions at the start."""

    category: ClassVar[str] = "robot"
    number: int
    """1 to 500; each hundred lies 0.1 rad further from the standard ones."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Corrupted images of the reference camera."""

    category: ClassVar[str] = "noise"
    number: int
    """1 to 50: ten severities of motion blur, Gaussian blur, zoom blur, fog and glass blur in turn."""


@dataclass(frozen=True, kw_only=True)
class Wording:
    """Another instruction, which the task's file holds."""

    category: ClassVar[str] = "language"
    number: int


@dataclass(frozen=True, kw_only=True)
class Lighting:
    """Other lights, which a scene file describes."""

    category: ClassVar[str] = "light"
    number: int


@dataclass(frozen=True, kw_only=True)
class Surfaces:
    """Other textures, which a scene file names."""

    category: ClassVar[str] = "background"
    number: int
    walls: bool
    """Of table and walls (`tb`), or of the table alone."""


@dataclass(frozen=True, kw_only=True)
class Added:
    """Further objects in the scene."""

    category: ClassVar[str] = "layout"
    number: int


@dataclass(frozen=True, kw_only=True)
class Moved:
    """The same objects elsewhere."""

    category: ClassVar[str] = "layout"
    distance: int
    """1 to 5; not the benchmark's difficulty level."""
    sample: int


Change = CameraView | RobotStart | Noise | Wording | Lighting | Surfaces | Added | Moved

_VIEW = r"_view_(?P<azimuth>\d+)_(?P<elevation>\d+)_(?P<distance>\d+)_(?P<pan>\d+)_(?P<tilt>\d+)"
_NAME = re.compile(
    r"(?P<base>.+?)"
    r"(?:(?:_language_(?P<language>\d+))?(?P<view>" + _VIEW + r")_initstate_(?P<robot>\d+)(?:_noise_(?P<noise>\d+))?"
    r"|_light_(?P<light>\d+)|_table_(?P<table>\d+)|_tb_(?P<tb>\d+)|_add_(?P<add>\d+)"
    r"|(?:_moved)?_level(?P<level>\d+)_sample(?P<sample>\d+))"
)


@dataclass(frozen=True, kw_only=True)
class PlusName:
    """A name, read."""

    name: str
    base: str
    """Name of LIBERO's task."""
    change: Change

    @property
    def category(self) -> str:
        """One of `CATEGORIES`."""
        return self.change.category


def parse(name: str) -> PlusName:
    """Reads a task's name.

    Raises:
        InvalidValueError: It is no such name, or names several changes at once.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise InvalidValueError(
            f"{name!r} is no name of a LIBERO-Plus task.",
            hint="Expected a task of LIBERO and then, for instance, _view_30_15_100_0_0_initstate_0, _light_3 or _add_5.",
        )
    numbers = {key: int(value) for key, value in match.groupdict().items() if value is not None and value.isdigit()}
    changes = _changes_of(numbers)
    if len(changes) != 1:
        raise InvalidValueError(f"{name!r} names {len(changes)} changes; a task of LIBERO-Plus has one.")
    return PlusName(name=name, base=match["base"], change=changes[0])


def _changes_of(numbers: Mapping[str, int]) -> list[Change]:
    changes: list[Change] = []
    if "azimuth" in numbers:
        view = CameraView(**{key: numbers[key] for key in ("azimuth", "elevation", "distance", "pan", "tilt")})
        changes += [view] if view != STANDARD_VIEW else []
        changes += [RobotStart(number=numbers["robot"])] if numbers["robot"] else []
        changes += [Noise(number=numbers["noise"])] if numbers.get("noise") else []
    if "language" in numbers:
        changes.append(Wording(number=numbers["language"]))
    if "light" in numbers:
        changes.append(Lighting(number=numbers["light"]))
    for key in ("table", "tb"):
        if key in numbers:
            changes.append(Surfaces(number=numbers[key], walls=key == "tb"))
    if "add" in numbers:
        changes.append(Added(number=numbers["add"]))
    if "level" in numbers:
        changes.append(Moved(distance=numbers["level"], sample=numbers["sample"]))
    return changes


def instruction_from_name(name: str) -> str:
    """The instruction that LIBERO derives from a name: words for underscores, without the scene's name in front."""
    return re.sub(r"^[A-Z_]+_SCENE\d+_", "", name).replace("_", " ")
