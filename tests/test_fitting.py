"""A recipe for somebody's own dataset: what it is found to need, and that it trains."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lamp.cli import main
from lamp.data.actions import Gripper
from lamp.data.embodiment import Part, embodiment
from lamp.data.normalise import ContinuousRotation, NoState, RawState
from lamp.errors import ConfigError, DataError
from lamp.model.qwen3_vl import Qwen3VLBackboneConfig
from lamp.policy import LaMPPolicy
from lamp.recipes import TrainingRecipe, recipe, training
from lamp.recipes.fitting import FitConfig, fit
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
    assert made.policy.state_transform == RawState()
    assert made.motion is not None and made.motion.embodiment == made.policy.embodiment
    assert made.motion.backbone == made.policy.backbone


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
