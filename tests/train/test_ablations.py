"""Every small recipe, its sizes shrunk, through both stages on tiny data and into a policy that acts."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_fakes import (
    CAMERAS,
    GRID,
    HORIZON,
    SIDE,
    STRIDE,
    WIDTH,
    PatchBackbone,
    loop,
    motion_training,
    policy_training,
)

from lamp import cli
from lamp.errors import ConfigError, MismatchError
from lamp.model.action_expert import ActionExpertConfig
from lamp.model.guidance import GuidanceConfig
from lamp.model.lamp import LaMPConfig
from lamp.model.motion_expert import ImageFlow, MotionExpertConfig
from lamp.model.motion_fusion import FlowHead, FusionConfig, PathFusion
from lamp.policy import LaMPPolicy
from lamp.recipes import training
from lamp.recipes.ablations import ABLATIONS
from lamp.train.checkpoint import load_checkpoint
from lamp.train.checkpoint_metadata import read_description
from lamp.train.config import FlowTargets, MixedIn, MotionTraining, PolicyTraining, Split
from lamp.train.resize_checkpoint import follow_motion, resize_checkpoint, resized
from lamp.train.stages import MotionStage, PolicyStage
from lamp.train.train_motion import evaluate_flow, train_motion
from lamp.train.train_policy import train_policy
from lamp_client.types import Observation

BACKBONE = PatchBackbone()
SMALL = [name for name in ABLATIONS if name.startswith("small_")]
UNMOVED = {"small_no_motion", "small_flow_head"}
UNGATED = UNMOVED | {f"small_{name}" for name in ("add", "concat_mlp", "tokens", "tokens_all", "path")}
OFTEN = {f"small_{name}" for name in ("gated", "no_motion", "path", "tokens", "flow_head", "flow_2d", "joint")}
"""One variant of each kind of hand-over and of target; the others are slow."""
GRIDS = ((4, 4),) * len(CAMERAS)
"""Of the backbone's patches."""
SHORT = loop(steps=2, batch_size=4, log_every=1, checkpoint_every=2, validate_every=2)
BARE = {"loop": SHORT, "split": Split(validation_share=0.3), "validation_samples": 2}


def tiny_motion(config: MotionExpertConfig) -> MotionExpertConfig:
    reference = config.reference
    if reference is not None:  # as far from the present grid as it was
        (rows, columns), (own_rows, own_columns) = reference.grid, config.grid
        grid = rows * GRID[0] // own_rows, columns * GRID[1] // own_columns
        reference = replace(reference, grid=grid, horizon=reference.horizon * HORIZON // config.horizon)
    return replace(
        config,
        token_width=WIDTH,
        width=16,
        heads=2,
        grid=GRID,
        horizon=HORIZON,
        frames_per_token=min(config.frames_per_token, HORIZON),
        time_channels=16,
        reference=reference,
    )


def tiny_fusion(config: FusionConfig) -> FusionConfig:
    if isinstance(config, GuidanceConfig):
        return replace(config, token_width=WIDTH, motion_width=16, heads=2)
    if isinstance(config, FlowHead):
        return replace(config, grid=GRID, horizon=HORIZON)
    if isinstance(config, PathFusion):
        return replace(config, steps=HORIZON)
    return replace(config, motion_width=16, heads=2)


def tiny_action(config: ActionExpertConfig) -> ActionExpertConfig:
    return replace(config, token_width=WIDTH, width=16, layers=2, heads=2, chunk=5, time_channels=8, positions=64)


def tiny_model(config: LaMPConfig) -> LaMPConfig:
    return replace(
        config,
        token_width=WIDTH,
        motion=tiny_motion(config.motion) if config.motion else None,
        guidance=tiny_fusion(config.guidance) if config.guidance else None,
        action=tiny_action(config.action) if config.action else None,
        pooling=replace(config.pooling, grids=GRIDS) if config.pooling else None,
    )


def tiny(name: str) -> tuple[MotionTraining | None, PolicyTraining]:
    """Both trainings of a recipe with everything kept but sizes and lengths."""
    made = training(name)
    motion, policy = made.motion, replace(made.policy, model=tiny_model(made.policy.model), **BARE, execute=3)
    if motion is not None:
        motion = replace(motion, model=tiny_model(motion.model), **BARE, final_samples=2, flow_stride=STRIDE)
    return motion, replace(policy, noise_draws=2, flow=FlowTargets(stride=STRIDE))


def trained(name: str, data: Path, out: Path) -> LaMPPolicy:
    motion, policy = tiny(name)
    prior = None
    if motion is not None:
        prior = out / "motion"
        train_motion(motion, data, prior, backbone=BACKBONE)
        assert read_description(prior).model == motion.model
    result = train_policy(policy, data, out / "policy", prior, backbone=BACKBONE)
    assert result.outcome.finished and result.description.model == policy.model
    return LaMPPolicy.from_checkpoint(out / "policy", backbone=BACKBONE)


def observation() -> Observation:
    random = np.random.default_rng(0)
    images = {camera: random.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8) for camera in CAMERAS}
    return Observation(images=images, state=random.normal(size=8).astype(np.float32), instruction="task 0")


@pytest.mark.long
@pytest.mark.parametrize(
    "name", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in SMALL]
)
def test_a_variant_trains_and_acts(name: str, data: Path, tmp_path: Path) -> None:
    policy = trained(name, data, tmp_path)
    (chunk,) = policy.act_batch([observation()], [(1,)], foresight=True)
    assert chunk.actions.shape == (5, 7) and np.isfinite(chunk.actions).all()
    assert policy.uses_motion == (name not in UNMOVED) == (chunk.foresight is not None)
    assert (chunk.gate is None) == (name in UNGATED)
    if name == "small_flow_2d":
        assert chunk.foresight is not None and (chunk.foresight[..., 2] == 0).all()
        assert np.abs(np.diff(chunk.foresight[..., :2], axis=1)).max() > 0
    trained_by_stage_2 = load_file(tmp_path / "policy" / "checkpoint" / "training" / "raw.safetensors")
    parts = {key.split(".")[0] for key in trained_by_stage_2}
    assert parts == ({"action_expert"} if name == "small_no_motion" else {"guidance", "action_expert"})


def test_the_tiny_recipes_still_differ() -> None:
    """What the sizes are shrunk to must not level the variants."""
    found = {name: tiny(name) for name in SMALL}
    same_as_base = {"small_gated", "small_gate_zero_out", "small_arrival", "small_joint_tokens", "small_tau_beta"}
    same_as_base |= {"small_wide"}  # which differs in what is shrunk
    different = [name for name in SMALL if name not in same_as_base]
    for index, name in enumerate(different):
        for other in [*different[index + 1 :], "small_gated"]:
            assert found[name] != found[other], (name, other)


@pytest.fixture(scope="module")
def prior(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stage-1 run on 4x4 points, 4 steps of 2 frames."""
    out = tmp_path_factory.mktemp("prior") / "motion"
    train_motion(motion_training(**BARE, final_samples=2), data, out, backbone=BACKBONE)
    return out


def test_one_stage_1_serves_every_layer_of_z_m(data: Path, prior: Path, tmp_path: Path) -> None:
    motion = read_description(prior).model.motion
    assert motion is not None
    for layer in (0, 1):
        policy = policy_training(**BARE, cached_hidden_draws=1)
        model = replace(policy.model, motion=replace(motion, hidden_layer=layer))
        train_policy(replace(policy, model=model), data, tmp_path / str(layer), prior, backbone=BACKBONE)
    losses = [load_file(tmp_path / str(layer) / "checkpoint" / "model.safetensors") for layer in (0, 1)]
    assert any(not torch.equal(value, losses[1][key]) for key, value in losses[0].items() if "guidance" in key)
    flat = policy_training(**BARE)
    flat = replace(flat, model=replace(flat.model, motion=replace(motion, flow=ImageFlow())))
    with pytest.raises(
        MismatchError, match=r"model\.motion\.flow\.type = 'SpatialFlow'; the recipe asks for 'ImageFlow'"
    ):
        train_policy(flat, data, tmp_path / "flat", prior, backbone=BACKBONE)


def path_training(**changes: Any) -> PolicyTraining:
    """Stage 2 on a path, z_m's place in the cache taken by it."""
    policy = policy_training(**BARE, cached_hidden_draws=3, **changes)
    model = replace(policy.model, guidance=PathFusion(cells=(1, 2), steps=2))
    return replace(policy, model=model)


def test_a_path_is_cached_standardised_and_kept(
    data: Path, prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How a path is distributed is found once: it is the checkpoint's from then on."""
    motion = read_description(prior).model.motion
    assert motion is not None
    stages: list[Any] = []
    fit = PolicyStage.fit_hidden_statistics
    monkeypatch.setattr(PolicyStage, "fit_hidden_statistics", lambda self: (fit(self), stages.append(self))[0])
    train_policy(path_training(), data, tmp_path / "path", prior, backbone=BACKBONE)
    (stage,) = stages
    batch = stage.samples.batch(np.arange(len(stage.samples)))
    assert batch.motion_hidden.shape == (len(stage.samples), 3, 9)
    trained = load_file(tmp_path / "path" / "checkpoint" / "model.safetensors")
    std, mean = torch.std_mean(batch.motion_hidden, dim=0, correction=0)
    torch.testing.assert_close(trained["guidance.centre"], mean, atol=1e-5, rtol=1e-4)
    still = std <= 1e-3
    torch.testing.assert_close(trained["guidance.scale"], std.where(~still, 1.0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(stage.hidden_noise, 0.4 * trained["guidance.scale"])
    assert not still.all()
    # A fine-tune on a part of the data keeps what the weights have learnt with.
    fewer = path_training(hidden_noise=0.5)
    fewer = replace(fewer, split=Split(validation_share=0.6))
    train_policy(fewer, data, tmp_path / "tuned", backbone=BACKBONE, start=tmp_path / "path")
    tuned = load_file(tmp_path / "tuned" / "checkpoint" / "model.safetensors")
    assert torch.equal(tuned["guidance.scale"], trained["guidance.scale"])
    torch.testing.assert_close(stages[1].hidden_noise, 0.5 * trained["guidance.scale"])
    acting = LaMPPolicy.from_checkpoint(tmp_path / "path", backbone=BACKBONE)
    (chunk,) = acting.act_batch([observation()], [(1,)], foresight=True)
    assert np.isfinite(chunk.actions).all() and chunk.foresight is not None


def with_flow_head(**changes: Any) -> PolicyTraining:
    policy = policy_training(**BARE, with_motion=False, **({"flow": FlowTargets(stride=STRIDE)} | changes))
    return replace(policy, model=replace(policy.model, guidance=FlowHead(grid=GRID, horizon=HORIZON)))


def test_a_flow_head_learns_stage_1s_targets(
    data: Path, prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same increments, on the same scale, for the same frames as the Motion Expert learns."""
    stages: list[Any] = []
    for kind in (MotionStage, PolicyStage):
        monkeypatch.setattr(kind, "train_mode", partialmethod(noted, stages, kind.train_mode))
    config = with_flow_head()
    train_motion(motion_training(**BARE, final_samples=2), data, tmp_path / "motion", backbone=BACKBONE)
    train_policy(config, data, tmp_path / "policy", backbone=BACKBONE)
    theirs, ours = stages[0], stages[-1]
    assert [type(stage) for stage in (theirs, ours)] == [MotionStage, PolicyStage]
    assert ours.samples.scene_flow.bounds == theirs.samples.bounds
    frames = {(e, f): i for i, (e, f) in enumerate(zip(theirs.samples.episode, theirs.samples.frame, strict=True))}
    batch = ours.samples.batch(np.arange(len(ours.samples))[::-1].copy())
    for row, (e, f) in enumerate(zip(ours.samples.episode[::-1], ours.samples.frame[::-1], strict=True)):
        if (e, f) in frames:
            wanted = theirs.samples.batch(np.array([frames[e, f]])).motion
            assert torch.equal(batch.motion.values[row], wanted.values[0])
            assert torch.equal(batch.motion.mask[row], wanted.mask[0])
        else:
            assert not batch.motion.mask[row].any()
    assert len(frames) > 0 and ours.samples.batch(np.array([0])).motion.mask.any()
    rows = [json.loads(line) for line in (tmp_path / "policy" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["flow"]) for row in rows if "loss" in row)
    assert any("flow" in str(key) for row in rows for key in row)


def noted(stage: Any, stages: list[Any], then: Any) -> None:
    stages.append(stage)
    then(stage)


def test_a_flow_head_that_cannot_be_taught_is_refused(data: Path, prior: Path, tmp_path: Path) -> None:
    def train(config: PolicyTraining, **more: Any) -> None:
        train_policy(config, data, tmp_path / "out", backbone=BACKBONE, **more)

    with pytest.raises(ConfigError, match="a checkpoint but no Motion Expert"):
        train(with_flow_head(), motion_checkpoint=prior)
    with pytest.raises(MismatchError, match="horizon"):
        train(with_flow_head(flow=FlowTargets(stride=50)))
    with pytest.raises(ConfigError, match="also is given, and the model has a flow head"):
        with_other = with_flow_head()
        replace(with_other, also=(MixedIn(data=str(data)),))
    assert not (tmp_path / "out").exists()


def test_noise_on_z_m_is_matched_and_for_training_alone(
    data: Path, prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[Any] = []
    fit = PolicyStage.fit_hidden_statistics
    monkeypatch.setattr(PolicyStage, "fit_hidden_statistics", lambda self: (fit(self), stages.append(self))[0])
    for name, changes in {"plain": {}, "noisy": {"hidden_noise": 0.5}}.items():
        policy = policy_training(**BARE, cached_hidden_draws=1, **changes)
        train_policy(policy, data, tmp_path / name, prior, backbone=BACKBONE)
    plain, noisy = stages
    hidden = plain.samples.batch(np.arange(len(plain.samples))).motion_hidden
    spread = hidden.var(0, correction=0).mean(0).sqrt()
    assert plain.hidden_noise is None
    torch.testing.assert_close(noisy.hidden_noise, 0.5 * spread, atol=1e-5, rtol=1e-4)
    noisy.model.load_state_dict(plain.model.state_dict())
    batch = plain.samples.batch(np.arange(4))
    losses = {}
    for mode in ("train_mode", "eval"):
        for name, stage in (("plain", plain), ("noisy", noisy)):
            stage.train_mode() if mode == "train_mode" else stage.model.eval()
            losses[mode, name] = stage.loss(batch, torch.Generator().manual_seed(0)).total
    assert losses["eval", "plain"] == losses["eval", "noisy"]
    assert losses["train_mode", "plain"] != losses["train_mode", "noisy"]
    with pytest.raises(ConfigError, match=r"hidden_noise is -0\.1; it must not be negative"):
        policy_training(hidden_noise=-0.1)
    with pytest.raises(ConfigError, match=r"hidden_noise is set, but model\.motion is None"):
        policy_training(with_motion=False, hidden_noise=0.1)


def test_a_motion_checkpoint_serves_another_grid_and_horizon(data: Path, prior: Path, tmp_path: Path) -> None:
    before = read_description(prior)
    out = tmp_path / "resized"
    resize_checkpoint(prior, out, grid=(8, 4), horizon=8, pace=0.5)
    model, found = load_checkpoint(out)
    assert found.model.motion is not None and before.model.motion is not None
    assert found.model.motion == resized(before.model.motion, grid=(8, 4), horizon=8, pace=0.5)
    assert found.flow is not None and before.flow is not None
    assert (found.flow.grid, found.flow.horizon, found.flow.stride) == ((8, 4), 8, 1)
    assert found.flow.bounds.high == tuple(end / 2 for end in before.flow.bounds.high)
    given = load_file(prior / "checkpoint" / "model.safetensors")
    assert all(torch.equal(value, given[key]) for key, value in model.state_dict().items())

    policy = policy_training(**BARE)
    policy = replace(policy, model=replace(policy.model, motion=found.model.motion))
    train_policy(policy, data, tmp_path / "policy", out, backbone=BACKBONE)
    acting = LaMPPolicy.from_checkpoint(tmp_path / "policy", backbone=BACKBONE)
    (chunk,) = acting.act_batch([observation()], [(1,)], foresight=True)
    assert chunk.foresight is not None and chunk.foresight.shape == (32, 9, 3)
    with pytest.raises(ConfigError, match="holds a checkpoint already"):
        resize_checkpoint(prior, out)
    with pytest.raises(ConfigError, match=r"pace 0\.75 makes 1\.5 frames of the 2"):
        resize_checkpoint(prior, tmp_path / "odd", pace=0.75)


def test_the_command_resizes(data: Path, prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def resize(*flags: str) -> int:
        return cli.main(["resize", str(prior), str(tmp_path / "out"), *flags])

    assert resize() == 2
    assert "nothing to resize: expected --grid, --horizon or --pace" in capsys.readouterr().err
    assert resize("--grid", "8", "8", "8") == 2
    assert "--grid 8 8 8: expected one number, or rows and columns" in capsys.readouterr().err
    assert resize("--grid", "5") == 2
    assert "patch 2 does not divide the grid (5, 5)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert resize("--grid", "8", "6", "--horizon", "8") == 0
    assert "8x6 points, 8 flow steps of 2 frames" in capsys.readouterr().out
    found = read_description(tmp_path / "out")
    assert found.flow is not None and (found.flow.grid, found.flow.horizon) == ((8, 6), 8)
    assert resize("--grid", "6") == 2
    assert "holds a checkpoint already" in capsys.readouterr().err
    policy = policy_training(**BARE)
    assert follow_motion(policy.model, prior) == policy.model, "only a resized checkpoint is followed"
    followed = follow_motion(policy.model, tmp_path / "out")
    assert followed.motion == found.model.motion
    train_policy(replace(policy, model=followed), data, tmp_path / "policy", tmp_path / "out", backbone=BACKBONE)
    assert cli.main(["resize", str(tmp_path / "policy"), str(tmp_path / "no"), "--grid", "8"]) == 2
    assert "kind 'policy'; expected 'motion'" in capsys.readouterr().err


def test_an_unchanged_grid_measures_the_same(data: Path, prior: Path, tmp_path: Path) -> None:
    resize_checkpoint(prior, tmp_path / "same")
    one, other = (evaluate_flow(run, data, frames=4) for run in (prior, tmp_path / "same"))
    assert one.moving["one_sample"] == other.moving["one_sample"]
    assert read_description(tmp_path / "same") == read_description(prior)
