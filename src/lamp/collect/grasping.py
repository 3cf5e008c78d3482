"""Where to grasp an object from above: centre, height and direction of closing, chosen from its collision geometry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lamp.collect.scene import Points, Scene, Vector

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

    def pose(self, scene: Scene) -> tuple[Vector, float]:
        """Position in [m] and yaw in [rad] of the hand for the object's present pose; yaw is in (-pi/2, pi/2]."""
        rotation = scene.object_rotation
        direction = rotation @ self.closing
        yaw = float(np.arctan2(-direction[0], direction[1]))
        return scene.object_position + rotation @ self.point, _half_turn(yaw)


def _half_turn(yaw: float) -> float:
    """The same direction of closing with the smallest turn of the wrist."""
    return float((yaw + np.pi / 2 - 1e-6) % np.pi - np.pi / 2 + 1e-6)


def _axes(yaw: float) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
    """Closing direction and the direction across it, in the world's horizontal plane."""
    return np.array([-np.sin(yaw), np.cos(yaw)]), np.array([np.cos(yaw), np.sin(yaw)])


def _blocked(points: Points, centre: Vector, yaw: float, margin: float) -> int:
    """Counts points that the open gripper would touch at the grasp or on the straight way down to it."""
    along_axis, across_axis = _axes(yaw)
    offset = points - centre
    along, across = np.abs(offset[:, :2] @ along_axis), np.abs(offset[:, :2] @ across_axis)
    finger = (along > FINGER[0] - margin) & (along < FINGER[1] + margin)
    finger &= (across < PAD_HALF_WIDTH + margin) & (offset[:, 2] > -TIP)
    hand = (along < HAND[0] + margin) & (across < HAND[1] + margin) & (offset[:, 2] > HAND[2])
    return int(np.count_nonzero(finger | hand))


def _candidates(points: Points, height: float) -> list[tuple[Vector, float, float]]:
    """(hand position, yaw, half width) of every way the fingers could enclose the object at this height."""
    band = points[(points[:, 2] > height - TIP) & (points[:, 2] < height + 0.012)]
    found = []
    middle = (band[:, :2].min(axis=0) + band[:, :2].max(axis=0)) / 2
    for yaw in YAWS:
        along_axis, across_axis = _axes(yaw)
        along, across = (band[:, :2] - middle) @ along_axis, (band[:, :2] - middle) @ across_axis
        slot = along[np.abs(across) < PAD_HALF_WIDTH + 0.003]
        if len(slot) and np.ptp(slot) < 0.072:
            shift = (slot.min() + slot.max()) / 2
            found.append((np.append(middle + shift * along_axis, height), float(yaw), float(np.ptp(slot)) / 2))
    return found


def _rim_candidates(points: Points, height: float) -> list[tuple[Vector, float, float]]:
    """The same for a hollow object too wide to enclose: one finger inside, one outside of its wall."""
    band = points[(points[:, 2] > height - TIP) & (points[:, 2] < height + 0.012)]
    middle = (points[:, :2].min(axis=0) + points[:, :2].max(axis=0)) / 2
    found = []
    for yaw in YAWS:
        along_axis, across_axis = _axes(yaw)
        along, across = (band[:, :2] - middle) @ along_axis, (band[:, :2] - middle) @ across_axis
        for side in (-1.0, 1.0):
            wall = (side * along)[(np.abs(across) < PAD_HALF_WIDTH) & (side * along > 0.02)]
            if not len(wall):
                continue
            outer, inner = wall.max(), max(wall.min(), wall.max() - 0.03)
            centre = middle + side * (outer + inner) / 2 * along_axis
            found.append((np.append(centre, height), float(yaw), float(outer - inner) / 2))
    return found


def plan_grasp(scene: Scene) -> Grasp | None:
    """Chooses the grasp of the object as it lies now, or None where every one is blocked.

    Preferred are, in this order: nothing in the gripper's way, a small turn of the wrist, a narrow enclosure. There is no
    chance in it: the same state gives the same grasp.
    """
    everything, own = scene.world_points()
    points, others = everything[own], everything[~own]
    top, bottom = points[:, 2].max(), points[:, 2].min()
    height = max(top - PALM_CLEARANCE, min((top + bottom) / 2, bottom + 0.03), bottom + TIP + 0.002)
    found = _candidates(points, height)
    rim = not found
    if rim:
        found = _rim_candidates(points, height)
    best, best_cost = None, np.inf
    for centre, yaw, half_width in found:
        if half_width > MAX_OPENING / 2 - 0.004:
            continue
        # The object itself must not be in the way either; its own sample points are exact, so they need no margin.
        blocked = _blocked(others, centre, yaw, 0.006) + (0 if rim else _blocked(points, centre, yaw, 0.0))
        cost = 1000.0 * min(blocked, 50) / 50 * (blocked > 0) + abs(yaw) / np.pi + 4.0 * half_width
        if rim:  # among equals, the side of the rim that lies nearer to the robot is the easier one to reach
            cost += 0.2 * (centre[0] - points[:, 0].mean())
        if cost < best_cost:
            best, best_cost = (centre, yaw, half_width), cost
    if best is None:
        return None
    centre, yaw, half_width = best
    world_from_object = scene.object_rotation
    closing = np.append(_axes(yaw)[0], 0.0)
    return Grasp(
        point=world_from_object.T @ (centre - scene.object_position),
        closing=world_from_object.T @ closing,
        half_width=half_width,
    )
