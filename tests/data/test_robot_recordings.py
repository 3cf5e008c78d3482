"""Recordings with joint states and a URDF: the robot's own flow in a store, and as a check of a chain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_clips import SIZE, off_square, on_square, sliding_square
from test_flow_from_video import CALIBRATION, FRAMES, settings, write_recording

from lamp.cli import main
from lamp.data.flow_from_video import build_from_video
from lamp.errors import DataError
from lamp.sceneflow.store import SceneFlowStore

STEP = 1.5 / 128 * 0.8
"""m: the square's way from frame to frame."""
LEFT = (24 - 0.5 + 14 - 63.5) / 128 * 0.8
TOP = (34 - 0.5 + 14 - 47.5) / 128 * 0.8
URDF = f"""<robot name="slider"><link name="base"/><link name="square"><collision><origin xyz="0 0 0.05"/><geometry>
<box size="0.175 0.175 0.1"/></geometry></collision></link>
<joint name="slide" type="prismatic"><origin xyz="{LEFT} {TOP} 0.8"/><parent link="base"/><child link="square"/>
<axis xyz="1 0 0"/></joint></robot>"""
ROBOT = {
    "urdf": "robot.urdf",
    "joints": "joints.npy",
    "joint_names": ["slide"],
    "base_from_cam": np.eye(4).tolist(),
}


def write_robot(folder: Path, **changes: Any) -> None:
    write_recording(folder, sliding_square(FRAMES), robot={**ROBOT, **changes})
    (folder / "robot.urdf").write_text(URDF)
    np.save(folder / "joints.npy", STEP * np.arange(FRAMES)[:, None])


def test_the_robots_own_flow_becomes_a_store(tmp_path: Path) -> None:
    write_robot(tmp_path / "source")
    build_from_video(settings(tmp_path / "source", tmp_path / "out", robot="only"))
    store = SceneFlowStore(tmp_path / "out/sceneflow")
    assert store.description.estimator == "robot 1"
    tracks, _ = store.read(0, [0])
    start = tracks.points[0, :, 0].numpy()
    on, known = on_square(start), tracks.valid[0, :, 0].numpy()
    assert known[on].all() and not known[off_square(start)].any()
    moved = (tracks.points[0, :, 8, :2] - tracks.points[0, :, 0, :2]).numpy() * SIZE
    np.testing.assert_allclose(moved[on], np.tile([12, 0], (on.sum(), 1)), atol=1e-3)
    np.testing.assert_allclose(tracks.points[0, :, :, 2].numpy()[on], 0.8, atol=1e-3)


def test_a_chain_is_checked_by_the_robot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_robot(tmp_path / "source")
    words = ["flow", "score", str(tmp_path / "source"), "--grid", "12", "16", "--horizon", "8", "--json"]
    assert main([*words, "--baselines", "zero_motion"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["truth"].startswith("the robot's kinematics") and found["episodes"] == 1
    assert found["moving_median_px"] < 1.0 and found["baselines"]["zero_motion"]["moving_median_px"] > 4
    assert found["moving_median_mm"] < 8 and found["visibility_recall"] > 0.95
    assert main([*words, "--robot", "only"]) == 2
    assert "cannot be checked by them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"joint_names": ["slyde"]}, "unknown joint of the robot slider 'slyde'"),
        ({"camera_link": "square"}, "expected base_from_cam, or camera_link and link_from_cam"),
        ({"base_from_cam": [[2.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]}, "no rigid 4x4 matrix"),
        ({"joints": "gone.npy"}, "cannot read the joint states"),
        ({"urdf": "../robot.urdf"}, "leads out of"),
        ({"colour": "red"}, "robot: expected an object with some of"),
    ],
)
def test_what_is_said_of_a_robot_is_checked(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    write_robot(tmp_path / "source", **changes)
    with pytest.raises(DataError, match=text):
        build_from_video(settings(tmp_path / "source", tmp_path / "out", robot="with"))


def test_joint_states_fit_the_frames_and_are_never_unpickled(tmp_path: Path) -> None:
    write_robot(tmp_path / "source")
    np.save(tmp_path / "source/joints.npy", np.zeros((FRAMES - 1, 1)))
    with pytest.raises(DataError, match=rf"{FRAMES - 1} joint states for {FRAMES} frames"):
        build_from_video(settings(tmp_path / "source", tmp_path / "out", robot="with"))
    np.save(tmp_path / "source/joints.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot read the joint states"):
        build_from_video(settings(tmp_path / "source", tmp_path / "out", robot="with"))
    content = {name: value for name, value in CALIBRATION.items() if name != "intrinsics"}
    (tmp_path / "source/calibration.json").write_text(json.dumps({**content, "fps": 10, "robot": ROBOT}))
    with pytest.raises(DataError, match="has a robot and no intrinsics"):
        build_from_video(settings(tmp_path / "source", tmp_path / "out", robot="with"))
    assert not (tmp_path / "out").exists()
