"""`lamp flow build` on recordings of the small scene: whole, resumed, killed."""

from __future__ import annotations

import dataclasses
import fcntl
from pathlib import Path
from typing import Any

import pytest
from flow_scene import KILL, load_scene, write_dataset

from lamp.errors import ConfigError, DataError, MismatchError
from lamp.sceneflow.building import FlowBuildConfig, build, reference_frames
from lamp.sceneflow.store import SceneFlowStore

pytestmark = pytest.mark.sim


def settings(root: Path, **changes: Any) -> FlowBuildConfig:
    small = FlowBuildConfig(data=root, grid=(6, 8), horizon=5, image_size=(64, 64), workers=1)
    return dataclasses.replace(small, **changes)


def test_a_build_covers_every_fresh_frame_and_is_not_repeated(tmp_path: Path) -> None:
    write_dataset(tmp_path, 3, length=8, render_every=2)
    report = build(settings(tmp_path, cameras=("agentview", "wrist")), load_scene=load_scene)
    assert (report.built, report.kept, report.frames) == (3, 0, 2 * (4 + 5 + 5))
    store = SceneFlowStore(tmp_path / "sceneflow")
    assert store.episodes == (0, 1, 2) and store.frames(1).tolist() == [0, 2, 4, 6, 8]
    tracks, camera = store.read(1, [2, 6], "wrist")
    assert tracks.points.shape == (2, 48, 6, 3) and camera.intrinsics[0, 0, 0] < 0
    assert tracks.valid[0].any() and not tracks.valid[1, :, 3:].any(), "frame 6 of 9 has two frames after it"
    assert 0 < report.moving_share < 1 and all(rate < 0.05 for rate in report.clamp_rate)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "sceneflow").rglob("*")}
    again = build(settings(tmp_path, cameras=("agentview", "wrist")), load_scene=load_scene)
    assert (again.built, again.kept) == (0, 3)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "sceneflow").rglob("*")} == stamps


def test_a_killed_build_says_so_goes_on_and_ends_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "one", 2, length=8)
    write_dataset(tmp_path / "other", 2, length=8)
    build(settings(tmp_path / "one"), load_scene=load_scene)
    monkeypatch.setenv(KILL, "1")
    with pytest.raises(DataError, match=r"worker process was killed.*run the command again"):
        build(settings(tmp_path / "other", workers=2), load_scene=load_scene)
    assert list((tmp_path / "other/sceneflow").glob(".tmp-*")), "the kill came in the middle of a write"
    assert 1 not in SceneFlowStore(tmp_path / "other/sceneflow").episodes
    monkeypatch.delenv(KILL)
    report = build(settings(tmp_path / "other", workers=2), load_scene=load_scene)
    assert report.built in (1, 2) and report.built + report.kept == 2 and report.frames_per_core_second > 0
    one, other = (SceneFlowStore(tmp_path / name / "sceneflow") for name in ("one", "other"))
    assert one.episodes == other.episodes == (0, 1)
    for episode in one.episodes:
        frames = one.frames(episode)
        assert frames.tolist() == other.frames(episode).tolist() == list(range(8 + episode))
        assert one.read(episode, frames)[0].points.equal(other.read(episode, frames)[0].points)
    assert not list(other.path.glob(".tmp-*"))


def test_damaged_episodes_are_built_again(tmp_path: Path) -> None:
    write_dataset(tmp_path, 2, length=8)
    build(settings(tmp_path), load_scene=load_scene)
    (tmp_path / "sceneflow/episode-000001/agentview/frames/zarr.json").unlink()
    assert build(settings(tmp_path), load_scene=load_scene).built == 1


def test_other_settings_need_overwrite(tmp_path: Path) -> None:
    write_dataset(tmp_path, 1, length=8)
    build(settings(tmp_path), load_scene=load_scene)
    with pytest.raises(MismatchError, match=r"'horizon': 5.*there.*'horizon': 4.*asked for.*--overwrite"):
        build(settings(tmp_path, horizon=4), load_scene=load_scene)
    assert build(settings(tmp_path, horizon=4, overwrite=True), load_scene=load_scene).built == 1


def test_what_cannot_be_built_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no recorded simulation at .*lamp collect"):
        build(settings(tmp_path), load_scene=load_scene)
    write_dataset(tmp_path, 1, length=8)
    with pytest.raises(ConfigError, match=r"unknown camera 'wrst'; did you mean 'wrist'"):
        build(settings(tmp_path, cameras=("wrst",)), load_scene=load_scene)
    with open(tmp_path / ".sceneflow.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another `lamp flow build` is at work"):
            build(settings(tmp_path), load_scene=load_scene)
    with pytest.raises(ConfigError, match="horizon 0"):
        build(settings(tmp_path, horizon=0), load_scene=load_scene)


def test_frames_are_counted_against_the_recording(tmp_path: Path) -> None:
    write_dataset(tmp_path, 2, length=8, render_every=2)
    frames = reference_frames(tmp_path, {0: 8, 1: 9}, every=2)
    assert frames[0].tolist() == [0, 4] and frames[1].tolist() == [0, 4, 8]
    with pytest.raises(DataError, match=r"episode 1 has 9 frames .* but 7 in its recorded simulation"):
        reference_frames(tmp_path, {1: 7}, every=1)
    assert reference_frames(tmp_path / "bare", {0: 3}, every=1)[0].tolist() == [0, 1, 2]
