"""A scripted expert for the WidowX tasks: it knows where everything is, and picks and places it.

It shows that the tasks can be solved through the adapter; nothing is trained on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np

from lamp_client.envs.rotations import matrix_from_axis_angle, rpy_from_matrix

STRIDE = 0.03
"""Farthest that the hand's target moves in one action [m]."""
TURN = 0.25
"""Farthest that it turns in one action [rad]."""
ABOVE = 0.07
"""Height over the grasp from which the hand goes down [m]."""
CLEARANCE = 0.06
"""Height of what is carried over its goal [m]."""
FINGERTIP = 0.017
"""How far the fingertips reach below the hand, and a little more: so high it stays over what the object lies on [m]."""
PAD = 0.0145
"""Half the width of a finger [m]."""
CLOSE_STEPS, OPEN_STEPS = 4, 3
LOST = 0.06
"""An object whose centre of mass is this far from the hand is not in it [m]."""


class PickPlaceScene(Protocol):
    """The state of the scene that the expert acts on; lengths in metres, in the robot's frame."""

    @property
    def hand(self) -> tuple[np.ndarray, np.ndarray]:
        """Position and rotation (3, 3)."""
        ...

    @property
    def hand_target(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the controller is taking the hand."""
        ...

    @property
    def source(self) -> np.ndarray:
        """(n, 3) corners of the hull of what is to be moved."""
        ...

    @property
    def source_mass(self) -> np.ndarray:
        """(3,) its centre of mass."""
        ...

    @property
    def goal(self) -> np.ndarray:
        """(n, 3) corners of the hull of where it is to go."""
        ...


class SimplerPhase(Enum):
    """What the expert is about to do."""

    REACH = "reach"
    DESCEND = "descend"
    CLOSE = "close"
    LIFT = "lift"
    CARRY = "carry"
    LOWER = "lower"
    OPEN = "open"
    RETREAT = "retreat"


@dataclass(frozen=True, kw_only=True)
class TopDownGrasp:
    """Where the hand closes, in the robot's frame."""

    position: np.ndarray
    rotation: np.ndarray


def choose_grasp(corners: np.ndarray, mass: np.ndarray, level: np.ndarray) -> TopDownGrasp:
    """A grasp from above, across where an object is narrowest, such that it does not swing.

    Args:
        corners: (n, 3) of the hull.
        mass: (3,) the centre of mass.
        level: (3, 3) the hand's rotation when it points down and closes along y.
    """
    yaws = np.deg2rad(np.arange(-85, 91, 5))
    across = np.stack([-np.sin(yaws), np.cos(yaws)])
    widths = np.ptp(corners[:, :2] @ across, axis=0)
    # Of turns that are about as good, the smallest.
    best = int(np.argmin(np.where(widths < widths.min() + 0.002, np.abs(yaws), np.inf)))
    along = np.array([np.cos(yaws[best]), np.sin(yaws[best])])
    outline = np.stack([corners[:, :2] @ along, corners[:, :2] @ across[:, best]])
    plane = balanced(outline, float(mass[:2] @ along)) * along + _middle(outline[1]) * across[:, best]
    height = max(_middle(corners[:, 2]), corners[:, 2].min() + FINGERTIP)
    turned = matrix_from_axis_angle(np.array([0.0, 0.0, yaws[best]])) @ level
    return TopDownGrasp(position=np.array([*plane, height]), rotation=turned)


def balanced(outline: np.ndarray, mass: float) -> float:
    """Where along an object the fingers are to close, so that they touch it near its centre of mass.

    Flat fingers touch a tapering object at their wider edge only, and it swings about that.

    Args:
        outline: (2, n) corners: along the object, and across it.
        mass: Of the centre of mass, along the object.
    """
    slices = np.arange(outline[0].min(), outline[0].max(), 0.001)
    widths = _widths(outline, slices)

    def cost(place: float) -> float:
        covered = np.abs(slices - place) <= PAD
        touched = slices[covered & (widths > widths[covered].max() - 2e-4)].mean()
        return abs(touched - mass) + 0.7 * abs(place - mass)

    return min(np.clip(mass + np.arange(-0.02, 0.0201, 0.001), slices[0], slices[-1]).tolist(), key=cost)


def _widths(outline: np.ndarray, slices: np.ndarray) -> np.ndarray:
    """(m,) how wide the hull of an outline is at each slice: its edges are among the lines between any two corners."""
    order = np.argsort(outline[0], kind="stable")
    along, across = outline[:, order]
    first, second = np.triu_indices(len(along), 1)
    run = np.maximum(along[second] - along[first], 1e-9)
    share = (slices[:, None] - along[first]) / run
    lines = across[first] + share * (across[second] - across[first])
    reached = (share >= 0) & (share <= 1)
    return np.where(reached, lines, -np.inf).max(axis=1) - np.where(reached, lines, np.inf).min(axis=1)


class SimplerExpert:
    """Brings the task's object to its goal; each call is the next action, in BridgeV2's convention."""

    def __init__(self, scene: PickPlaceScene) -> None:
        self._scene = scene
        self._level = scene.hand_target[1]
        self.phase = SimplerPhase.REACH
        self.grasp = choose_grasp(scene.source, scene.source_mass, self._level)
        self._steps = 0
        """Actions since the phase began."""

    def __call__(self) -> np.ndarray:
        """Returns (7,) position delta [m], roll-pitch-yaw delta [rad], gripper 1 = open."""
        phase = self._next()
        if phase is not self.phase:
            self.phase, self._steps = phase, 0
            if phase is SimplerPhase.REACH:
                self.grasp = choose_grasp(self._scene.source, self._scene.source_mass, self._level)
        self._steps += 1
        position, rotation = self._scene.hand_target
        shift = self._wanted() - position
        shift *= min(1.0, STRIDE / max(float(np.linalg.norm(shift)), 1e-9))
        opened = self.phase in (SimplerPhase.REACH, SimplerPhase.DESCEND, SimplerPhase.OPEN, SimplerPhase.RETREAT)
        turn = limited_turn(self.grasp.rotation @ rotation.T, TURN)
        return np.concatenate([shift, rpy_from_matrix(turn), [float(opened)]]).astype(np.float32)

    def _wanted(self) -> np.ndarray:
        """Where the hand is to be [m]."""
        hand, grasp = self._scene.hand[0], self.grasp.position
        up = np.array([0.0, 0.0, 1.0])
        match self.phase:
            case SimplerPhase.REACH:
                return grasp + ABOVE * up
            case SimplerPhase.DESCEND | SimplerPhase.CLOSE:
                return grasp
            case SimplerPhase.LIFT:
                return np.array([*grasp[:2], hand[2] + CLEARANCE - self._height()])
            case SimplerPhase.CARRY:
                return np.array([*(hand[:2] + self._offset()), hand[2] + CLEARANCE - self._height()])
            case SimplerPhase.LOWER:
                return np.array([*(hand[:2] + self._offset()), hand[2] - self._height()])
            case SimplerPhase.OPEN:
                return self._scene.hand_target[0]
            case SimplerPhase.RETREAT:
                return np.array([*self._scene.hand_target[0][:2], self._top() + 2 * ABOVE])

    def _next(self) -> SimplerPhase:
        """The phase that the present state calls for."""
        hand, rotation = self._scene.hand
        away = np.abs(hand - self._wanted())
        lost = self._steps > 1 and np.linalg.norm(self._scene.source_mass - hand) > LOST
        match self.phase:
            case SimplerPhase.REACH:
                turned = np.linalg.norm(self.grasp.rotation - rotation) < 0.1
                return (
                    SimplerPhase.DESCEND if away[:2].max() < 0.006 and away[2] < 0.02 and turned else SimplerPhase.REACH
                )
            case SimplerPhase.DESCEND:
                return SimplerPhase.CLOSE if away[2] < 0.004 or self._steps > 6 else SimplerPhase.DESCEND
            case SimplerPhase.CLOSE:
                return SimplerPhase.LIFT if self._steps >= CLOSE_STEPS else SimplerPhase.CLOSE
            case SimplerPhase.LIFT | SimplerPhase.CARRY | SimplerPhase.LOWER if lost:
                return SimplerPhase.REACH
            case SimplerPhase.LIFT:
                return SimplerPhase.CARRY if self._height() > CLEARANCE - 0.015 else SimplerPhase.LIFT
            case SimplerPhase.CARRY:
                return SimplerPhase.LOWER if np.abs(self._offset()).max() < 0.006 else SimplerPhase.CARRY
            case SimplerPhase.LOWER:
                return SimplerPhase.OPEN if self._height() < 0.005 or self._steps > 8 else SimplerPhase.LOWER
            case SimplerPhase.OPEN:
                return SimplerPhase.RETREAT if self._steps >= OPEN_STEPS else SimplerPhase.OPEN
            case SimplerPhase.RETREAT:
                return SimplerPhase.RETREAT

    def _offset(self) -> np.ndarray:
        """From the object to its goal, in the plane [m]."""
        source, goal = (np.array([_middle(c[:, 0]), _middle(c[:, 1])]) for c in (self._scene.source, self._scene.goal))
        return goal - source

    def _top(self) -> float:
        return float(self._scene.goal[:, 2].max())

    def _height(self) -> float:
        """Of the object's lowest point over the goal's highest [m]."""
        return float(self._scene.source[:, 2].min()) - self._top()


def limited_turn(turn: np.ndarray, limit: float) -> np.ndarray:
    """The part of a rotation (3, 3), by at most `limit` [rad], about its own axis."""
    axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    sine = float(np.linalg.norm(axis)) / 2
    angle = float(np.arctan2(sine, (np.trace(turn) - 1) / 2))
    if sine < 1e-9:
        return np.eye(3)
    return matrix_from_axis_angle(axis / (2 * sine) * min(angle, limit))


def _middle(values: np.ndarray) -> float:
    return float(values.min() + values.max()) / 2
