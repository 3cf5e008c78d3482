"""A scripted expert for LIBERO's pick-and-place tasks: a closed loop from the simulator's exact state to an action.

The expert remembers its phase and the grasp it has chosen, and nothing else. Within a phase the action is a smooth function of
the present state, so that a policy can imitate it; when the object slips away or the fingers close on nothing, the phase goes
back to the approach, so that demonstrations disturbed by noise contain the recovery.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from jaxtyping import Float

from lamp.collect.grasping import TIP, Grasp, plan_grasp
from lamp.collect.placing import CLEARANCE, Place, climb_needed, find_place, obstacle_height, release_height
from lamp.collect.scene import Rotation, Scene, Vector

POSITION_UNIT = 0.05
"""Displacement that an action of 1 asks for in [m] (robosuite's OSC_POSE)."""
ROTATION_UNIT = 0.5
"""Rotation that an action of 1 asks for in [rad]."""
GAIN = 1.2
"""Share of the remaining way asked for in one step. The arm covers a quarter of what is asked, one step late: the fastest gain
that does not overshoot."""
OPEN, CLOSE = -1.0, 1.0
DOWN: Rotation = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
"""world_from_hand of a hand that points straight down and closes along the world's y axis (yaw 0)."""


class Phase(Enum):
    """What the expert is about to do."""

    APPROACH = "approach"
    CLOSE = "close"
    CARRY = "carry"
    RELEASE = "release"
    RETREAT = "retreat"
    DONE = "done"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One step of the expert."""

    action: Float[np.ndarray, "7"]
    """In the environment's units: six deltas in [-1, 1], gripper -1 open, +1 close."""
    phase: Phase
    precision: float
    """How little disturbance the step bears: 0 far from everything, 1 while grasping and letting go."""
    reach: float
    """Distance of the hand from the grasp in [m]; infinite where none is chosen."""


def _ramp(value: float, start: float, end: float) -> float:
    """0 up to `start`, 1 from `end` on, linear between."""
    return float(np.clip((value - start) / (end - start), 0.0, 1.0))


def _rotation_vector(rotation: Rotation) -> Vector:
    """Axis times angle in [rad] of a rotation of less than half a turn."""
    axis = np.array(
        [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]
    )
    sine, cosine = np.linalg.norm(axis) / 2, (np.trace(rotation) - 1) / 2
    return axis / max(2 * sine, 1e-9) * np.arctan2(sine, cosine)


class Expert:
    """Brings the task's object to its goal, one decision at a time."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.phase = Phase.APPROACH
        self.grasp: Grasp | None = None
        self.retries = 0

    def decide(self) -> Decision:
        """Looks at the present state, moves on to the phase it calls for, and returns the action."""
        self._advance()
        action, precision = {
            Phase.APPROACH: self._approach,
            Phase.CLOSE: self._close,
            Phase.CARRY: self._carry,
            Phase.RELEASE: self._release,
            Phase.RETREAT: self._retreat,
            Phase.DONE: self._retreat,
        }[self.phase]()
        return Decision(action=action, phase=self.phase, precision=precision, reach=self._reach())

    def _reach(self) -> float:
        if self.grasp is None:
            return float("inf")
        return float(np.linalg.norm(self.grasp.pose(self.scene)[0] - self.scene.hand_position))

    @property
    def done(self) -> bool:
        """Whether the goal is reached, the object let go, and the hand clear of it."""
        return self.phase is Phase.DONE

    # Which phase the present state calls for.

    def _advance(self) -> None:
        scene = self.scene
        touching = scene.touching
        if self.phase is Phase.APPROACH:
            self._plan()
            if self._at_grasp():
                self.phase = Phase.CLOSE
        elif self.phase is Phase.CLOSE:
            stalled = abs(scene.closing_speed) < 0.03 and scene.opening < 0.075
            if scene.opening < 0.003 or (stalled and not any(touching) and scene.opening < 0.02):
                self._again()
            elif all(touching) and stalled:
                self.phase = Phase.CARRY
        elif self.phase is Phase.CARRY:
            if not any(touching):
                self.phase = Phase.RETREAT if scene.success else Phase.APPROACH
                if self.phase is Phase.APPROACH:
                    self._again()
            elif self._at_release():
                self.phase = Phase.RELEASE
        elif self.phase is Phase.RELEASE:
            if self._let_go(touching):
                self.phase = Phase.RETREAT
        elif self.phase is Phase.RETREAT and self._is_clear():
            if scene.success:
                self.phase = Phase.DONE
            else:
                self._again()
        elif self.phase is Phase.DONE and not scene.success:
            self._again()

    def _again(self) -> None:
        self.phase, self.grasp = Phase.APPROACH, None
        self.retries += 1

    def _plan(self) -> None:
        """Chooses a grasp at the start of an approach, and anew when the object was moved so that it no longer lies flat."""
        if self.grasp is not None:
            direction = self.scene.object_rotation @ self.grasp.closing
            if abs(direction[2]) < 0.2 and self._grasp_depth_ok():
                return
        self.grasp = plan_grasp(self.scene) or self.grasp

    def _grasp_depth_ok(self) -> bool:
        assert self.grasp is not None
        position, _ = self.grasp.pose(self.scene)
        return bool(position[2] > self.scene.object_points()[:, 2].min() + TIP - 0.004)

    # What to do in each phase.

    def _approach(self) -> tuple[Float[np.ndarray, "7"], float]:
        """A funnel: high while off to the side, down to the grasp as the hand comes to stand over it."""
        if self.grasp is None:
            return self._move(self.scene.hand_position, 0.0, OPEN), 0.0
        scene, hand = self.scene, self.scene.hand_position
        goal, yaw = self.grasp.pose(scene)
        misalignment = self._misalignment(goal, yaw)
        points = scene.world_points()[0]
        way_top = obstacle_height(points, hand[:2], goal[:2], 0.06 + 0.05 * _ramp(float(np.hypot(*(goal - hand)[:2])), 0.05, 0.15))
        object_top = float(scene.object_points()[:, 2].max())
        hover = max(object_top, way_top) + TIP + 0.015
        height = goal[2] + (max(hover, goal[2] + 0.02) - goal[2]) * _ramp(misalignment, 1.0, 3.0)
        target = np.append(goal[:2], height)
        sideways = 1.0 - _ramp(height - hand[2], 0.01, 0.04)
        near = 1.0 - _ramp(float(np.linalg.norm(goal - hand)), 0.02, 0.12)
        return self._move(target, yaw, OPEN, sideways=sideways), near

    def _misalignment(self, goal: Vector, yaw: float) -> float:
        """How far the hand is from standing over the grasp; up to 1 the fingers pass the object on both sides."""
        assert self.grasp is not None
        offset = (goal - self.scene.hand_position)[:2]
        along = abs(float(offset @ [-np.sin(yaw), np.cos(yaw)]))
        across = abs(float(offset @ [np.cos(yaw), np.sin(yaw)]))
        free = float(np.clip(0.6 * (0.036 - self.grasp.half_width), 0.003, 0.012))
        turn = abs(float(_rotation_vector(_world_from_hand(yaw) @ self.scene.hand_rotation.T)[2]))
        return max(along / free, across / 0.012, turn / 0.15)

    def _at_grasp(self) -> bool:
        if self.grasp is None:
            return False
        goal, yaw = self.grasp.pose(self.scene)
        return self._misalignment(goal, yaw) < 1.0 and abs(goal[2] - self.scene.hand_position[2]) < 0.006

    def _close(self) -> tuple[Float[np.ndarray, "7"], float]:
        return self._move(self.scene.hand_position, self._yaw(), CLOSE), 1.0

    def _carry(self) -> tuple[Float[np.ndarray, "7"], float]:
        """Up until nothing is in the way, over to the goal, and down: the same funnel, for the object instead of the hand."""
        scene, hand = self.scene, self.scene.hand_position
        place = find_place(scene)
        everything, own = scene.world_points()
        points, others = everything[own], everything[~own]
        position = scene.object_position
        below = float(hand[2] - points[:, 2].min())
        offset = place.centre - position[:2]
        distance = float(np.linalg.norm(offset))
        radius = float(np.linalg.norm(points[:, :2] - hand[:2], axis=1).max())
        way_top = obstacle_height(others, hand[:2], hand[:2] + offset, min(radius, 0.08) + 0.015)
        cruise = max(way_top + CLEARANCE + below, release_height(place, below=below))
        release = release_height(place, below=below)
        height = release + (cruise - release) * _ramp(distance, *self._lowering(place))
        needed = climb_needed(others, hand[:2], hand[:2] + offset, min(radius, 0.08) + 0.015) + CLEARANCE + below
        sideways = 1.0 - _ramp(min(needed, height) - hand[2], 0.0, 0.03)
        target = np.append(hand[:2] + offset, height)
        near = 1.0 - _ramp(float(np.hypot(distance, height - hand[2])), 0.02, 0.08)
        return self._move(target, self._yaw(), CLOSE, sideways=sideways), 0.5 + 0.5 * near

    @staticmethod
    def _lowering(place: Place) -> tuple[float, float]:
        """Distances from the goal between which the object comes down in [m]."""
        return (0.02, 0.05) if place.is_container else (0.01, 0.05)

    def _at_release(self) -> bool:
        scene = self.scene
        place = find_place(scene)
        hand, points = scene.hand_position, scene.object_points()
        below = float(hand[2] - points[:, 2].min())
        distance = float(np.linalg.norm(place.centre - scene.object_position[:2]))
        height = hand[2] - release_height(place, below=below)
        return distance < (0.025 if place.is_container else 0.015) and (height < 0.006 or (scene.success and height < 0.012))

    def _release(self) -> tuple[Float[np.ndarray, "7"], float]:
        return self._move(self.scene.hand_position, self._yaw(), OPEN), 1.0

    def _retreat(self) -> tuple[Float[np.ndarray, "7"], float]:
        """Up until the finger tips are above the object, then still."""
        hand = self.scene.hand_position
        rise = 0.0 if self._is_clear() else 0.01 if any(self.scene.touching) else 0.05
        return self._move(hand + [0.0, 0.0, rise], self._yaw(), OPEN), 0.5

    def _let_go(self, touching: tuple[bool, bool]) -> bool:
        """Whether the fingers are off the object, or as far open as they go."""
        enclosed = 2 * self.grasp.half_width if self.grasp else 0.0
        return self.scene.opening > (0.077 if any(touching) else min(0.07, enclosed + 0.008))

    def _is_clear(self) -> bool:
        """Whether the finger tips are above the object, or far from it."""
        points, hand = self.scene.object_points(), self.scene.hand_position
        aside = np.linalg.norm(points[:, :2] - hand[:2], axis=1).min() > 0.09
        return bool(aside or hand[2] - TIP > points[:, 2].max() + 0.01)

    def _yaw(self) -> float:
        """The hand's present direction of closing, as a yaw in [rad]."""
        direction = self.scene.hand_rotation[:, 0]
        return float(np.arctan2(-direction[0], direction[1]))

    def _move(self, target: Vector, yaw: float, gripper: float, *, sideways: float = 1.0) -> Float[np.ndarray, "7"]:
        """The action towards a pose; `sideways` slows the horizontal part."""
        way = GAIN * (target - self.scene.hand_position) / POSITION_UNIT
        way[:2] *= sideways * min(1.0, 1.0 / max(float(np.linalg.norm(way[:2])), 1e-9))
        turn = GAIN * _rotation_vector(_world_from_hand(yaw) @ self.scene.hand_rotation.T) / ROTATION_UNIT
        return np.concatenate([np.clip(way, -1.0, 1.0), np.clip(turn, -1.0, 1.0), [gripper]])


def _world_from_hand(yaw: float) -> Rotation:
    """A hand that points straight down, turned about the vertical."""
    sine, cosine = np.sin(yaw), np.cos(yaw)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]]) @ DOWN
