"""`lamp flow build` on recordings of the small scene: whole, resumed, killed."""

from __future__ import annotations

import dataclasses
import fcntl
import json
from pathlib import Path
from typing import Any

import pytest
from flow_scene import KILL, load_scene, write_dataset

from lamp import cli
from lamp.errors import ConfigError, DataError, MismatchError
from lamp.sceneflow.build import FlowBuildConfig, build, reference_frames
from lamp.sceneflow.store import SceneFlowStore
from lamp.sceneflow.stores import build_command, check_current, store_folders

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


@pytest.mark.long
def test_a_killed_build_says_so_goes_on_and_ends_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "one", 2, length=8)
    write_dataset(tmp_path / "other", 2, length=8)
    build(settings(tmp_path / "one"), load_scene=load_scene)
    monkeypatch.setenv(KILL, f"1:{tmp_path / 'other'}")
    with pytest.raises(DataError, match=r"worker process was killed.*run the command again"):
        build(settings(tmp_path / "other", workers=2), load_scene=load_scene)
    assert (tmp_path / "other/killed").read_text(), "the kill came in the middle of a write"
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


def test_stores_of_other_settings_lie_side_by_side(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_dataset(root, 1, length=8)
    build(settings(root), load_scene=load_scene)
    first = {path: path.read_bytes() for path in (root / "sceneflow").rglob("*") if path.is_file()}
    assert build(settings(root, horizon=4), load_scene=load_scene).built == 1
    assert {path: path.read_bytes() for path in (root / "sceneflow").rglob("*") if path.is_file()} == first
    folders = store_folders(root)
    assert [SceneFlowStore(folder).description.sampling.horizon for folder in folders] == [5, 4]
    assert folders[1].name.startswith("sceneflow-")
    for horizon in (5, 4):  # each is found again, and has nothing to build; so it is after the dataset was renamed
        assert build(settings(root, horizon=horizon), load_scene=load_scene).kept == 1
    moved = root.rename(tmp_path / "moved")
    assert build(settings(moved, horizon=4), load_scene=load_scene).kept == 1
    assert build(settings(moved, horizon=4, overwrite=True), load_scene=load_scene).built == 1
    assert [SceneFlowStore(folder).description.sampling.horizon for folder in store_folders(moved)] == [5, 4]


def test_pictures_that_were_replaced_are_noticed_and_built_again(tmp_path: Path) -> None:
    write_dataset(tmp_path, 2, length=8)
    shown = {0: {"agentview": "a"}, 1: {"agentview": "b"}}
    build(settings(tmp_path, workers=2), load_scene=load_scene, pictures=shown.__getitem__)
    store = SceneFlowStore(tmp_path / "sceneflow")
    check_current(store, tmp_path, 2, shown.__getitem__)
    check_current(store, tmp_path, 2, lambda episode: {})  # they cannot be read: which is told elsewhere
    now = {**shown, 1: {"agentview": "c"}}
    with pytest.raises(MismatchError, match=r"pictures of episode 1 .* changed .*episodes 1\).*`lamp flow build "):
        check_current(store, tmp_path, 2, now.__getitem__)
    report = build(settings(tmp_path), load_scene=load_scene, pictures=now.__getitem__)
    assert (report.built, report.kept) == (1, 1)
    check_current(SceneFlowStore(tmp_path / "sceneflow"), tmp_path, 2, now.__getitem__)


def test_a_recording_that_changed_is_noticed_and_built_again(tmp_path: Path) -> None:
    write_dataset(tmp_path, 2, length=8)
    build(settings(tmp_path), load_scene=load_scene)
    store, recording = SceneFlowStore(tmp_path / "sceneflow"), tmp_path / "simulation/episode-000001.safetensors"
    check_current(store, tmp_path, 2)
    recording.touch()  # another time, the same content
    check_current(store, tmp_path, 2)
    content = bytearray(recording.read_bytes())
    content[-1] ^= 1  # the same size
    recording.write_bytes(content)
    with pytest.raises(
        MismatchError, match=r"episode-000001.* has changed .*episodes 1\).*`lamp flow build .*--grid 6 8"
    ):
        check_current(store, tmp_path, 2)
    words = build_command(store, tmp_path)
    assert "--horizon 5 --stride 1 --every 1 --cameras agentview --image-size 64 64" in words
    report = build(settings(tmp_path), load_scene=load_scene)
    assert (report.built, report.kept) == (1, 1)
    check_current(SceneFlowStore(tmp_path / "sceneflow"), tmp_path, 2)


def test_the_only_store_is_overwritten_whatever_its_settings(tmp_path: Path) -> None:
    write_dataset(tmp_path, 1, length=8)
    build(settings(tmp_path), load_scene=load_scene)
    assert build(settings(tmp_path, horizon=4, overwrite=True), load_scene=load_scene).built == 1
    (folder,) = store_folders(tmp_path)
    assert (folder.name, SceneFlowStore(folder).description.sampling.horizon) == ("sceneflow", 4)


def test_stores_are_listed_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path, 1, length=8)
    for horizon in (5, 4):
        build(settings(tmp_path, horizon=horizon), load_scene=load_scene)
    other = store_folders(tmp_path)[1].name
    capsys.readouterr()
    assert cli.main(["cache", "list", str(tmp_path), "--json"]) == 0
    listed = {line["name"]: line for line in json.loads(capsys.readouterr().out)["caches"]}
    assert list(listed) == ["sceneflow", other] and listed[other]["kind"] == "scene flow"
    assert listed[other]["episodes"] == 1 and " over 4 steps of 1 frames" in listed[other]["of"]
    with open(tmp_path / f".{other}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cli.main(["cache", "remove", str(tmp_path), other]) != 0
    assert "is being built by another process" in capsys.readouterr().err
    assert cli.main(["cache", "remove", str(tmp_path), "sceneflow-"]) == 0
    assert [folder.name for folder in store_folders(tmp_path)] == ["sceneflow"]
    assert cli.main(["cache", "remove", str(tmp_path), "sceneflow"]) == 0
    assert not list(tmp_path.glob("sceneflow*")) and not list(tmp_path.glob(".tmp-*"))


def test_what_cannot_be_built_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no recorded simulation at .*lamp collect"):
        build(settings(tmp_path), load_scene=load_scene)
    write_dataset(tmp_path, 1, length=8)
    with pytest.raises(ConfigError, match=r"unknown camera 'wrst'; did you mean 'wrist'"):
        build(settings(tmp_path, cameras=("wrst",)), load_scene=load_scene)
    assert store_folders(tmp_path) == [], "a slip leaves no empty store behind"
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
