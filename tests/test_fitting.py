"""A recipe for somebody's own dataset: what it is found to need, and that it trains."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from scipy.spatial.transform import Rotation

from lamp.cli import main
from lamp.data.actions import Absolute, Delta, Gripper, Quaternion, Relative
from lamp.data.embodiment import Part, embodiment
from lamp.data.lerobot import EpisodeData, LeRobotDataset, LeRobotWriter, stage_episode
from lamp.data.normalizers import ByDeviation, ContinuousRotation, HardlyMoved, NoState, RawState
from lamp.data.policy_dataset import states_and_actions
from lamp.errors import ConfigError, DataError
from lamp.model.qwen3_vl import Qwen3VLBackboneConfig
from lamp.model.token_pooling import TokenPooling
from lamp.policy import LaMPPolicy
from lamp.recipes import TrainingRecipe, experiment, recipe, training
from lamp.recipes.fit import fit
from lamp.recipes.fit_robot import FitConfig
from lamp_client.types import Observation

FIXTURES = Path(__file__).parent / "fixtures/lerobot"


@pytest.fixture(params=["v21", "v30"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """LeRobot's own: cameras front and side, a state of 3, an action of 2 whose last value is 0 or 1, 10 fps."""
    return shutil.copytree(FIXTURES / request.param, tmp_path / "mine")


def fitted(data: Path, like: str = "demo", **settings: object) -> TrainingRecipe:
    out = data.parent / "robot.json"
    made, _ = fit(FitConfig(data=str(data), out=out, like=like, **settings), training(like))  # pyright: ignore[reportArgumentType]
    assert recipe(str(out)) == made, "the file is the recipe"
    return made


def test_the_dataset_is_found_out(data: Path) -> None:
    made = fitted(data)
    expert = made.policy.model.action
    assert expert is not None and (expert.state_dim, expert.action_dim) == (3, 2)
    assert made.backbone.cameras == (("front", 160), ("side", 128))
    assert made.policy.embodiment.fps == 10 and made.policy.gripper == -1
    # The demo's prior has seen other episodes than its policy; one that is trained here may have seen the same.
    assert (made.policy.prior_dropout, experiment("demo").policy.prior_dropout) == (0.5, 0.0)
    assert made.policy.state_transform == RawState()
    assert made.motion is not None and made.motion.embodiment == made.policy.embodiment
    assert made.motion.backbone == made.policy.backbone and made.motion.fit_data_std
    assert made.policy.model.pooling == TokenPooling(grids=((10, 10), (8, 8)))
    alone = fitted(data, cameras=("front=observation.images.front",))
    assert alone.policy.model.pooling == TokenPooling(grids=((10, 10),))


def test_a_recipe_without_a_motion_prior_fits_too(data: Path) -> None:
    made = fitted(data, like="small_no_motion")
    assert made.motion is None and made.policy.embodiment.fps == 10


def test_what_is_said_comes_first(data: Path) -> None:
    made = fitted(
        data,
        like="paper_real",
        cameras=("agentview=observation.images.side",),
        state=("none",),
        action=("action[1:2]", "action[0:1]"),
        gripper=(0.0, 1.0),
    )
    robot, expert = made.policy.embodiment, made.policy.model.action
    assert isinstance(made.backbone, Qwen3VLBackboneConfig) and made.backbone.cameras == (("agentview", 224),)
    assert robot.cameras == {"agentview": "observation.images.side"}
    assert robot.action == (Part(key="action", start=1, stop=2), Part(key="action", start=0, stop=1))
    assert robot.gripper == Gripper(opened=0.0, closed=1.0)
    assert expert is not None and expert.state_dim == 0 and made.policy.state_transform == NoState()
    dataset = robot.open(data)
    recorded = dataset.column("action", 0)
    np.testing.assert_array_equal(robot.actions(dataset, 0), np.stack([recorded[:, 1], 1 - recorded[:, 0]], axis=1))


def test_rotations_are_six_values_and_a_gripper_must_be_told(data: Path) -> None:
    made = fitted(data, rotation_at=0, action=("action[1:2]", "action[0:1]"))
    expert = made.policy.model.action
    assert expert is not None and expert.state_dim == 6 and made.policy.state_transform == ContinuousRotation(start=0)
    assert made.policy.gripper is None, "the first action runs beyond 1"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--cameras", "observation.images.top"], "observation.images.top"),
        (["--state", "observation.pose"], "observation.pose"),
        (["--state", "observation.state[0:9]"], "has 3 values"),
        (["--action", "action[a:b]"], "KEY[START:STOP]"),
        (["--state", "observation.state[0:0]"], "observation.state[0:0] holds no values"),
        (["--state", "observation.state[2:1]"], "observation.state[2:1] holds no values"),
        (["--rotation-at", "-1"], "a rotation of the state starts at -1"),
        (["--rotation-at", "1"], "no rotation of three values at 1; expected at least 4 values"),
        (["--gripper-at", "0", "-2"], "--gripper-at 0 -2 names a value twice"),
        (["--cameras", "a/b=observation.images.front"], "a camera cannot be called 'a/b'"),
        (["--cameras", "a\nb=observation.images.front"], "a camera cannot be called 'a\\nb'"),
        (["--like", "bench_mid"], "expected one with training"),
        (["--like", "demoo"], "demo"),
        (["--embodiment", "droid"], "observation.images.exterior_1_left"),
    ],
)
def test_a_slip_is_one_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture, words: list[str], told: str
) -> None:
    out = tmp_path / "robot.json"
    assert main(["recipe", "fit", str(FIXTURES / "v30"), "--out", str(out), *words]) == 2
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error and not out.exists()


def test_a_recipe_never_takes_the_place_of_a_folder(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(data.parent.rglob("*"))
    assert main(["recipe", "fit", str(data), "--out", str(data.parent)]) == 2
    error = capsys.readouterr().err
    assert f"Is a directory: {data.parent}" in error and "a file was expected" in error
    assert "(--out FILE)" in error
    assert sorted(data.parent.rglob("*")) == before


def test_demonstrations_without_a_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stateless = EpisodeData(
        frames={"action": np.linspace(0, 1, 18, dtype=np.float32).reshape(6, 3)},
        images={"front": np.zeros((6, 64, 64, 3), np.uint8)},
        task="wave",
    )
    stage_episode(tmp_path / "data", "one", stateless)
    LeRobotWriter(tmp_path / "data").finalize()
    words = ["recipe", "fit", str(tmp_path / "data"), "--out", str(tmp_path / "robot.json")]
    assert main(words) == 2
    assert "has no observation.state, but action; expected --state with its own names, or --state none" in (
        capsys.readouterr().err
    )
    assert main([*words, "--state", "none"]) == 0
    made = training(str(tmp_path / "robot.json"))
    assert made.policy.embodiment.state == () and made.policy.state_transform == NoState()
    states, actions = states_and_actions(LeRobotDataset(tmp_path / "data"), [0], 2, made.policy.embodiment)
    assert states.shape == (6, 0) and actions.shape == (6, 3)


def test_files_in_place_of_names(tmp_path: Path, data: Path) -> None:
    made, path = fitted(data), tmp_path / "robot.json"
    raw = json.loads(path.read_text())
    own = tmp_path / "mine.json"
    own.write_text(json.dumps(raw["policy"]["embodiment"]))
    assert embodiment(str(own)) == made.policy.embodiment
    assert fitted(data, embodiment=str(own)).policy.embodiment == made.policy.embodiment
    raw["policy"]["loop"]["stepz"] = 3
    path.write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match="stepz"):
        training(str(path))
    with pytest.raises(DataError, match="no recipe at"):
        training(str(tmp_path / "other.json"))


@pytest.mark.slow
def test_it_trains_and_acts_without_a_state(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The command line, from somebody's dataset to actions."""
    data = shutil.copytree(FIXTURES / "v30", tmp_path / "mine")
    out, run = tmp_path / "robot.json", tmp_path / "run"
    assert main(["recipe", "fit", str(data), "--state", "none", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "front <- observation.images.front, side <- observation.images.side" in said and "10 fps" in said
    quick = ["--loop.steps", "2", "--loop.batch-size", "4", "--validation-samples", "4", "--loop.threads", "1"]
    assert main(["cache", "features", str(data), "--recipe", str(out), "--processes", "1"]) == 0
    assert main(["train", "policy", "--recipe", str(out), "--data", str(data), "--out", str(run), *quick]) == 0
    policy = LaMPPolicy.from_checkpoint(run)
    assert policy.record.state_width == 0
    sizes = {camera.name: (camera.height, camera.width) for camera in policy.description.backbone.cameras}
    images = {name: np.zeros((*size, 3), np.uint8) for name, size in sizes.items()}
    seen = Observation(images=images, state=np.zeros(0, np.float32), instruction="task 0")
    assert policy.act(seen, noise_seed=(1,)).actions.shape == (12, 2)
    assert load_file(run / "checkpoint" / "model.safetensors")


def rewritten(data: Path, actions: np.ndarray | None = None, fps: int | None = None) -> Path:
    """The v2.1 dataset with other actions, a row for every frame of all episodes, or at another rate."""
    info = json.loads((data / "meta/info.json").read_text())
    info["fps"] = fps or info["fps"]
    if actions is not None:
        info["features"]["action"] |= {"shape": [actions.shape[1]], "names": None}
    (data / "meta/info.json").write_text(json.dumps(info))
    start = 0
    for path in sorted((data / "data/chunk-000").glob("*.parquet")):
        table = pq.read_table(path)
        if actions is not None:
            part = actions[start : start + len(table)].astype(np.float32)
            column = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), actions.shape[1])
            table = table.set_column(table.column_names.index("action"), "action", column)
        if fps:
            times = pa.array((np.arange(len(table)) / fps).astype(np.float32))
            table = table.set_column(table.column_names.index("timestamp"), "timestamp", times)
        start += len(table)
        pq.write_table(table, path)
    return data


FRAMES = 34
"""Of all episodes of the fixture."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return shutil.copytree(FIXTURES / "v21", tmp_path / "mine")


def told(data: Path, like: str = "demo", **settings: object) -> tuple[TrainingRecipe, str]:
    return fit(FitConfig(data=str(data), out=data.parent / "robot.json", like=like, **settings), training(like))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("like", ["demo", "paper_real"])
def test_small_actions_are_scaled_by_their_own_spread(old: Path, like: str) -> None:
    """No floor of another benchmark's is kept: four millimetres are as large to the model as anything else."""
    turn = np.sin(np.arange(FRAMES) / 3)
    still = 1e-5 * np.random.default_rng(0).normal(size=FRAMES)
    rewritten(old, np.stack([0.004 * turn, 0.05 * turn[::-1], still, np.full(FRAMES, 3.0), turn > 0], axis=1))
    made, text = told(old, like)
    fitted = made.policy.action_fit.fit(_all_actions(made, old), binary=(-1,))
    scale = fitted.centre_and_scale()[1]
    assert 0.002 < scale[0] < 0.006 and fitted.floored == (2, 3)
    assert "action hardly moves in, and is divided there, 2 by " in text and ", 3 by " in text
    assert recipe(str(old.parent / "robot.json")) == made


def _all_actions(made: TrainingRecipe, data: Path) -> np.ndarray:
    robot = made.policy.embodiment
    dataset = robot.open(data)
    return np.concatenate([robot.actions(dataset, episode) for episode in range(len(dataset))])


@pytest.mark.parametrize(
    ("values", "is_one"),
    [
        (lambda share: share > 0.5, True),
        (lambda share: share, True),
        (lambda share: np.ones_like(share), True),
        (lambda share: 0.08 * share, False),  # metres
        (lambda share: 0.3 + 0.2 * share, False),  # a joint
        (lambda share: 2 * share - 1, False),
    ],
)
def test_a_gripper_is_told_from_other_values(
    old: Path, values: Callable[[np.ndarray], np.ndarray], is_one: bool
) -> None:
    share = np.abs(np.sin(np.arange(FRAMES) * 0.7))
    share[:2] = 0, 1
    rewritten(old, np.stack([share, values(share)], axis=1))
    made, text = told(old)
    assert made.policy.gripper == (-1 if is_one else None)
    assert ("taken as 1 = open, 0 = closed" in text) == is_one and ("--gripper OPEN CLOSED" in text) != is_one


def test_a_gripper_s_own_units_are_checked_at_once(old: Path) -> None:
    share = np.abs(np.sin(np.arange(FRAMES) * 0.7))
    rewritten(old, np.stack([share, 10 + 62 * share], axis=1))  # a little further than it says
    made, text = told(old, gripper=(70.0, 10.0))
    assert made.policy.embodiment.gripper == Gripper(opened=70.0, closed=10.0) and made.policy.gripper == -1
    assert "70 = open, 10 = closed, in which units the robot is sent it" in text
    _, text = told(old, gripper=(1.0, 0.0))
    assert "1 = open, 0 = closed" in text and "BUT it is recorded from 10 to 7" in text and "training refuses" in text


def two_arms(data: Path, *, metres: bool = True) -> Path:
    """Actions of two arms of one joint and a gripper each, which the dataset calls so."""
    share = np.abs(np.sin(np.arange(FRAMES) * 0.7))
    share[:2] = 0, 1
    left = 70 * share if metres else share
    rewritten(data, np.stack([share + 1, left, share + 3, 1 - share], axis=1))
    info = json.loads((data / "meta/info.json").read_text())
    info["features"]["action"]["names"] = ["left_joint", "left_gripper", "right_joint", "right_gripper.pos"]
    (data / "meta/info.json").write_text(json.dumps(info))
    return data


def test_the_grippers_of_two_arms(old: Path) -> None:
    """Found by their names, or said; each in its own units."""
    made, text = told(two_arms(old, metres=False))
    assert made.policy.gripper == (1, -1) and "value 1 of the action, taken as 1 = open" in text
    made, text = told(two_arms(old))
    assert made.policy.gripper == -1 and "not told apart: value 1 of the action runs from 0 to 70" in text
    made, _ = told(old, gripper=(70.0, 0.0, 1.0, 0.0))
    pair = (Gripper(dim=1, opened=70.0, closed=0.0), Gripper())
    assert made.policy.embodiment.gripper == pair and made.policy.gripper == (1, -1)
    made, _ = told(old, gripper=(70.0, 0.0), gripper_at=(1,))
    assert made.policy.embodiment.gripper == Gripper(dim=1, opened=70.0, closed=0.0) and made.policy.gripper == 1
    dataset = made.policy.embodiment.open(old)
    assert dataset.column("action", 0)[:, 1] / 70 == pytest.approx(made.policy.embodiment.actions(dataset, 0)[:, 1])
    refused: tuple[dict[str, Any], ...] = (
        {"gripper": (1.0, 0.0, 2.0)},
        {"gripper": (1.0, 0.0, 1.0, 0.0), "gripper_at": (1,)},
    )
    for wrong in refused:
        with pytest.raises(ConfigError, match="expected OPEN CLOSED, or such a pair for each of them"):
            told(old, **wrong)
    with pytest.raises(ConfigError, match="--gripper-at 9 given, and an action has 4 values"):
        told(old, gripper_at=(9,))


def test_what_the_actions_are_is_found_out_or_asked(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = [pq.read_table(path) for path in sorted((old / "data/chunk-000").glob("*.parquet"))]
    states = np.concatenate([np.stack(part["observation.state"].to_numpy()) for part in table])
    ahead = states + np.array([0, 1, 0])  # the second value counts the frames
    rewritten(old, ahead)
    made, text = told(old)
    assert made.policy.embodiment.kind == Absolute() and "actions  absolute: targets" in text
    made, text = told(old, actions="relative")
    assert made.policy.embodiment.kind == Relative(offsets=((1, 1), (2, 2))), "the first is constant within an episode"
    assert "actions  relative: targets, learnt from the state" in text
    made, text = told(old, actions="delta")
    assert made.policy.embodiment.kind == Delta() and "as --actions says; but " in text
    rewritten(old, np.random.default_rng(0).normal(size=(FRAMES, 3)))
    made, text = told(old)
    assert made.policy.embodiment.kind == Delta()
    assert "not told apart" in text and "say --actions absolute, delta or relative" in text
    made, _ = told(old, actions="absolute")
    assert made.policy.embodiment.kind == Absolute()
    words = ["recipe", "fit", str(old), "--out", str(old.parent / "no.json"), "--actions", "sideways"]
    assert main(words) == 2 and "sideways" in capsys.readouterr().err


@pytest.mark.parametrize(("fps", "frames"), [(20, 4), (10, 2), (50, 10), (2, 1)])
def test_the_motion_prior_looks_as_far_ahead_as_the_recipe_s(old: Path, fps: int, frames: int) -> None:
    rewritten(old, fps=fps)
    made, text = told(old)
    assert made.motion is not None and made.motion.flow_frames == frames
    assert f"motion   8 flow steps of {frames} frames: {8 * frames / fps:.2g} s ahead" in text
    again, _ = fit(FitConfig(data=str(old), out=old.parent / "again.json"), made)
    assert again.motion is not None and again.motion.flow_frames == frames, "a recipe of one's own is followed as well"
    paper, _ = told(old, "paper_real")
    assert paper.motion is not None and paper.motion.flow_frames == 1


def test_libero_s_own_data_keep_what_was_found_for_them(old: Path) -> None:
    collected = old / "meta/lamp.json"
    collected.write_text(json.dumps({"format": "lamp-dataset", "version": 1, "suite": "libero_object"}))
    made = told(old)[0]
    assert made.policy.action_fit == ByDeviation(least=0.2, hardly_moved=HardlyMoved(at_most=10.0))
    assert made.motion is not None and not made.motion.fit_data_std
    collected.write_text(json.dumps({"format": "lamp-dataset", "version": 1, "recorded": "lamp_client.recording"}))
    assert told(old)[0].policy.action_fit == ByDeviation(hardly_moved=HardlyMoved(at_most=10.0))


def test_a_quaternion_in_the_state_is_told_and_shown_as_a_matrix(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    for seed in range(3):
        turns = Rotation.from_rotvec(np.cumsum(draws.normal(0, 0.2, (12, 3)), 0)).as_quat()
        turns *= draws.choice([-1.0, 1.0], (12, 1))  # the same rotations, by either sign
        state = np.concatenate([draws.normal(size=(12, 3)), turns, draws.normal(size=(12, 1))], 1).astype(np.float32)
        frames = {"observation.state": state, "action": draws.normal(size=(12, 7)).astype(np.float32)}
        images = {"front": np.zeros((12, 32, 32, 3), np.uint8)}
        stage_episode(tmp_path / "data", f"{seed}", EpisodeData(frames=frames, images=images, task="turn it"), fps=10)
    LeRobotWriter(tmp_path / "data", fps=10).finalize()
    _, report = fit(FitConfig(data=str(tmp_path / "data"), out=tmp_path / "robot.json"), training("demo"))
    assert "values 3 to 6 have length 1" in report and "--rotation-at 3 --rotation quaternion_xyzw" in report
    config = FitConfig(
        data=str(tmp_path / "data"), out=tmp_path / "robot.json", rotation_at=3, rotation="quaternion_xyzw"
    )
    made, report = fit(config, training("demo"))
    assert "length 1" not in report and recipe(str(tmp_path / "robot.json")) == made
    expert, shown = made.policy.model.action, made.policy.state_transform
    assert expert is not None and expert.state_dim == 10
    assert shown == ContinuousRotation(start=3, rotation=Quaternion(order="xyzw"))
    state = LeRobotDataset(tmp_path / "data").column("observation.state", 0).copy()
    turned = state.copy()
    turned[:, 3:7] *= -1
    np.testing.assert_allclose(shown.apply(state), shown.apply(turned), atol=1e-6)
    matrix = Rotation.from_quat(state[:, 3:7].astype(np.float64)).as_matrix()
    np.testing.assert_allclose(shown.apply(state)[:, 3:6], matrix[:, :, 0], atol=1e-6)
    real_first = ContinuousRotation(start=3, rotation=Quaternion(order="wxyz"))
    state[:, 3:7] = state[:, [6, 3, 4, 5]]
    np.testing.assert_allclose(real_first.apply(state), shown.apply(turned), atol=1e-6)
    state[0, 3:7] = 0
    with pytest.raises(DataError, match="quaternion of length 0"):
        real_first.apply(state)
