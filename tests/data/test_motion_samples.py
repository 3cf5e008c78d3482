from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from backbones import Compact
from demonstrations import LENGTHS, write

from lamp.data.feature_cache.cache import FeatureCache
from lamp.data.motion_dataset import MotionSamples
from lamp.errors import DataError, MismatchError
from lamp.sceneflow.exact_flow import Sampling
from lamp.sceneflow.normalization import BoundsRule, MotionBounds
from lamp.sceneflow.retiming import ByArcLength
from lamp.sceneflow.store import CameraFlow, SceneFlowStore, StoreDescription
from lamp.sceneflow.tracks import flow_from_tracks, retime
from lamp.types import Camera, Tracks

BOUNDS = MotionBounds(low=(-0.1, -0.2, -0.3), high=(0.1, 0.2, 0.3))


def paths(episode: int, frames: np.ndarray, length: int) -> Tracks:
    """Random walks of four points over eight steps, unknown past the episode's end."""
    random = np.random.default_rng(episode)
    points = 0.5 + random.normal(0, 0.05, (len(frames), 4, 9, 3)).cumsum(2)
    valid = np.broadcast_to((frames[:, None] + np.arange(9) < length)[:, None], (len(frames), 4, 9)).copy()
    return Tracks(
        points=torch.from_numpy(points).float(),
        visible=torch.ones(len(frames), 4, 9, dtype=torch.bool),
        valid=torch.from_numpy(valid),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureCache, SceneFlowStore]:
    dataset = write(tmp_path_factory.mktemp("motion"))
    description = StoreDescription(
        sampling=Sampling(grid=(2, 2), horizon=8, stride=1),
        cameras=("agentview",),
        image_size=(64, 64),
        mirrored=True,
        every=2,
        estimator="random",
        source="motion",
    )
    store = SceneFlowStore.create(dataset.root / "sceneflow", description)
    for episode, length in enumerate(LENGTHS):
        frames = np.arange(0, length, 4).astype(np.int32)
        camera = Camera(
            intrinsics=torch.eye(3).repeat(len(frames), 1, 1), world_from_cam=torch.eye(4).repeat(len(frames), 1, 1)
        )
        store.write(
            episode, {"agentview": CameraFlow(frames=frames, tracks=paths(episode, frames, length), camera=camera)}
        )
    return FeatureCache.build(dataset, Compact()), store


@pytest.mark.parametrize("memory_limit", [1 << 20, 0], ids=["kept", "read each time"])
def test_batches_hold_the_flow_and_the_picture_of_each_frame(
    data: tuple[FeatureCache, SceneFlowStore], memory_limit: int
) -> None:
    features, store = data
    samples = MotionSamples(
        features, store, episodes=(2, 0, 3), horizon=4, stride=2, bounds=BOUNDS, memory_limit=memory_limit
    )
    assert len(samples) == 9 + 5 + 1
    indices = np.random.default_rng(0).permutation(len(samples))
    batch = samples.batch(indices)
    for row, index in enumerate(indices):
        episode, frame = int(samples.episode[index]), int(samples.frame[index])
        tracks, camera = store.read(episode, [frame])
        expected = BOUNDS.motion(flow_from_tracks(retime(tracks, stride=2, horizon=4), camera))
        torch.testing.assert_close(batch.motion.values[row], expected.values[0], rtol=0, atol=0)
        torch.testing.assert_close(batch.motion.mask[row], expected.mask[0], rtol=0, atol=0)
        tokens = features.encoded(features.index.rows(episode, [frame])).tokens[0]
        torch.testing.assert_close(batch.encoded.tokens[row], tokens, rtol=0, atol=0)


def test_the_sample_one_flow_step_before(data: tuple[FeatureCache, SceneFlowStore]) -> None:
    samples = MotionSamples(*data, episodes=(1, 0), horizon=2, stride=4, bounds=BOUNDS)
    assert samples.frame.tolist() == [0, 4, 8, 0, 4, 8, 12, 16]
    assert samples.earlier(np.arange(8)).tolist() == [-1, 0, 1, -1, 3, 4, 5, 6]
    assert (
        MotionSamples(*data, episodes=(0,), horizon=2, stride=1, bounds=BOUNDS).earlier(np.arange(5)).tolist()
        == [-1] * 5
    )


def test_flow_steps_of_equal_way(data: tuple[FeatureCache, SceneFlowStore]) -> None:
    arc = ByArcLength(interval=0.03)
    samples = MotionSamples(*data, episodes=(0,), horizon=20, retiming=arc, bounds=BOUNDS)  # longer than what is stored
    tracks, camera = data[1].read(0, samples.frame)
    expected = BOUNDS.motion(flow_from_tracks(arc.tracks(tracks, camera, stride=1, horizon=20), camera))
    torch.testing.assert_close(samples.batch(np.arange(5)).motion.values, expected.values, rtol=0, atol=0)
    assert samples.earlier(np.arange(5)).tolist() == [-1] * 5, "such steps take no fixed time"


def test_bounds_are_fitted_to_these_episodes(data: tuple[FeatureCache, SceneFlowStore]) -> None:
    fitted = MotionSamples(*data, episodes=(0, 2), horizon=8, bounds=BoundsRule(tail=0.05))
    rate = np.array(fitted.clamp_rate())
    assert ((rate > 0.02) & (rate < 0.1)).all()
    flow = fitted.flow(np.arange(len(fitted)))
    assert BoundsRule(tail=0.05).fit([flow]) == fitted.bounds
    np.testing.assert_allclose(fitted.bounds.clamp_rate(flow), rate, atol=1e-6)


def test_what_does_not_fit_is_refused(data: tuple[FeatureCache, SceneFlowStore], tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="do not fit"):
        MotionSamples(*data, episodes=(0,), horizon=5, stride=2, bounds=BOUNDS)
    with pytest.raises(DataError, match="no episodes"):
        MotionSamples(*data, episodes=(), horizon=4, bounds=BOUNDS)
    with pytest.raises(DataError, match="episode 7 is not in the scene-flow store"):
        MotionSamples(*data, episodes=(7,), horizon=4, bounds=BOUNDS)
