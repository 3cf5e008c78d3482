"""The scripted expert in a world without physics: boxes that stick to a closed gripper, and fall when it opens."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from lamp_client.envs.rotations import matrix_from_axis_angle
from lamp_client.envs.simpler_expert import CLEARANCE, SimplerExpert, SimplerPhase, balanced, choose_grasp, limited_turn
from lamp_client.envs.simpler_tasks import action_from_policy

DOWN = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])


def box(half: tuple[float, float, float], yaw: float, middle: np.ndarray) -> np.ndarray:
    corners = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1], indexing="ij"), -1).reshape(8, 3) * np.array(half)
    return corners @ matrix_from_axis_angle(np.array([0, 0, yaw])).T + middle


class World:
    """The hand goes most of the way to its target at each step."""

    def __init__(self, yaw: float = 0.0, slips_at: int | None = None) -> None:
        self.position, self.rotation = np.array([0.29, 0.0, 0.14]), DOWN
        self.hand_target = self.position, self.rotation
        self.object, self.yaw = np.array([0.35, 0.07, 0.015]), yaw
        self.goal = box((0.05, 0.05, 0.005), 0.0, np.array([0.33, -0.06, 0.005]))
        self.slips_at, self.steps, self.held = slips_at, 0, False

    @property
    def hand(self) -> tuple[np.ndarray, np.ndarray]:
        return self.position, self.rotation

    @property
    def source(self) -> np.ndarray:
        return box((0.04, 0.012, 0.015), self.yaw, self.object)

    @property
    def source_mass(self) -> np.ndarray:
        return self.object

    def step(self, action: np.ndarray) -> None:
        command = action_from_policy(action)
        turn = matrix_from_axis_angle(command[3:6])
        self.hand_target = self.hand_target[0] + command[:3], turn @ self.hand_target[1]
        moved = 0.8 * (self.hand_target[0] - self.position)
        self.position, self.rotation, self.steps = self.position + moved, self.hand_target[1], self.steps + 1
        closed = command[6] < 0
        if self.held and (not closed or self.steps == self.slips_at):
            over = np.abs(self.object[:2] - [0.33, -0.06]).max() < 0.05
            self.held, self.object = False, np.array([*self.object[:2], 0.025 if over else 0.015])
        elif self.held:
            self.object = self.object + moved
        elif closed:
            across = abs(float(self.rotation[:, 1] @ [-np.sin(self.yaw), np.cos(self.yaw), 0]))
            self.held = bool(np.linalg.norm(self.position - self.object) < 0.01 and across > 0.95)


def run(world: World, steps: int = 60) -> list[SimplerPhase]:
    expert, phases = SimplerExpert(world), []
    for _ in range(steps):
        world.step(expert())
        phases.append(expert.phase)
    return phases


@settings(max_examples=20, deadline=None)
@given(strategies.floats(-1.5, 1.5))
def test_it_puts_a_box_at_any_turn_over_the_middle_of_its_goal(yaw: float) -> None:
    world = World(yaw)
    phases = run(world)
    assert list(dict.fromkeys(phases)) == list(SimplerPhase) and phases.count(SimplerPhase.RETREAT) > 5
    np.testing.assert_allclose(world.object, [0.33, -0.06, 0.025], atol=0.01)
    assert world.position[2] > CLEARANCE


def test_it_goes_back_for_what_slipped_away() -> None:
    world = World(slips_at=16)
    phases = run(world)
    changes = [b for a, b in itertools.pairwise(phases) if a is not b]
    assert changes.count(SimplerPhase.CLOSE) == 2 and SimplerPhase.REACH in changes
    np.testing.assert_allclose(world.object[:2], [0.33, -0.06], atol=0.01)


def test_it_moves_no_faster_than_it_may() -> None:
    world, actions = World(1.2), []
    expert = SimplerExpert(world)
    for _ in range(60):
        actions.append(expert())
        world.step(actions[-1])
    found = np.stack(actions)
    assert found.dtype == np.float32 and set(found[:, 6]) == {0.0, 1.0}
    assert np.linalg.norm(found[:, :3], axis=1).max() <= 0.0301 and np.abs(found[:, 3:6]).max() <= 0.26


@pytest.mark.parametrize("yaw", [-1.2, -0.4, 0.0, 0.6, 1.5])
def test_grasps_close_across_the_narrowest_side_and_stay_off_the_table(yaw: float) -> None:
    along = np.array([np.cos(yaw), np.sin(yaw)])
    mass = np.array([*(np.array([0.3, 0.1]) + 0.02 * along), 0.004])
    grasp = choose_grasp(box((0.05, 0.015, 0.004), yaw, np.array([0.3, 0.1, 0.004])), mass, DOWN)
    closing = grasp.rotation[:, 1]
    assert abs(closing @ [-np.sin(yaw), np.cos(yaw), 0]) > np.cos(np.deg2rad(3))
    np.testing.assert_allclose(grasp.position[:2], mass[:2], atol=0.003)
    assert grasp.position[2] == pytest.approx(0.017)  # the fingertips would touch the table at the flat box's middle


def test_a_tapering_object_is_touched_at_its_centre_of_mass() -> None:
    """4 cm wide at -0.08, 2 cm at 0.08: the fingers' wider edge touches first, 14.5 mm on the wide side of their middle."""
    taper = np.array([[-0.08, -0.08, 0.08, 0.08], [-0.02, 0.02, -0.01, 0.01]])
    assert balanced(taper, 0.0) == pytest.approx(0.0145, abs=0.0025)
    assert balanced(taper * [[-1], [1]], 0.01) == pytest.approx(-0.0045, abs=0.0025)
    # Widest near its centre of mass: there.
    assert balanced(np.array([[-0.05, 0.0, 0.0, 0.05], [0.0, -0.02, 0.02, 0.0]]), 0.004) == pytest.approx(
        0.004, abs=0.005
    )
    brick = np.array([[-0.05, -0.05, 0.05, 0.05], [-0.01, 0.01, -0.01, 0.01]])
    assert balanced(brick, 0.02) == pytest.approx(0.02, abs=0.0015)


def test_of_equal_sides_the_smallest_turn_is_taken() -> None:
    middle = np.array([0.3, 0.0, 0.015])
    grasp = choose_grasp(box((0.015, 0.015, 0.015), 0.0, middle), middle, DOWN)
    np.testing.assert_allclose(grasp.rotation, DOWN, atol=1e-9)


def test_turns_are_limited_about_their_own_axis() -> None:
    axis = np.array([1.0, 2.0, -1.0]) / np.sqrt(6)
    np.testing.assert_allclose(
        limited_turn(matrix_from_axis_angle(2.0 * axis), 0.25), matrix_from_axis_angle(0.25 * axis), atol=1e-9
    )
    small = matrix_from_axis_angle(0.1 * axis)
    np.testing.assert_allclose(limited_turn(small, 0.25), small, atol=1e-9)
    np.testing.assert_allclose(limited_turn(np.eye(3), 0.25), np.eye(3))
