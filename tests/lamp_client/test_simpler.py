"""SimplerEnv's adapter without ManiSkill: conversions, numbering, what the controller is told, what a policy is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies
from simpler_files import write_assets  # pyright: ignore[reportMissingImports]

from lamp_client.chunks import SimilarityEnsemble
from lamp_client.client import InProcessPolicy
from lamp_client.envs import Env, simpler_tasks
from lamp_client.envs.rotations import (
    axis_angle_from_quaternion,
    axis_angle_from_rpy,
    matrix_from_axis_angle,
    matrix_from_quaternion,
    moving_xyz_from_matrix,
    rotated,
    rpy_from_matrix,
)
from lamp_client.envs.simpler import SimplerEnv
from lamp_client.envs.simpler_tasks import SIMPLER_TASKS, SimplerView, action_from_policy
from lamp_client.errors import InvalidValueError, UnknownNameError
from lamp_client.rollout import run_episode

DOWN = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
angles = strategies.tuples(*[strategies.floats(-3.1, 3.1)] * 3).map(np.array)


def about(axis: int, angle: float) -> np.ndarray:
    """An elementary rotation, written out."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array(
        {
            0: [[1, 0, 0], [0, c, -s], [0, s, c]],
            1: [[c, 0, s], [0, 1, 0], [-s, 0, c]],
            2: [[c, -s, 0], [s, c, 0], [0, 0, 1]],
        }[axis]
    )


def fixed(roll: float, pitch: float, yaw: float) -> np.ndarray:
    return about(2, yaw) @ about(1, pitch) @ about(0, roll)


def moving(a: float, b: float, c: float) -> np.ndarray:
    return about(0, a) @ about(1, b) @ about(2, c)


@given(angles)
def test_roll_pitch_yaw_becomes_the_axis_angle_of_the_same_rotation(rpy: np.ndarray) -> None:
    np.testing.assert_allclose(matrix_from_axis_angle(axis_angle_from_rpy(rpy)), fixed(*rpy), atol=1e-7)


@given(angles)
def test_the_controllers_angles_make_the_same_rotation(vector: np.ndarray) -> None:
    matrix = matrix_from_axis_angle(vector)
    np.testing.assert_allclose(moving(*moving_xyz_from_matrix(matrix)), matrix, atol=1e-7)
    np.testing.assert_allclose(fixed(*rpy_from_matrix(matrix)), matrix, atol=1e-7)


@pytest.mark.parametrize("pitch", [np.pi / 2, -np.pi / 2])
def test_a_quarter_turn_of_pitch_is_no_exception(pitch: float) -> None:
    for matrix in (fixed(0.3, pitch, 0.8), moving(0.3, pitch, 0.8)):
        np.testing.assert_allclose(moving(*moving_xyz_from_matrix(matrix)), matrix, atol=1e-7)
        np.testing.assert_allclose(fixed(*rpy_from_matrix(matrix)), matrix, atol=1e-7)


def test_conventions_differ_beyond_the_first_order() -> None:
    """Given an axis-angle unchanged, as if it were its own angles, the controller would turn another way."""
    vector = axis_angle_from_rpy(np.array([0.2, 0.2, 0.2]))
    wrong = moving(*vector) @ matrix_from_axis_angle(vector).T
    assert 0.02 < np.arccos((np.trace(wrong) - 1) / 2) < 0.06
    np.testing.assert_allclose(axis_angle_from_rpy(np.zeros(3)), 0)
    np.testing.assert_allclose(axis_angle_from_rpy(np.array([0, 0, 1e-12])), [0, 0, 1e-12], rtol=1e-6)


def test_rotations_are_scipys() -> None:
    """Fixed axes are scipy's "xyz", turning axes its "XYZ"; quaternions begin with w, robosuite's end with it."""
    Rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    some = np.random.default_rng(0).normal(size=(50, 3))
    matrices = Rotation.from_rotvec(some).as_matrix()
    quaternions = Rotation.from_rotvec(some).as_quat()
    np.testing.assert_allclose(axis_angle_from_rpy(some), Rotation.from_euler("xyz", some).as_rotvec(), atol=1e-9)
    np.testing.assert_allclose(rpy_from_matrix(matrices), Rotation.from_matrix(matrices).as_euler("xyz"), atol=1e-9)
    for vector, matrix, quaternion in zip(some, matrices, quaternions, strict=True):
        np.testing.assert_allclose(matrix_from_axis_angle(vector), matrix, atol=1e-12)
        np.testing.assert_allclose(matrix_from_quaternion(np.roll(quaternion, 1)), matrix, atol=1e-12)
        np.testing.assert_allclose(
            moving_xyz_from_matrix(matrix), Rotation.from_matrix(matrix).as_euler("XYZ"), atol=1e-9
        )
        np.testing.assert_allclose(axis_angle_from_quaternion(quaternion), vector_within(vector), atol=1e-6)
        np.testing.assert_allclose(rotated(some, np.roll(quaternion, 1)), some @ matrix.T, atol=1e-12)


def vector_within(vector: np.ndarray) -> np.ndarray:
    """The vector whose angle lies in [0, pi], as of a quaternion with w >= 0."""
    angle = np.linalg.norm(vector)
    return vector if angle <= np.pi else vector * (angle - 2 * np.pi) / angle


def test_quaternions_of_any_length_are_rotations() -> None:
    np.testing.assert_allclose(matrix_from_quaternion(np.array([3, 0, 0, 3])), about(2, np.pi / 2), atol=1e-12)


def test_actions_become_simplerenvs() -> None:
    chunk = np.array([[0.01, -0.02, 0.03, 0.1, -0.2, 0.3, 0.5], [0, 0, 0, 0, 0, 0, 0.51], [0] * 7], np.float32)
    before = chunk.copy()
    converted = action_from_policy(chunk)
    assert converted.dtype == np.float32 and (chunk == before).all()
    np.testing.assert_array_equal(converted[:, :3], chunk[:, :3])
    np.testing.assert_array_equal(converted[:, 6], [-1, 1, -1])  # half open is closed
    np.testing.assert_allclose(matrix_from_axis_angle(converted[0, 3:6]), fixed(0.1, -0.2, 0.3), atol=1e-6)
    np.testing.assert_array_equal(converted[0], action_from_policy(chunk[0]))


def test_episodes_are_24_arrangements_of_each_task() -> None:
    layouts = {task.name: [task.layout(episode) for episode in range(24)] for task in SIMPLER_TASKS}
    assert list(layouts) == ["stack_block", "put_carrot", "put_spoon", "put_eggplant"]
    assert all(len(set(found)) == 24 for found in layouts.values())
    assert layouts["stack_block"] == layouts["put_carrot"] == layouts["put_spoon"] == list(range(24))
    # ManiSkill's number is 8 * place + turn: all places, with its turns 1, 2 and 0.
    assert layouts["put_eggplant"][:4] == [1, 2, 0, 9] and layouts["put_eggplant"][-1] == 56
    assert [task.step_limit for task in SIMPLER_TASKS] == [60, 60, 60, 120]
    for episode in (-1, 24):
        with pytest.raises(UnknownNameError, match="0 to 23"):
            SIMPLER_TASKS[0].layout(episode)


class FakeScene:
    """Stands for `Scene`: remembers its commands; the goal holds at the steps that it is told."""

    def __init__(self, holds: tuple[int, ...] = ()) -> None:
        self.holds, self.commands, self.layouts, self.renders = holds, [], [], 0
        self.hand = np.array([0.3, -0.1, 0.2]), fixed(0.1, 0.2, -0.3) @ DOWN
        self.hand_target = self.hand
        self.opening = 0.75
        self.source = self.goal = np.zeros((1, 3))

    def reset(self, layout: int) -> None:
        self.layouts.append(layout)
        self.commands.clear()

    def step(self, command: np.ndarray) -> bool:
        self.commands.append(command)
        return len(self.commands) in self.holds

    def image(self) -> np.ndarray:
        self.renders += 1
        image = np.zeros((480, 640, 3), np.uint8)
        image[:, 320:] = 200
        return image

    def close(self) -> None: ...


def opened(scene: FakeScene, task: int = 1, **settings: Any) -> SimplerEnv:
    return SimplerEnv(SIMPLER_TASKS[task], scene=scene, **settings)  # pyright: ignore[reportArgumentType]


def test_the_controller_is_told_the_rotation_that_was_meant() -> None:
    scene = FakeScene()
    env: Env = opened(scene)
    env.step(env.action_from_policy(np.array([0.01, 0.02, 0.03, 0.4, -0.7, 1.1, 1], np.float32)))
    (command,) = scene.commands
    np.testing.assert_allclose(command[[0, 1, 2, 6]], [0.01, 0.02, 0.03, 1], atol=1e-7)
    np.testing.assert_allclose(moving(*command[3:6]), fixed(0.4, -0.7, 1.1), atol=1e-6)
    assert scene.renders == 0


@pytest.mark.parametrize("action", [np.zeros(6), np.zeros((1, 7)), np.full(7, np.nan)])
def test_impossible_actions_are_refused(action: np.ndarray) -> None:
    with pytest.raises(InvalidValueError, match="expected 7 finite values"):
        opened(FakeScene()).step(action)


def test_policies_are_shown_what_they_were_trained_with() -> None:
    scene = FakeScene()
    plain = opened(scene).observe()
    assert plain.images["primary"].shape == (480, 640, 3) and plain.state.shape == (0,)
    seen = opened(scene, view=SimplerView(camera="front", height=224, width=256, state_width=7)).observe()
    assert list(seen.images) == ["front"] and seen.images["front"].shape == (224, 256, 3)
    assert seen.images["front"][:, :120].max() == 0 and seen.images["front"][:, 136:].min() == 200
    # BridgeV2 measures the hand's turn from pointing down.
    np.testing.assert_allclose(seen.state, [0.3, -0.1, 0.2, 0.1, 0.2, -0.3, 0.75], atol=1e-6)
    assert seen.instruction == "put carrot on plate"
    with pytest.raises(InvalidValueError, match="gives none"):
        SimplerView(state_width=8)
    with pytest.raises(InvalidValueError, match="at least 1x1"):
        SimplerView(height=0)


@pytest.mark.parametrize(
    ("holds", "latched", "last"), [((), False, False), ((3,), True, False), ((5, 6), True, True), ((6,), True, True)]
)
def test_both_success_rules_over_the_whole_episode(holds: tuple[int, ...], latched: bool, last: bool) -> None:
    env, asked = opened(FakeScene(holds), step_limit=6), []

    def act(observation: Any, seed: tuple[int, ...] | None) -> np.ndarray:
        asked.append(seed)
        return np.full((4, 7), len(asked), np.float32)

    env.reset(5)
    result = run_episode(env, InProcessPolicy(act), SimilarityEnsemble(), noise_seed=(1,), stop_on_success=False)
    assert (result.success, result.success_last, result.steps) == (latched, last, 6)
    assert asked == [(1, step) for step in range(6)]  # at every step
    # Chunks of four reach three steps on: the fifth action averages the chunks 2 to 5, which all say their own number.
    commands = env.scene.commands  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_allclose([command[0] for command in commands], [1, 1.5, 2, 2.5, 3.5, 4.5], atol=1e-5)
    assert env.scene.layouts == [5]  # pyright: ignore[reportAttributeAccessIssue]


def test_step_limits_are_the_tasks_own_unless_another_is_given() -> None:
    assert [opened(FakeScene(), task).step_limit for task in range(4)] == [60, 60, 60, 120]
    assert opened(FakeScene(), step_limit=120).step_limit == 120
    with pytest.raises(InvalidValueError, match="at least 1"):
        opened(FakeScene(), step_limit=0)


def test_missing_assets_are_named_by_their_download(tmp_path: Path) -> None:
    assert set(simpler_tasks.missing_assets(tmp_path)) == {"bridge_v2_real2sim", "widowx250s"}
    write_assets(tmp_path)
    assert simpler_tasks.missing_assets(tmp_path) == {} == dict.fromkeys(simpler_tasks.stand_in_assets(tmp_path))
    (tmp_path / "robots/widowx/meshes/base.stl").unlink()
    assert simpler_tasks.missing_assets(tmp_path) == {"widowx250s": ["robots/widowx/meshes/base.stl"]}


def test_a_model_may_be_drawn_from_any_of_its_formats(tmp_path: Path) -> None:
    write_assets(tmp_path)
    eggplant = tmp_path / simpler_tasks.SCENES / "custom/models/eggplant"
    (eggplant / "textured.obj").rename(eggplant / "textured.glb")
    assert simpler_tasks.missing_assets(tmp_path) == {}


def test_stand_ins_give_themselves_away(tmp_path: Path) -> None:
    write_assets(tmp_path, stage_bytes=1000)
    assert [path.rsplit("/", 1)[1] for path in simpler_tasks.stand_in_assets(tmp_path)] == [
        "bridge_table_1_v1.glb",
        "bridge_table_1_v2.glb",
    ]
    (tmp_path / "STAND_INS").write_text("the eggplant\n\n")
    assert (
        "the eggplant" in simpler_tasks.stand_in_assets(tmp_path) and len(simpler_tasks.stand_in_assets(tmp_path)) == 3
    )


def test_the_fingerprint_is_of_every_file(tmp_path: Path) -> None:
    write_assets(tmp_path)
    first = simpler_tasks.assets_fingerprint(tmp_path)
    (tmp_path / "notes.txt").write_text("not part of a scene")
    assert simpler_tasks.assets_fingerprint(tmp_path) == first
    (tmp_path / "robots/widowx/meshes/base.stl").write_bytes(b"other")
    assert simpler_tasks.assets_fingerprint(tmp_path) != first


def test_where_assets_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MS_ASSET_DIR", raising=False)
    assert simpler_tasks.asset_folder() == Path.home() / ".maniskill/data"
    monkeypatch.setenv("MS_ASSET_DIR", str(tmp_path))
    assert simpler_tasks.asset_folder() == tmp_path / "data"
    assert simpler_tasks.asset_folder(Path("elsewhere")) == Path("elsewhere/data")
