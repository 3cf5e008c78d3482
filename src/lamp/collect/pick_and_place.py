"""The expert's movements, each a smooth function of the present situation: reach, close, carry, let go, withdraw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lamp.collect.grasping import PALM_CLEARANCE, TIP, Grasp, plan_grasp
from lamp.collect.scene_state import LiberoScene, Points, Rotation, Vector, Volumes
from lamp.data.actions import AxisAngle

POSITION_UNIT = 0.05
"""Displacement that an action of 1 asks for in [m] (robosuite's OSC_POSE)."""
ROTATION_UNIT = 0.5
"""Rotation that an action of 1 asks for in [rad]."""
GAIN = 1.2
"""Share of the remaining way asked for in one step. The arm covers a quarter of what is asked, one step late: the fastest gain
that does not overshoot."""
MAX_CLIMB = 0.4
"""What is higher than this above the goal hangs on the hand and cannot be climbed over [m]."""
WIDE_OPEN = 0.07
"""Opening from which on the hand may come down on an object [m]."""
OPEN, CLOSE = -1.0, 1.0
DOWN: Rotation = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
"""world_from_hand of a hand that points straight down and closes along the world's y axis (yaw 0)."""

Action = Float[np.ndarray, "7"]


@dataclass(frozen=True, kw_only=True)
class PickPlaceState:
    """Everything a decision looks at, read from the simulator once a step."""

    hand: Vector
    """The middle between the finger pads in the world in [m]."""
    rotation: Rotation
    """world_from_hand."""
    opening: float
    """Distance between the pads in [m]."""
    closing_speed: float
    """In [m/s]."""
    touching: tuple[bool, bool]
    """Whether the left and the right finger touch the object."""
    resting: bool
    """Whether the object touches what it is to be brought to."""
    still: bool
    """Whether the arm stands still."""
    success: bool
    """LIBERO's verdict."""
    volumes: Volumes
    place: Place
    offset: Float[np.ndarray, "2"]
    """From the object to where it should come down, horizontally in [m]."""
    goal: Vector | None
    """Where the hand should be to grasp in [m]; None while no grasp is chosen."""
    yaw: float
    """The direction of closing to have there in [rad]; without a grasp, the present one."""
    half_width: float
    """Half of what the fingers enclose in [m]."""

    @property
    def turn(self) -> float:
        """The hand's present direction of closing, as a yaw in [rad]."""
        return float(np.arctan2(-self.rotation[0, 0], self.rotation[1, 0]))

    @property
    def reach(self) -> float:
        """Distance of the hand from the grasp in [m]; infinite while none is chosen."""
        return float("inf") if self.goal is None else float(np.linalg.norm(self.goal - self.hand))

    @property
    def below(self) -> float:
        """How far the object reaches below the hand in [m]."""
        return float(self.hand[2] - self.volumes.bottom)

    @property
    def misalignment(self) -> float:
        """How far the hand is from standing over the grasp, open; up to 1 the fingers pass the object on both sides."""
        if self.goal is None:
            return float("inf")
        offset = (self.goal - self.hand)[:2]
        along = abs(float(offset @ [-np.sin(self.yaw), np.cos(self.yaw)]))
        across = abs(float(offset @ [np.cos(self.yaw), np.sin(self.yaw)]))
        free = float(np.clip(0.6 * (0.036 - self.half_width), 0.003, 0.012))
        shut = max(0.0, WIDE_OPEN - self.opening) / 0.005
        return max(along / free, across / 0.012, abs(nearest_turn(self.yaw - self.turn)) / 0.15, shut)


def read_state(scene: LiberoScene, grasp: Grasp | None) -> PickPlaceState:
    """Reads the present situation."""
    volumes, rotation = scene.volumes(), scene.hand_rotation
    place = find_place(volumes.goal, scene.target_position[:2])
    turn = float(np.arctan2(-rotation[0, 0], rotation[1, 0]))
    goal, yaw = (None, turn) if grasp is None else grasp.pose(scene)
    return PickPlaceState(
        hand=scene.hand_position,
        rotation=rotation,
        opening=scene.opening,
        closing_speed=scene.closing_speed,
        touching=scene.touching,
        resting=scene.resting,
        still=scene.still,
        success=scene.success,
        volumes=volumes,
        place=place,
        offset=place.centre - scene.object_position[:2],
        goal=goal,
        # Closing is the same after half a turn: the nearer of the two, so that no step jumps from one to the other.
        yaw=turn + nearest_turn(yaw - turn),
        half_width=0.0 if grasp is None else grasp.half_width,
    )


def choose_grasp(scene: LiberoScene, now: PickPlaceState) -> Grasp | None:
    """A grasp that fits here and at the goal."""
    rise = release_height(now.place, below=0.0) - now.volumes.bottom
    return plan_grasp(scene, np.append(now.offset, rise))


def reach(now: PickPlaceState) -> Action:
    """A funnel: high while off to the side, down to the grasp as the hand comes to stand over it."""
    # What a shut hand holds by mistake is let go before the hand rises, not dropped from above.
    if now.goal is None or (all(now.touching) and now.opening < WIDE_OPEN):
        return move(now, now.hand, now.turn, OPEN)
    aside = float(np.hypot(*(now.goal - now.hand)[:2]))
    width = 0.06 + 0.05 * ramp(aside, 0.05, 0.15)
    way_top = obstacle_height(now.volumes.obstacles, now.hand[:2], now.goal[:2], width)
    hover = max(max(now.volumes.top, way_top) + TIP + 0.015, now.goal[2] + 0.02)
    # A finger that touches the object from the wrong side would push it along: up and around.
    astray = now.misalignment > 1.0 and any(now.touching)
    height = now.goal[2] + (hover - now.goal[2]) * (1.0 if astray else ramp(now.misalignment, 1.0, 3.0))
    sideways = 0.0 if astray else 1.0 - ramp(height - now.hand[2], 0.01, 0.04)
    return move(now, np.append(now.goal[:2], height), now.yaw, OPEN, sideways=sideways)


def close(now: PickPlaceState) -> Action:
    """Stays at the grasp until the fingers touch, then gives way to them."""
    if now.goal is None or any(now.touching):
        return move(now, now.hand, now.turn, CLOSE)
    return move(now, now.goal, now.yaw, CLOSE)


def carry(now: PickPlaceState) -> Action:
    """Up until nothing is in the way, over to the goal, and down: the same funnel, for the object instead of the hand."""
    start, end = now.hand[:2], now.hand[:2] + now.offset
    radius = min(float(np.linalg.norm(now.volumes.object[:, :2] - start, axis=1).max()), 0.08) + 0.015
    free = CLEARANCE + now.below
    release = release_height(now.place, below=now.below)
    cruise = max(obstacle_height(now.volumes.obstacles, start, end, radius) + free, release)
    cruise = min(cruise, release + MAX_CLIMB)
    lowering = (0.02, 0.05) if now.place.is_container else (0.008, 0.03)
    height = release + (cruise - release) * ramp(float(np.linalg.norm(now.offset)), *lowering)
    needed = climb_needed(now.volumes.obstacles, start, end, radius) + free
    sideways = 1.0 - ramp(min(needed, height) - now.hand[2], 0.0, 0.03)
    return move(now, np.append(end, height), now.turn, CLOSE, sideways=sideways)


def over_goal(now: PickPlaceState) -> bool:
    """Whether the object is where it can be let go, or as near to it as the arm gets."""
    height = now.hand[2] - release_height(now.place, below=now.below)
    near = np.linalg.norm(now.offset) < (0.025 if now.place.is_container else 0.015)
    down = height < 0.003 or (now.resting and height < 0.012) or (now.still and height < 0.03)
    return bool((near and down) or (now.success and now.resting and height < 0.03))


def release_object(now: PickPlaceState) -> Action:
    """Opens, and keeps the object in the middle between the fingers."""
    return move(now, now.hand + _recentre(now), now.turn, OPEN)


def retreat(now: PickPlaceState) -> Action:
    """Up until the finger tips are above the object, then still; slowly while a finger still touches it."""
    rise = 0.0 if is_clear(now) else 0.01 if any(now.touching) else 0.05
    return move(now, now.hand + _recentre(now) + [0.0, 0.0, rise], now.turn, OPEN)


def has_released(now: PickPlaceState) -> bool:
    """Whether the fingers are off the object, or as far open as they go."""
    return now.opening > (0.077 if any(now.touching) else min(0.07, 2 * now.half_width + 0.008))


def is_clear(now: PickPlaceState) -> bool:
    """Whether the finger tips are above the object, or far from it."""
    aside = np.linalg.norm(now.volumes.object[:, :2] - now.hand[:2], axis=1).min() > 0.09
    return bool(aside or now.hand[2] - TIP > now.volumes.top + 0.01)


def _recentre(now: PickPlaceState) -> Vector:
    """The way to the middle of an object that hangs on one of the open fingers."""
    if now.goal is None or now.touching[0] == now.touching[1]:
        return np.zeros(3)
    along = now.rotation[:, 0] * [1.0, 1.0, 0.0]
    return np.clip(float((now.goal - now.hand) @ along), -0.015, 0.015) * along


def move(now: PickPlaceState, target: Vector, yaw: float, gripper: float, *, sideways: float = 1.0) -> Action:
    """The action towards a pose of the hand; `sideways` slows its horizontal part."""
    way = GAIN * (target - now.hand) / POSITION_UNIT
    way[:2] *= sideways / max(1.0, float(np.linalg.norm(way[:2])))
    turn = GAIN * AxisAngle().values(world_from_hand(yaw) @ now.rotation.T) / ROTATION_UNIT
    return np.concatenate([np.clip(way, -1.0, 1.0), np.clip(turn, -1.0, 1.0), [gripper]])


def ramp(value: float, start: float, end: float) -> float:
    """0 up to `start`, 1 from `end` on, linear between."""
    return float(np.clip((value - start) / (end - start), 0.0, 1.0))


def nearest_turn(yaw: float) -> float:
    """The smallest turn that closes the fingers along the same line, in [-pi/2, pi/2)."""
    return float((yaw + np.pi / 2) % np.pi - np.pi / 2)


def world_from_hand(yaw: float) -> Rotation:
    """A hand that points straight down, turned about the vertical."""
    sine, cosine = np.sin(yaw), np.cos(yaw)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]]) @ DOWN


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
