"""The plus-style perturbations, each of one thing: camera, light, the arm's start, noise, the instruction's words.

Deviation: LIBERO-Plus' wordings were written by a language model; ours are made from templates.
"""

from __future__ import annotations

import colorsys
import dataclasses
import re
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from lamp_client.envs.perturbations import (
    ArmStart,
    CameraPose,
    Corruption,
    Effects,
    Lights,
    SampledPerturbation,
    StandardScene,
)
from lamp_client.envs.rotations import VERTICAL, quaternion_about, quaternion_product, rotated
from lamp_client.errors import InvalidValueError


@dataclass(frozen=True, kw_only=True)
class Orbit:
    """The camera goes round the scene and keeps looking at it."""

    category: ClassVar[str] = "camera"
    azimuth: tuple[float, float]
    """Least and largest angle about the vertical, to either side [deg]."""
    elevation: tuple[float, float]
    """Least and largest angle upwards [deg]."""

    def draw(self, generator: np.random.Generator, standard: StandardScene) -> SampledPerturbation:
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
        return SampledPerturbation(effects=Effects(camera=pose), numbers={"azimuth": azimuth, "elevation": elevation})


@dataclass(frozen=True, kw_only=True)
class Distance:
    """The camera stands further off."""

    category: ClassVar[str] = "camera"
    factor: tuple[float, float]
    """Least and largest multiple of its distance to what it looks at."""

    def draw(self, generator: np.random.Generator, standard: StandardScene) -> SampledPerturbation:
        factor = float(generator.uniform(*self.factor))
        camera, pivot = standard.camera, looked_at(standard.camera)
        pose = replace(camera, position=pivot + factor * (camera.position - pivot))
        return SampledPerturbation(effects=Effects(camera=pose), numbers={"distance": factor})


@dataclass(frozen=True, kw_only=True)
class Turn:
    """The camera looks a little past the scene."""

    category: ClassVar[str] = "camera"
    angle: tuple[float, float]
    """Least and largest angle, about the vertical and about its own horizontal axis [deg]."""

    def draw(self, generator: np.random.Generator, standard: StandardScene) -> SampledPerturbation:
        pan, tilt = signed(generator, self.angle), signed(generator, self.angle)
        camera = standard.camera
        horizontal = rotated(np.array([1.0, 0.0, 0.0]), camera.quaternion)
        quaternion = quaternion_product(
            quaternion_about(VERTICAL, pan), quaternion_product(quaternion_about(horizontal, tilt), camera.quaternion)
        )
        return SampledPerturbation(
            effects=Effects(camera=replace(camera, quaternion=quaternion)), numbers={"pan": pan, "tilt": tilt}
        )


@dataclass(frozen=True, kw_only=True)
class FieldOfView:
    """Another focal length."""

    category: ClassVar[str] = "camera"
    change: tuple[float, float]
    """Least and largest change of the vertical field of view, wider or narrower [deg]."""

    def draw(self, generator: np.random.Generator, standard: StandardScene) -> SampledPerturbation:
        change = signed(generator, self.change)
        pose = replace(standard.camera, fov=standard.camera.fov + change)
        return SampledPerturbation(effects=Effects(camera=pose), numbers={"field_of_view": change})


def signed(generator: np.random.Generator, bounds: tuple[float, float]) -> float:
    """A number whose size lies within bounds, of either sign."""
    return float(generator.uniform(*bounds) * generator.choice((-1.0, 1.0)))


def looked_at(camera: CameraPose) -> np.ndarray:
    """The point on the camera's axis that is nearest to the vertical through the world's origin, (3,) [m]."""
    forward = rotated(np.array([0.0, 0.0, -1.0]), camera.quaternion)
    level = forward[:2]
    away = float(-(camera.position[:2] @ level) / (level @ level)) if level @ level > 1e-12 else 0.0
    return camera.position + max(away, 0.0) * forward


_LUMINANCE = np.array([0.299, 0.587, 0.114])

_LAMP_DISTANCE = 2.0
"""From the middle of the scene; further off a wall may stand between [m]."""


@dataclass(frozen=True, kw_only=True)
class Brightness:
    """All lights brighter, or all darker."""

    category: ClassVar[str] = "light"
    stops: tuple[float, float]
    """Least and largest change, either way, in doublings of the light."""

    def draw(self, generator: np.random.Generator, standard: StandardScene) -> SampledPerturbation:
        stops = signed(generator, self.stops)
        lights, factor = standard.lights, 2.0**stops
        changed = replace(
            lights, diffuse=factor * lights.diffuse, specular=factor * lights.specular, head=factor * lights.head
        )
        return SampledPerturbation(effects=Effects(lights=changed), numbers={"stops": stops})


@dataclass(frozen=True, kw_only=True)
class LightDirection:
    """The lamps of the room stand elsewhere, lower and more to the side, and light the middle of the scene as much as before."""

    category: ClassVar[str] = "light"
    azimuth: tuple[float, float]
    """Least and largest angle about the vertical by which all go round the scene, to either side [deg]."""
    from_above: tuple[float, float]
    """Least and largest angle between the vertical and where they then stand [deg]."""

    def draw(self, generator: np.random.Generator, standard: StandardScene) -> SampledPerturbation:
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
        return SampledPerturbation(
            effects=Effects(lights=changed), numbers={"azimuth": azimuth, "from_above": from_above}
        )


@dataclass(frozen=True, kw_only=True)
class Tint:
    """Coloured light."""

    category: ClassVar[str] = "light"
    saturation: tuple[float, float]
    """Least and largest saturation; at 1 the light's complementary colour is gone."""

    def draw(self, generator: np.random.Generator, standard: StandardScene) -> SampledPerturbation:
        """Draws hue and saturation; the light's luminance is kept."""
        hue, saturation = float(generator.uniform()), float(generator.uniform(*self.saturation))
        colour = np.array(colorsys.hsv_to_rgb(hue, saturation, 1.0))
        colour = colour / (colour @ _LUMINANCE)
        lights = standard.lights
        changed = replace(
            lights, diffuse=colour * lights.diffuse, specular=colour * lights.specular, head=colour * lights.head
        )
        return SampledPerturbation(effects=Effects(lights=changed), numbers={"hue": hue, "saturation": saturation})


@dataclass(frozen=True, kw_only=True)
class Shadows:
    """One lamp shines from the side and casts shadows, while all other light fades."""

    category: ClassVar[str] = "light"
    share: tuple[float, float]
    """Least and largest share of all other light, the camera's included, that is taken away."""
    height: float
    """Angle of the lamp above the horizon [deg]."""

    def draw(self, generator: np.random.Generator, standard: StandardScene) -> SampledPerturbation:
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
        return SampledPerturbation(effects=Effects(lights=changed), numbers={"share": share, "side": side})


def _reaching(lights: Lights, middle: np.ndarray) -> np.ndarray:
    """The share of each lamp's light that reaches a point off its axis, (l,)."""
    away = middle - lights.position
    cosine = np.sum(away * lights.direction, axis=1) / np.linalg.norm(away, axis=1)
    return np.clip(cosine, 0.0, 1.0) ** lights.focus


def _towards(azimuth: float, elevation: float) -> np.ndarray:
    """The unit vector of two angles [deg]."""
    around, up = np.deg2rad(azimuth), np.deg2rad(elevation)
    return np.array([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)])


@dataclass(frozen=True, kw_only=True)
class Corrupted:
    """One of several corruptions, the same throughout an episode; its own random draws differ from image to image."""

    category: ClassVar[str] = "noise"
    choices: tuple[Corruption, ...]

    def draw(self, generator: np.random.Generator, standard: StandardScene) -> SampledPerturbation:
        chosen = self.choices[int(generator.integers(len(self.choices)))]
        numbers = {"corruption": type(chosen).__name__, **dataclasses.asdict(chosen)}
        return SampledPerturbation(effects=Effects(corruption=chosen), numbers=numbers)


@dataclass(frozen=True, kw_only=True)
class JointShift:
    """Initial joints in a random direction from the standard ones; the arm stands there when the episode begins.

    Deviation: LIBERO-Plus' stored states put the arm back to the standard joints, and only its controller begins elsewhere.
    """

    category: ClassVar[str] = "robot"
    distance: tuple[float, float]
    """Least and largest Euclidean distance over the seven joints [rad]."""

    def draw(self, generator: np.random.Generator, standard: StandardScene) -> SampledPerturbation:
        direction = generator.standard_normal(len(standard.joints))
        joints = standard.joints + direction / np.linalg.norm(direction) * generator.uniform(*self.distance)
        numbers: dict[str, object] = {"joints": [round(float(angle), 6) for angle in joints]}
        return SampledPerturbation(effects=Effects(arm=ArmStart(joints=joints, moved=True)), numbers=numbers)


FRAMES = (
    "please {}",
    "could you {}",
    "would you mind helping me: {}",
    "i need you to {}",
    "{} for me please",
    "your next job is to {}",
    "when you are ready {}",
)
"""Polite or wordy forms around an instruction."""

CONTEXTS = (
    "we are tidying up before the guests arrive so {}",
    "the kitchen is a mess today and nothing is where it belongs but {}",
    "leave everything else where it is and {}",
    "i had a long day and would like some help with one thing now {}",
    "the floor has just been cleaned and the lights are on so {}",
)
"""Wordy forms of an instruction, with much that does not matter."""

VERBS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"\bpick up\b", ("grab", "lift", "take", "get hold of")),
    (r"\bplace (it|them)\b", (r"put \1", r"set \1 down", r"drop \1 off", r"lay \1")),
    (r"\bput\b", ("place", "set", "lay")),
    (r"\bpush\b", ("slide", "shove", "move")),
    (r"\bopen\b", ("pull open", "slide open")),
    (r"\bclose\b", ("shut",)),
    (r"\bturn on\b", ("switch on", "start")),
)
"""Words for actions, tried in order; a word that was put in is not replaced again."""

NOUNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"\balphabet soup\b", ("can of letter soup", "soup with the letters")),
    (r"\bcream cheese( box)?\b", ("package of soft white cheese", "box of cheese spread")),
    (r"\bsalad dressing\b", ("bottle of dressing for salads",)),
    (r"\bbbq sauce\b", ("barbecue sauce", "bottle of grill sauce")),
    (r"\bketchup\b", ("bottle of tomato ketchup", "red sauce for fries")),
    (r"\btomato sauce\b", ("can of sauce made of tomatoes",)),
    (r"\bbutter\b", ("package of butter", "dairy spread in the box")),
    (r"\bmilk\b", ("carton of milk",)),
    (r"\bchocolate pudding\b", ("box of chocolate dessert",)),
    (r"\borange juice\b", ("carton of juice made of oranges",)),
    (r"\bbasket\b", ("woven basket", "wicker container")),
    (r"\bblack bowl\b", ("dark bowl", "round black dish")),
    (r"\bbowl\b", ("round deep dish",)),
    (r"\bramekin\b", ("small baking dish", "little round cup")),
    (r"\bcookie box\b", ("box of biscuits",)),
    (r"\bplate\b", ("flat dish", "dinner plate")),
    (r"\bstove\b", ("cooker", "cooktop")),
    (r"\bwooden cabinet\b", ("cupboard made of wood",)),
    (r"\bcabinet\b", ("cupboard",)),
    (r"\bwine bottle\b", ("bottle of wine",)),
    (r"\brack\b", ("bottle holder",)),
    (r"\bmoka pots\b", ("stovetop coffee makers",)),
    (r"\bmoka pot\b", ("stovetop coffee maker",)),
    (r"\bmug\b", ("cup",)),
    (r"\bmicrowave\b", ("microwave oven",)),
    (r"\bbook\b", ("volume to read",)),
    (r"\bcaddy\b", ("desk organizer",)),
)
"""Words for things, as `VERBS`."""


@dataclass(frozen=True, kw_only=True)
class Reworded:
    """The instruction in other words; at least one of the three is changed."""

    category: ClassVar[str] = "language"
    verbs: bool = False
    """Other words for what is to be done."""
    nouns: bool = False
    """Other words for things."""
    around: tuple[str, ...] = ()
    """Forms around the instruction, one of which is drawn; `{}` stands for it."""

    def __post_init__(self) -> None:
        if not (self.verbs or self.nouns or self.around) or any(form.count("{}") != 1 for form in self.around):
            raise InvalidValueError(
                f"{self}: expected verbs, nouns or forms around the instruction, each with one {{}} for it."
            )

    def draw(self, generator: np.random.Generator, standard: StandardScene) -> SampledPerturbation:
        text = standard.instruction
        if self.verbs:
            text = replace_words(text, VERBS, generator)
        if self.nouns:
            text = replace_words(text, NOUNS, generator)
        if self.around:
            text = self.around[int(generator.integers(len(self.around)))].format(text)
        return SampledPerturbation(effects=Effects(instruction=text), numbers={"instruction": text})


def replace_words(text: str, words: tuple[tuple[str, tuple[str, ...]], ...], generator: np.random.Generator) -> str:
    """Exchanges words; every occurrence of the same words gets the same ones."""
    chosen: list[str] = []
    for pattern, others in words:
        match = re.search(pattern, text)
        if match is None:
            continue
        other = match.expand(others[int(generator.integers(len(others)))])
        # A mark stands in until all are found, so that no later rule changes what an earlier one put in.
        text = re.sub(pattern, f"\x00{len(chosen)}\x00", text)
        chosen.append(other)
    return re.sub(r"\x00(\d+)\x00", lambda mark: chosen[int(mark[1])], text)
