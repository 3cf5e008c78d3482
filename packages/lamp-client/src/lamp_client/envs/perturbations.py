"""What can be changed of a LIBERO scene while it runs: camera, arm, lights, images, instruction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lamp_client.envs.corruption import Corruption


@dataclass(frozen=True, kw_only=True, eq=False)
class CameraPose:
    """Where the reference camera is, and what it sees."""

    position: np.ndarray
    """(3,) in the world [m]."""
    quaternion: np.ndarray
    """(4,) (w, x, y, z): from the camera's axes (it looks along -z, y is up) to the world's."""
    fov: float
    """Vertical field of view [deg]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Lights:
    """The lights of a scene, and the one at the camera (`head`)."""

    diffuse: np.ndarray
    """(l, 3) colours, 0 to 1 and more."""
    specular: np.ndarray
    """(l, 3)"""
    position: np.ndarray
    """(l, 3) in the world [m]."""
    direction: np.ndarray
    """(l, 3) unit vectors in the world."""
    shadows: np.ndarray
    """(l,) bool: whether the light casts them."""
    focus: np.ndarray
    """(l,) exponent of the cosine by which a lamp's light fades off its axis; 0 for light from infinitely far. Never changed."""
    head: np.ndarray
    """(3, 3): ambient, diffuse and specular colour of the light at the camera."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ArmStart:
    """Other initial joints of the arm."""

    joints: np.ndarray
    """(7,) [rad]"""
    moved: bool
    """Whether the arm stands there. If not, only its controller begins there, and the stored state then puts the arm where it
    always was: what LIBERO-Plus' robot tasks do. The controller keeps the orientation and the posture that it began with, so
    that the hand turns towards them while the scene settles."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Effects:
    """All that is changed in an episode; None leaves a thing as it is."""

    camera: CameraPose | None = None
    arm: ArmStart | None = None
    lights: Lights | None = None
    corruption: Corruption | None = None
    """Of the reference camera's images."""
    instruction: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Standard:
    """The scene as it is, for those who change it."""

    camera: CameraPose
    lights: Lights
    joints: np.ndarray
    """(7,) initial joints of the arm [rad]."""
    robot: str
    """Name of the robot's class, `MountedPanda` or `OnTheGroundPanda`."""
    instruction: str


NOTHING = Effects()


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What a perturbation drew for an episode."""

    effects: Effects
    numbers: Mapping[str, object] = field(default_factory=dict)
    """The same as JSON values, for the record."""
