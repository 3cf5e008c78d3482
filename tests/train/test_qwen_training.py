"""A tiny Qwen3-VL through everything: cached features, both stages, acting, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_qwen import WIDTH
from training_fakes import (
    ACTION,
    CAMERAS,
    GUIDANCE,
    MOTION,
    SIDE,
    loop,
    motion_training,
    policy_training,
    write_dataset,
)

import lamp.model.qwen3_vl as qwen3_vl
from lamp.commands import MotionFlags
from lamp.data.features import FeatureCache
from lamp.data.lerobot import LeRobotDataset
from lamp.data.padding import LeftPadding
from lamp.errors import MismatchError
from lamp.flags import parse_beside
from lamp.model.lamp import LaMPConfig
from lamp.model.qwen3_vl import PostNorm, Qwen3VLBackboneConfig
from lamp.model.qwen_text import RELEASE_PROMPT
from lamp.policy import LaMPPolicy
from lamp.train.backbones import backbone_key, build_backbone, ensure_features
from lamp.train.configs import MotionTraining, PolicyTraining
from lamp.train.description import read_description
from lamp.train.motion import train_motion
from lamp.train.policy import train_policy
from lamp.train.randomness import generator_at
from lamp.view.foresight import Foreseer
from lamp_client.types import Observation

REQUIRED = ("--recipe", "demo", "--data", "data", "--out", "out")
SHORT = loop(steps=3, batch_size=4)
MODEL = LaMPConfig(
    token_width=WIDTH,
    motion=replace(MOTION, token_width=WIDTH),
    guidance=replace(GUIDANCE, token_width=WIDTH),
    action=replace(ACTION, token_width=WIDTH),
)


@pytest.fixture(scope="module")
def config(qwen_folder: Path) -> Qwen3VLBackboneConfig:
    cameras = (("agentview", SIDE), ("wrist", 96))
    return Qwen3VLBackboneConfig(model=str(qwen_folder), cameras=cameras, text_tokens=6)


def motion_config(backbone: Qwen3VLBackboneConfig) -> MotionTraining:
    model = replace(MODEL, guidance=None, action=None)
    return motion_training(model=model, loop=SHORT, backbone=backbone, validation_samples=4, final_samples=4)


def policy_config(backbone: Qwen3VLBackboneConfig) -> PolicyTraining:
    return policy_training(model=MODEL, loop=SHORT, backbone=backbone, cached_hidden_draws=1, token_dropout=0.2)


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four episodes of two tasks."""
    return write_dataset(tmp_path_factory.mktemp("qwen") / "data", episodes=4)


@pytest.fixture(scope="module")
def runs(config: Qwen3VLBackboneConfig, demonstrations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages, on cached features alone."""
    root = tmp_path_factory.mktemp("qwen-runs")
    ensure_features(demonstrations, config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qwen3_vl, "_load", lambda *_: pytest.fail("training on a complete cache needs no weights"))
        ensure_features(demonstrations, config)
        train_motion(motion_config(config), demonstrations, root / "motion")
        train_policy(policy_config(config), demonstrations, root / "policy", root / "motion")
    return root


def observed(data: Path, episode: int, frame: int) -> Observation:
    dataset = LeRobotDataset(data)
    return Observation(
        images={camera: dataset.frames(camera, episode, [frame])[0] for camera in CAMERAS},
        state=dataset.column("observation.state", episode)[frame],
        instruction=dataset.episodes[episode].task,
    )


def test_the_checkpoint_carries_the_backbones_record(runs: Path, config: Qwen3VLBackboneConfig) -> None:
    for run in ("motion", "policy"):
        found = read_description(runs / run)
        assert found.training.backbone == config and found.backbone.key == backbone_key(config)
        assert found.backbone.description == config.find().description
        assert found.backbone.prompt == "{instruction}"
        assert [(c.name, c.height, c.width) for c in found.backbone.cameras] == [(c, SIDE, SIDE) for c in CAMERAS]


def test_it_acts_as_the_model_does_on_the_cached_tokens(
    runs: Path, demonstrations: Path, config: Qwen3VLBackboneConfig
) -> None:
    """The tokens that training read from files are those that acting computes, so the same frame gives the same action."""
    policy = LaMPPolicy.from_checkpoint(runs / "policy")
    seen = [observed(demonstrations, 1, 4), observed(demonstrations, 2, 6)]
    acted = policy.act_batch(seen, [(3,), (4,)])
    features = FeatureCache(LeRobotDataset(demonstrations), backbone_key(config))
    for observation, chunk, (episode, frame), seed in zip(seen, acted, [(1, 4), (2, 6)], (3, 4), strict=True):
        encoded = features.encoded(features.index.rows(episode, [frame]))
        assert encoded.tokens.dtype == torch.bfloat16 and not encoded.mask.all()
        motion = torch.randn(policy.model.motion_shape or (), generator=generator_at(seed, "motion"))[None]
        action = torch.randn(policy.model.action_shape or (), generator=generator_at(seed, "action"))[None]
        state = torch.from_numpy(policy.record.scaling.scaled_state(observation.state[None]))
        expected = policy.model.act(encoded, state, motion_noise=motion, action_noise=action).numpy()
        expected = policy.record.scaling.actions.invert(expected)[0]
        # bfloat16 rounds a token differently in another batch.
        np.testing.assert_allclose(chunk.actions, expected, atol=2e-2)
        np.testing.assert_allclose(policy.act(observation, noise_seed=(seed,)).actions, expected, atol=2e-2)
    assert np.abs(acted[0].actions - acted[1].actions).max() > 0.1


def test_the_motion_prior_can_be_looked_at(runs: Path, demonstrations: Path) -> None:
    observation = observed(demonstrations, 0, 4)
    foreseer = Foreseer(runs / "motion")
    images = dict(observation.images)
    one = foreseer.points(images, observation.instruction, samples=1, seed=0)
    black = {name: np.zeros_like(image) for name, image in images.items()}
    assert one.shape[-1] == 3 and np.isfinite(one).all()
    assert not np.array_equal(one, foreseer.points(black, observation.instruction, samples=1, seed=0))


def test_the_folder_and_the_settings_are_flags(config: Qwen3VLBackboneConfig) -> None:
    words = ["--backbone.model", "models/copy", "--backbone.cameras", "front", "448", "--backbone.text-tokens", "None"]
    _, found = parse_beside(MotionFlags, MotionTraining, [*REQUIRED, *words], "train motion", motion_config(config))
    expected = replace(config, model="models/copy", cameras=(("front", 448),), text_tokens=None)
    assert found == replace(motion_config(config), backbone=expected)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layer": PostNorm()}, "its layer is 'PreNorm', here it is 'PostNorm'"),
        ({"cameras": (("agentview", SIDE), ("wrist", 64))}, r"its cameras is .*\['wrist', 96\]\], here it is .*64"),
        ({"cameras": (("agentview", SIDE),)}, r"its cameras is .*, here it is \[\['agentview', 64\]\]"),
        ({"prompt": RELEASE_PROMPT, "text_tokens": 60}, "its prompt is '{instruction}', here it is 'Your task is"),
        ({"padding": LeftPadding()}, "its padding is 'RightPadding', here it is 'LeftPadding'"),
    ],
)
def test_a_motion_checkpoint_of_another_backbone_is_refused(
    runs: Path,
    demonstrations: Path,
    config: Qwen3VLBackboneConfig,
    tmp_path: Path,
    changes: dict[str, object],
    told: str,
) -> None:
    other = replace(config, **changes)
    ensure_features(demonstrations, other)
    with pytest.raises(MismatchError, match=told):
        train_policy(policy_config(other), demonstrations, tmp_path / "run", runs / "motion")


def test_a_copy_of_the_model_serves_and_another_model_does_not(
    runs: Path, demonstrations: Path, config: Qwen3VLBackboneConfig, qwen_folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(qwen_folder, tmp_path / "copy"))
    backbone = build_backbone(replace(config, model=str(copy)))
    policy = LaMPPolicy.from_checkpoint(runs / "policy", backbone=backbone)
    assert policy.act(observed(demonstrations, 0, 4), noise_seed=(1,)).actions.shape == (5, 7)
    weights = copy / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-40] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(MismatchError, match=r"backbone_key .*its content is '[0-9a-f]{64}', here it is"):
        LaMPPolicy.from_checkpoint(runs / "policy", backbone=build_backbone(replace(config, model=str(copy))))
