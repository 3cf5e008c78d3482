"""A tiny Qwen3-VL through everything: cached features, both stages, acting, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_fakes import FakeSimulators
from tests.model.recording import Replayed
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

import lamp.model.fast as fast_module
import lamp.model.qwen3_vl as qwen3_vl
from lamp import cli
from lamp.benchmark.evaluate import EvaluateConfig, evaluate
from lamp.commands.train import MotionFlags
from lamp.data.feature_cache.cache import FeatureCache
from lamp.data.lerobot import LeRobotDataset
from lamp.errors import MismatchError
from lamp.flags import parse_beside
from lamp.model.fast import FastActor
from lamp.model.fast_step import FastStep
from lamp.model.lamp import LaMPConfig
from lamp.model.qwen3_vl import PostNorm, Qwen3VLBackbone, Qwen3VLBackboneConfig
from lamp.model.qwen_processor import RELEASE_PROMPT
from lamp.policy import LaMPPolicy
from lamp.recipes.paper import paper_libero
from lamp.seeding import generator_at
from lamp.train.backbones import backbone_key, build_backbone, ensure_features
from lamp.train.checkpoint import BackboneCache, Expected
from lamp.train.checkpoint_metadata import read_description
from lamp.train.config import Float32, MotionTraining, PolicyTraining
from lamp.train.train_motion import train_motion
from lamp.train.train_policy import train_policy
from lamp.types import LeftPadding
from lamp.view.foresight import MotionPredictor
from lamp_client.types import Observation

pytestmark = pytest.mark.long

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
    """Four episodes of two tasks, without features of another backbone."""
    data = write_dataset(tmp_path_factory.mktemp("qwen") / "data", episodes=4)
    shutil.rmtree(data / "features")
    return data


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


def test_the_fast_path_begins_at_the_backbone_and_gives_the_same_actions(
    runs: Path, demonstrations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = LaMPPolicy.from_checkpoint(runs / "policy")
    seen, seeds = [observed(demonstrations, 1, 4), observed(demonstrations, 2, 6)], [(3,), (4,)]
    plain = policy.act_batch(seen, seeds)
    backbone = policy.compile().encoder.backbone
    assert isinstance(backbone, Qwen3VLBackbone)
    monkeypatch.setattr(backbone.vlm, "forward", lambda **_: pytest.fail("transformers' own forward ran"))
    for fast, expected in zip(policy.act_batch(seen, seeds), plain, strict=True):
        np.testing.assert_allclose(fast.actions, expected.actions, atol=2e-2)


def test_on_a_gpu_the_whole_step_is_one_recording(
    runs: Path, demonstrations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `compile` makes it there, with a stand-in for the CUDA graph."""
    monkeypatch.setattr(fast_module, "CudaGraph", Replayed)
    monkeypatch.setattr(Replayed, "made", [])
    policy = LaMPPolicy.from_checkpoint(runs / "policy")
    seen = [observed(demonstrations, episode, 4) for episode in (0, 1, 2)]
    seeds: list[tuple[int, ...]] = [(3,), (4,), (5,)]
    plain = policy.act_batch(seen, seeds)
    backbone, actor = policy.compile().encoder.backbone, policy._actor
    assert policy._step is None
    assert isinstance(backbone, Qwen3VLBackbone) and backbone.fast is not None and isinstance(actor, FastActor)
    step = FastStep(backbone.fast, actor, padding=backbone.padding, length=backbone.length)
    policy._step = step, backbone
    monkeypatch.setattr(actor, "act", lambda *_, **__: pytest.fail("the experts ran by themselves"))
    for chunk, expected in zip(policy.act_batch(seen, seeds), plain, strict=True):
        np.testing.assert_allclose(chunk.actions, expected.actions, atol=2e-2)
        assert set(chunk.timing_ms) == {"act"}
    assert len(Replayed.made) == 1 and Replayed.made[0]["state"][0] == 4
    monkeypatch.undo()
    assert set(policy.act_batch(seen, seeds, foresight=True)[0].timing_ms) == {"encode", "act", "foresight"}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [Float32(), None])
def test_on_a_gpu_it_acts_as_the_plain_path(runs: Path, demonstrations: Path, precision: Float32 | None) -> None:
    plain, fast = (LaMPPolicy.from_checkpoint(runs / "policy", device="cuda", precision=precision) for _ in range(2))
    actor, seeds = fast.compile()._actor, [(3,), (4,), (5,)]
    assert fast._step is not None and isinstance(actor, FastActor)
    assert next(actor.model.parameters()).dtype == (torch.float32 if precision else torch.bfloat16)
    for frame in (4, 6, 4):
        seen = [observed(demonstrations, episode, frame) for episode in (0, 1, 2)]
        for foresight in (False, True):
            ours, theirs = (way.act_batch(seen, seeds, foresight=foresight) for way in (fast, plain))
            for chunk, expected in zip(ours, theirs, strict=True):
                one, other = (torch.from_numpy(found.actions).flatten() for found in (chunk, expected))
                assert torch.nn.functional.cosine_similarity(one, other, dim=0) > (0.9999 if precision else 0.99)
                assert all(value > 0 for value in chunk.timing_ms.values())


def test_the_motion_prior_can_be_looked_at(runs: Path, demonstrations: Path) -> None:
    observation = observed(demonstrations, 0, 4)
    predictor = MotionPredictor(runs / "motion")
    images = dict(observation.images)
    one = predictor.points(images, observation.instruction, samples=1, seed=0)
    black = {name: np.zeros_like(image) for name, image in images.items()}
    assert one.shape[-1] == 3 and np.isfinite(one).all()
    assert not np.array_equal(one, predictor.points(black, observation.instruction, samples=1, seed=0))


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
        pytest.param(
            {"cameras": (("agentview", SIDE),)},
            r"its cameras is .*, here it is \[\['agentview', 64\]\]",
            marks=pytest.mark.slow,
        ),
        ({"prompt": RELEASE_PROMPT, "text_tokens": 60}, "its prompt is '{instruction}', here it is 'Your task is"),
        pytest.param(
            {"padding": LeftPadding()},
            "its padding is 'RightPadding', here it is 'LeftPadding'",
            marks=pytest.mark.slow,
        ),
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
        train_policy(policy_config(other), demonstrations, tmp_path / "run", unreadable(runs / "motion", tmp_path))


def unreadable(run: Path, tmp_path: Path) -> Path:
    """A copy of a run's checkpoint with everything but weights."""
    copy = Path(shutil.copytree(run / "checkpoint", tmp_path / "unreadable"))
    (copy / "model.safetensors").write_bytes(b"unread")
    return copy


def other_weights(folder: Path) -> Path:
    """Makes a model another one by a single bit."""
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-40] ^= 1
    (folder / "model.safetensors").write_bytes(raw)
    return folder


@pytest.mark.parametrize(
    ("expected", "told"),
    [
        (Expected(vlm="Qwen/Qwen3-VL-4B-Instruct"), r"has vlm '.*tiny-qwen'; expected 'Qwen/Qwen3-VL-4B-Instruct'"),
        (Expected(feature_layer="PostNorm"), "has feature_layer 'PreNorm'; expected 'PostNorm'"),
        (Expected(image_sizes=((SIDE, SIDE), (SIDE, 96))), r"has image_sizes .*; expected .*\(64, 96\)"),
        (
            Expected(cameras=("wrist", "agentview")),
            r"has cameras \('agentview', 'wrist'\); expected \('wrist', 'agentview'\)",
        ),
        (Expected(cameras=("agentview",)), r"expected \('agentview',\)"),
        (Expected(chunk=10), "has chunk 5; expected 10"),
        (Expected(grid=(20, 20)), r"has grid \(4, 4\); expected \(20, 20\)"),
    ],
)
def test_a_policy_that_is_not_what_is_asked_for_is_refused_before_any_weights_are_read(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: Expected, told: str
) -> None:
    monkeypatch.setattr(qwen3_vl, "_load", lambda *_: pytest.fail("weights of the VLM were read"))
    with pytest.raises(MismatchError, match=told):
        LaMPPolicy.from_checkpoint(unreadable(runs / "policy", tmp_path), expected=expected)


def test_a_model_that_took_the_place_of_the_trained_one_is_refused_before_its_weights_are_loaded(
    runs: Path, qwen_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = unreadable(runs / "policy", tmp_path)
    found = read_description(checkpoint)
    assert isinstance(found.training, PolicyTraining) and isinstance(found.training.backbone, Qwen3VLBackboneConfig)
    other = other_weights(Path(shutil.copytree(qwen_folder, tmp_path / "other")))
    backbone = replace(found.training.backbone, model=str(other))
    replace(found, training=replace(found.training, backbone=backbone)).write(checkpoint)
    monkeypatch.setattr(qwen3_vl, "_load", lambda *_: pytest.fail("weights of the VLM were read"))
    for opened in (LaMPPolicy.from_checkpoint, MotionPredictor):
        with pytest.raises(MismatchError, match=r"its content is '.*', here it is '.*'; load it with the backbone"):
            opened(checkpoint)


def test_more_actions_than_a_chunk_has_are_refused_before_weights_are_read(runs: Path, tmp_path: Path) -> None:
    checkpoint = unreadable(runs / "policy", tmp_path)
    config = EvaluateConfig(checkpoint=checkpoint, suite="fake", states="0:1", execute=6, out=tmp_path / "out")
    with pytest.raises(
        MismatchError, match="has chunks of 5 actions, and 6 are to be executed of each; expected 1 to 5"
    ):
        evaluate(config, simulators=FakeSimulators())


@pytest.fixture(scope="module")
def plain(config: Qwen3VLBackboneConfig, demonstrations: Path, runs: Path) -> Path:
    """The policy without the motion prior."""
    model = replace(MODEL, motion=None, guidance=None)
    training = policy_training(model=model, loop=SHORT, backbone=config)
    train_policy(training, demonstrations, runs / "plain")
    return runs / "plain"


@pytest.mark.slow
def test_an_evaluation_of_two_checkpoints_loads_their_backbone_once(
    runs: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Qwen3VLBackboneConfig] = []
    load = qwen3_vl._load
    monkeypatch.setattr(qwen3_vl, "_load", lambda folder, config: loads.append(config) or load(folder, config))
    config = EvaluateConfig(
        checkpoint=runs / "policy", against=plain, suite="fake", states="0:1", task=(0,), out=tmp_path, workers=1
    )
    summary = evaluate(config, simulators=FakeSimulators())
    assert summary.complete and {record.condition for record in summary.records} == {"with_motion", "without_motion"}
    assert len(loads) == 1
    kept = BackboneCache()
    guided, alone = (LaMPPolicy.from_checkpoint(run, backbone=kept) for run in (runs / "policy", plain))
    assert guided.encoder.backbone is alone.encoder.backbone and len(loads) == 2


def test_checkpoints_of_different_backbones_share_none(
    runs: Path, demonstrations: Path, config: Qwen3VLBackboneConfig, tmp_path: Path
) -> None:
    other = replace(config, layer=PostNorm())
    ensure_features(demonstrations, other)
    model = replace(MODEL, motion=None, guidance=None)
    train_policy(policy_training(model=model, loop=SHORT, backbone=other), demonstrations, tmp_path / "other")
    kept = BackboneCache()
    one, two = kept.of(runs / "policy"), kept.of(tmp_path / "other")
    assert one is not two and one.key != two.key and kept.of(runs / "motion") is one


def test_a_run_goes_on_with_a_copy_of_the_model(
    runs: Path, demonstrations: Path, config: Qwen3VLBackboneConfig, qwen_folder: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(runs / "motion", tmp_path / "motion"))
    copy = Path(shutil.copytree(qwen_folder, tmp_path / "copy"))
    result = train_motion(motion_config(replace(config, model=str(copy))), demonstrations, run)
    assert result.outcome.finished and result.outcome.samples_per_s == 0
    with pytest.raises(MismatchError, match=r"training\.backbone\.layer\.type = 'PreNorm', now it is 'PostNorm'"):
        ensure_features(demonstrations, replace(config, layer=PostNorm()))
        train_motion(motion_config(replace(config, layer=PostNorm())), demonstrations, run)


BOTH = (
    "--backbone.cameras agentview 64 wrist 96 --backbone.text-tokens 6 --loop.device cpu --loop.threads 1 --loop.steps 2 "
    "--loop.batch-size 4 --validation-samples 2 --split.validation-share 0.3 --model.token-width 32 "
    "--model.motion.token-width 32 --model.motion.width 16 --model.motion.layers 2 --model.motion.heads 2 "
    "--model.motion.frames-per-token 2 --model.motion.time-channels 16"
)
GRID = "--model.motion.grid 4 4 --model.motion.horizon 4"
FIRST = "--flow-stride 2 --final-samples 2"
SECOND = (
    "--model.guidance.token-width 32 --model.guidance.motion-width 16 --model.guidance.heads 2 "
    "--model.action.token-width 32 --model.action.width 16 --model.action.layers 2 --model.action.heads 2"
)


class TestPaperRecipe:
    """`lamp train` and the paper's recipe, on a machine without a hub."""

    @pytest.fixture
    def start(self, demonstrations: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
        def fail(*_: object, **__: object) -> str:
            raise ConnectionError("[Errno -2] Name or service not known\nand more")

        for name in ("model_info", "snapshot_download"):
            monkeypatch.setattr(f"huggingface_hub.{name}", fail)

        def run(stage: str, out: Path, *flags: object) -> int:
            words = ["--recipe", "paper_libero", "--data", demonstrations, "--out", out]
            return cli.main(["train", stage, *map(str, words), *" ".join(map(str, flags)).split()])

        return run

    def test_both_stages_start_from_a_local_folder(
        self, start: Callable[..., int], qwen_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        local = f"--backbone.model {qwen_folder}"
        assert start("motion", tmp_path / "motion", local, BOTH, FIRST, GRID) == 0
        assert read_description(tmp_path / "motion").backbone.description["model"] == str(qwen_folder)
        assert start("policy", tmp_path / "policy", local, BOTH, SECOND, GRID, "--motion", tmp_path / "motion") == 0
        assert read_description(tmp_path / "policy").model.guidance is not None
        resize = ["resize", f"{tmp_path}/motion", f"{tmp_path}/fine"]
        assert cli.main([*resize, "--grid", "8", "--horizon", "8", "--pace", "0.5"]) == 0
        assert "fine: 8x8 points, 8 flow steps of 1 frames" in capsys.readouterr().out
        assert start("policy", tmp_path / "policy-fine", local, BOTH, SECOND, "--motion", tmp_path / "fine") == 0
        assert f"as {tmp_path}/fine was resized: 8x8 points, 8 flow steps" in capsys.readouterr().err
        resized = read_description(tmp_path / "policy-fine").model.motion
        assert resized is not None and resized.reference is not None
        assert (resized.grid, resized.horizon, resized.reference.grid) == ((8, 8), 8, (4, 4))

    def test_without_a_hub_it_says_what_to_do(
        self, start: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for stage in ("motion", "policy"):
            assert start(stage, tmp_path / "run", "--loop.device cpu") == 2
            told = capsys.readouterr().err.splitlines()[-1]
            assert told.startswith(
                "lamp: no folder Qwen/Qwen3-VL-4B-Instruct, and the model hub does not give it at revision"
            )
            assert "([Errno -2] Name or service not known" in told
            assert "--backbone.model FOLDER" in told and "$LAMP_MODELS/Qwen/Qwen3-VL-4B-Instruct" in told
        assert not (tmp_path / "run").exists()

    def test_a_model_of_another_size_is_refused_before_it_sees_anything(
        self,
        start: Callable[..., int],
        qwen_folder: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(qwen3_vl, "_load", lambda *_: pytest.fail("weights of the VLM were read"))
        assert start("motion", tmp_path / "run", f"--loop.device cpu --backbone.model {qwen_folder}") == 2
        assert "tokens are 32 wide, the model's token_width is 2560" in capsys.readouterr().err

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU on this machine")
    def test_without_a_gpu_it_says_so_first(
        self, start: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert start("motion", tmp_path / "run") == 2
        assert capsys.readouterr().err == (
            "lamp: device 'cuda' given, and this machine has no GPU; expected --loop.device cpu.\n"
        )
        assert start("motion", tmp_path / "run", "--loop.device gpu") == 2
        assert "device 'gpu' given; expected cpu, cuda" in capsys.readouterr().err

    def test_features_alone(
        self, start: Callable[..., int], demonstrations: Path, qwen_folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["cache", "features", str(demonstrations), "--recipe", "paper_libero"]
        assert cli.main(words) == 2
        assert "--backbone.model FOLDER" in capsys.readouterr().err
        cameras = ["--backbone.cameras", "agentview", "64", "--backbone.text-tokens", "7"]
        assert cli.main([*words, "--backbone.model", str(qwen_folder), *cameras]) == 0
        asked = paper_libero().backbone
        assert isinstance(asked, Qwen3VLBackboneConfig)
        seen = replace(asked, model=str(qwen_folder), cameras=(("agentview", 64),), text_tokens=7)
        assert FeatureCache.is_complete(LeRobotDataset(demonstrations), backbone_key(seen))


def test_a_copy_of_the_model_serves_and_another_model_does_not(
    runs: Path, demonstrations: Path, config: Qwen3VLBackboneConfig, qwen_folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(qwen_folder, tmp_path / "copy"))
    backbone = build_backbone(replace(config, model=str(copy)))
    policy = LaMPPolicy.from_checkpoint(runs / "policy", backbone=backbone)
    assert policy.act(observed(demonstrations, 0, 4), noise_seed=(1,)).actions.shape == (5, 7)
    other_weights(copy)
    with pytest.raises(MismatchError, match=r"backbone_key .*its content is '[0-9a-f]{12}', here it is"):
        LaMPPolicy.from_checkpoint(runs / "policy", backbone=build_backbone(replace(config, model=str(copy))))
