"""Several scene-flow stores as one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_clips import sliding_square

from lamp import cli
from lamp.data.lerobot import LeRobotDataset
from lamp.data.lerobot.staging import EpisodeData
from lamp.data.lerobot.video import cut_video, read_frames, write_video
from lamp.data.lerobot.writer import LeRobotWriter
from lamp.data.merge_flow import merge
from lamp.errors import ConfigError, DataError, MismatchError
from lamp.json_files import append_line, read_lines_json, to_line
from lamp.sceneflow.exact_flow import Sampling
from lamp.sceneflow.store import CameraFlow, SceneFlowStore, StoreDescription
from lamp.sceneflow.tracks import grid_pixels, pixel_centres
from lamp.sceneflow.validate import manifest_counts, statistics, validate
from lamp.types import Camera, Tracks

FRAMES = 10
GRID = (3, 4)


def write_store(
    root: Path,
    clips: list[str],
    *,
    horizon: int = 4,
    fps: int = 10,
    size: int = 96,
    failed: bool = False,
    seed: int = 0,
) -> SceneFlowStore:
    """A dataset as `lamp flow build --out` makes it, with made-up tracks."""

    random = np.random.default_rng(seed)
    writer = LeRobotWriter(root, fps=fps, robot_type="video")
    for clip in clips:
        images = sliding_square(FRAMES).rgb[:, :size]
        flags = {"observation.fresh": np.ones(FRAMES, bool)}
        writer.add_episode(EpisodeData(frames=flags, images={"front": images}, task=f"do {clip}"), clip)
    writer.finalize({"made_by": "lamp flow build", "source": root.name, "chain": "rgbd"})
    description = StoreDescription(
        sampling=Sampling(grid=GRID, horizon=horizon),
        cameras=("front",),
        image_size=(128, 96),
        mirrored=False,
        every=2,
        estimator="rgbd 1",
        source=root.name,
    )
    store = SceneFlowStore.create(root / "sceneflow", description)

    start = pixel_centres(grid_pixels(*GRID, 128, 96), 128, 96)
    for episode, clip in enumerate(clips):
        frames = np.arange(0, FRAMES - 1, 2, dtype=np.int32)
        points = torch.full((len(frames), 12, horizon + 1, 3), 0.9)
        points[..., :2] = start[:, None].float()
        points[..., 1:, 0] += torch.from_numpy(random.uniform(0.02, 0.1, points[..., 1:, 0].shape)).float()
        flags_of = torch.ones(points.shape[:-1], dtype=torch.bool)
        matrix = torch.tensor([[1.0, 0, 0.5], [0, 4 / 3, 0.5], [0, 0, 1]]).expand(len(frames), 3, 3)
        camera = Camera(intrinsics=matrix, world_from_cam=torch.eye(4).expand(len(frames), 4, 4))
        tracks = Tracks(points=points, visible=flags_of, valid=flags_of.clone())
        report = {"clip": clip, "error": None, "query_frames": len(frames), "left_out": {"static": 1}, "seconds": 2.0}
        origin = {"clip": {"clip": clip}}
        store.write(episode, {"front": CameraFlow(frames=frames, tracks=tracks, camera=camera)}, made_from=origin)
        append_line(store.path / "manifest.jsonl", to_line(report))
    if failed:
        append_line(store.path / "manifest.jsonl", to_line({"clip": "torn", "error": "it is torn", "query_frames": 0}))
    return store


def test_datasets_with_scene_flow_become_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path / "a", ["one", "two"], failed=True)
    write_store(tmp_path / "b", ["two", "zero"], seed=1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    out = tmp_path / "all"
    assert cli.main(["flow", "merge", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)]) == 0
    assert "4 episodes (20 query frames), merged of 2 stores" in capsys.readouterr().out
    assert cli.main(["flow", "validate", str(out)]) == 0 and cli.main(["data", "check", str(out)]) == 0
    dataset = LeRobotDataset(out)
    assert [place.task for place in dataset.episodes] == ["do one", "do two", "do two", "do zero"]
    assert dataset.lamp["made_by"] == "lamp flow build" and dataset.lamp["merged_from"] == ["a", "b"]
    store, theirs = SceneFlowStore(out / "sceneflow"), SceneFlowStore(tmp_path / "b/sceneflow")
    assert store.episodes == (0, 1, 2, 3) and store.description.source == "all"
    assert store.read(3, [4])[0].points.equal(theirs.read(1, [4])[0].points)
    pictures, original = dataset.frames("front", 3, [1, 9]), LeRobotDataset(tmp_path / "b").frames("front", 1, [1, 9])
    assert (pictures == original).all() and len({dataset.extra(at)["name"] for at in range(4)}) == 4
    lines = {row["clip"]: row for row in read_lines_json(out / "sceneflow/manifest.jsonl")}
    assert lines["b/zero"]["merged_from"] == {"store": "b", "clip": "zero", "episodes": [1]}
    assert lines["b/zero"]["episodes"] == [3] and lines["a/torn"]["error"] == "it is torn"
    counts = manifest_counts(out / "sceneflow")
    assert (counts["built"], counts["failed"], counts["query_frames"]) == (4, {"a/torn": "it is torn"}, 20)
    assert counts["left_out"] == {"static": 4}
    (found,) = statistics(out)
    assert (found["episodes"], found["reference_frames"]) == (4, 20)
    assert {path: path.read_bytes() for path in before} == before, "what is merged stays as it is"
    assert not (out / ".cut").exists() and not (out / ".staging").exists()
    # A merged store can be merged again, and still says where its clips came from.
    write_store(tmp_path / "c", ["four"])
    assert merge([out, tmp_path / "c"], tmp_path / "more").episodes == 5 and validate(tmp_path / "more") == []
    lines = {row["clip"]: row for row in read_lines_json(tmp_path / "more/sceneflow/manifest.jsonl")}
    assert lines["all/b/zero"]["merged_from"]["store"] == "b" and lines["all/b/zero"]["episodes"] == [3]
    assert SceneFlowStore(tmp_path / "more/sceneflow").made_from(3)["merged_from"] == {"store": "b", "episode": 1}


def test_stores_by_themselves_keep_their_episodes_numbers(tmp_path: Path) -> None:
    write_store(tmp_path / "data", ["one", "two"])
    for name, gone in (("first", 1), ("second", 0)):
        shutil.copytree(tmp_path / "data/sceneflow", tmp_path / name)
        shutil.rmtree(tmp_path / name / f"episode-{gone:06d}")
    assert merge([tmp_path / "first", tmp_path / "second"], tmp_path / "both").episodes == 2
    assert validate(tmp_path / "both") == [] and SceneFlowStore(tmp_path / "both").episodes == (0, 1)
    with pytest.raises(DataError, match=r"first and both both have scene flow of episode 0"):
        merge([tmp_path / "first", tmp_path / "both"], tmp_path / "never")
    with pytest.raises(MismatchError, match=r"first is a store by itself and data one with a dataset"):
        merge([tmp_path / "first", tmp_path / "data"], tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_stores_of_other_settings_are_refused_and_all_that_differs_is_named(tmp_path: Path) -> None:
    write_store(tmp_path / "a", ["one"])
    write_store(tmp_path / "b", ["two"], horizon=3, fps=5, size=80)
    with pytest.raises(
        MismatchError, match=r"a and b cannot be one store, they differ in sampling .*'horizon': 4.*'horizon': 3"
    ):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    with pytest.raises(MismatchError, match=r"frames a second 10.* and 5.*; cameras and image sizes .*96.*80"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_merged_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path / "a", ["one"])
    write_store(tmp_path / "b", ["two"])
    out = tmp_path / "out"
    for paths, error, text in (
        ([tmp_path / "a"], ConfigError, "at least two"),
        ([tmp_path / "a", tmp_path / "a"], ConfigError, "named twice"),
        ([tmp_path / "a", tmp_path / "nowhere"], DataError, "nowhere"),
    ):
        with pytest.raises(error, match=text):
            merge(paths, out)
    with pytest.raises(ConfigError, match="is there already"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "b")
    with pytest.raises(ConfigError, match="lies in"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "b/more")
    (tmp_path / "b/.estimated/three").mkdir(parents=True)
    with pytest.raises(DataError, match=r"not finished \(1 episodes wait, such as three\)"):
        merge([tmp_path / "a", tmp_path / "b"], out)
    shutil.rmtree(tmp_path / "b/.estimated")

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SceneFlowStore, "adopt", stopped)
        with pytest.raises(KeyboardInterrupt):
            merge([tmp_path / "a", tmp_path / "b"], out)
    assert not out.exists() and not list(tmp_path.glob(".tmp-*")), "it appears whole or not at all"
    shutil.rmtree(tmp_path / "b/sceneflow/episode-000000/front/points/c")
    with pytest.raises(DataError, match=r"b/sceneflow/episode-000000 .*has no bytes"):
        merge([tmp_path / "a", tmp_path / "b"], out)
    assert not out.exists()


def test_a_video_is_cut_without_encoding_it_anew(tmp_path: Path) -> None:
    images = sliding_square(24).rgb
    write_video(tmp_path / "whole.mp4", images, 10)
    cut_video(tmp_path / "whole.mp4", tmp_path / "part.mp4", 10, first=8, count=5)
    expected, found = (
        read_frames(tmp_path / "whole.mp4", range(8, 13), 10),
        read_frames(tmp_path / "part.mp4", range(5), 10),
    )
    assert (found == expected).all()
    with pytest.raises(DataError, match=r"cannot be cut at frame 9"):
        cut_video(tmp_path / "whole.mp4", tmp_path / "part.mp4", 10, first=9, count=5)
    with pytest.raises(DataError, match=r"ends at frame 24; expected 26"):
        cut_video(tmp_path / "whole.mp4", tmp_path / "part.mp4", 10, first=16, count=10)
