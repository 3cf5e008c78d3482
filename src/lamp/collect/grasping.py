"""Where to grasp an object from above: centre, height and direction of closing, chosen from its collision geometry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lamp.collect.scene_state import LiberoScene, Points, Vector

MAX_OPENING = 0.08
"""Distance between the pads of the open Panda gripper in [m]."""
PALM_CLEARANCE = 0.026
"""How far below an object's top the pads may go before the palm touches it in [m]."""
TIP = 0.011
"""How far the finger tips reach below the point between the pads in [m]."""
PAD_HALF_WIDTH = 0.010
"""Half the width of a finger across the closing direction in [m]."""
FINGER = (0.036, 0.066)
"""Where an open finger begins and ends along the closing direction, from the hand's middle in [m]."""
HAND = (0.105, 0.034, 0.030)
"""The palm: half length along the closing direction, half width across it, height above the pads in [m]."""
MARGIN = 0.006
"""Distance that the gripper keeps from everything but the object [m]."""
EASY_REACH = 0.70
"""Up to this horizontal distance from its base the arm moves freely; a stretched arm cannot be drawn back [m]."""
WIDTH_COST = 30.0
"""Cost of one metre of half width, in half turns of the wrist: a box is worth turning for, an uneven can is not."""
FINGER_COST, NEAR_COST, HAND_COST = 1.0, 0.1, 0.05
"""Cost of a point in a finger's way, near a finger, and in the way of the palm, in half turns of the wrist: a finger that
lands on something cannot go on, a palm mostly touches what gives way."""
REACH_COST = 20.0
"""Cost of one metre beyond it, in half turns of the wrist."""
YAWS = np.deg2rad(np.arange(-90, 90, 10))


@dataclass(frozen=True, kw_only=True)
class Grasp:
    """A grasp fixed to the object, so that it moves along when the object does."""

    point: Vector
    """Where the middle between the pads goes, in the object's frame in [m]."""
    closing: Vector
    """The direction in which the fingers close, in the object's frame (unit length, horizontal in the world)."""
    half_width: float
    """Half of what the fingers will enclose in [m]."""

    def pose(self, scene: LiberoScene) -> tuple[Vector, float]:
        """Position in [m] and yaw in [rad] of the hand for the object's present pose."""
        rotation = scene.object_rotation
        direction = rotation @ self.closing
        return scene.object_position + rotation @ self.point, float(np.arctan2(-direction[0], direction[1]))


def _axes(yaw: float) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
    """Closing direction and the direction across it, in the world's horizontal plane."""
    return np.array([-np.sin(yaw), np.cos(yaw)]), np.array([np.cos(yaw), np.sin(yaw)])


def _obstruction(points: Points, centre: Vector, yaw: float, margin: float, *, own: bool = False) -> float:
    """What the open gripper would touch at the grasp or on the straight way down to it, in half turns of the wrist.

    Args:
        own: The points are the object's own; otherwise they must not lie between the fingers either.
    """
    along_axis, across_axis = _axes(yaw)
    offset = points - centre
    along, across = np.abs(offset[:, :2] @ along_axis), np.abs(offset[:, :2] @ across_axis)
    inner = FINGER[0] if own else -np.inf

    def fingers(margin: float) -> int:
        inside = (along > inner - margin) & (along < FINGER[1] + margin) & (across < PAD_HALF_WIDTH + margin)
        return int(np.count_nonzero(inside & (offset[:, 2] > -TIP)))

    hand = (along < HAND[0] + margin) & (across < HAND[1] + margin) & (offset[:, 2] > HAND[2])
    return FINGER_COST * fingers(0.0) + NEAR_COST * fingers(margin) + HAND_COST * int(np.count_nonzero(hand))


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """One way to grasp, in the world."""

    centre: Vector
    yaw: float
    half_width: float
    """Half of what the fingers enclose in [m]."""
    spread: float = 0.0
    """Half the object's width along the closing direction in [m]: least where a box is met squarely."""


def _band(points: Points, height: float) -> Float[np.ndarray, "m 3"]:
    """The part of the object that the finger pads can touch with the hand at this height."""
    return points[(points[:, 2] > height - TIP) & (points[:, 2] < height + 0.012)]


def _candidates(points: Points, height: float) -> list[_Candidate]:
    """Every way in which the fingers could enclose the object at this height."""
    band = _band(points, height)
    candidates = []
    if not len(band):
        return candidates
    middle = (band[:, :2].min(axis=0) + band[:, :2].max(axis=0)) / 2
    for yaw in YAWS:
        along_axis, across_axis = _axes(yaw)
        along, across = (band[:, :2] - middle) @ along_axis, (band[:, :2] - middle) @ across_axis
        slot = along[np.abs(across) < PAD_HALF_WIDTH + 0.003]
        if len(slot) and np.ptp(slot) < 0.072:
            centre = np.append(middle + (slot.min() + slot.max()) / 2 * along_axis, height)
            half_width, spread = float(np.ptp(slot)) / 2, float(np.ptp(along)) / 2
            candidates.append(_Candidate(centre=centre, yaw=float(yaw), half_width=half_width, spread=spread))
    return candidates


def _rim_candidates(points: Points, height: float) -> list[_Candidate]:
    """The same for a hollow object too wide to enclose: one finger inside, one outside of its wall."""
    band = _band(points, height)
    middle = (points[:, :2].min(axis=0) + points[:, :2].max(axis=0)) / 2
    candidates = []
    for yaw in YAWS:
        along_axis, across_axis = _axes(yaw)
        along, across = (band[:, :2] - middle) @ along_axis, (band[:, :2] - middle) @ across_axis
        for side in (-1.0, 1.0):
            wall = (side * along)[(np.abs(across) < PAD_HALF_WIDTH) & (side * along > 0.02)]
            if not len(wall):
                continue
            outer, inner = wall.max(), max(wall.min(), wall.max() - 0.03)
            centre = np.append(middle + side * (outer + inner) / 2 * along_axis, height)
            candidates.append(_Candidate(centre=centre, yaw=float(yaw), half_width=float(outer - inner) / 2))
    return candidates


def plan_grasp(scene: LiberoScene, to_goal: Vector) -> Grasp | None:
    """Chooses the grasp of the object as it lies now, or None where there is nothing to enclose.

    What counts: nothing in the gripper's way here and at the goal, a small turn of the wrist, a box met squarely, and for a
    rim the side that the arm reaches most easily. The same state always gives the same grasp.

    Args:
        to_goal: How far the object is to be moved in [m].
    """
    volumes = scene.volumes()
    points, top, bottom = volumes.object, volumes.top, volumes.bottom
    height = max(top - PALM_CLEARANCE, min((top + bottom) / 2, bottom + 0.03), bottom + TIP + 0.002)
    candidates = _candidates(points, height)
    rim = not candidates
    if rim:
        candidates = _rim_candidates(points, height)

    def cost(candidate: _Candidate) -> float:
        centre, yaw = candidate.centre, candidate.yaw
        in_the_way = _obstruction(volumes.obstacles, centre, yaw, MARGIN)
        in_the_way += _obstruction(volumes.others, centre + to_goal, yaw, MARGIN)
        turn = abs(yaw) / np.pi
        if not rim:
            return in_the_way + _obstruction(points, centre, yaw, 0.0, own=True) + turn + WIDTH_COST * candidate.spread
        reach = max(float(np.linalg.norm(at[:2] - scene.base_position[:2])) for at in (centre, centre + to_goal))
        return in_the_way + turn + REACH_COST * max(0.0, reach - EASY_REACH)

    if not candidates:
        return None
    best = min(candidates, key=cost)
    object_from_world = scene.object_rotation.T
    return Grasp(
        point=object_from_world @ (best.centre - scene.object_position),
        closing=object_from_world @ np.append(_axes(best.yaw)[0], 0.0),
        half_width=best.half_width,
    )
