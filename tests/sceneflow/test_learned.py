"""Learned estimators: one contract for all of them and for those without weights, and what is said where something is missing."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learned_fakes import MOVE, SEEN, SURE, install, write_weights
from made_clips import INTRINSICS, SIZE, moving_camera, sliding_square

from lamp.errors import ConfigError, DataError, LampError, MismatchError, MissingDependencyError
from lamp.sceneflow.estimate.chain import CHAINS, Chain
from lamp.sceneflow.estimate.interfaces import Clip, RecordedDepth
from lamp.sceneflow.estimate.learned.cameras import CAMERAS, LearnedCameras
from lamp.sceneflow.estimate.learned.depth import DEPTHS, LearnedDepth, flicker
from lamp.sceneflow.estimate.learned.model import loaded
from lamp.sceneflow.estimate.learned.trackers import ALLTRACKER, TRACKERS, LearnedTracker
from lamp.sceneflow.estimate.settings import ChainSettings
from lamp.sceneflow.exact_flow import Sampling

SAMPLING = Sampling(grid=(5, 6), horizon=8)
WEIGHT_FREE = ("rgbd", "lucas_kanade", "chained_dis", "zero_motion")


def wall(frames: int = 12, **changes: object) -> Clip:
    """A wall at 1 m that all stand-ins follow as one."""
    clip = sliding_square(frames)
    assert clip.depth is not None
    return replace(clip, depth=np.ones_like(clip.depth), fixed_camera=True, **changes)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The authors' packages as stand-ins, with their weights in folders of this folder, by name."""
    install(monkeypatch, SIZE)
    for name in ("cotracker3", "bootstapir", "tapnextpp", "alltracker", "moge2", "da3", "da3_metric"):
        write_weights(tmp_path / name, name)
    monkeypatch.setitem(TRACKERS, "alltracker", replace(TRACKERS["alltracker"], instead_of_gpu=()))
    loaded.cache_clear()
    yield tmp_path
    loaded.cache_clear()


def chain_of(name: str, folder: Path) -> Chain:
    if name in WEIGHT_FREE:
        return CHAINS[name]
    return ChainSettings(tracker=name, tracker_weights=str(folder / name), device="cpu").make_chain()


@pytest.mark.parametrize("name", [*WEIGHT_FREE, *TRACKERS])
@pytest.mark.parametrize("kind", ["depth", "no depth", "holes", "two frames"])
def test_the_contract_of_every_chain(name: str, kind: str, stand_ins: Path) -> None:
    clip = wall(2 if kind == "two frames" else 12)
    assert clip.depth is not None
    if kind == "no depth":
        clip = replace(clip, depth=None)
    elif kind == "holes":
        clip = replace(clip, depth=np.where(np.arange(SIZE[0]) < 64, 0, clip.depth).astype(np.float32))
    last = len(clip) - 1
    cameras, tracks = chain_of(name, stand_ins).estimate(clip, [0, last], SAMPLING)
    found = list(tracks)
    assert [one.frame for one in found] == [0, last] and cameras.fixed
    for one in found:
        here = min(len(clip) - one.frame, SAMPLING.horizon + 1)  # moments that there are
        assert one.points.shape == (30, 9, 3) and one.points.dtype == np.float32
        assert one.visible.shape == one.valid.shape == one.confidence.shape == (30, 9) and one.static.shape == (30,)
        v, u = np.mgrid[:5, :6]
        start = np.stack([np.floor((u + 0.5) / 6 * 128) + 0.5, np.floor((v + 0.5) / 5 * 96) + 0.5], -1) / SIZE
        np.testing.assert_allclose(one.points[:, 0, :2], start.reshape(-1, 2), atol=1e-6)
        assert one.valid[:, 0].all() and not one.valid[:, here:].any() and not (one.visible & ~one.valid).any()
        assert np.isfinite(one.points[..., :2][one.valid]).all()
        assert one.confidence.min() >= 0 and one.confidence.max() <= 1
        depth = one.points[..., 2]
        assert np.isnan(depth[:, 0]).mean() == {"no depth": 1.0, "holes": 0.5}.get(kind, 0.0)
        if kind == "depth":
            np.testing.assert_allclose(depth[one.visible], 1.0, atol=0.02)


@pytest.mark.parametrize("name", TRACKERS)
def test_positions_are_those_that_the_tracker_means(name: str, stand_ins: Path) -> None:
    """Pixel indices, raster coordinates, (y, x) or (x, y), images of another size: all become fractions of the image."""
    found = next(iter(chain_of(name, stand_ins).estimate(wall(), [2], SAMPLING)[1]))
    truth = found.points[:, :1, :2] + np.arange(9)[:, None] * np.array(MOVE)
    np.testing.assert_allclose(found.points[..., :2] * SIZE, truth * SIZE, atol=0.02)
    inside = np.all((truth > 0) & (truth < 1), axis=-1)
    assert (found.visible == inside).mean() > 0.99 and not found.static.any()
    sure = 1 if name == "tapnextpp" else SURE  # its confidence is how narrow its softmax is
    np.testing.assert_allclose(found.confidence[:, 1:][inside[:, 1:]], SEEN * sure, atol=0.01)


def test_a_point_that_is_hidden_has_a_place_and_no_depth(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = chain_of("cotracker3", stand_ins)
    model = TRACKERS["cotracker3"]

    def doubts(*given: object) -> tuple[np.ndarray, ...]:
        xy, seen, sure = model.run(*given)
        return xy, np.where(np.arange(len(xy))[:, None] >= 4, 0.3, seen), sure

    assert isinstance(chain.tracker, LearnedTracker)
    chain = replace(chain, tracker=replace(chain.tracker, model=replace(model, run=doubts)))
    found = next(iter(chain.estimate(wall(), [0], SAMPLING)[1]))
    assert not found.visible[:, 4:].any() and found.valid.all()
    assert np.isnan(found.points[:, 4:, 2]).all() and np.isfinite(found.points[..., :2]).all()


def test_a_track_that_slips_onto_another_surface_is_not_seen_there(stand_ins: Path) -> None:
    clip = wall()
    depth = np.ones((12, SIZE[1], SIZE[0]), np.float32)
    depth[:, :, 70:] = 0.6  # what the stand-in's tracks run onto
    found = next(iter(chain_of("bootstapir", stand_ins).estimate(replace(clip, depth=depth), [0], SAMPLING)[1]))
    place = found.points[..., 0] * SIZE[0]
    ran = (place[:, 0] < 69) & (place[:, -1] > 72)
    assert ran.sum() >= 4 and found.visible[ran, 0].all() and not found.visible[ran, -1].any()


def test_tracks_of_a_camera_that_moves_are_in_the_query_frames_camera(stand_ins: Path) -> None:
    clip, poses = moving_camera(12)
    clip = replace(clip, world_from_cam=poses)
    chain = chain_of("tapnextpp", stand_ins)
    found = next(iter(chain.estimate(clip, [0], SAMPLING)[1]))
    still = next(iter(chain.estimate(replace(clip, world_from_cam=None, fixed_camera=True), [0], SAMPLING)[1]))
    known = found.visible[:, 8] & still.visible[:, 8]
    moved = (found.points[:, 8, :2] - still.points[:, 8, :2]) * SIZE
    assert known.sum() > 10 and np.abs(moved[known]).max() > 2
    unseen = found.valid & np.isnan(found.points[..., 2])
    assert not unseen[:, 1:].any()  # without depth nothing can be brought back into the query frame's camera


@pytest.mark.parametrize("name", ["moge2", "da3_metric"])
def test_depth_models_give_metres_where_there_is_none_and_leave_recorded_depth_alone(
    name: str, stand_ins: Path
) -> None:
    model, clip = DEPTHS[name], wall(10)
    estimator = LearnedDepth(model=model, weights=str(stand_ins / name), device="cpu")
    recorded = estimator.depth(clip)
    np.testing.assert_array_equal(recorded.metres, clip.depth)
    found = estimator.depth(replace(clip, depth=None))
    assert found.metres.shape == (10, SIZE[1], SIZE[0]) and found.metric and found.noise == pytest.approx(0, abs=1e-6)
    # MoGe's own metres; Depth Anything 3's times the focal length over 300, in images of 504 x 378 px (fx 1, fy 4/3).
    expected = {"moge2": 1.5, "da3_metric": 0.5 * (504 + 4 / 3 * 378) / 2 / 300}[name]
    assert np.nanmedian(found.metres) == pytest.approx(expected, rel=1e-4)
    assert np.isnan(found.metres[:, : SIZE[1] // 4]).all() == (name == "moge2")


def test_noise_of_learned_depth_is_what_flickers() -> None:
    metres = 1.2 + 0.01 * np.random.default_rng(0).standard_normal((9, 1, 1)) + np.zeros((9, 20, 20))
    assert 0.003 < flicker(metres.astype(np.float32)) < 0.02
    assert flicker(np.ones((3, 4, 4), np.float32)) == 0


def test_calibration_and_poses_are_found_where_unknown_and_kept_where_known(stand_ins: Path) -> None:
    clip = replace(wall(10), intrinsics=None, fixed_camera=None)
    depth = RecordedDepth().depth(clip)
    moge = LearnedCameras(model=CAMERAS["moge2"], weights=str(stand_ins / "moge2"), device="cpu").cameras(clip, depth)
    np.testing.assert_allclose(moge.intrinsics, [[0.9, 0, 0.5], [0, 0.9 * 4 / 3, 0.5], [0, 0, 1]], rtol=1e-5)
    estimator = LearnedCameras(model=CAMERAS["da3"], weights=str(stand_ins / "da3"), device="cpu")
    found = estimator.cameras(clip, depth)
    np.testing.assert_allclose(found.intrinsics[[0, 1], [0, 1]], [1.1, 1.2], rtol=1e-5)
    # Its depth is 0.5 where the recorded one is 1: the path is twice as long.
    np.testing.assert_allclose(found.world_from_cam[:, 0, 3], 0.02 * np.arange(10), atol=1e-6)
    assert not found.fixed
    poses = np.broadcast_to(np.eye(4), (10, 4, 4)).copy()
    known = estimator.cameras(replace(clip, world_from_cam=poses), depth)
    np.testing.assert_array_equal(known.world_from_cam, poses)
    assert known.fixed and known.intrinsics[0, 0] == pytest.approx(1.1, rel=1e-5)
    same = estimator.cameras(replace(clip, world_from_cam=poses, intrinsics=INTRINSICS), depth)
    np.testing.assert_array_equal(same.intrinsics, INTRINSICS)
    with pytest.raises(DataError, match=r"no depth to scale it by.*--depth-model"):
        estimator.cameras(clip, RecordedDepth().depth(replace(clip, depth=None)))


def test_depth_anything_v2_is_read_from_the_real_class(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    backbone = transformers.Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=56,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    sizes = {
        "reassemble_hidden_size": 16,
        "neck_hidden_sizes": [8, 8, 8, 8],
        "fusion_hidden_size": 8,
        "head_hidden_size": 8,
    }
    for kind in ("metric", "relative"):
        config = transformers.DepthAnythingConfig(
            backbone_config=backbone, depth_estimation_type=kind, max_depth=4, **sizes
        )
        torch.manual_seed(0)
        transformers.DepthAnythingForDepthEstimation(config).save_pretrained(tmp_path / kind)
    clip = replace(wall(2), depth=None)
    model = DEPTHS["depth_anything_v2"]
    found = LearnedDepth(model=model, weights=str(tmp_path / "metric"), device="cpu").depth(clip)
    assert found.metres.shape == (2, SIZE[1], SIZE[0]) and found.known_share == 1 and 0 < found.metres.max() <= 4
    tracks = next(
        iter(
            replace(
                CHAINS["rgbd"], depth=LearnedDepth(model=model, weights=str(tmp_path / "metric"), device="cpu")
            ).estimate(clip, [0], SAMPLING)[1]
        )
    )
    assert np.isfinite(tracks.points[:, 0, 2]).all()
    with pytest.raises(MismatchError, match=r"depth_estimation_type 'relative'; expected a metric Depth Anything V2"):
        LearnedDepth(model=model, weights=str(tmp_path / "relative"), device="cpu").depth(clip)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("__import__('pathlib').Path('was_here').touch()",)


def test_what_is_missing_or_wrong_is_said_in_one_line_with_the_command(
    stand_ins: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    def said(kind: type[LampError], **settings: Any) -> str:
        with pytest.raises(kind) as caught:
            ChainSettings(**{"device": "cpu", **settings}).prepare()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "wget https://storage.googleapis.com/dm-tapnet" in said(DataError, tracker="bootstapir")
    text = said(DataError, tracker="cotracker3", tracker_weights=str(tmp_path / "nowhere.pth"))
    assert "no weights of CoTracker3 at" in text and "hf download facebook/cotracker3 scaled_offline.pth" in text
    (tmp_path / "empty").mkdir()
    assert "holds no weights of TAPNext++" in said(DataError, tracker="tapnextpp", tracker_weights="empty")
    (stand_ins / "tapnextpp" / "tapnextpp_512.pt").write_bytes(b"")
    assert "holds several weights" in said(DataError, tracker="tapnextpp", tracker_weights=str(stand_ins / "tapnextpp"))
    torch.save({"weight": torch.ones(4), "more": torch.ones(1)}, tmp_path / "other.pth")
    text = said(MismatchError, tracker="cotracker3", tracker_weights="other.pth")
    assert "more is unknown" in text and "weight has another shape" in text
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    torch.save({"weight": Evil()}, tmp_path / "evil.pt")
    for file in ("evil.pth", "evil.pt"):
        assert "which nothing is executed of" in said(DataError, tracker="cotracker3", tracker_weights=file)
    assert not (tmp_path / "was_here").exists()
    (tmp_path / "notes.txt").touch()
    assert "expected a file .safetensors" in said(DataError, tracker="cotracker3", tracker_weights="notes.txt")
    weights = str(stand_ins / "cotracker3")
    assert "cannot be put on device" in said(
        ConfigError, tracker="cotracker3", tracker_weights=weights, device="cuda:77"
    )
    assert "cotracker3" in said(ConfigError, tracker="cotraker3")
    assert "no depth model" in said(ConfigError, depth_weights="x.pt")
    config = {"model_name": "da3nested-giant-large"}
    (stand_ins / "da3_metric/config.json").write_text(json.dumps(config))
    text = said(MismatchError, depth_model="da3_metric", depth_weights=str(stand_ins / "da3_metric"))
    assert "needs one of da3metric-large" in text
    monkeypatch.setitem(sys.modules, "cotracker.models.build_cotracker", None)
    text = said(MissingDependencyError, tracker="cotracker3", tracker_weights=weights)
    assert "pip install 'cotracker @ git+https://github.com/facebookresearch/co-tracker'" in text
    monkeypatch.setitem(TRACKERS, "alltracker", ALLTRACKER)
    assert "computes on a GPU alone" in said(ConfigError, tracker="alltracker", tracker_weights="other.pth")


def test_licences_are_said_before_first_use(stand_ins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ChainSettings().prepare()
    assert capsys.readouterr().err == ""
    settings = ChainSettings(tracker="cotracker3", tracker_weights=str(stand_ins / "cotracker3"), device="cpu")
    settings.prepare()
    text = capsys.readouterr().err
    assert "CC BY-NC 4.0" in text and "NOT for commercial use" in text
    assert settings.make_chain().name == "rgbd+cotracker3"
    for model in (*TRACKERS.values(), *DEPTHS.values(), *CAMERAS.values()):
        assert model.title in model.notice and ("NOT" in model.notice) is not model.licence.commercial
