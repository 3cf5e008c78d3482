"""Where to bring the object: the goal's surface, how high to carry over the obstacles, how low to go before letting go."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lamp.collect.grasping import PALM_CLEARANCE, TIP
from lamp.collect.scene import Points

DEEP = 0.03
"""A goal whose rim stands at least this far above its floor is a container, and the fingers stay above its rim [m]."""
FOOTPRINT = 0.025
"""Radius around the goal's centre in which its floor is looked for in [m]."""
TALL = 0.07
"""What reaches farther than this below the hand is tall [m]."""
CLEARANCE = 0.02
"""Free height between what is carried and what it passes over in [m]."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """The goal as it stands now, in the world in [m]."""

    centre: Float[np.ndarray, "2"]
    """Where the object's body origin should come down."""
    floor: float
    """Height of the surface that will carry the object."""
    rim: float
    """The highest part of the goal near its centre."""

    @property
    def is_container(self) -> bool:
        return self.rim - self.floor > DEEP


def find_place(goal: Points, centre: Float[np.ndarray, "2"]) -> Place:
    """Reads the goal's surface from its collision volume around the centre."""
    distance = np.linalg.norm(goal[:, :2] - centre, axis=1)
    near = goal[distance < FOOTPRINT]
    floor = float(near[:, 2].max()) if len(near) else float(goal[:, 2].min())
    around = goal[distance < 0.09]
    return Place(centre=centre, floor=floor, rim=float(around[:, 2].max()) if len(around) else floor)


def _along(
    points: Points, start: Float[np.ndarray, "2"], end: Float[np.ndarray, "2"], radius: float
) -> tuple[Float[np.ndarray, "m 3"], Float[np.ndarray, " m"]]:
    """The points within `radius` of the straight way from start to end, and how far along it they lie in [m]."""
    way = end - start
    length = max(float(np.linalg.norm(way)), 1e-6)
    along = np.clip((points[:, :2] - start) @ way / length, 0.0, length)
    near = np.linalg.norm(points[:, :2] - start - along[:, None] * way / length, axis=1) < radius
    return points[near], along[near]


def obstacle_height(points: Points, start: Float[np.ndarray, "2"], end: Float[np.ndarray, "2"], radius: float) -> float:
    """The highest of the points within `radius` of the straight way from start to end in [m]; -inf where it is free."""
    near, _ = _along(points, start, end, radius)
    return float(near[:, 2].max()) if len(near) else -np.inf


def climb_needed(points: Points, start: Float[np.ndarray, "2"], end: Float[np.ndarray, "2"], radius: float) -> float:
    """The height to have at `start` in [m] so that a rise of one in one from here passes over every obstacle on the way."""
    near, along = _along(points, start, end, radius)
    return float((near[:, 2] - np.maximum(along - radius, 0.0)).max()) if len(near) else -np.inf


def release_height(place: Place, *, below: float) -> float:
    """How high the hand is when it lets go in [m]; `below` is how far the object reaches below the hand.

    Over a container the finger tips stay above the rim, but for what is so tall that it would topple in the fall: that is let
    down between the walls.
    """
    resting = place.floor + below + 0.002
    if not place.is_container:
        return resting
    return max(resting, place.rim - PALM_CLEARANCE if below > TALL else place.rim + TIP + 0.004)
