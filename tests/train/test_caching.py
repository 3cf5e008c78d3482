"""`lamp cache features` and what training makes of it: the same numbers as without, views by epoch, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from training_fakes import CAMERAS, SIDE, PatchBackbone, loop, motion_training, policy_training, write_dataset

from lamp import cli
from lamp.commands import feature_caches as caching
from lamp.commands.feature_caches import CacheRequest, check_caches, fill_caches
from lamp.data.augmentation import NO_AUGMENTATION, Augmentation
from lamp.data.feature_cache.cache import FeatureCache, HiddenStates
from lamp.data.feature_cache.shards import read_header
from lamp.data.feature_cache.work_sharing import Workers
from lamp.data.lerobot import LeRobotDataset
from lamp.data.policy_dataset import PolicySamples
from lamp.errors import ConfigError, MismatchError
from lamp.json_files import read_lines_json
from lamp.model.small import SmallBackbone, SmallBackboneConfig
from lamp.train.backbones import Caching, ensure_features
from lamp.train.config import MixedIn, PolicyTraining
from lamp.train.train_motion import train_motion
from lamp.train.train_policy import train_policy
from lamp.types import Encoded

BACKBONE = PatchBackbone()
SHORT = loop(steps=6, batch_size=8, checkpoint_every=3)
AUGMENTED = Augmentation(views=2)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A dataset of the test's own."""
    return write_dataset(tmp_path / "demonstrations", episodes=4)


@pytest.fixture
def prior(data: Path, tmp_path: Path) -> Path:
    """A Stage-1 run."""
    train_motion(motion_training(loop=loop(steps=2)), data, tmp_path / "motion", backbone=BACKBONE)
    return tmp_path / "motion"


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backbone that settings name is the tests' own."""
    monkeypatch.setattr(caching, "find_backbone", lambda config: BACKBONE)
    monkeypatch.setattr(caching, "ensure_features", ensure)


def ensure(
    dataset: LeRobotDataset,
    config: object,
    *,
    augmentation: Augmentation = NO_AUGMENTATION,
    root: Path | None = None,
    caching: Caching,
) -> None:
    FeatureCache.build(dataset, BACKBONE, augmentation=augmentation, root=root, storage=caching.storage)


def train(
    config: PolicyTraining, data: Path, out: Path, prior: Path | None = None, features: Path | None = None
) -> list[float]:
    """Trains, and returns the losses."""
    train_policy(config, data, out, prior, backbone=BACKBONE, features=features)
    lines = read_lines_json(out / "metrics.jsonl")
    return [line["loss"] for line in lines]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoint" / "model.safetensors")


def from_pictures(self: FeatureCache, rows: np.ndarray, views: np.ndarray | None = None) -> Encoded:
    """What a training without a cache does: decode, draw the view, encode."""
    numbers = np.zeros(len(rows), np.int64) if views is None else views
    images: dict[str, list[torch.Tensor]] = {camera: [] for camera in CAMERAS}
    tasks = []
    for row, view in zip(rows.tolist(), numbers.tolist(), strict=True):
        episode, frames = int(self.index.episode[row]), self.index.frame[row : row + 1]
        decoded = {camera: self.dataset.frames(camera, episode, frames) for camera in CAMERAS}
        drawn = self.augmentation.view(view, decoded, episode=episode, frames=frames)
        for camera, image in drawn.items():
            images[camera].append(torch.from_numpy(image))
        tasks.append(self.dataset.episode(episode).task)
    tokens = [BACKBONE.image_tokens(camera, torch.cat(of)) for camera, of in images.items()]
    text, mask = BACKBONE.text_tokens(tasks)
    seen = torch.ones(len(rows), sum(part.shape[1] for part in tokens), dtype=torch.bool)
    return Encoded(tokens=torch.cat([*tokens, text], 1), mask=torch.cat([seen, mask], 1))


@pytest.mark.long
@pytest.mark.parametrize(
    "augmentation",
    [pytest.param(NO_AUGMENTATION, id="plain"), pytest.param(AUGMENTED, id="augmented", marks=pytest.mark.slow)],
)
def test_training_with_the_cache_is_training_without(
    data: Path, prior: Path, tmp_path: Path, augmentation: Augmentation, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, exact = policy_training(loop=SHORT, augmentation=augmentation), tmp_path / "exact"
    FeatureCache.build(LeRobotDataset(data), BACKBONE, augmentation=augmentation, root=exact, storage="float32")
    losses = train(config, data, tmp_path / "cached", prior, features=exact)
    FeatureCache.build(LeRobotDataset(data), BACKBONE, augmentation=augmentation)
    rounded = train(config, data, tmp_path / "rounded", prior)
    monkeypatch.setattr(FeatureCache, "encoded", from_pictures)
    assert train(config, data, tmp_path / "uncached", prior, features=exact) == losses
    one, other = weights(tmp_path / "cached"), weights(tmp_path / "uncached")
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert rounded == pytest.approx(losses, rel=1e-3) and rounded != losses, "float16 is near, and not the same"


@pytest.mark.slow
def test_each_sample_is_seen_in_another_view_at_another_epoch_and_validation_in_none(
    data: Path, prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FeatureCache.build(LeRobotDataset(data), BACKBONE, augmentation=AUGMENTED)
    asked: list[tuple[np.ndarray, np.ndarray | None]] = []
    real = FeatureCache.encoded

    def encoded(self: FeatureCache, rows: np.ndarray, views: np.ndarray | None = None) -> Encoded:
        asked.append((rows, views))
        return real(self, rows, views)

    monkeypatch.setattr(FeatureCache, "encoded", encoded)
    config = policy_training(loop=loop(steps=20, batch_size=8, validate_every=10), augmentation=AUGMENTED)
    losses = train(config, data, tmp_path / "run", prior)
    seen: dict[int, set[int]] = {}
    for rows, views in asked:
        for row, view in zip(rows, views if views is not None else [], strict=False):
            seen.setdefault(int(row), set()).add(int(view))
    assert set.union(*seen.values()) == {0, 1, 2} and max(map(len, seen.values())) > 1
    plain = {int(row) for rows, views in asked if views is None for row in rows}
    assert plain and not plain & set(seen), "held-out episodes are seen as they are"
    assert train(config, data, tmp_path / "again", prior) == losses
    other = train(replace(config, augmentation=NO_AUGMENTATION), data, tmp_path / "plain", prior)
    assert other != losses


def request(config: PolicyTraining, data: Path, prior: Path | None, processes: int = 1) -> CacheRequest:
    workers = Workers(processes=processes)
    return CacheRequest(
        datasets=(MixedIn(data=str(data)),), settings=config, motion=prior, caching=Caching(workers=workers)
    )


@pytest.mark.long
@pytest.mark.parametrize(
    "augmentation",
    [pytest.param(NO_AUGMENTATION, id="plain", marks=pytest.mark.slow), pytest.param(AUGMENTED, id="augmented")],
)
def test_stored_z_m_is_what_the_run_would_compute(
    data: Path, prior: Path, tmp_path: Path, augmentation: Augmentation, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = policy_training(loop=SHORT, augmentation=augmentation, cached_hidden_draws=2)
    FeatureCache.build(LeRobotDataset(data), BACKBONE, augmentation=augmentation)
    losses = train(config, data, tmp_path / "own", prior)
    features, hidden = fill_caches(request(config, data, prior))
    assert hidden.parent == features / "hidden"
    reports = list(check_caches(request(config, data, prior)))
    assert [report.ok for report in reports] == [True, True] and [report.folder for report in reports] == [
        features,
        hidden,
    ]
    taken: list[tuple[int, int]] = []
    take = HiddenStates.take

    def watched(self: HiddenStates, samples: np.ndarray, draws: np.ndarray, views: np.ndarray | None) -> np.ndarray:
        taken.extend(zip(draws.tolist(), [0] * len(draws) if views is None else views.tolist(), strict=True))
        return take(self, samples, draws, views)

    monkeypatch.setattr(HiddenStates, "take", watched)
    monkeypatch.setattr(
        "lamp.train.motion_feature_cache.cache_hidden_states", lambda *_, **__: pytest.fail("z_m is stored")
    )
    assert train(config, data, tmp_path / "stored", prior) == losses
    assert set(taken) == {(draw, view) for draw in range(2) for view in range(1 + augmentation.views)}
    fewer = replace(config, cached_hidden_draws=1)
    train(fewer, data, tmp_path / "fewer", prior)


@pytest.mark.slow
def test_two_processes_make_the_z_m_that_one_makes(data: Path, prior: Path, tmp_path: Path) -> None:
    config = policy_training(loop=SHORT, cached_hidden_draws=2)
    _, one = fill_caches(request(config, data, prior))
    kept = {path.name: (read_header(path), load_file(path)["hidden"]) for path in one.glob("*.safetensors")}
    shutil.rmtree(one)
    _, two = fill_caches(request(config, data, prior, processes=2))
    assert one == two and len(kept) == 4
    for name, (header, values) in kept.items():
        assert read_header(two / name) == header and torch.equal(load_file(two / name)["hidden"], values)
        assert values.shape[0] == 2 and not torch.equal(values[0], values[1])


def test_stale_z_m_is_refused_and_that_of_other_settings_left_alone(
    data: Path, prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = policy_training(loop=SHORT, cached_hidden_draws=2)
    _, hidden = fill_caches(request(config, data, prior))
    told = capsys.readouterr().err
    assert "48/48 frames" in told and "4 of 4 episodes" in told
    out = tmp_path / "run"
    train(replace(config, loop=replace(SHORT, seed=3)), data, out, prior)
    told = capsys.readouterr().err
    assert f"z_m is computed for this run alone; {hidden} holds another: seed is 0 stored, 3 requested" in told
    train_motion(motion_training(loop=loop(steps=3)), data, tmp_path / "other", backbone=BACKBONE)
    train(config, data, tmp_path / "second", tmp_path / "other")
    assert re.search(r"motion weights is '[0-9a-f]{64}' stored, '[0-9a-f]{64}' requested", capsys.readouterr().err)
    with pytest.raises(Exception, match=r"lacks 3 of 4 episodes; complete it with `lamp cache features .* --motion"):
        train(replace(config, cached_hidden_draws=3), data, tmp_path / "third", prior)
    path = hidden / "episode-000001.safetensors"
    save_file(load_file(path), path, metadata={**read_header(path), "fingerprint": "other"})
    with pytest.raises(MismatchError, match=r"000001\.safetensors was made from other data .*fingerprint other stored"):
        train(config, data, tmp_path / "fourth", prior)
    (report,) = [report for report in check_caches(request(config, data, prior)) if report.folder == hidden]
    assert not report.ok and report.episodes == {"current": 3, "stale": 1}
    shutil.rmtree(hidden.parent)
    train(config, data, tmp_path / "fifth", prior)
    with pytest.raises(ConfigError, match="no draws of z_m are asked for; expected --cached-hidden-draws"):
        fill_caches(request(replace(config, cached_hidden_draws=0), data, prior))


def test_samples_know_their_views(data: Path) -> None:
    dataset = LeRobotDataset(data)
    features = FeatureCache.build(dataset, BACKBONE, augmentation=AUGMENTED)
    from lamp.train.datasets import Sources, fit_scaling

    config = policy_training(augmentation=AUGMENTED)
    sources = Sources.open(data, BACKBONE.key, config.split, token_width=16, augmentation=AUGMENTED)
    made = {"episodes": (0, 1), "chunk": 4, "scaling": fit_scaling(config, sources)}
    augmented, plain = (PolicySamples(dataset, features, **made, view_seed=seed) for seed in (5, None))
    indices = np.arange(len(augmented))
    first, second = (augmented.views(indices, epoch=epoch) for epoch in (0, 1))
    assert first is not None and second is not None and (first != second).any() and set(first) == {0, 1, 2}
    again = augmented.views(indices[::-1].copy(), epoch=0)
    assert again is not None and (again[::-1] == first).all()
    assert plain.views(indices, epoch=0) is None and (plain.view_count, augmented.view_count) == (0, 2)
    batch, other = augmented.batch(indices, epoch=0), plain.batch(indices, epoch=0)
    same = (batch.encoded.tokens == other.encoded.tokens).flatten(1).all(1)
    assert (same.numpy() == (first == 0)).all()


class TestCommand:
    """`lamp cache features` and `lamp train`, with the embedded backbone's class faked."""

    @pytest.fixture(autouse=True)
    def patches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()
        monkeypatch.setattr("lamp.model.small.SmallBackbone", Fake)

    @pytest.fixture
    def run(self, data: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
        shutil.rmtree(data / "features")

        def call(*words: object) -> tuple[int, str, str]:
            code = cli.main(list(map(str, words)))
            told = capsys.readouterr()
            return code, told.out, told.err

        return call

    def test_several_datasets_go_to_one_folder(
        self, run: Callable[..., tuple[int, str, str]], data: Path, tmp_path: Path
    ) -> None:
        other = Path(shutil.copytree(data, tmp_path / "other"))
        words = ("cache", "features", data, f"{other}=lamp", "--out", tmp_path / "disk", "--processes", 1)
        code, out, err = run(*words)
        assert code == 0 and not (data / "features").exists()
        for name in (data.name, other.name):
            assert f"{tmp_path}/disk/{name}/fake" in out
        assert (
            "48 frames of 4 episodes, about 0.0532 MB, to" in err and "48/48 frames" in err and "4 of 4 episodes" in err
        )
        assert run(*words)[2] == ""
        twin = Path(shutil.copytree(data, tmp_path / "twin" / data.name))
        code, _, err = run("cache", "features", data, twin, "--out", tmp_path / "disk")
        assert code == 2 and "in one folder" in err and "expected datasets of different names" in err
        assert "no dataset is given" in run("cache", "features")[2]

    def test_check_names_what_is_wrong(self, run: Callable[..., tuple[int, str, str]], data: Path) -> None:
        words = ("cache", "features", data, "--augmentation.views", 1, "--processes", 1)
        assert "there are no features of the backbone fake" in run(*words, "--check")[2]
        assert run(*words)[0] == 0
        code, out, _ = run(*words, "--check", "--json")
        (found,) = json.loads(out)
        assert code == 0 and found["ok"] and found["episodes"] == {"current": 8}
        path = data / "features/fake/episode-000002.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 0xFF
        path.write_bytes(content)
        code, out, _ = run(*words, "--check")
        assert code == 1 and f"{path} is not a whole file (episode 2)" in out
        code, out, _ = run("info", data / "features/fake", "--json")
        told = json.loads(out)
        assert (told["episodes"], told["storage"], told["views"][0]["episodes"]) == (4, "float16", 4)

    def test_training_completes_an_unfinished_cache_and_makes_another_beside_it(
        self, run: Callable[..., tuple[int, str, str]], data: Path
    ) -> None:
        config = SmallBackboneConfig(text_tokens=24)
        ensure_features(data, config, caching=Caching(workers=Workers()))
        (data / "features/fake/episode-000001.safetensors").unlink()
        ensure_features(data, config, caching=Caching(workers=Workers(), refresh=False))
        path = data / "features/fake/episode-000001.safetensors"
        save_file(load_file(path), path, metadata={**read_header(path), "fingerprint": "other"})
        with pytest.raises(
            MismatchError, match=r"was made from other data .*bring it up to date with `lamp cache features"
        ):
            ensure_features(data, config, caching=Caching(refresh=False))
        first = path.stat().st_mtime_ns
        ensure_features(data, SmallBackboneConfig(text_tokens=7), caching=Caching(workers=Workers(), refresh=False))
        assert sorted(one.name for one in (data / "features").glob("[a-z]*")) == ["fake", "other"]
        assert path.stat().st_mtime_ns == first and FeatureCache.is_complete(LeRobotDataset(data), "other")


class Fake(PatchBackbone, SmallBackbone):  # pyright: ignore[reportIncompatibleVariableOverride]
    """In the embedded backbone's place; its key tells whether there are seven text tokens, of which it has two."""

    varying_channels = slice(0, PatchBackbone.width)  # pyright: ignore

    def __init__(self, config: SmallBackboneConfig) -> None:
        torch.nn.Module.__init__(self)
        self.config = config
        self.key: str = "fake" if config.text_tokens != 7 else "other"
        cameras = [[name, SIDE] for name in CAMERAS]
        self.description = {"kind": "small", "cameras": cameras, "text_tokens": config.text_tokens}

    def constant_tokens(self, camera: str) -> torch.Tensor:
        return torch.zeros(16, self.width)

    def instruction_ids(self, instruction: str) -> tuple[int, ...]:
        return tuple(map(ord, instruction))

    def unknown_words(self, instruction: str) -> tuple[str, ...]:
        return ()
