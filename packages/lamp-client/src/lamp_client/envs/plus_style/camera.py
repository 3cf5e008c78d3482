"""The reference camera elsewhere, or seeing more or less."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from lamp_client.envs.perturbations import CameraPose, Drawn, Effects, Standard
from lamp_client.envs.rotations import VERTICAL, quaternion_about, quaternion_product, rotated


@dataclass(frozen=True, kw_only=True)
class Orbit:
    """The camera goes round the scene and keeps looking at it."""

    category: ClassVar[str] = "camera"
    azimuth: tuple[float, float]
    """Least and largest angle about the vertical, to either side [deg]."""
    elevation: tuple[float, float]
    """Least and largest angle upwards [deg]."""

    def draw(self, generator: np.random.Generator, standard: Standard) -> Drawn:
        """Draws side and angles."""
        azimuth, elevation = signed(generator, self.azimuth), float(generator.uniform(*self.elevation))
        camera, pivot = standard.camera, looked_at(standard.camera)
        sideways = np.cross(VERTICAL, camera.position - pivot)
        up = quaternion_about(sideways / np.linalg.norm(sideways), -elevation)
        turn = quaternion_product(quaternion_about(VERTICAL, azimuth), up)
        pose = replace(
            camera,
            position=pivot + rotated(camera.position - pivot, turn),
            quaternion=quaternion_product(turn, camera.quaternion),
        )
        return Drawn(effects=Effects(camera=pose), numbers={"azimuth": azimuth, "elevation": elevation})


@dataclass(frozen=True, kw_only=True)
class Distance:
    """The camera stands further off."""

    category: ClassVar[str] = "camera"
    factor: tuple[float, float]
    """Least and largest multiple of its distance to what it looks at."""

    def draw(self, generator: np.random.Generator, standard: Standard) -> Drawn:
        """Draws the distance."""
        factor = float(generator.uniform(*self.factor))
        camera, pivot = standard.camera, looked_at(standard.camera)
        pose = replace(camera, position=pivot + factor * (camera.position - pivot))
        return Drawn(effects=Effects(camera=pose), numbers={"distance": factor})


@dataclass(frozen=True, kw_only=True)
class Turn:
    """The camera looks a little past the scene."""

    category: ClassVar[str] = "camera"
    angle: tuple[float, float]
    """Least and largest angle, about the vertical and about its own horizontal axis [deg]."""

    def draw(self, generator: np.random.Generator, standard: Standard) -> Drawn:
        """Draws both angles and their signs."""
        pan, tilt = signed(generator, self.angle), signed(generator, self.angle)
        camera = standard.camera
        horizontal = rotated(np.array([1.0, 0.0, 0.0]), camera.quaternion)
        quaternion = quaternion_product(
            quaternion_about(VERTICAL, pan), quaternion_product(quaternion_about(horizontal, tilt), camera.quaternion)
        )
        return Drawn(effects=Effects(camera=replace(camera, quaternion=quaternion)), numbers={"pan": pan, "tilt": tilt})


@dataclass(frozen=True, kw_only=True)
class FieldOfView:
    """Another focal length."""

    category: ClassVar[str] = "camera"
    change: tuple[float, float]
    """Least and largest change of the vertical field of view, wider or narrower [deg]."""

    def draw(self, generator: np.random.Generator, standard: Standard) -> Drawn:
        """Draws the change."""
        change = signed(generator, self.change)
        pose = replace(standard.camera, fov=standard.camera.fov + change)
        return Drawn(effects=Effects(camera=pose), numbers={"field_of_view": change})


def signed(generator: np.random.Generator, bounds: tuple[float, float]) -> float:
    """A number whose size lies within bounds, of either sign."""
    return float(generator.uniform(*bounds) * generator.choice((-1.0, 1.0)))


def looked_at(camera: CameraPose) -> np.ndarray:
    """The point on the camera's axis that is nearest to the vertical through the world's origin, (3,) [m]."""
    forward = rotated(np.array([0.0, 0.0, -1.0]), camera.quaternion)
    level = forward[:2]
    away = float(-(camera.position[:2] @ level) / (level @ level)) if level @ level > 1e-12 else 0.0
    return camera.position + max(away, 0.0) * forward
