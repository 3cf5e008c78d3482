"""Datasets with scene flow from recordings of several kinds, good and bad ones."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from backbones import Compact
from made_clips import INTRINSICS, SIZE, off_square, on_square, sliding_square
from PIL import Image

from lamp.cli import main
from lamp.data import clip_flow, flow_from_video
from lamp.data.clip_flow import Filters, apply_filters
from lamp.data.clip_sources import FolderSource, SourceSettings, find_source
from lamp.data.feature_cache.cache import FeatureCache
from lamp.data.flow_from_video import VideoFlowConfig, build_from_video
from lamp.data.lerobot import LeRobotDataset
from lamp.data.lerobot.staging import EpisodeData
from lamp.data.lerobot.writer import LeRobotWriter
from lamp.data.motion_dataset import MotionSamples
from lamp.errors import ConfigError, DataError
from lamp.sceneflow.estimate.interfaces import Clip, PointTracks
from lamp.sceneflow.estimate.registration import DepthCamera, misalignment, registered
from lamp.sceneflow.normalization import BoundsRule
from lamp.sceneflow.store import SceneFlowStore
from lamp.sceneflow.validate import manifest_counts, validate

FRAMES = 14
CALIBRATION = {
    "intrinsics": {"fx": 128, "fy": 128, "cx": 63.5, "cy": 47.5, "width": 128, "height": 96},
    "depth_unit": "mm",
    "fixed_camera": True,
}


@pytest.fixture(scope="module")
def clip() -> Clip:
    return sliding_square(FRAMES)


def write_images(folder: Path, images: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"im_{number}.png")


def millimetres(clip: Clip) -> np.ndarray:
    return np.rint(np.asarray(clip.depth) * 1000).astype(np.uint16)


def write_recording(folder: Path, clip: Clip, **calibration: Any) -> None:
    """Images, depth, calibration and instruction in a folder."""
    write_images(folder / "rgb", clip.rgb)
    write_images(folder / "depth", millimetres(clip))
    (folder / "lang.txt").write_text("slide the square\n")
    (folder / "calibration.json").write_text(json.dumps({**CALIBRATION, "fps": 10, **calibration}))


def write_mp4(path: Path, images: np.ndarray, *, times: list[int] | None = None, size_changes: bool = False) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10, options={"crf": "12", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = images.shape[2], images.shape[1], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = (100 * number if times is None else times[number]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def settings(source: Path, out: Path | None = None, **changes: Any) -> VideoFlowConfig:
    default: dict[str, Any] = {"grid": (8, 10), "horizon": 8, "every": 3, "workers": 1}
    return VideoFlowConfig(source=source, out=out, **{**default, **changes})


def test_a_folder_of_recordings_becomes_a_dataset_that_stage_1_learns_from(tmp_path: Path, clip: Clip) -> None:
    for name in ("one", "two"):
        write_recording(tmp_path / "source" / name, clip)
    out = tmp_path / "out"
    report = build_from_video(settings(tmp_path / "source", out))
    assert (report.built, report.failed) == (2, {}) and validate(out) == []
    dataset = LeRobotDataset(out)
    assert [place.task for place in dataset.episodes] == ["slide the square"] * 2 and dataset.fps == 10
    assert "action" not in dataset.meta.features and dataset.frames("front", 0).shape == (FRAMES, 96, 128, 3)
    store = SceneFlowStore(out / "sceneflow")
    assert store.frames(0).tolist() == [0, 3, 6, 9, 12]
    tracks, camera = store.read(0, [0])
    np.testing.assert_allclose(camera.intrinsics[0].numpy(), INTRINSICS, atol=1e-6)
    start = tracks.points[0, :, 0].numpy()
    on, off = on_square(start), off_square(start)
    moved = (tracks.points[0, :, 8, :2] - tracks.points[0, :, 0, :2]).numpy() * SIZE
    np.testing.assert_allclose(np.median(moved[on], axis=0), [12, 0], atol=0.7)
    assert (moved[off] == 0).all() and np.median(start[on, 2]) == pytest.approx(0.8, abs=2e-3)
    again = build_from_video(settings(tmp_path / "source", out))
    assert (again.built, again.kept) == (0, 2)
    with pytest.raises(ConfigError, match=r"made of recordings .* without their depth"):
        build_from_video(settings(out, horizon=4))
    write_recording(tmp_path / "source" / "three", clip)
    assert build_from_video(settings(tmp_path / "source", out)).built == 1 and validate(out) == []
    assert SceneFlowStore(out / "sceneflow").episodes == (0, 1, 2) and not (out / ".estimated").exists()


def test_tracks_without_depth_are_legal_all_the_way_into_training(tmp_path: Path, clip: Clip) -> None:
    write_mp4(tmp_path / "slide.mp4", clip.rgb)
    (tmp_path / "slide.txt").write_text("slide the square")
    out = tmp_path / "out"
    build_from_video(settings(tmp_path / "slide.mp4", out, name="agentview"))
    assert validate(out) == []
    dataset = LeRobotDataset(out)
    samples = MotionSamples(
        FeatureCache.build(dataset, Compact(cameras=("agentview",))),
        SceneFlowStore(out / "sceneflow"),
        episodes=(0,),
        horizon=4,
        stride=2,
        bounds=BoundsRule(),
    )
    motion = samples.batch(np.arange(len(samples))).motion
    assert motion.values.isfinite().all() and not motion.mask[..., 2].any() and motion.mask[..., :2].any()
    moves = motion.values[0][..., 0][motion.mask[0][..., 0]]
    assert (moves > 0.3).any() and torch.isfinite(moves).all()


def bad_recordings(root: Path, clip: Clip) -> dict[str, str]:
    """A good recording and one of each kind of bad ones, with what is to be said of them."""
    write_recording(root / "good", clip)
    write_recording(root / "fewer_depths", clip)
    (root / "fewer_depths/depth/im_3.png").unlink()
    write_recording(root / "no_unit", clip)
    (root / "no_unit/calibration.json").write_text(json.dumps({"fps": 10}))
    write_recording(root / "other_camera", clip, intrinsics={**CALIBRATION["intrinsics"], "height": 128})
    write_recording(root / "no_language", clip)
    (root / "no_language/lang.txt").unlink()
    write_recording(root / "another_size", clip)
    Image.fromarray(clip.rgb[5][:90]).save(root / "another_size/rgb/im_5.png")
    write_recording(root / "torn", clip)
    image = root / "torn/rgb/im_7.png"
    image.write_bytes(image.read_bytes()[:500])
    write_recording(root / "metres_as_mm", clip, depth_unit="m")
    write_recording(root / "no_calibration", clip, intrinsics={"fx": 1})
    write_recording(root / "no_depth_at_all", replace(clip, depth=np.zeros_like(clip.depth)))
    write_recording(
        root / "static",
        replace(clip, rgb=clip.rgb[:1].repeat(FRAMES, 0), depth=np.asarray(clip.depth)[:1].repeat(FRAMES, 0)),
    )
    write_mp4(root / "uneven.mp4", clip.rgb, times=[100 * n + 40 * (n % 2) for n in range(FRAMES)])
    write_mp4(root / "cut.mp4", clip.rgb)
    (root / "cut.mp4").write_bytes((root / "cut.mp4").read_bytes()[:2000])
    return {
        "fewer_depths": "14 images and 13 depth maps",
        "no_unit": "nothing says what the uint16 values of the depth stand for",
        "other_camera": "128x128 px, and these are 128x96",
        "no_language": "no instruction",
        "another_size": "im_5.png is 128x90 px and those before are 128x96",
        "torn": "cannot read the image",
        "metres_as_mm": "beyond 10 m",
        "no_calibration": "no calibration (KeyError",
        "static": "nothing of static is left by the filters (",
        "uneven": "variable frame rate, 60.0 to 140.0 ms",
        "cut": "cut.mp4",
    }


def test_bad_recordings_are_named_and_counted_and_the_others_go_on(tmp_path: Path, clip: Clip) -> None:
    expected = bad_recordings(tmp_path / "source", clip)
    out = tmp_path / "out"
    report = build_from_video(settings(tmp_path / "source", out, every=6))
    assert report.failed.keys() == expected.keys()
    assert {name: text for name, text in expected.items() if text not in report.failed[name]} == {}
    assert report.built == 2 and validate(out) == [] and len(LeRobotDataset(out)) == 2
    counts = manifest_counts(out / "sceneflow")
    assert counts["built"] == 2 and counts["failed"].keys() == expected.keys() and counts["left_out"]["static"] > 0


def test_nothing_is_made_of_a_source_that_cannot_be_read(tmp_path: Path, clip: Clip) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no recordings; expected LeRobot datasets"):
        build_from_video(settings(tmp_path / "empty", tmp_path / "out"))
    with pytest.raises(DataError, match=r"no source at .*nowhere"):
        build_from_video(settings(tmp_path / "nowhere", tmp_path / "out"))
    write_recording(tmp_path / "one", clip)
    with pytest.raises(ConfigError, match=r"--out STORE"):
        build_from_video(settings(tmp_path / "one"))
    (tmp_path / "one/rgb/im_0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot read the image .*im_0.png"):
        build_from_video(settings(tmp_path / "one", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_recordings_whose_names_are_alike_are_all_found(tmp_path: Path, clip: Clip) -> None:
    for name in ("a b", "a_b"):
        write_recording(tmp_path / name, clip)
    source = find_source(tmp_path, SourceSettings())
    assert source.names == ["a_b", "a_b-2"]
    with pytest.raises(ConfigError, match=r"lies in the source"):
        build_from_video(settings(tmp_path, tmp_path / "out"))


def test_a_build_that_was_stopped_goes_on(tmp_path: Path, clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        write_recording(tmp_path / "source" / name, clip)
    out = tmp_path / "out"

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for place, name in ((LeRobotWriter, "add_episode"), (LeRobotWriter, "finalize"), (SceneFlowStore, "adopt")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, stopped)
            with pytest.raises(KeyboardInterrupt):
                build_from_video(settings(tmp_path / "source", out))
    report = build_from_video(settings(tmp_path / "source", out))
    assert report.kept == 2 and validate(out) == [] and len(LeRobotDataset(out)) == 2


def test_long_clips_are_read_in_windows_and_become_several_episodes(
    tmp_path: Path, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recording(tmp_path / "source", clip)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    build_from_video(settings(tmp_path / "source", whole, horizon=4, every=1))
    monkeypatch.setattr(clip_flow, "WINDOW", 3)
    monkeypatch.setattr(flow_from_video, "WINDOW", 3)
    monkeypatch.setattr(flow_from_video, "SEGMENT", 6)
    build_from_video(settings(tmp_path / "source", parts, horizon=4, every=1))
    assert validate(parts) == [] and len(LeRobotDataset(parts)) == 2
    one, two = SceneFlowStore(whole / "sceneflow"), SceneFlowStore(parts / "sceneflow")
    assert two.frames(0).tolist() == [0, 1, 2, 3, 4, 5] and two.frames(1).tolist() == list(range(7))
    for first, second in ((0, (0, 0)), (4, (0, 4)), (8, (1, 2))):
        expected, found = one.read(0, [first])[0], two.read(second[0], [second[1]])[0]
        torch.testing.assert_close(found.points, expected.points, rtol=0, atol=2e-3)
    assert build_from_video(settings(tmp_path / "source", parts, horizon=4, every=1)).kept == 1


def test_a_raw_bridge_trajectory_is_registered(tmp_path: Path) -> None:
    clip = sliding_square(FRAMES, holes=0.1)
    folder = tmp_path / "raw/2023-01-01/traj0"
    write_images(folder / "images0", clip.rgb)
    # The depth camera sees more: its focal length is 380/615 of the colour camera's.
    small = np.stack([_zoomed_out(one, 380 / 615) for one in millimetres(clip)])
    write_images(folder / "depth_images0", small)
    (folder / "lang.txt").write_text("open the drawer\nconfidence: 0.9\n")
    (folder / "policy_out.pkl").write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    source = find_source(tmp_path / "raw", SourceSettings())
    assert isinstance(source, FolderSource) and source.names == ["2023-01-01_traj0"]
    reader = source.open(source.names[0])
    assert (reader.instruction, reader.fps, reader.length) == ("open the drawer", 5.0, FRAMES)
    window = reader.window(0, 2)
    depth = np.asarray(window.depth)
    known = np.isfinite(depth) & (np.asarray(clip.depth)[:2] > 0)
    assert known.mean() > 0.8 and np.median(np.abs(depth - np.asarray(clip.depth)[:2])[known]) < 0.002
    wrong = np.abs(depth - np.asarray(clip.depth)[:2])[known] > 0.1
    assert wrong.mean() < 0.03


def _zoomed_out(image: np.ndarray, factor: float) -> np.ndarray:
    height, width = image.shape
    y, x = np.mgrid[:height, :width]
    row = np.rint((y - (height - 1) / 2) / factor + (height - 1) / 2).astype(int)
    column = np.rint((x - (width - 1) / 2) / factor + (width - 1) / 2).astype(int)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return np.where(inside, image[row.clip(0, height - 1), column.clip(0, width - 1)], 0).astype(image.dtype)


def test_registration_by_hand() -> None:
    depth = np.zeros((5, 5), np.float32)
    depth[2, 2], depth[2, 3] = 2.0, 1.0
    pose = np.eye(4)
    pose[0, 3] = 0.4  # a point of 2 m moves by one pixel of 5, one of 1 m by two
    matrix = np.array([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    found = registered(depth, DepthCamera(intrinsics=matrix, colour_from_depth=pose), matrix, (5, 5))
    expected = np.full((5, 5), np.nan)
    expected[2, 3] = 2.0
    np.testing.assert_array_equal(found, expected)  # the other one leaves the image
    assert np.isnan(misalignment(np.zeros((5, 5, 3), np.uint8), found))


@pytest.mark.long
def test_scene_flow_is_put_beside_the_demonstrations_of_a_dataset(tmp_path: Path, clip: Clip, capsys: Any) -> None:
    writer = LeRobotWriter(tmp_path / "data", fps=10)
    for task in ("slide it", "slide it again"):
        frames = {"action": np.zeros((FRAMES, 2), np.float32)}
        writer.add_episode(EpisodeData(frames=frames, images={"agentview": clip.rgb}, task=task))
    writer.finalize()
    words = [
        "flow",
        "build",
        str(tmp_path / "data"),
        "--grid",
        "8",
        "10",
        "--horizon",
        "8",
        "--every",
        "6",
        "--workers",
        "2",
    ]
    main(words)
    assert "scene flow of 2 clips (6 query frames)" in capsys.readouterr().out
    assert main(["flow", "validate", str(tmp_path / "data")]) == 0
    main(["flow", "stats", str(tmp_path / "data"), "--json"])
    (found,) = json.loads(capsys.readouterr().out.partition("no fault\n")[2])
    assert found["episodes"] == 2 and found["depth_share"] == 0 and 0 < found["moving_share"] < 0.3
    assert found["clips"]["built"] == 2 and found["estimator"] == "rgbd 1"


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_its_own_clip_alone(
    tmp_path: Path, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("deadly", "one"):
        write_recording(tmp_path / "source" / name, clip)
    monkeypatch.setattr(flow_from_video, "_work", _deadly)
    report = build_from_video(settings(tmp_path / "source", tmp_path / "out", workers=2))
    assert report.built == 1 and report.failed == {
        "deadly": "its worker process was killed, perhaps for want of memory"
    }
    assert validate(tmp_path / "out") == []


WORK = flow_from_video._work


def _deadly(*job: Any) -> Any:
    if job[3] == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    return WORK(*job)


def test_faults_of_a_store_are_found(tmp_path: Path, clip: Clip, capsys: pytest.CaptureFixture[str]) -> None:
    write_recording(tmp_path / "source", clip)
    build_from_video(settings(tmp_path / "source", tmp_path / "out"))
    chunks = tmp_path / "out/sceneflow/episode-000000/front/points/c"
    (shard,) = [file for file in chunks.rglob("*") if file.is_file()]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert main(["flow", "validate", str(tmp_path / "out")]) == 1
    assert "is not as it was written" in capsys.readouterr().out


def test_what_is_not_believed_is_left_out() -> None:
    points = np.full((10, 9, 3), 0.5, np.float32)
    points[0, 4:, 0] = 0.9
    confidence = np.ones((10, 9), np.float32)
    confidence[1, 2:5] = 0.1
    valid = np.ones((10, 9), bool)
    tracks = PointTracks(
        frame=0, points=points, visible=valid.copy(), confidence=confidence, valid=valid, static=np.zeros(10, bool)
    )
    counts: Any = flow_from_video.Counter()
    found = apply_filters(tracks, Filters(), 20, counts)
    assert found is not None and counts == {"points_low_confidence": 1, "points_jumping": 1}
    assert found.valid[0].tolist() == [True] * 4 + [False] * 5
    assert found.valid[1].tolist() == [True, True, False, False, False, True, True, True, True]
    assert (found.valid[2:]).all() and not (found.visible & ~found.valid).any()
    lost = replace(tracks, valid=valid & (np.arange(10) < 3)[:, None])
    assert apply_filters(lost, Filters(), 20, counts) is None and counts["lost"] == 1
