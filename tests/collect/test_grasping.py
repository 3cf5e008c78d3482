"""Choosing grasps and heights from geometry, without a simulator."""

from __future__ import annotations

import numpy as np
import pytest
from jaxtyping import Float

from lamp.collect.grasping import MAX_OPENING, PALM_CLEARANCE, Grasp, plan_grasp
from lamp.collect.pick_and_place import (
    DOWN,
    Place,
    climb_needed,
    find_place,
    nearest_turn,
    obstacle_height,
    release_height,
    world_from_hand,
)
from lamp.collect.scene_state import LiberoScene, Volumes
from lamp.data.actions import AxisAngle

Points = Float[np.ndarray, "n 3"]


def turned(points: Points, angle: float) -> Points:
    sine, cosine = np.sin(angle), np.cos(angle)
    return points @ np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])


def box(low: tuple[float, float, float], high: tuple[float, float, float]) -> Points:
    axes = [np.linspace(low[i], high[i], 12) for i in range(3)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def bowl() -> Points:
    angles, heights = np.meshgrid(np.linspace(0, 2 * np.pi, 120), np.linspace(0.0, 0.05, 12))
    radii = 0.04 + 0.25 * heights
    return np.stack([radii * np.cos(angles), radii * np.sin(angles), heights], axis=-1).reshape(-1, 3)


class StillLife(LiberoScene):
    """Things at rest, without a simulation behind them."""

    def __init__(
        self, thing: Points, others: Points | None = None, position: tuple[float, float, float] = (0, 0, 0)
    ) -> None:
        self.things = Volumes(
            object=thing + np.array(position, dtype=float),
            goal=np.zeros((0, 3)),
            others=np.zeros((0, 3)) if others is None else others,
        )
        self.position = np.array(position, dtype=float)

    def volumes(self) -> Volumes:
        return self.things

    @property
    def object_position(self) -> np.ndarray:
        return self.position

    @property
    def object_rotation(self) -> np.ndarray:
        return np.eye(3)

    @property
    def base_position(self) -> np.ndarray:
        return np.array([-0.66, 0.0, 0.0])


def planned(scene: LiberoScene) -> Grasp:
    grasp = plan_grasp(scene, np.zeros(3))
    assert grasp is not None
    return grasp


@pytest.mark.parametrize("angle", np.deg2rad([0, 20, 60, -40]))
def test_a_box_is_grasped_across_its_narrow_side(angle: float) -> None:
    thing = turned(box((-0.04, -0.02, 0.0), (0.04, 0.02, 0.03)), angle)
    grasp = planned(StillLife(thing))
    narrow = np.array([-np.sin(angle), np.cos(angle)])
    assert abs(grasp.closing[:2] @ narrow) > np.cos(np.deg2rad(6))
    np.testing.assert_allclose(grasp.point[:2], 0.0, atol=0.004)


def test_a_long_box_is_not_enclosed_along_its_length() -> None:
    grasp = planned(StillLife(box((-0.02, -0.05, 0.0), (0.02, 0.05, 0.03))))
    assert abs(grasp.closing[0]) > np.cos(np.deg2rad(11))
    assert grasp.half_width < MAX_OPENING / 2


def test_a_tall_thing_is_grasped_just_below_its_top() -> None:
    grasp = planned(StillLife(box((-0.025, -0.025, 0.0), (0.025, 0.025, 0.14))))
    assert grasp.point[2] == pytest.approx(0.14 - PALM_CLEARANCE)


def test_a_flat_thing_leaves_room_below_the_finger_tips() -> None:
    assert planned(StillLife(box((-0.03, -0.02, 0.0), (0.03, 0.02, 0.018)))).point[2] > 0.011


def test_a_neighbour_turns_the_grasp() -> None:
    thing = box((-0.025, -0.025, 0.0), (0.025, 0.025, 0.06))
    free = planned(StillLife(thing))
    assert abs(free.closing[1]) == pytest.approx(1.0)
    beside = box((-0.02, 0.035, 0.0), (0.02, 0.075, 0.06))
    assert abs(planned(StillLife(thing, beside)).closing[1]) < 0.5


def test_a_neighbour_of_the_goal_counts_too() -> None:
    thing, beside = box((-0.025, -0.025, 0.0), (0.025, 0.025, 0.06)), box((-0.02, 0.335, 0.0), (0.02, 0.375, 0.06))
    grasp = plan_grasp(StillLife(thing, beside), np.array([0.0, 0.3, 0.0]))
    assert grasp is not None and abs(grasp.closing[1]) < 0.5


def test_a_bowl_is_grasped_at_its_rim_with_the_wall_between_the_fingers() -> None:
    grasp = planned(StillLife(bowl()))
    radius = np.linalg.norm(grasp.point[:2])
    assert 0.04 < radius < 0.055
    assert abs(grasp.point[:2] @ grasp.closing[:2]) == pytest.approx(radius)


def test_a_far_bowl_is_grasped_on_the_robots_side() -> None:
    grasp = planned(StillLife(bowl(), position=(0.1, -0.25, 0.0)))
    to_base = np.array([-0.76, 0.25])
    assert grasp.point[:2] @ to_base > 0.0


def test_what_the_fingers_cannot_meet_has_no_grasp() -> None:
    assert plan_grasp(StillLife(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])), np.zeros(3)) is None


def test_the_same_scene_gives_the_same_grasp() -> None:
    first, second = planned(StillLife(bowl())), planned(StillLife(bowl()))
    np.testing.assert_array_equal(first.point, second.point)


def test_obstacles_on_the_way_count_and_others_do_not() -> None:
    points = np.array([[0.3, 0.02, 0.2], [0.3, 0.5, 0.9], [0.9, 0.0, 0.7]])
    start, end = np.array([0.0, 0.0]), np.array([0.6, 0.0])
    assert obstacle_height(points, start, end, 0.05) == pytest.approx(0.2)
    assert obstacle_height(points[1:], start, end, 0.05) == -np.inf


def test_the_climb_may_begin_later_the_farther_the_obstacle() -> None:
    points, end = np.array([[0.3, 0.0, 0.2]]), np.array([0.6, 0.0])
    needed = [climb_needed(points, np.array([x, 0.0]), end, 0.05) for x in (0.0, 0.1, 0.24, 0.26)]
    np.testing.assert_allclose(needed, [0.2 - 0.25, 0.2 - 0.15, 0.2 - 0.01, 0.2])


def test_over_a_container_fingers_stay_above_the_rim_but_for_tall_things() -> None:
    basket = Place(centre=np.zeros(2), floor=0.01, rim=0.14)
    plate = Place(centre=np.zeros(2), floor=0.01, rim=0.025)
    assert basket.is_container and not plate.is_container
    assert release_height(basket, below=0.02) > 0.14
    assert 0.01 + 0.11 < release_height(basket, below=0.11) < 0.14
    assert release_height(plate, below=0.03) == pytest.approx(0.042)


def test_half_a_turn_of_the_hand_closes_along_the_same_line() -> None:
    for yaw in np.linspace(-6, 6, 50):
        near = nearest_turn(yaw)
        assert -np.pi / 2 <= near < np.pi / 2
        assert abs(world_from_hand(near)[:, 0] @ world_from_hand(yaw)[:, 0]) == pytest.approx(1.0)


def test_a_rotation_vector_turns_one_hand_into_the_other() -> None:
    np.testing.assert_allclose(AxisAngle().values(world_from_hand(0.4) @ DOWN.T), [0.0, 0.0, 0.4], atol=1e-12)
    np.testing.assert_allclose(AxisAngle().values(np.eye(3)), 0.0, atol=1e-12)


def test_a_place_is_read_from_the_goals_shape() -> None:
    walls = [box((x - 0.005, -0.07, 0.0), (x + 0.005, 0.07, 0.14)) for x in (-0.07, 0.07)]
    basket = np.concatenate([box((-0.07, -0.07, 0.0), (0.07, 0.07, 0.02)), *walls])
    basket += [0.3, 0.1, 0.0]
    place = find_place(basket, np.array([0.3, 0.1]))
    assert place.floor == pytest.approx(0.02) and place.rim == pytest.approx(0.14) and place.is_container
