from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lamp.configuration import from_json, to_json
from lamp.data.actions import Absolute, Gripper, Relative
from lamp.data.embodiment import EMBODIMENTS, LIBERO, OWN, Embodiment, Part, embodiment
from lamp.data.lerobot import LeRobotDataset
from lamp.data.policy_dataset import states_and_actions
from lamp.errors import ConfigError, DataError, MismatchError

FIXTURES = Path(__file__).parents[1] / "fixtures/lerobot"


@pytest.fixture(scope="module")
def foreign() -> LeRobotDataset:
    """Read only. State (episode, frame, episode * frame), action (frame / 10, frame modulo 2)."""
    return LeRobotDataset(FIXTURES / "v30")


def test_our_own_is_what_the_dataset_holds(shared_dataset: LeRobotDataset) -> None:
    opened = OWN.open(shared_dataset.root)
    assert opened.cameras == shared_dataset.cameras
    np.testing.assert_array_equal(OWN.states(opened, 2), shared_dataset.column("observation.state", 2))
    np.testing.assert_array_equal(OWN.actions(opened, 2), shared_dataset.column("action", 2))
    assert [opened.fingerprint(n) for n in range(4)] == [shared_dataset.fingerprint(n) for n in range(4)]


def test_parts_slices_cameras_and_grippers(foreign: LeRobotDataset) -> None:
    robot = Embodiment(
        name="robot",
        cameras={"wrist": "observation.images.side"},
        state=(Part(key="observation.state", start=2), Part(key="observation.state", stop=2)),
        gripper=Gripper(opened=0.0, closed=1.0),
        kind=Absolute(),
        fps=10.0,
    )
    dataset = robot.open(foreign.root)
    assert dataset.cameras == ("wrist",)
    np.testing.assert_array_equal(robot.states(dataset, 2)[3], [6, 2, 3])
    np.testing.assert_allclose(robot.actions(dataset, 2)[:4, 1], [1, 0, 1, 0])


def test_chunks_hold_the_last_action_and_are_relative_to_their_own_state(foreign: LeRobotDataset) -> None:
    robot = Embodiment(name="robot", kind=Relative(offsets=((0, 1),)))
    chunks = robot.chunks(foreign, 1, 3)
    frame, step = np.arange(7)[:, None], np.arange(3)
    target = np.minimum(frame + step, 6) / 10
    np.testing.assert_allclose(chunks[..., 0], target - frame, atol=1e-6)
    _, learnt = states_and_actions(foreign, [1], 3, robot)
    assert len(learnt) == 5 * 3 + 2 + 1  # none from beyond the end
    assert len(states_and_actions(foreign, [0, 1], 3, OWN)[1]) == 12 + 7


def test_what_does_not_fit_is_refused(foreign: LeRobotDataset) -> None:
    with pytest.raises(MismatchError, match="runs at 10 fps; the embodiment 'robot' at 15"):
        Embodiment(name="robot", fps=15.0).open(foreign.root)
    with pytest.raises(ConfigError, match=r"unknown feature of .* 'actoin'; did you mean 'action'\?"):
        Embodiment(name="robot", action=(Part(key="actoin"),)).open(foreign.root)
    with pytest.raises(MismatchError, match="has 3 values; the embodiment 'robot' asks for 2 to 5"):
        Embodiment(name="robot", state=(Part(key="observation.state", start=2, stop=5),)).open(foreign.root)
    with pytest.raises(ConfigError, match=r"unknown camera feature 'observation\.images\.image'"):
        LIBERO.open(foreign.root)
    with pytest.raises(ConfigError, match="unknown embodiment 'libreo'; did you mean 'libero'"):
        embodiment("libreo")


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    root = Path(shutil.copytree(FIXTURES / "v21", tmp_path / "v21"))
    path = root / "data/chunk-000/episode_000001.parquet"
    table = pq.read_table(path)
    rows = table["action"].to_pylist()
    rows[4][0] = float("nan")
    pq.write_table(table.set_column(table.column_names.index("action"), "action", pa.array(rows)), path)
    with pytest.raises(
        DataError, match=r"episode_000001\.parquet: episode 1, frame 4, action: \[nan, 0\.0\] is not finite"
    ):
        OWN.actions(LeRobotDataset(root), 1)


@pytest.mark.parametrize("name", EMBODIMENTS)
def test_named_embodiments_open_what_they_document(name: str, tmp_path: Path) -> None:
    robot = EMBODIMENTS[name]
    assert from_json(Embodiment, json.loads(json.dumps(to_json(robot)))) == robot
    root = _empty_dataset(tmp_path, robot)
    opened = robot.open(root)
    assert opened.cameras == tuple(robot.cameras or ())
    faster = replace(robot, fps=61.0)
    with pytest.raises(MismatchError, match="fps"):
        faster.open(root)


def _empty_dataset(root: Path, robot: Embodiment) -> Path:
    """A description with the features that an embodiment asks for."""
    parts = (*robot.state, *robot.action)
    features = {part.key: {"dtype": "float32", "shape": [16], "names": None} for part in parts}
    video = {"dtype": "video", "shape": [64, 64, 3], "names": ["height", "width", "channels"]}
    features |= dict.fromkeys((robot.cameras or {}).values(), video)
    info = {"codebase_version": "v2.1", "fps": robot.fps or 10, "total_episodes": 0, "total_frames": 0}
    (root / "meta").mkdir()
    (root / "meta/info.json").write_text(json.dumps(info | {"features": features}))
    return root
