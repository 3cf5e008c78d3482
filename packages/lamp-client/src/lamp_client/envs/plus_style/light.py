"""Other light: brighter or darker, from elsewhere, coloured, or with shadows."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from lamp_client.envs.perturbations import Drawn, Effects, Lights, Standard
from lamp_client.envs.plus_style.camera import looked_at, signed

_LUMINANCE = np.array([0.299, 0.587, 0.114])

_LAMP_DISTANCE = 2.0
"""From the middle of the scene; further off a wall may stand between [m]."""


@dataclass(frozen=True, kw_only=True)
class Brightness:
    """All lights brighter, or all darker."""

    category: ClassVar[str] = "light"
    stops: tuple[float, float]
    """Least and largest change, either way, in doublings of the light."""

    def draw(self, generator: np.random.Generator, standard: Standard) -> Drawn:
        """Draws the change."""
        stops = signed(generator, self.stops)
        lights, factor = standard.lights, 2.0**stops
        changed = replace(
            lights, diffuse=factor * lights.diffuse, specular=factor * lights.specular, head=factor * lights.head
        )
        return Drawn(effects=Effects(lights=changed), numbers={"stops": stops})


@dataclass(frozen=True, kw_only=True)
class LightDirection:
    """The lamps of the room stand elsewhere, lower and more to the side, and light the middle of the scene as much as before."""

    category: ClassVar[str] = "light"
    azimuth: tuple[float, float]
    """Least and largest angle about the vertical by which all go round the scene, to either side [deg]."""
    from_above: tuple[float, float]
    """Least and largest angle between the vertical and where they then stand [deg]."""

    def draw(self, generator: np.random.Generator, standard: Standard) -> Drawn:
        """Draws both angles."""
        azimuth, from_above = signed(generator, self.azimuth), float(generator.uniform(*self.from_above))
        lights, middle = standard.lights, looked_at(standard.camera)
        away = lights.position - middle
        distance = np.linalg.norm(away, axis=1)
        round_by = np.arctan2(away[:, 1], away[:, 0]) + np.deg2rad(azimuth)
        to_lamps = np.stack([_towards(float(np.rad2deg(angle)), 90.0 - from_above) for angle in round_by])
        kept = _reaching(lights, middle)[:, None]
        changed = replace(
            lights,
            position=middle + distance[:, None] * to_lamps,
            direction=-to_lamps,
            diffuse=kept * lights.diffuse,
            specular=kept * lights.specular,
        )
        return Drawn(effects=Effects(lights=changed), numbers={"azimuth": azimuth, "from_above": from_above})


@dataclass(frozen=True, kw_only=True)
class Tint:
    """Coloured light."""

    category: ClassVar[str] = "light"
    saturation: tuple[float, float]
    """Least and largest saturation; at 1 the light's complementary colour is gone."""

    def draw(self, generator: np.random.Generator, standard: Standard) -> Drawn:
        """Draws hue and saturation; the light's luminance is kept."""
        hue, saturation = float(generator.uniform()), float(generator.uniform(*self.saturation))
        colour = np.array(colorsys.hsv_to_rgb(hue, saturation, 1.0))
        colour = colour / (colour @ _LUMINANCE)
        lights = standard.lights
        changed = replace(
            lights, diffuse=colour * lights.diffuse, specular=colour * lights.specular, head=colour * lights.head
        )
        return Drawn(effects=Effects(lights=changed), numbers={"hue": hue, "saturation": saturation})


@dataclass(frozen=True, kw_only=True)
class Shadows:
    """One lamp shines from the side and casts shadows, while all other light fades."""

    category: ClassVar[str] = "light"
    share: tuple[float, float]
    """Least and largest share of all other light, the camera's included, that is taken away."""
    height: float
    """Angle of the lamp above the horizon [deg]."""

    def draw(self, generator: np.random.Generator, standard: Standard) -> Drawn:
        """Draws the share, and from which side the lamp shines: the camera's, for behind the robot there is a wall."""
        share, side = float(generator.uniform(*self.share)), float(generator.uniform(-90.0, 90.0))
        lights, middle, camera = standard.lights, looked_at(standard.camera), standard.camera.position
        facing = np.rad2deg(np.arctan2(camera[1] - middle[1], camera[0] - middle[0]))
        to_lamp = _towards(float(facing) + side, self.height)
        kept = _reaching(lights, middle)[:, None]
        # A light from afar may be one that did not reach the scene, for something casts a shadow on all of it.
        lamp = int(np.argmax(np.where(lights.focus > 0, 1.0, 1e-3) * lights.diffuse.sum(axis=1)))
        kept[np.arange(len(kept)) != lamp] = 1.0 - share
        position, direction, shadows = lights.position.copy(), lights.direction.copy(), lights.shadows.copy()
        position[lamp], direction[lamp] = middle + _LAMP_DISTANCE * to_lamp, -to_lamp
        shadows[lamp] = True
        changed = replace(
            lights,
            diffuse=kept * lights.diffuse,
            specular=kept * lights.specular,
            position=position,
            direction=direction,
            shadows=shadows,
            head=(1.0 - share) * lights.head,
        )
        return Drawn(effects=Effects(lights=changed), numbers={"share": share, "side": side})


def _reaching(lights: Lights, middle: np.ndarray) -> np.ndarray:
    """The share of each lamp's light that reaches a point off its axis, (l,)."""
    away = middle - lights.position
    cosine = np.sum(away * lights.direction, axis=1) / np.linalg.norm(away, axis=1)
    return np.clip(cosine, 0.0, 1.0) ** lights.focus


def _towards(azimuth: float, elevation: float) -> np.ndarray:
    """The unit vector of two angles [deg]."""
    around, up = np.deg2rad(azimuth), np.deg2rad(elevation)
    return np.array([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)])
