"""Scene flow estimated from clips whose true motion is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flow_scene import load_painted_scene, motion, record, write_dataset, write_recording
from made_clips import SIZE, moving_camera, off_square, on_square, sliding_square

from lamp.errors import ConfigError, DataError
from lamp.sceneflow.estimate.cameras import RecordedCameras, averaged_poses
from lamp.sceneflow.estimate.chain import BASELINES, CHAINS, chain_named
from lamp.sceneflow.estimate.interfaces import PointTracks, RecordedDepth, depth_noise
from lamp.sceneflow.estimate.metrics import Errors, TrueFlow, tapvid_3d
from lamp.sceneflow.estimate.rigid import RigidSmoothing, fit, inverse
from lamp.sceneflow.estimate.score import FlowScoreConfig, score
from lamp.sceneflow.estimate.truth import carried
from lamp.sceneflow.exact_flow import Sampling
from lamp.sceneflow.rendering import BodyDepthRenderer
from lamp.sceneflow.sim_states import Playback
from lamp.sceneflow.tracks import flow_from_tracks
from lamp.types import Camera, Tracks

SAMPLING = Sampling(grid=(16, 20), horizon=16)


def tracked(clip: Any, name: str = "rgbd", frame: int = 0, sampling: Sampling = SAMPLING) -> PointTracks:
    return next(iter(chain_named(name).estimate(clip, [frame], sampling)[1]))


def path_error(found: PointTracks, speed: float, points: np.ndarray) -> np.ndarray:
    """px, of points that should move to the right."""
    truth = found.points[:, :1, :2] + np.arange(17)[:, None] * [speed / SIZE[0], 0]
    return np.linalg.norm((found.points[..., :2] - truth) * SIZE, axis=-1)[points]


def test_what_slides_is_followed_and_what_stands_still_does_not_move_at_all() -> None:
    found = tracked(sliding_square(approach=0.004))
    start = found.points[:, 0]
    on, off = on_square(start), off_square(start)
    assert on.sum() > 10 and off.sum() > 200
    assert np.median(path_error(found, 1.5, on)) < 0.7
    np.testing.assert_allclose(np.median(found.points[on, :, 2], axis=0), 0.8 - 0.004 * np.arange(17), atol=0.004)
    assert found.static[off].all() and (found.points[off] == found.points[off][:, :1]).all()
    assert not found.static[on].any() and found.visible[on].mean() > 0.95


def test_what_the_square_passes_over_is_hidden_meanwhile() -> None:
    found = tracked(sliding_square())
    x, y = found.points[:, 0, 0] * SIZE[0] - 0.5, found.points[:, 0, 1] * SIZE[1] - 0.5
    covered = (y > 38) & (y < 58) & (x > 58) & (x < 68)  # the square's right border is at 52, and after 16 frames at 76
    assert covered.sum() >= 3
    assert found.visible[covered, 0].all() and not found.visible[covered, -1].any() and found.valid[covered].all()


def test_what_comes_nearer_is_not_taken_for_hidden_by_itself() -> None:
    """A drawer that opens towards the camera: where it was there is something nearer, itself."""
    found = tracked(sliding_square(approach=0.01, rest=9))
    on, off = on_square(found.points[:, 0]), off_square(found.points[:, 0])
    right = on & (found.points[:, 0, 0] * SIZE[0] > 42)  # what the square still covers at the end
    assert right.sum() >= 4 and not found.static[right].any() and found.static[off].all()
    moved = np.median((found.points[right, -1] - found.points[right, 0]) * [*SIZE, 1], axis=0)
    np.testing.assert_allclose(moved[:2], [10.5, 0], atol=0.7)
    assert moved[2] == pytest.approx(-0.07, abs=0.005)


def test_without_depth_there_are_tracks_in_the_image_alone() -> None:
    found = tracked(replace(sliding_square(), depth=None))
    on, off = on_square(found.points[:, 0]), off_square(found.points[:, 0], 12)
    assert np.isnan(found.points[..., 2]).all() and found.valid[on].mean() > 0.9
    assert (
        np.median(path_error(found, 1.5, on)) < 0.5 and (found.points[off, :, :2] == found.points[off][:, :1, :2]).all()
    )
    tensors = {name: torch.from_numpy(getattr(found, name)) for name in ("points", "visible", "valid")}
    flow = flow_from_tracks(Tracks(**tensors), Camera(intrinsics=torch.eye(3), world_from_cam=torch.eye(4)))
    assert not flow.mask[..., 2].any() and flow.mask[on][..., :2].float().mean() > 0.9


def test_holes_in_the_depth_are_unknown_and_no_motion() -> None:
    clip = sliding_square(noise=0.002, holes=0.2)
    found = tracked(clip)
    on, off = on_square(found.points[:, 0]), off_square(found.points[:, 0])
    assert found.static[off].mean() > 0.99 and np.median(path_error(found, 1.5, on)) < 0.7
    holes = np.isnan(found.points[:, 0, 2])
    assert 0.1 < holes[off].mean() < 0.3


def test_the_clip_ends_before_the_horizon() -> None:
    found = tracked(sliding_square(12), frame=4)
    assert found.valid[:, :8].mean() > 0.95 and not found.valid[:, 8:].any() and not found.visible[:, 8:].any()


def test_strides_skip_frames_of_the_same_tracks() -> None:
    clip = sliding_square()
    one, two = tracked(clip), tracked(clip, sampling=Sampling(grid=(16, 20), horizon=8, stride=2))
    np.testing.assert_array_equal(one.points[:, ::2], two.points)


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_every_chain_keeps_the_contract(name: str) -> None:
    clip = sliding_square(10)
    _, tracks = chain_named(name).estimate(clip, [0, 5], Sampling(grid=(4, 5), horizon=6))
    for frame, found in zip((0, 5), tracks, strict=True):
        assert found.frame == frame and found.points.shape == (20, 7, 3) and found.points.dtype == np.float32
        assert found.visible.shape == found.valid.shape == found.confidence.shape == (20, 7)
        assert np.isfinite(found.points).all() and ((found.confidence >= 0) & (found.confidence <= 1)).all()
        assert not (found.visible & ~found.valid).any() and found.valid[:, 0].all()


def test_an_unknown_chain_is_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown chain 'rgdb'.*rgbd"):
        chain_named("rgdb")


def test_the_noise_of_a_sensor_is_measured() -> None:
    assert depth_noise(np.asarray(sliding_square(8, noise=0.003).depth)) == pytest.approx(0.003, rel=0.15)
    assert depth_noise(np.asarray(sliding_square(8).depth)) == 0


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"depth": np.ones((3, 96, 128), np.float32)}, r"depth of shape \(3, 96, 128\)"),
        ({"depth": np.full((4, 96, 128), -1, np.float32)}, r"100% of the depth is negative"),
        ({"depth": np.full((4, 96, 128), 800, np.float32)}, r"beyond 10 m .median 800.*--depth-unit mm"),
        ({"intrinsics": np.array([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]])}, r"fx 600, fy 600.*another camera"),
        ({"world_from_cam": np.tile(np.eye(4), (3, 1, 1))}, r"3 camera poses for 4 frames"),
    ],
)
def test_what_cannot_be_is_named(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        RecordedDepth().depth(replace(sliding_square(4), **changes))


def test_the_path_of_a_moving_camera_is_found_in_the_depth() -> None:
    clip, truth = moving_camera(20)
    cameras = RecordedCameras().cameras(clip, RecordedDepth().depth(clip))
    miss = inverse(truth) @ cameras.world_from_cam
    assert not cameras.fixed and np.linalg.norm(miss[:, :3, 3], axis=1).max() < 0.003
    assert np.degrees(np.arccos(np.clip((np.trace(miss[:, :3, :3], axis1=1, axis2=2) - 1) / 2, -1, 1))).max() < 0.2


def test_a_wall_before_a_moving_camera_stands_still_in_the_query_frames_camera() -> None:
    clip, truth = moving_camera(20)
    for given in (clip, replace(clip, world_from_cam=truth)):
        found = tracked(given)
        assert found.static.mean() > 0.9
        away = np.linalg.norm((found.points[..., :2] - found.points[:, :1, :2]) * SIZE, axis=-1)
        assert np.percentile(away[found.visible], 99) < 1


def test_a_moving_camera_without_depth_is_refused_and_a_still_one_is_not() -> None:
    clip, _ = moving_camera(20)
    with pytest.raises(DataError, match=r"the camera of clip moves, and neither depth nor its path"):
        tracked(replace(clip, depth=None))
    assert RecordedCameras().cameras(sliding_square(), RecordedDepth().depth(sliding_square())).fixed


def test_poses_that_agree_are_found_exactly() -> None:
    _, truth = moving_camera(40)
    edges = np.array([(f, f + link) for link in (16, 4, 1) for f in range(40 - link)])
    steps = inverse(truth[edges[:, 1]]) @ truth[edges[:, 0]]
    np.testing.assert_allclose(averaged_poses(40, edges, steps, np.ones(len(edges))), truth, atol=1e-9)


def test_a_rigid_motion_is_fitted_and_never_a_mirror_image() -> None:
    random = np.random.default_rng(0)
    points = random.standard_normal((2, 10, 3))
    _, poses = moving_camera(3, turn=0.4)
    moved = points @ poses[2, :3, :3].T + poses[2, :3, 3]
    found = fit(points, moved, np.ones((2, 10)))
    np.testing.assert_allclose(found.rotation, np.tile(poses[2, :3, :3], (2, 1, 1)), atol=1e-9)
    mirrored = fit(points, points * [-1, 1, 1], np.ones((2, 10)))
    np.testing.assert_allclose(np.linalg.det(mirrored.rotation), 1)


def test_a_body_carries_points_that_were_lost() -> None:
    random = np.random.default_rng(1)
    start = random.uniform(-0.05, 0.05, (60, 3)) + np.array([0, 0, 1.0])
    shift = np.arange(17)[:, None, None] * [0.01, 0, 0]
    paths = start + shift + 0.002 * random.standard_normal((17, 60, 3))
    seen = np.ones((17, 60), bool)
    seen[5:, 0], paths[5:, 0] = False, 9.0
    smooth, support = RigidSmoothing()(start, paths, seen, np.arange(3), 0.0)
    assert np.linalg.norm(smooth - (start + shift)[:, :3], axis=-1).max() < 0.003 and (support > 1).all()


def hand_made() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two tracks of two moments at 1 m, focal length 100 px: thresholds are 0.01, 0.02, 0.04, 0.08 and 0.16 m."""
    truth = np.array([[[0, 0, 1.0], [0, 0, 1.0]], [[0.5, 0, 1.0], [0.5, 0, 1.0]]])
    found = truth + np.array([[[0, 0, 0], [0.03, 0, 0]], [[0, 0, 0], [0, 0.1, 0]]])
    return found, np.array([[True, True], [True, True]]), truth, np.array([[True, True], [True, False]])


def test_tapvid_3d_by_hand() -> None:
    found, guess, truth, visible = hand_made()
    jaccard, within, agreement = tapvid_3d(found, guess, truth, visible, 100.0)
    # Three points are visible; two are exact, one misses by 0.03 m, and one is wrongly found visible.
    assert within == pytest.approx(np.mean([2 / 3, 2 / 3, 1, 1, 1]))
    assert jaccard == pytest.approx(np.mean([2 / (3 + 2), 2 / (3 + 2), 3 / (3 + 1), 3 / 4, 3 / 4]))
    assert agreement == 0.75
    perfect = tapvid_3d(truth, visible, truth, visible, 100.0)
    assert perfect == (1.0, 1.0, 1.0)


def test_tapvid_3d_fits_the_scale_that_it_is_asked_to() -> None:
    _, _, truth, visible = hand_made()
    assert tapvid_3d(truth * 2, visible, truth, visible, 100.0)[1] == 0
    assert tapvid_3d(truth * 2, visible, truth, visible, 100.0, scale="median") == (1.0, 1.0, 1.0)
    uneven = truth * np.array([2.0, 3.0])[:, None, None]
    assert tapvid_3d(uneven, visible, truth, visible, 100.0, scale="per_trajectory") == (1.0, 1.0, 1.0)
    assert tapvid_3d(uneven, visible, truth, visible, 100.0, scale="median")[1] < 1


def test_errors_by_hand() -> None:
    """A still point and one that moves by 10 px at 2 m; 100 px wide and high, focal length 100 px."""
    truth = np.array([[[0.5, 0.5, 2.0], [0.5, 0.5, 2.0]], [[0.2, 0.5, 2.0], [0.3, 0.5, 2.0]]])
    found = truth.copy()
    found[0, 1, 0] += 0.01
    found[1, 1, :2] += [0.03, 0.04]
    seen, ones = np.array([[True, True], [True, False]]), np.ones((2, 2), bool)
    errors = Errors()
    tracks = PointTracks(
        frame=0,
        points=found.astype(np.float32),
        visible=seen,
        confidence=ones.astype(np.float32),
        valid=ones,
        static=np.zeros(2, bool),
    )
    intrinsics = np.array([[-1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    errors.add(tracks, TrueFlow(points=truth, visible=ones, valid=ones), intrinsics, (100, 100))
    summary = errors.summary
    assert summary["moving_median_px"] == pytest.approx(5, abs=1e-4) and summary["static_p99_px"] == pytest.approx(
        1, abs=1e-4
    )
    assert summary["moving_median_mm"] == pytest.approx(100, abs=1e-3)
    assert (summary["visibility_precision"], summary["visibility_recall"], summary["oa"]) == (1.0, 0.5, 0.75)


KEYS = {
    "moving_median_px", "moving_p90_px", "moving_median_mm", "static_p99_px", "visibility_precision", "visibility_recall",
    "aj_3d", "apd_3d", "oa", "query_frames_per_second",
}  # fmt: skip


@pytest.mark.sim
def test_a_chain_is_scored_beside_its_baselines(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write_recording(tmp_path, 0, record(motion(20)))
    config = FlowScoreConfig(
        episodes=tmp_path, every=6, horizon=12, image_size=128, out=tmp_path / "score.json", json=True
    )
    found = score(config, load_scene=load_painted_scene)
    assert found.keys() >= KEYS and set(found["baselines"]) == set(BASELINES)
    assert all(one.keys() >= KEYS for one in found["baselines"].values())
    assert found["static_p99_px"] < 0.3 and found["baselines"]["zero_motion"]["static_p99_px"] < 1e-9
    assert found["moving_median_px"] < 0.5 * found["baselines"]["zero_motion"]["moving_median_px"]
    assert found["moving_points"] > 50 and found["oa"] > 0.9
    assert (tmp_path / "score.json").is_file() and '"aj_3d"' in capsys.readouterr().out


@pytest.mark.sim
def test_a_camera_that_orbits_the_scene_is_scored(tmp_path: Any) -> None:
    write_recording(tmp_path, 0, record(motion(20)))
    config = FlowScoreConfig(
        episodes=tmp_path,
        every=6,
        horizon=12,
        image_size=128,
        camera="orbit",
        known_camera=True,
        baselines=("zero_motion",),
    )
    found = score(config, load_scene=load_painted_scene)
    still = found["baselines"]["zero_motion"]
    assert still["moving_points"] > 10 * found["query_frames"] and still["static_points"] > 100 * found["query_frames"]
    assert found["camera_max_mm"] < 1e-6 and found["camera_max_degrees"] < 1e-3
    assert found["moving_median_px"] < 0.6 * still["moving_median_px"] and found["visibility_recall"] > 0.95


def test_an_orbit_turns_about_what_is_seen_and_ends_where_it_began() -> None:
    playback = Playback(load_painted_scene({}).model, record(motion(4)))
    before = playback.model.cam_pos.copy(), playback.model.cam_quat.copy()
    with BodyDepthRenderer(playback.model, width=32, height=32, mirrored=True, geom_groups=(1,)) as renderer:
        with carried(playback, renderer, "front") as orbit:
            distances = []
            for frame in (0, 20, 60):
                orbit.place(frame)
                playback.restore(0)
                away = playback.data.camera("front").xpos - orbit.target
                distances.append(np.hypot(*away[:2]))
            np.testing.assert_allclose(distances, distances[0], rtol=1e-9)
        np.testing.assert_array_equal(playback.model.cam_pos, before[0])
        np.testing.assert_array_equal(playback.model.cam_quat, before[1])
        with (
            pytest.raises(ConfigError, match="the camera 'hand' does not stand still"),
            carried(playback, renderer, "hand"),
        ):
            pass


def test_scoring_names_what_is_wrong(tmp_path: Any) -> None:
    write_dataset(tmp_path, 1)
    with pytest.raises(ConfigError, match=r"unknown scale 'metric'"):
        FlowScoreConfig(episodes=tmp_path, scale="metric")
    with pytest.raises(DataError, match="no recorded simulation of episode 7"):
        score(FlowScoreConfig(episodes=tmp_path, only=(7,)), load_scene=load_painted_scene)
