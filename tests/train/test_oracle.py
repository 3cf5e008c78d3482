"""The oracle: z_m of the TRUE motion to come, in training, in its cache, and never mistaken for a policy's own prior."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_fakes import CAMERAS, HORIZON, SIDE, PatchBackbone, loop, motion_training, policy_training

from lamp import cli, info
from lamp.commands import feature_caches as caching
from lamp.commands.feature_caches import CacheRequest, fill_caches
from lamp.configuration import from_json, to_json
from lamp.data.feature_cache.cache import FeatureCache, HiddenStates
from lamp.data.lerobot import LeRobotDataset
from lamp.errors import ConfigError, DataError, MismatchError
from lamp.model.lamp import LaMP
from lamp.policy import LaMPPolicy
from lamp.sceneflow.store import CameraFlow, SceneFlowStore
from lamp.sceneflow.tracks import Supervision, flow_from_tracks, retime
from lamp.serve.policy_spec import open_checkpoint
from lamp.train.checkpoint import load_checkpoint
from lamp.train.checkpoint_metadata import read_description
from lamp.train.config import MixedIn, PolicyTraining
from lamp.train.model_card import Publication, model_card
from lamp.train.released.export import export_released
from lamp.train.run_folder import TrainingResult
from lamp.train.train_motion import train_motion
from lamp.train.train_policy import train_policy
from lamp_client.types import Observation

BACKBONE = PatchBackbone()
SHORT = loop(steps=4, checkpoint_every=2, validate_every=4)
ORACLE = policy_training(loop=SHORT, prior="oracle")


@pytest.fixture(scope="module")
def prior(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stage1") / "motion"
    train_motion(motion_training(loop=loop(steps=3)), data, out, backbone=BACKBONE)
    return out


def train(config: PolicyTraining, data: Path, out: Path, prior: Path | None, **more: Any) -> TrainingResult:
    return train_policy(config, data, out, prior, backbone=BACKBONE, **more)


def copied(data: Path, to: Path) -> Path:
    """The dataset, to be changed."""
    shutil.copytree(data, to)
    return to


def rewritten(data: Path, **changes: Any) -> None:
    """Makes the scene flow of the dataset anew, its store described otherwise."""
    store = SceneFlowStore(data / "sceneflow")
    description = replace(store.description, **changes)
    flows = {}
    for episode in store.episodes:
        frames = store.frames(episode)[:: description.every]
        flows[episode] = frames, *store.read(episode, frames)
    shutil.rmtree(data / "sceneflow")
    made = SceneFlowStore.create(data / "sceneflow", description)
    for episode, (frames, tracks, camera) in flows.items():
        made.write(episode, {"agentview": CameraFlow(frames=frames, tracks=tracks, camera=camera)})


def test_z_m_is_the_hidden_state_on_the_true_motion(
    data: Path, prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: dict[tuple[int, int], np.ndarray] = {}
    take = HiddenStates.take

    def watched(self: Any, samples: np.ndarray, draws: np.ndarray, views: Any) -> np.ndarray:
        found = take(self, samples, draws, views)
        places = zip(self._episode[samples].tolist(), self._place[samples].tolist(), found, strict=True)
        taken.update({(episode, place): values for episode, place, values in places})
        assert self.draws == 1
        return found

    monkeypatch.setattr(HiddenStates, "take", watched)
    monkeypatch.setattr(LaMP, "motion_hidden", lambda *_, **__: pytest.fail("z_m of noise is computed"))
    result = train(replace(ORACLE, cached_hidden_draws=3), data, tmp_path / "run", prior)
    assert result.description.prior == "oracle" and len({episode for episode, _ in taken}) >= 4
    model, motion = load_checkpoint(prior)
    assert motion.flow is not None
    dataset, store = LeRobotDataset(data), SceneFlowStore(data / "sceneflow")
    features = FeatureCache(dataset, BACKBONE.key)
    for (episode, place), values in list(taken.items())[::7]:
        frame = np.flatnonzero(dataset.fresh(episode))[place]
        tracks, camera = store.read(episode, [int(frame)])
        flow = flow_from_tracks(retime(tracks, stride=2, horizon=4), camera)
        motion_values = motion.flow.bounds.motion(flow).values
        # The upper half of the grid moves, as far as the episode goes.
        assert bool(motion_values.any()) == (frame + 2 < 24)
        encoded = features.encoded(features.index.rows(episode, np.array([frame])))
        with torch.no_grad():
            wanted = model.motion_expert.hidden(motion_values, 0.99, encoded)[0]  # pyright: ignore[reportOptionalMemberAccess]
        torch.testing.assert_close(torch.from_numpy(values).float(), wanted, atol=2e-3, rtol=2e-3)


@pytest.mark.long
def test_what_a_checkpoint_says(data: Path, prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, config in (("oracle", ORACLE), ("real", policy_training(loop=SHORT))):
        train(config, data, tmp_path / name, prior)
    oracle, real = (read_description(tmp_path / name) for name in ("oracle", "real"))
    assert (oracle.prior, real.prior, read_description(prior).prior) == ("oracle", "predicted", None)
    described = [info.describe(tmp_path / name)["checkpoint"]["prior"] for name in ("oracle", "real")]
    assert described[0].startswith("oracle: trained with the TRUE motion") and described[1].startswith("predicted")
    # An older checkpoint has no such field.
    plain = to_json(real)
    del plain["training"]["prior"], plain["training"]["scene_flow"], plain["flow"]["supervision"]
    assert from_json(type(real), plain, where="old").prior == "predicted"
    assert "It is an oracle" in model_card(oracle, Publication()) and "lamp serve" not in model_card(
        oracle, Publication()
    )
    assert "oracle" not in model_card(real, Publication()).replace("'prior': 'predicted'", "")
    with pytest.raises(
        MismatchError, match=r"oracle was trained with --prior oracle: .* `lamp evaluate --prior oracle`"
    ):
        open_checkpoint(tmp_path / "oracle", device="cpu", threads=1)
    with pytest.raises(MismatchError, match="--prior oracle"):
        export_released(tmp_path / "oracle", tmp_path / "exported")
    assert cli.main(["serve", str(tmp_path / "oracle")]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert "was trained with --prior oracle" in told[-1] and "Traceback" not in "".join(told)
    # What a fine-tune began with is noted.
    tuned = train(policy_training(loop=SHORT), data, tmp_path / "tuned", None, start=tmp_path / "oracle").description
    assert tuned.started_from is not None and (tuned.started_from.prior, tuned.prior) == ("oracle", "predicted")


def test_the_oracle_continues_and_neither_kind_goes_on_with_the_other(data: Path, prior: Path, tmp_path: Path) -> None:
    train(ORACLE, data, tmp_path / "run", prior)
    assert not (tmp_path / "run" / "hidden").exists()
    with pytest.raises(MismatchError, match=r"training\.prior = 'oracle', now it is 'predicted'"):
        train(policy_training(loop=SHORT), data, tmp_path / "run", prior)
    longer = replace(ORACLE, loop=replace(SHORT, steps=6))
    assert train(longer, data, tmp_path / "run", prior).outcome.step == 6


@pytest.mark.slow
def test_its_cache_is_its_own_and_follows_the_scene_flow(
    data: Path, prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "find_backbone", lambda config: BACKBONE)
    monkeypatch.setattr(caching, "ensure_features", lambda *_, **__: None)
    own = copied(data, tmp_path / "own")

    def filled(config: PolicyTraining) -> Path:
        request = CacheRequest(datasets=(MixedIn(data=str(own)),), settings=config, motion=prior)
        return fill_caches(request)[1]

    real = filled(replace(ORACLE, prior="predicted", cached_hidden_draws=1))
    oracle = filled(ORACLE)
    assert real != oracle
    assert filled(replace(ORACLE, loop=replace(SHORT, seed=9), cached_hidden_draws=4)) == oracle, "it has no noise"
    values = {path.name: load_file(path)["hidden"] for path in oracle.glob("*.safetensors")}
    assert len(values) == 6 and all(one.shape[0] == 1 for one in values.values())
    with monkeypatch.context() as patch:
        patch.setattr(
            "lamp.train.motion_feature_cache.cache_hidden_states", lambda *_, **__: pytest.fail("z_m is stored")
        )
        train(ORACLE, own, tmp_path / "run", prior)
    # Other scene flow of one episode makes that one's z_m stale.
    store = SceneFlowStore(own / "sceneflow")
    before = store.fingerprint(2)
    frames = store.frames(2)
    tracks, camera = store.read(2, frames)
    still = replace(tracks, points=tracks.points[:, :, :1].expand_as(tracks.points).contiguous())
    store.write(2, {"agentview": CameraFlow(frames=frames, tracks=still, camera=camera)})
    assert store.fingerprint(2) != before
    with pytest.raises(MismatchError, match=r"episode-000002\.safetensors was made from other data.*--prior oracle"):
        train(ORACLE, own, tmp_path / "second", prior)
    assert filled(ORACLE) == oracle
    changed = {path.name: load_file(path)["hidden"] for path in oracle.glob("*.safetensors")}
    assert [name for name in changed if not torch.equal(changed[name], values[name])] == ["episode-000002.safetensors"]
    listed = [line for line in info.describe(own)["caches"] if line["kind"] == "z_m"]
    assert {"oracle" in line["of"] for line in listed} == {True, False}


def test_what_is_missing_is_named(data: Path, prior: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"prior is 'oracle', but model.motion is None.*--motion CHECKPOINT"):
        policy_training(with_motion=False, prior="oracle")
    out = tmp_path / "run"
    own = copied(data, tmp_path / "without")
    shutil.rmtree(own / "sceneflow")
    with pytest.raises(DataError, match="no scene-flow store at"):
        train(ORACLE, own, out, prior)
    sparse = copied(data, tmp_path / "sparse")
    rewritten(sparse, every=2)
    with pytest.raises(DataError, match=r"no scene flow from frame 2 of episode 0 on; .* --every 1"):
        train(ORACLE, sparse, out, prior)
    lacking = copied(data, tmp_path / "lacking")
    shutil.rmtree(lacking / "sceneflow" / "episode-000003")
    with pytest.raises(DataError, match="episode 3 is not in the scene-flow store"):
        train(ORACLE, lacking, out, prior)
    with pytest.raises(ConfigError, match="sceneflow-x"):
        train(replace(ORACLE, scene_flow="sceneflow-x"), data, out, prior)
    assert not (out / "checkpoint").exists()


def test_hidden_steps_count_as_in_stage_1(data: Path, tmp_path: Path) -> None:
    """A Motion Expert that learnt hidden steps gets them from its oracle, too."""
    seen = tmp_path / "motion"
    config = motion_training(loop=loop(steps=2), supervision=Supervision(hidden_points=True))
    train_motion(config, data, seen, backbone=BACKBONE)
    result = train(ORACLE, data, tmp_path / "run", seen)
    assert result.description.flow is not None and result.description.flow.supervision.hidden_points


def test_it_acts_on_the_true_motion_alone(data: Path, prior: Path, tmp_path: Path) -> None:
    train(ORACLE, data, tmp_path / "run", prior)
    policy = LaMPPolicy.from_checkpoint(tmp_path / "run", backbone=BACKBONE)
    random = np.random.default_rng(0)
    images = {camera: random.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8) for camera in CAMERAS}
    seen = Observation(images=images, state=np.zeros(8, np.float32), instruction="task 0")
    motion = random.uniform(-0.01, 0.01, (16, HORIZON, 3)).astype(np.float32)
    motion[3, 2:] = np.nan
    with pytest.raises(MismatchError, match=r"run was trained with --prior oracle: it needs the TRUE motion"):
        policy.act(seen)
    with pytest.raises(MismatchError, match="true_motion is given; expected for a policy's `oracle"):
        policy.act_batch([seen], [(1,)], true_motion=[motion])
    for told in (policy.oracle(), policy.compile().oracle()):
        with pytest.raises(MismatchError, match="true_motion is missing"):
            told.act_batch([seen], [(1,)])
        with pytest.raises(MismatchError, match=r"true_motion of shapes \[\(16, 3, 3\)\]; expected 1 of \(16, 4, 3\)"):
            told.act_batch([seen], [(1,)], true_motion=[motion[:, :3]])
        both = told.act_batch([seen, seen], [(1,), (1,)], true_motion=[motion, np.zeros_like(motion)], foresight=True)
        again = told.act_batch([seen], [(1,)], true_motion=[motion])[0]
        np.testing.assert_allclose(both[0].actions, again.actions, atol=1e-5)
        assert not np.allclose(both[0].actions, both[1].actions, atol=1e-5), "another motion, other actions"
        # What is drawn is the motion that was told, as far as the bounds go.
        assert policy.foresees is not None and both[0].foresight is not None and both[1].foresight is not None
        bounds = policy.foresees.bounds
        clamped = np.clip(np.nan_to_num(motion), bounds.low, bounds.high)
        np.testing.assert_allclose(np.diff(both[0].foresight, axis=1), clamped, atol=1e-5)
        assert not np.diff(both[1].foresight, axis=1).any()
    with pytest.raises(MismatchError, match="this policy has none"):
        train(policy_training(with_motion=False, loop=SHORT), data, tmp_path / "plain", None)
        LaMPPolicy.from_checkpoint(tmp_path / "plain", backbone=BACKBONE).oracle()


def test_the_command_line(data: Path, prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["train", "policy", "--recipe", "demo", "--data", str(data), "--out", str(tmp_path / "x")]
    assert cli.main([*line, "--prior", "oracle"]) == 2
    assert "give --motion CHECKPOINT" in capsys.readouterr().err
    assert cli.main([*line, "--prior", "true"]) == 2
    assert "oracle" in capsys.readouterr().err
