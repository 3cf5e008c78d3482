"""The policy: observations in, actions in the dataset's units out; noise by seed, not by batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from training_fakes import CAMERAS, GRID, HORIZON, SIDE, PatchBackbone, loop, motion_training, policy_training

from lamp.data.feature_cache.cache import FeatureCache
from lamp.data.lerobot import LeRobotDataset
from lamp.errors import DataError, MismatchError
from lamp.policy import LaMPPolicy
from lamp.sceneflow.tracks import grid_points
from lamp.seeding import generator_at
from lamp.train.train_motion import train_motion
from lamp.train.train_policy import train_policy
from lamp_client.types import Observation


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A motion run, a guided policy and a plain one."""
    root = tmp_path_factory.mktemp("policy")
    short = loop(steps=3)
    train_motion(motion_training(loop=short), data, root / "motion", backbone=PatchBackbone())
    train_policy(policy_training(loop=short), data, root / "guided", root / "motion", backbone=PatchBackbone())
    train_policy(policy_training(with_motion=False, loop=short), data, root / "plain", backbone=PatchBackbone())
    return root


@pytest.fixture(scope="module")
def policy(runs: Path) -> LaMPPolicy:
    return LaMPPolicy.from_checkpoint(runs / "guided", backbone=PatchBackbone())


def observation(seed: int = 0, **changes: object) -> Observation:
    random = np.random.default_rng(seed)
    values = {
        "images": {camera: random.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8) for camera in CAMERAS},
        "state": random.normal(size=8).astype(np.float32),
        "instruction": f"task {seed % 2}",
    }
    return Observation(**(values | changes))  # pyright: ignore[reportArgumentType]


def test_a_chunk_is_in_the_units_of_the_dataset(policy: LaMPPolicy, data: Path) -> None:
    chunk = policy.act(observation(), noise_seed=(7, 1))
    assert chunk.actions.shape == (5, 7) and chunk.actions.dtype == np.float32
    assert policy.execute == 3 and policy.chunk == 5 and policy.uses_motion
    assert chunk.gate == pytest.approx(0.5, abs=0.05) and chunk.foresight is None
    assert set(chunk.timing_ms) == {"encode", "act"} and all(value > 0 for value in chunk.timing_ms.values())
    actions = LeRobotDataset(data).all_values("action")
    # Noise of unit size in normalised units is the spread of the data around its mean.
    spread = np.abs(chunk.actions - actions.mean(0)) / actions.std(0)
    assert spread.max() < 8


def test_the_fast_path_gives_the_same_actions(policy: LaMPPolicy, runs: Path) -> None:
    fast = LaMPPolicy.from_checkpoint(runs / "guided", backbone=PatchBackbone())
    assert fast.compile() is fast
    seen, seeds = [observation(index) for index in range(3)], [(7, 0), (7, 1), (7, 2)]
    pairs = zip(fast.act_batch(seen, seeds, foresight=True), policy.act_batch(seen, seeds, foresight=True), strict=True)
    for ours, plain in pairs:
        np.testing.assert_allclose(ours.actions, plain.actions, atol=1e-4)
        assert ours.foresight is not None and plain.foresight is not None
        np.testing.assert_allclose(ours.foresight, plain.foresight, atol=1e-4)


def test_noise_depends_on_the_seed_and_not_on_the_batch(policy: LaMPPolicy) -> None:
    seen = [observation(index) for index in range(3)]
    seeds = [(7, 0), (7, 1), (7, 2)]
    together = policy.act_batch(seen, seeds)
    alone = [policy.act(one, noise_seed=seed) for one, seed in zip(seen, seeds, strict=True)]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.actions, other.actions, atol=1e-5)
    assert np.array_equal(alone[0].actions, policy.act(seen[0], noise_seed=(7, 0)).actions)
    assert np.abs(alone[0].actions - policy.act(seen[0], noise_seed=(7, 3)).actions).max() > 1e-2
    assert np.abs(policy.act(seen[0]).actions - policy.act(seen[0]).actions).max() > 1e-3


def test_it_acts_as_the_model_does_on_the_cached_features(policy: LaMPPolicy, data: Path) -> None:
    """Training reads features and states from files, acting computes them: the same frame must give the same action."""
    dataset = LeRobotDataset(data)
    images = {camera: dataset.frames(camera, 1, [4])[0] for camera in CAMERAS}
    state = dataset.column("observation.state", 1)[4]
    task = dataset.episodes[1].task
    acted = policy.act(Observation(images=images, state=state, instruction=task), noise_seed=(3,))
    features = FeatureCache(dataset, PatchBackbone.key)
    encoded = features.encoded(features.index.rows(1, [4]))
    motion = torch.randn(policy.model.motion_shape or (), generator=generator_at(3, "motion"))[None]
    action = torch.randn(policy.model.action_shape or (), generator=generator_at(3, "action"))[None]
    seen = torch.from_numpy(policy.record.scaling.scaled_state(state[None]))
    expected = policy.model.act(encoded, seen, motion_noise=motion, action_noise=action)
    expected = policy.record.scaling.actions.invert(expected.numpy())[0]
    np.testing.assert_allclose(acted.actions, expected, atol=5e-3)


def test_foresight_starts_on_the_grid_with_relative_depth(policy: LaMPPolicy, runs: Path) -> None:
    chunks = policy.act_batch([observation(0), observation(1)], [(1,), (2,)], foresight=True)
    for chunk in chunks:
        assert chunk.foresight is not None and chunk.foresight.shape == (16, HORIZON + 1, 3)
        np.testing.assert_allclose(chunk.foresight[:, 0, :2], grid_points(*GRID).numpy(), atol=1e-6)
        assert (chunk.foresight[:, 0, 2] == 0).all()
        assert np.abs(np.diff(chunk.foresight, axis=1)).max() > 0 and "foresight" in chunk.timing_ms
    flow = policy.description.flow
    assert flow is not None
    noise = torch.randn(policy.model.motion_shape or (), generator=generator_at(1, "motion"))[None]
    values = policy.model.foresee(policy._encode([observation(0)]), noise)
    steps = torch.from_numpy(chunks[0].foresight).diff(dim=1)[None]
    torch.testing.assert_close(flow.bounds.denormalise(values), steps, atol=1e-5, rtol=1e-4)
    without = policy.act_batch([observation(0), observation(1)], [(1,), (2,)])
    np.testing.assert_array_equal(without[0].actions, chunks[0].actions)
    plain = LaMPPolicy.from_checkpoint(runs / "plain", backbone=PatchBackbone())
    assert not plain.uses_motion and plain.gate is None
    assert plain.act_batch([observation()], [(1,)], foresight=True)[0].foresight is None


def test_instructions_are_encoded_once(runs: Path) -> None:
    class Counting(PatchBackbone):
        asked = 0

        def text_tokens(self, instructions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
            type(self).asked += 1
            return super().text_tokens(instructions)

    policy = LaMPPolicy.from_checkpoint(runs / "plain", backbone=Counting())
    for seed in (0, 2, 4, 1):
        policy.act(observation(seed), noise_seed=(1,))
    assert Counting.asked == 2 and list(policy.encoder.instruction_cache) == ["task 0", "task 1"]


def test_observations_that_do_not_fit_are_refused(policy: LaMPPolicy) -> None:
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    with pytest.raises(
        MismatchError, match=r"no camera 'wrist'; it has agentview\. Expected agentview 64x64, wrist 64x64"
    ):
        policy.act(observation(images={"agentview": image}))
    with pytest.raises(MismatchError, match="'wrist' is 32x48; expected"):
        policy.act(observation(images={"agentview": image, "wrist": image[:48, :32].copy()}))
    with pytest.raises(MismatchError, match="state has 7 values; this policy was trained with 8"):
        policy.act(observation(state=np.zeros(7, np.float32)))
    with pytest.raises(MismatchError, match="1 noise seeds for 2 observations"):
        policy.act_batch([observation(), observation()], [(1,)])
    assert policy.act_batch([], []) == []


def test_a_checkpoint_that_cannot_act_is_refused(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="kind 'motion'; expected 'policy'"):
        LaMPPolicy.from_checkpoint(runs / "motion", backbone=PatchBackbone())

    class Other(PatchBackbone):
        key = "other"

    with pytest.raises(MismatchError, match="backbone_key 'patches-1'; expected 'other'"):
        LaMPPolicy.from_checkpoint(runs / "guided", backbone=Other())
    with pytest.raises(DataError, match="no checkpoint at"):
        LaMPPolicy.from_checkpoint(tmp_path, backbone=PatchBackbone())


def test_metadata_is_plain(policy: LaMPPolicy) -> None:
    told = json.loads(json.dumps(policy.metadata))
    assert told["cameras"] == {"agentview": [64, 64], "wrist": [64, 64]}
    assert told["chunk"] == 5 and told["execute"] == 3 and told["uses_motion"] is True and told["state_width"] == 8
