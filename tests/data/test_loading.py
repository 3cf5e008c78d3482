from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from backbones import HiddenArray
from demonstrations import number_in

from lamp.data.actions import Relative
from lamp.data.dataloader import DataLoader, Sampler
from lamp.data.embodiment import OWN, Embodiment
from lamp.data.feature_cache.cache import FeatureCache
from lamp.data.image_dataset import DecodedFrames, ImageSamples, Videos
from lamp.data.lerobot import LeRobotDataset
from lamp.data.mixture import mixture_weights
from lamp.data.normalizers import ByDeviation, MinMax, RawState
from lamp.data.policy_dataset import MixedSamples, PolicySamples, PolicyScaling, states_and_actions
from lamp.data.stored_images import CorruptPicturesError
from lamp.errors import ConfigError, DataError, MismatchError

FIXTURES = Path(__file__).parents[1] / "fixtures/lerobot"
CHUNK = 4


def scaling_of(dataset: LeRobotDataset, robot: Embodiment = OWN) -> PolicyScaling:
    states, actions = states_and_actions(dataset, range(len(dataset)), CHUNK, robot)
    fit = ByDeviation()
    return PolicyScaling(state_transform=RawState(), state=fit.fit(states), actions=fit.fit(actions))


def of_images(dataset: LeRobotDataset, **changes: object) -> ImageSamples:
    samples = ImageSamples(
        dataset=dataset,
        pictures=Videos(dataset=dataset),
        cameras=dataset.cameras,
        episodes=tuple(range(len(dataset))),
        chunk=CHUNK,
        scaling=scaling_of(dataset),
    )
    return replace(samples, **changes)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def foreign() -> LeRobotDataset:
    """Read only."""
    return LeRobotDataset(FIXTURES / "v30")


def test_pictures_states_and_actions_belong_together_in_the_order_asked_for(foreign: LeRobotDataset) -> None:
    samples = of_images(foreign)
    assert len(samples) == 34
    batch = samples.batch(np.array([33, 0, 13, 5, 13]))
    assert batch.observations is not None
    for side, camera in enumerate(foreign.cameras):
        shown = [number_in(image.numpy()) for image in batch.observations.images[camera]]
        assert shown == [n + side for n in (1024 + 28, 0, 512 + 2, 10, 512 + 2)]
    assert batch.observations.instructions == ("task 0", "task 0", "task 1", "task 0", "task 1")
    assert batch.action_mask.sum(1).tolist() == [1, 4, 4, 4, 4]
    actions = samples.scaling.actions.invert(batch.actions)
    np.testing.assert_allclose(actions[2, :, 0], [0.1, 0.2, 0.3, 0.4], atol=1e-6)
    np.testing.assert_allclose(actions[0, :, 0], 1.4, atol=1e-6)
    np.testing.assert_allclose(samples.scaling.state.invert(batch.state)[2], [1, 1, 1], atol=1e-5)


def test_decoded_frames_are_the_videos_and_are_made_again_when_they_change(
    foreign: LeRobotDataset, tmp_path: Path
) -> None:
    dataset = LeRobotDataset(shutil.copytree(foreign.root, tmp_path / "data"))
    decoded = DecodedFrames(dataset)
    with pytest.raises(DataError, match="decode the frames of episode 0 again"):
        decoded.read("front", 0, np.array([0]))
    decoded.build(dataset.cameras, range(3))
    picks = np.array([3, 20, 33])
    one, other = of_images(dataset).batch(picks), of_images(dataset, pictures=decoded).batch(picks)
    assert one.observations is not None and other.observations is not None
    for camera in dataset.cameras:
        assert torch.equal(one.observations.images[camera], other.observations.images[camera])
    path = dataset.video_path("front", 0)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(DataError, match="of other pictures"):
        DecodedFrames(LeRobotDataset(dataset.root)).read("front", 0, np.array([0]))


def test_corrupt_videos_are_named_or_left_out_and_counted(tmp_path: Path) -> None:
    dataset = LeRobotDataset(shutil.copytree(FIXTURES / "v21", tmp_path / "v21"))
    path = dataset.video_path("front", 1)
    path.write_bytes(path.read_bytes()[:600])
    picks = np.array([0, 12, 13, 20])  # two of episode 1
    with pytest.raises(CorruptPicturesError, match=r"episode 1, camera front: .*episode_000001\.mp4"):
        of_images(dataset).batch(picks)
    batch = of_images(dataset, on_corrupt="leave_out").batch(picks)
    assert batch.observations is not None
    assert [number_in(image.numpy()) for image in batch.observations.images["front"]] == [0, 1024 + 2]
    assert len(batch.state) == len(batch.actions) == 2
    assert [(fault.file, fault.episode, fault.samples) for fault in batch.left_out] == [(str(path), 1, 2)]
    for workers in (0, 1):
        loader = DataLoader(of_images(dataset, on_corrupt="leave_out"), Sampler(34, 17), workers=workers)
        sizes = [len(next(loader).state) for _ in range(2)]
        loader.close()
        assert sum(sizes) == 27 and loader.left_out == {str(path): 7}
    with pytest.raises(DataError, match="no picture of a whole batch"):
        of_images(dataset, on_corrupt="leave_out").batch(np.array([12]))


def test_errors_of_workers_arrive_whole(tmp_path: Path) -> None:
    dataset = LeRobotDataset(shutil.copytree(FIXTURES / "v21", tmp_path / "v21"))
    samples = of_images(dataset)
    dataset.video_path("front", 2).unlink()
    loader = DataLoader(samples, Sampler(34, 34), workers=1)
    with pytest.raises(CorruptPicturesError, match=r"no video at .*episode_000002\.mp4") as caught:
        next(loader)
    assert caught.value.episode == 2
    loader.close()


@pytest.mark.slow
def test_the_order_is_the_samplers_whatever_the_workers_and_resumes_exactly(foreign: LeRobotDataset) -> None:
    """Five batches an epoch, of which workers make up to four ahead: epochs are passed, and the state is not ahead."""
    samples = of_images(foreign)

    def numbers(loader: DataLoader, count: int) -> list[list[int]]:
        return [[number_in(image.numpy()) for image in next(loader).observations.images["front"]] for _ in range(count)]

    whole = numbers(DataLoader(samples, Sampler(34, 6, seed=3)), 14)
    assert whole[:5] != whole[5:10]
    first = DataLoader(samples, Sampler(34, 6, seed=3), workers=2)
    assert numbers(first, 4) == whole[:4]
    state = first.state_dict()
    assert (state["epoch"], state["position"]) == (0, 24)
    assert numbers(first, 5) == whole[4:9]  # the same workers go on into the next epoch
    first.load_state_dict(state)
    assert numbers(first, 3) == whole[4:7]
    first.close()
    assert numbers(first, 1) == whole[7:8]
    first.close()
    second = DataLoader(samples, Sampler(34, 6, seed=3), workers=1)
    second.load_state_dict(state)
    assert numbers(second, 10) == whole[4:]
    second.close()


def test_a_loader_needs_sensible_numbers(foreign: LeRobotDataset) -> None:
    with pytest.raises(ConfigError, match="-1 workers"):
        DataLoader(of_images(foreign), Sampler(34, 6), workers=-1)


def of_policy(dataset: LeRobotDataset, robot: Embodiment = OWN, scale: float = 1.0) -> PolicySamples:
    from backbones import Compact

    scaling = scaling_of(dataset, robot)
    states, actions = states_and_actions(dataset, [0], CHUNK, robot)
    scaling = replace(scaling, actions=MinMax.fit(actions * scale), state=ByDeviation().fit(states))
    features = FeatureCache.build(dataset, Compact())
    return PolicySamples(
        dataset, features, episodes=range(len(dataset)), chunk=CHUNK, scaling=scaling, embodiment=robot
    )


def test_mixed_samples_keep_their_own_scaling_and_the_order(dataset: LeRobotDataset, tmp_path: Path) -> None:
    other = LeRobotDataset(shutil.copytree(dataset.root, tmp_path / "other"))
    one, two = of_policy(dataset), of_policy(other, scale=2.0)
    mixed = MixedSamples([one, two])
    assert len(mixed) == 2 * len(one)
    picks = np.array([len(one) + 4, 3, len(one), 4])
    batch = mixed.batch(picks)
    assert mixed.part_of(picks).tolist() == [1, 0, 1, 0]
    assert batch.actions is not None and batch.state is not None and batch.action_mask is not None
    for place, (part, index) in enumerate(((two, 4), (one, 3), (two, 0), (one, 4))):
        alone = part.batch(np.array([index]))
        assert alone.actions is not None and alone.state is not None
        assert torch.equal(batch.actions[place], alone.actions[0]) and torch.equal(batch.state[place], alone.state[0])
        assert torch.equal(batch.encoded.tokens[place], alone.encoded.tokens[0])
    assert not torch.equal(batch.actions[0], batch.actions[3])  # the same actions, scaled apart
    one.show_prior_in([0])
    seen = mixed.batch(np.array([len(one), len(one) - 1])).prior_seen
    assert seen is not None and seen.tolist() == [True, False]
    one.motion_hidden = HiddenArray(np.zeros((len(one), 1, 2, 3), np.float16))
    with pytest.raises(MismatchError, match="only some of the mixed datasets have motion_hidden"):
        mixed.batch(picks)


def test_mixed_datasets_must_agree(dataset: LeRobotDataset, tmp_path: Path) -> None:
    one = of_policy(dataset)
    shorter = PolicySamples(dataset, one.features, episodes=[0], chunk=CHUNK - 1, scaling=one.scaling)
    with pytest.raises(MismatchError, match=r"has chunk 3, .* 4; datasets that are mixed must agree"):
        MixedSamples([one, shorter])


def test_weights_are_shares_of_datasets() -> None:
    assert mixture_weights([90, 10], None) is None
    weights = mixture_weights([90, 10], [1.0, 3.0])
    sampler = Sampler(100, 100, weights=weights)
    taken = np.concatenate([next(sampler).indices for _ in range(20)])
    assert (taken >= 90).mean() == pytest.approx(0.75, abs=0.02)
    by_length = Sampler(100, 100, weights=mixture_weights([90, 10], None))
    assert sorted(next(by_length).indices) == list(range(100))
    with pytest.raises(ConfigError, match="2 datasets"):
        mixture_weights([90, 10], [1.0])
    with pytest.raises(ConfigError, match="one above 0"):
        mixture_weights([90, 10], [1.0, 0.0])


def test_relative_chunks_are_those_of_the_embodiment(dataset: LeRobotDataset) -> None:
    robot = Embodiment(name="robot", kind=Relative(offsets=((0, 2), (1, 0))))
    samples = of_policy(dataset, robot)
    chunks, _ = samples.chunks(np.arange(len(samples)))
    found = samples.scaling.actions.invert(chunks.numpy())
    for index in (0, 7, len(samples) - 1):
        expected = robot.chunks(dataset, int(samples.episode[index]), CHUNK)[samples.frame[index]]
        np.testing.assert_allclose(found[index], expected, atol=1e-5)


def test_frames_of_a_foreign_camera_stay_in_their_folder(dataset: LeRobotDataset, tmp_path: Path) -> None:
    for camera in ("../../x", "/x", ".."):
        path = DecodedFrames(dataset, tmp_path / "frames").path(camera, 3)
        assert path.parent.parent == tmp_path / "frames" and path.name == "episode-000003.npy"
    assert DecodedFrames(dataset).path("front", 0) == dataset.root / "frames" / "front" / "episode-000000.npy"
