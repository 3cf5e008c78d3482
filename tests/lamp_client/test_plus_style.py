"""Plus-style perturbations: what they draw, without a simulator."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from plus_fakes import names

from lamp_client.envs.libero_plus.names import instruction_from_name
from lamp_client.envs.libero_plus.names import parse as parse_name
from lamp_client.envs.perturbations import ArmStart, CameraPose, Lights, StandardScene
from lamp_client.envs.plus_style import ASPECTS, CATEGORIES, LEVELS, Joined, OneOf, at_level, parse
from lamp_client.envs.plus_style.perturbations import NOUNS, VERBS, Reworded, looked_at, replace_words
from lamp_client.envs.rotations import quaternion_about, quaternion_product, rotated
from lamp_client.errors import InvalidValueError, UnknownNameError

STANDARD = StandardScene(
    camera=CameraPose(
        position=np.array([0.6586, 0.0, 1.6103]), quaternion=np.array([0.638, 0.3048, 0.3048, 0.638]), fov=45.0
    ),
    lights=Lights(
        diffuse=np.full((2, 3), 0.8),
        specular=np.full((2, 3), 0.3),
        position=np.array([[1.0, 1.0, 4.0], [-3.0, -3.0, 4.0]]),
        direction=np.array([[0.0, -0.148, -0.989], [0.0, -0.148, -0.989]]),
        shadows=np.array([False, False]),
        focus=np.array([10.0, 10.0]),
        head=np.array([[0.1, 0.1, 0.1], [0.4, 0.4, 0.4], [0.5, 0.5, 0.5]]),
    ),
    joints=np.array([0, -0.161, 0, -2.445, 0, 2.227, np.pi / 4]),
    robot="MountedPanda",
    instruction="pick up the black bowl next to the ramekin and place it on the plate",
)
INSTRUCTIONS = sorted({instruction_from_name(parse_name(name).base) for own in names().values() for name in own})


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize("level", LEVELS)
def test_every_aspect_draws_the_same_from_the_same_seed(aspect: str, level: int) -> None:
    perturbation = parse(f"{aspect}={level}")
    assert perturbation.category == aspect.split(".")[0] and perturbation.category in CATEGORIES
    one, two = (perturbation.draw(generator(4), STANDARD) for _ in range(2))
    assert one.numbers == two.numbers and one.numbers
    changed = [name for name in ("camera", "arm", "lights", "corruption", "instruction") if getattr(one.effects, name)]
    assert len(changed) == 1


def forward(pose: CameraPose) -> np.ndarray:
    return rotated(np.array([0.0, 0.0, -1.0]), pose.quaternion)


@pytest.mark.parametrize("seed", range(5))
def test_orbits_and_distances_keep_the_scene_in_the_middle(seed: int) -> None:
    pivot = looked_at(STANDARD.camera)
    np.testing.assert_allclose(pivot[:2], 0, atol=2e-3)  # this camera looks across the origin
    for name, near, far in (("camera.orbit=5", 1.0, 1.0), ("camera.distance=5", 1.9, 2.0)):
        pose = parse(name).draw(generator(seed), STANDARD).effects.camera
        assert pose is not None
        away = pose.position - pivot
        assert near - 1e-9 <= np.linalg.norm(away) / np.linalg.norm(STANDARD.camera.position - pivot) <= far + 1e-9
        np.testing.assert_allclose(forward(pose), -away / np.linalg.norm(away), atol=2e-3)
        sideways = rotated(np.array([1.0, 0.0, 0.0]), pose.quaternion)
        assert abs(sideways[2]) < 1e-3, "the horizon stays level"
        assert pose.position[2] > 0.8


def test_levels_grow_and_do_not_overlap() -> None:
    def sizes(name: str) -> list[list[float]]:
        return [[size(name, level, seed) for seed in range(40)] for level in LEVELS]

    def size(name: str, level: int, seed: int) -> float:
        drawn = parse(f"{name}={level}").draw(generator(seed), STANDARD)
        camera, arm, lights = drawn.effects.camera, drawn.effects.arm, drawn.effects.lights
        if name == "robot.joints":
            assert isinstance(arm, ArmStart) and arm.moved
            return float(np.linalg.norm(arm.joints - STANDARD.joints))
        if name == "camera.turn":
            assert camera is not None
            return float(np.degrees(np.arccos(forward(camera) @ forward(STANDARD.camera))))
        if name == "camera.fov":
            assert camera is not None
            return abs(camera.fov - 45)
        assert lights is not None
        return abs(np.log2(lights.diffuse.mean() / 0.8))

    for name in ("robot.joints", "camera.turn", "camera.fov", "light.brightness"):
        found = sizes(name)
        assert all(max(low) < min(high) for low, high in pairwise(found)), name
    assert sizes("robot.joints")[4][0] == pytest.approx(0.5)
    cameras = [parse("camera.fov=2").draw(generator(seed), STANDARD).effects.camera for seed in range(9)]
    wider = {np.sign(float(camera.fov) - 45) for camera in cameras if camera is not None and camera.fov is not None}
    assert wider == {-1.0, 1.0}


def test_lamps_that_move_shine_at_the_scene_as_bright_as_before() -> None:
    middle = looked_at(STANDARD.camera)

    def reaching(lights: Lights) -> np.ndarray:
        away = middle - lights.position
        cosine = np.sum(away * lights.direction, axis=1) / np.linalg.norm(away, axis=1)
        return cosine[:, None] ** lights.focus[:, None] * lights.diffuse

    before = reaching(STANDARD.lights)
    for level in LEVELS:
        moved = parse(f"light.direction={level}").draw(generator(1), STANDARD).effects.lights
        assert moved is not None
        np.testing.assert_allclose(reaching(moved), before, rtol=2e-2)
        np.testing.assert_allclose(np.linalg.norm(moved.direction, axis=1), 1)
    shaded = parse("light.shadows=5").draw(generator(1), STANDARD).effects.lights
    assert shaded is not None and list(shaded.shadows) == [True, False]
    np.testing.assert_allclose(reaching(shaded)[0], before[0], rtol=2e-2)
    assert (shaded.diffuse[1] < 0.4 * STANDARD.lights.diffuse[1]).all() and (shaded.head < STANDARD.lights.head).all()
    assert np.linalg.norm(shaded.position[0] - middle) == pytest.approx(2.0)
    assert STANDARD.lights.shadows.sum() == 0, "the standard lights are not touched"


def test_tints_keep_the_luminance() -> None:
    for seed in range(5):
        tinted = parse("light.tint=5").draw(generator(seed), STANDARD).effects.lights
        assert tinted is not None
        np.testing.assert_allclose(tinted.diffuse @ [0.299, 0.587, 0.114], 0.8)
        assert tinted.diffuse[0].max() / tinted.diffuse[0].min() > 2


@pytest.mark.parametrize("level", LEVELS)
def test_all_forty_instructions_are_told_otherwise(level: int) -> None:
    assert len(INSTRUCTIONS) == 40
    perturbation = parse(f"language={level}")
    told = set()
    for instruction in INSTRUCTIONS:
        made = {
            perturbation.draw(generator(seed), replace(STANDARD, instruction=instruction)).effects.instruction
            for seed in range(12)
        }
        assert instruction not in made and None not in made
        assert len(made) > 1 or level in (2, 4), instruction
        assert not any(mark in str(text) for text in made for mark in "\x00{}\\")
        told |= made
    assert len(told) > 60


def test_words_are_exchanged_once_and_alike() -> None:
    text = "put the black bowl in the bottom drawer of the cabinet and close it"
    for seed in range(20):
        worded = replace_words(replace_words(text, VERBS, generator(seed)), NOUNS, generator(seed))
        assert "black bowl" not in worded and "round deep" not in worded  # one rule, not another on top
        assert worded.count("shut it") == 1 and "drawer" in worded
    placed = {
        replace_words("pick up the milk and place it in the basket", VERBS, generator(seed)) for seed in range(40)
    }
    assert "grab the milk and set it down in the basket" in placed and not any("put up" in text for text in placed)
    twice = replace_words("put the white mug on the left plate and the mug on the plate", NOUNS, generator(1))
    assert twice.count("cup") == 2 and "mug" not in twice and "plate" not in twice


def test_a_category_draws_one_of_its_aspects_and_says_which() -> None:
    perturbation = parse("light=2")
    assert isinstance(perturbation, OneOf)
    drawn = {str(perturbation.draw(generator(seed), STANDARD).numbers["aspect"]) for seed in range(40)}
    assert drawn == {"Brightness", "LightDirection", "Tint", "Shadows"}
    assert not isinstance(at_level("robot", 2), OneOf)


def test_several_act_at_once() -> None:
    perturbation = parse("camera.turn=2 + noise.fog=5+language=1")
    assert isinstance(perturbation, Joined) and perturbation.category == "camera+noise+language"
    drawn = perturbation.draw(generator(), STANDARD)
    assert drawn.effects.camera is not None and drawn.effects.corruption is not None and drawn.effects.arm is None
    assert set(drawn.numbers) == {"camera", "noise", "language"} and drawn.effects.instruction != STANDARD.instruction


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("camera", "expected a name and a level"),
        ("camera=", "expected a name and a level"),
        ("camera=x", "expected a name and a level"),
        ("camera=2+camera.fov=1", "expected two or more different categories"),
    ],
)
def test_what_is_no_perturbation_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        parse(text)


def test_unknown_names_and_levels_have_alternatives() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'camera'"):
        parse("camara=1")
    with pytest.raises(UnknownNameError, match=r"Did you mean 'noise\.fog'"):
        parse("noise.frog=1")
    with pytest.raises(UnknownNameError, match=r"unknown level of robot '6'\. Known: 1, 2, 3, 4, 5"):
        parse("robot=6")
    with pytest.raises(InvalidValueError, match="one category"):
        OneOf(choices=(at_level("robot", 1), at_level("camera.fov", 1)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidValueError, match="expected verbs, nouns or forms"):
        Reworded(around=("say nothing",))


def test_turns_compose() -> None:
    axis = np.array([0.6, 0.0, 0.8])
    first, second = quaternion_about(axis, 40), quaternion_about(np.array([0.0, 1.0, 0.0]), -75)
    vectors = np.random.default_rng(0).standard_normal((5, 3))
    np.testing.assert_allclose(
        rotated(rotated(vectors, second), first), rotated(vectors, quaternion_product(first, second))
    )
    np.testing.assert_allclose(np.linalg.norm(rotated(vectors, first), axis=1), np.linalg.norm(vectors, axis=1))
    np.testing.assert_allclose(
        rotated(np.array([1.0, 0, 0]), quaternion_about(np.array([0, 0, 1.0]), 90)), [0, 1, 0], atol=1e-12
    )
