"""Adapters of a tiny Qwen3-VL that Stage 2 trains along."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_qwen import WIDTH
from torch import Tensor
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

from lamp import cli
from lamp.data.image_dataset import ImageSamples, Videos
from lamp.data.lerobot import LeRobotDataset
from lamp.errors import ConfigError, DataError, MismatchError
from lamp.model.lamp import LaMP, LaMPConfig
from lamp.model.qwen3_vl import Qwen3VLBackbone, Qwen3VLBackboneConfig
from lamp.model.qwen_lora import LoRA, adapters
from lamp.policy import LaMPPolicy
from lamp.train.backbones import backbone_key, build_backbone, ensure_features
from lamp.train.checkpoint import load_checkpoint
from lamp.train.checkpoint_metadata import parse_description, read_description
from lamp.train.config import PolicyTraining, UnseenEpisodes
from lamp.train.dry_run import Planner
from lamp.train.lora import AdaptedStage
from lamp.train.optimizer import AdamW, Rates
from lamp.train.publishing import published_files
from lamp.train.run_plan import to_text
from lamp.train.train_motion import train_motion
from lamp.train.train_policy import train_policy
from lamp.types import Observations
from lamp_client.types import Observation

pytestmark = pytest.mark.long

pytest.importorskip("peft")

MODEL = LaMPConfig(
    token_width=WIDTH,
    motion=replace(MOTION, token_width=WIDTH),
    guidance=replace(GUIDANCE, token_width=WIDTH),
    action=replace(ACTION, token_width=WIDTH),
)


@pytest.fixture(scope="module")
def frozen(qwen_folder: Path) -> Qwen3VLBackboneConfig:
    cameras = (("agentview", SIDE), ("wrist", 96))
    return Qwen3VLBackboneConfig(model=str(qwen_folder), cameras=cameras, text_tokens=6)


@pytest.fixture(scope="module")
def adapted(frozen: Qwen3VLBackboneConfig) -> Qwen3VLBackboneConfig:
    return replace(frozen, lora=LoRA(rank=3, alpha=6.0, dropout=0.1))


def training(backbone: Qwen3VLBackboneConfig, **changes: Any) -> PolicyTraining:
    usual = {"steps": 6, "batch_size": 4, "checkpoint_every": 2, "log_every": 1, "optimiser": AdamW(lr=1e-2)}
    settings = loop(**(usual | changes.pop("loop", {})))
    return policy_training(
        model=MODEL, loop=settings, backbone=backbone, token_dropout=0.2, validation_samples=4, **changes
    )


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("lora") / "data", episodes=4)


@pytest.fixture(scope="module")
def prior(demonstrations: Path, frozen: Qwen3VLBackboneConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage 1, on the features of the frozen backbone."""
    out = tmp_path_factory.mktemp("lora-prior")
    ensure_features(demonstrations, frozen)
    model = replace(MODEL, guidance=None, action=None)
    config = motion_training(model=model, loop=loop(steps=2, batch_size=4), backbone=frozen, final_samples=4)
    train_motion(config, demonstrations, out)
    return out


@pytest.fixture(scope="module")
def run(
    demonstrations: Path, prior: Path, adapted: Qwen3VLBackboneConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("lora-run")
    train_policy(training(adapted), demonstrations, out, prior)
    return out


def adapter_of(run: Path) -> dict[str, Tensor]:
    return load_file(run / "checkpoint" / "adapter" / "adapter_model.safetensors")


def observed(data: Path, episode: int = 0, frame: int = 4) -> Observation:
    dataset = LeRobotDataset(data)
    return Observation(
        images={camera: dataset.frames(camera, episode, [frame])[0] for camera in CAMERAS},
        state=dataset.column("observation.state", episode)[frame],
        instruction=dataset.episodes[episode].task,
    )


def observations(data: Path) -> Observations:
    seen = observed(data)
    images = {name: torch.from_numpy(np.asarray(image))[None] for name, image in seen.images.items()}
    return Observations(images=images, instructions=(seen.instruction,))


def test_only_the_adapters_of_the_backbone_are_trained(
    demonstrations: Path, prior: Path, adapted: Qwen3VLBackboneConfig, tmp_path: Path
) -> None:
    backbone = build_backbone(adapted)
    assert isinstance(backbone, Qwen3VLBackbone)
    before = {name: value.clone() for name, value in backbone.vlm.state_dict().items()}
    fresh = backbone.encode(observations(demonstrations)).tokens
    assert torch.equal(fresh, build_backbone(replace(adapted, lora=None)).encode(observations(demonstrations)).tokens)  # pyright: ignore[reportAttributeAccessIssue]
    train_policy(training(adapted), demonstrations, tmp_path, prior, backbone=backbone)
    after, trained = backbone.vlm.state_dict(), adapters(backbone.vlm)
    assert len(trained) == 2 * 7 * 3 and all(value.dtype == torch.float32 for value in trained.values())
    assert all(not torch.equal(after[name], before[name]) for name in trained)
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - trained.keys())


def test_nothing_is_cached_and_that_is_said(
    demonstrations: Path, prior: Path, frozen: Qwen3VLBackboneConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cached = set((demonstrations / "features").iterdir())
    words = (
        f"train policy --recipe paper_libero --data {demonstrations} --out {tmp_path} --lora 2 --backbone.model {frozen.model} "
        "--backbone.cameras agentview 64 wrist 96 --backbone.text-tokens 6 --loop.device cpu --loop.threads 1 --loop.steps 1 "
        "--loop.batch-size 2 --validation-samples 2 --split.validation-share 0.3 --model.token-width 32 "
        "--model.action.token-width 32 --model.action.width 16 --model.action.layers 2 --model.action.heads 2"
    )
    assert cli.main(words.split()) == 0
    assert "its tokens are computed at every step, not cached" in capsys.readouterr().err
    found = read_description(tmp_path)
    assert isinstance(found.training.backbone, Qwen3VLBackboneConfig) and found.training.backbone.lora is not None
    assert found.training.backbone.lora.rank == 2 and found.adapter_sha256
    assert set((demonstrations / "features").iterdir()) == cached
    assert cli.main(words.replace("paper_libero", "demo").split("--backbone")[0].split()) == 2
    assert "--lora 2 given, and the recipe's backbone is the small one" in capsys.readouterr().err


def test_a_policy_acts_with_its_adapters(run: Path, demonstrations: Path, frozen: Qwen3VLBackboneConfig) -> None:
    policy = LaMPPolicy.from_checkpoint(run)
    chunk = policy.act(observed(demonstrations), noise_seed=(1,)).actions
    assert np.isfinite(chunk).all()
    backbone = policy.encoder.backbone
    assert isinstance(backbone, Qwen3VLBackbone)
    tokens, plain = (one.encode(observations(demonstrations)).tokens for one in (backbone, build_backbone(frozen)))  # pyright: ignore[reportAttributeAccessIssue]
    assert (tokens - plain).abs().max() > 0.01
    merged = LaMPPolicy.from_checkpoint(run)
    assert isinstance(merged.encoder.backbone, Qwen3VLBackbone)
    merged.encoder.backbone.accelerate()
    assert adapters(merged.encoder.backbone.vlm) == {}
    fast = merged.encoder.backbone.encode(observations(demonstrations)).tokens
    apart = torch.nn.functional.cosine_similarity(fast.float(), tokens.float(), dim=-1)
    assert apart[apart != 0].min() > 0.99
    with pytest.raises(MismatchError, match="its lora is"):
        LaMPPolicy.from_checkpoint(run, backbone=build_backbone(replace(frozen, lora=LoRA(rank=5))))


def test_a_copy_takes_its_adapters_along(run: Path, demonstrations: Path, tmp_path: Path) -> None:
    policy = LaMPPolicy.from_checkpoint(run)
    saved = policy.save_pretrained(tmp_path / "saved")
    assert {"adapter/adapter_model.safetensors", "adapter/adapter_config.json"} <= published_files(saved).keys()
    chunk, copied = (
        one.act(observed(demonstrations), noise_seed=(1,)).actions
        for one in (policy, LaMPPolicy.from_checkpoint(saved))
    )
    np.testing.assert_array_equal(copied, chunk)


def test_peft_reads_the_adapter_for_the_published_model(run: Path, demonstrations: Path) -> None:
    from peft import PeftModel
    from transformers import Qwen3VLForConditionalGeneration

    backbone = LaMPPolicy.from_checkpoint(run).encoder.backbone
    assert isinstance(backbone, Qwen3VLBackbone)
    published = Qwen3VLForConditionalGeneration.from_pretrained(backbone.identity.folder.path, dtype=torch.bfloat16)
    theirs: Any = PeftModel.from_pretrained(published, str(run / "checkpoint" / "adapter")).eval()
    inputs, seen = backbone.prepare(observations(demonstrations)), {}
    theirs.base_model.model.model.language_model.layers[-1].register_forward_hook(lambda *hook: seen.update(z=hook[2]))
    with torch.no_grad():
        theirs(
            input_ids=inputs.ids,
            position_ids=inputs.positions,
            pixel_values=inputs.patches,
            image_grid_thw=inputs.grid,
        )
    ours, plain = backbone(inputs), build_backbone(replace(backbone.config, lora=None))(inputs)  # pyright: ignore[reportCallIssue]
    error, effect = ((other - ours).float().abs().mean() for other in (seen["z"], plain))
    assert error < 0.1 * effect, (error, effect)


@pytest.mark.parametrize(
    "change",
    [pytest.param(c, marks=pytest.mark.slow) for c in ({}, {"workers": 1}, {"recompute": True, "accumulate": 2})],
)
def test_a_broken_off_run_goes_on_bit_for_bit(
    demonstrations: Path,
    prior: Path,
    adapted: Qwen3VLBackboneConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
) -> None:
    """Decoded by workers or not, in parts or not."""
    config = training(adapted, loop=change)
    train_policy(config, demonstrations, tmp_path / "straight", prior)
    take, steps = AdaptedStage.next_batch, iter([None, None, None, KeyboardInterrupt()])

    def next_batch(self: AdaptedStage, step: int) -> Any:
        if (stop := next(steps)) is not None:
            raise stop
        return take(self, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AdaptedStage, "next_batch", next_batch)
        train_policy(config, demonstrations, tmp_path / "broken", prior)
    assert read_description(tmp_path / "broken").step == 2
    train_policy(config, demonstrations, tmp_path / "broken", prior)
    assert (
        read_description(tmp_path / "broken").adapter_sha256 == read_description(tmp_path / "straight").adapter_sha256
    )
    assert (
        read_description(tmp_path / "broken").weights_sha256 == read_description(tmp_path / "straight").weights_sha256
    )


@pytest.mark.slow
def test_workers_and_parts_do_not_change_a_run(
    demonstrations: Path, prior: Path, frozen: Qwen3VLBackboneConfig, tmp_path: Path
) -> None:
    exact = replace(frozen, bfloat16=False, lora=LoRA(rank=3, dropout=0.0))
    ensure_features(demonstrations, replace(exact, lora=None))
    stage = motion_training(
        model=replace(MODEL, guidance=None, action=None),
        loop=loop(steps=1, batch_size=4),
        backbone=replace(exact, lora=None),
    )
    train_motion(stage, demonstrations, tmp_path / "prior")
    still = replace(MODEL, guidance=replace(GUIDANCE, token_width=WIDTH, dropout=0.0))
    steady = {"optimiser": AdamW(lr=1e-2, eps=1e-3), "steps": 3}
    changes = {"usual": {}, "workers": {"workers": 2}, "parts": {"accumulate": 3, "recompute": True}}
    for name, change in changes.items():
        config = replace(training(exact, loop=steady | change), model=still)
        train_policy(config, demonstrations, tmp_path / name, tmp_path / "prior")
    usual = adapter_of(tmp_path / "usual")
    assert all(torch.equal(value, usual[name]) for name, value in adapter_of(tmp_path / "workers").items())
    gap = max(float((value - usual[name]).abs().max()) for name, value in adapter_of(tmp_path / "parts").items())
    assert gap < 1e-6


def test_a_plan_counts_adapters_apart_from_the_frozen_backbone(
    demonstrations: Path, prior: Path, adapted: Qwen3VLBackboneConfig, tmp_path: Path
) -> None:
    planner, backbone = Planner("cpu"), build_backbone(adapted)
    assert isinstance(backbone, Qwen3VLBackbone)
    train_policy(training(adapted), demonstrations, tmp_path / "out", prior, backbone=backbone, run=planner)
    assert planner.plan is not None and planner.plan.time is not None and planner.plan.memory is None
    amount, inside = planner.plan.amount, adapters(backbone.vlm)
    assert amount.trained["vlm"] == sum(value.numel() for value in inside.values()) > 0
    assert amount.frozen["vlm"] == sum(value.numel() for value in backbone.vlm.parameters()) - amount.trained["vlm"]
    assert set(amount.trained) == {"guidance", "action_expert", "vlm"} and set(amount.frozen) == {
        "motion_expert",
        "vlm",
    }
    assert "what a step with it holds is not worked out" in to_text(planner.plan)
    assert not (tmp_path / "out").exists()


def test_adapters_have_a_learning_rate_of_their_own(
    demonstrations: Path, prior: Path, adapted: Qwen3VLBackboneConfig, tmp_path: Path
) -> None:
    still = AdamW(lr=1e-2, weight_decay=0.0, rates=Rates(vlm=0.0))
    train_policy(training(adapted, loop={"optimiser": still, "ema": None}), demonstrations, tmp_path, prior)
    assert all(not value.any() for name, value in adapter_of(tmp_path).items() if "lora_B" in name)
    assert read_description(tmp_path).step == 6


def test_what_does_not_fit_is_refused(
    demonstrations: Path, prior: Path, run: Path, adapted: Qwen3VLBackboneConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="train adapters in Stage 2"):
        motion_training(model=replace(MODEL, guidance=None, action=None), backbone=adapted)
    for changes in ({"cached_hidden_draws": 1}, {"prior_on": UnseenEpisodes()}):
        with pytest.raises(ConfigError, match=f"{next(iter(changes))} is set, and the backbone has adapters"):
            train_policy(training(adapted, **changes), demonstrations, tmp_path, prior)
    with pytest.raises(ConfigError, match="cannot be cached"):
        ensure_features(demonstrations, adapted)
    with pytest.raises(ConfigError, match=r"projections \['x'\] given"):
        LoRA(projections=("x",))
    assert backbone_key(adapted) != backbone_key(replace(adapted, lora=None))
    path = run / "checkpoint" / "lamp.json"
    kept = path.read_text()
    path.write_text(json.dumps(json.loads(kept) | {"adapter_sha256": "0" * 64}))
    with pytest.raises(DataError, match=r"adapter's weights .* damaged"):
        LaMPPolicy.from_checkpoint(run)
    path.write_text(kept)
    assert load_checkpoint(run)[1].adapter_sha256


def test_the_prior_reads_tokens_without_adapters_in_training_and_acting(
    run: Path, demonstrations: Path, frozen: Qwen3VLBackboneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = observations(demonstrations)
    plain = build_backbone(frozen).encode(seen)  # pyright: ignore[reportAttributeAccessIssue]
    policy = LaMPPolicy.from_checkpoint(run)
    backbone, read = policy.encoder.backbone, []
    assert isinstance(backbone, Qwen3VLBackbone)
    original = LaMP.motion_hidden
    monkeypatch.setattr(
        LaMP,
        "motion_hidden",
        lambda self, encoded, noise, **more: read.append(encoded) or original(self, encoded, noise, **more),
    )
    policy.act(observed(demonstrations), noise_seed=(1,))
    assert torch.equal(read[0].tokens, plain.tokens) and torch.equal(read[0].mask, plain.mask)
    assert not torch.equal(backbone.encode(seen).tokens, plain.tokens), "the policy itself reads the adapted ones"

    config = read_description(run).training
    assert isinstance(config, PolicyTraining)
    dataset = LeRobotDataset(demonstrations)
    samples = ImageSamples(
        dataset=dataset, pictures=Videos(dataset=dataset), cameras=tuple(CAMERAS), episodes=(0, 1), chunk=policy.chunk,
        scaling=policy.record.scaling,
    )  # fmt: skip
    stage = AdaptedStage(policy.model, backbone, config, samples, None)
    stage.train_mode()
    taken = samples.batch(np.arange(3))
    assert taken.observations is not None
    loss = stage.loss(taken, torch.Generator().manual_seed(0)).total
    assert torch.equal(read[1].tokens, build_backbone(frozen).encode(taken.observations).tokens)  # pyright: ignore[reportAttributeAccessIssue]
    assert read[1].mask.sum() == read[0].mask.sum() * 3, "no token is hidden from it"
    loss.backward()
    assert all(value.grad is not None and value.requires_grad for value in adapters(backbone.vlm).values())


def test_the_prior_reads_them_on_the_fast_path_too(
    run: Path, demonstrations: Path, frozen: Qwen3VLBackboneConfig
) -> None:
    seen, plain = observations(demonstrations), build_backbone(frozen)
    assert isinstance(plain, Qwen3VLBackbone)
    slow, fast = LaMPPolicy.from_checkpoint(run), LaMPPolicy.from_checkpoint(run)
    usual = slow.act(observed(demonstrations), noise_seed=(1,)).actions
    fast.compile()
    backbone = fast.encoder.backbone
    assert isinstance(backbone, Qwen3VLBackbone)
    read, expected = backbone.encode_for_prior(seen), plain.encode(seen).tokens.float()
    assert read is not None
    near = torch.nn.functional.cosine_similarity(read.tokens.float(), expected, dim=-1)
    assert near[near != 0].min() > 0.99
    np.testing.assert_allclose(fast.act(observed(demonstrations), noise_seed=(1,)).actions, usual, atol=0.1)


def test_a_picture_of_foresight_reads_the_tokens_that_the_actions_had(
    run: Path, demonstrations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, asked = LaMPPolicy.from_checkpoint(run), []
    encode = policy.encoder.encode_for_prior
    monkeypatch.setattr(policy.encoder, "encode_for_prior", lambda seen: asked.append(seen) or encode(seen))
    with_picture = policy.act_batch([observed(demonstrations)], [(1,)], foresight=True)[0]
    assert len(asked) == 1 and with_picture.foresight is not None
    np.testing.assert_array_equal(with_picture.actions, policy.act(observed(demonstrations), noise_seed=(1,)).actions)


def test_a_policy_from_before_the_choice_acts_as_it_was_trained(run: Path, tmp_path: Path) -> None:
    said = json.loads((run / "checkpoint" / "lamp.json").read_text())
    assert said["training"]["backbone"]["lora"].pop("prior_reads_adapted") is False
    (tmp_path / "lamp.json").write_text(json.dumps(said))
    old, new = parse_description(tmp_path / "lamp.json").training, read_description(run).training
    assert isinstance(old, PolicyTraining) and isinstance(new, PolicyTraining)
    assert isinstance(old.backbone, Qwen3VLBackboneConfig) and old.backbone.lora is not None
    assert old.backbone.lora.prior_reads_adapted and backbone_key(old.backbone) == backbone_key(new.backbone)
    backbone = build_backbone(old.backbone)
    assert isinstance(backbone, Qwen3VLBackbone)
    image = torch.zeros(1, 96, 96, 3, dtype=torch.uint8)
    seen = Observations(images=dict.fromkeys(CAMERAS, image), instructions=("task 0",))
    assert backbone.encode_for_prior(seen) is None
    backbone.accelerate()
    assert backbone._fast_unadapted is None
