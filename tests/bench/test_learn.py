"""What `lamp bench learn` trains, measures and compares; how soon anything is learnt, no test says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from training_fakes import ACTION, loop, policy_training, write_dataset

import lamp.bench.learn as learn
from lamp.bench.learn import LearnBench, LearningCurve, bench_learn, to_text
from lamp.errors import ConfigError
from lamp.model.action_expert import RidgeBaseline
from lamp.recipes import training


def test_when_an_error_was_reached() -> None:
    curve = LearningCurve(steps=30, points=((10.0, 0.4), (20.0, 0.2), (30.0, 0.1)))
    assert curve.seconds_to(0.3) == pytest.approx(15.0) and curve.seconds_to(0.5) == 10.0
    assert curve.seconds_to(0.05) is None and curve.final_error == 0.1


@pytest.mark.long
def test_both_are_trained_on_the_same_demonstrations_for_as_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_dataset(tmp_path / "data")
    tiny = policy_training(with_motion=False, loop=loop(batch_size=4))
    tiny = replace(tiny, model=replace(tiny.model, action=replace(ACTION, baseline=RidgeBaseline())))
    monkeypatch.setattr(learn, "training", lambda name: SimpleNamespace(without_motion=tiny))
    monkeypatch.setattr(
        learn,
        "wide_recipe",
        lambda config: replace(config, model=replace(config.model, action=replace(ACTION, baseline=None))),
    )
    monkeypatch.setattr("lamp.train.datasets.find_backbone", lambda config: _patches())
    bench = LearnBench(data=root, per_task=2, hold_out="episodes=4:6", seconds=0.5, samples=8, error=10.0)
    figures = bench_learn(bench)
    assert json.loads(json.dumps(figures))["settings"]["per_task"] == 2
    for name in ("recipe", "reference"):
        times = [seconds for seconds, _ in figures[name]["points"]]
        assert len(times) > 1 and times == sorted(times)
    assert figures["recipe"]["final_error"] != figures["reference"]["final_error"]
    assert figures["ratio"] == pytest.approx(figures["reference_seconds_to_error"] / figures["seconds_to_error"])
    text = to_text(figures)
    assert "the reference takes" in text and "error 10 after" in text
    unreached = figures | {"seconds_to_error": None, "ratio": None}
    assert "recipe    error 10 not reached" in to_text(unreached)


def test_the_reference_reads_every_token_from_noise() -> None:
    few, many = training("demo").without_motion, learn.wide_recipe(training("demo").without_motion)
    assert few.model.pooling is not None and few.model.action_noise_std == 0
    assert many.model.pooling is None and many.model.action_noise_std == 1
    assert many.model.action is not None and many.model.action.width == 192
    assert (many.noise_draws, many.loop.batch_size, many.loop.ema) == (6, 16, 0.995)


def _patches() -> object:
    from training_fakes import PatchBackbone

    return PatchBackbone()


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"seconds 0, error 0.13, samples 256: expected positive"):
        LearnBench(data=tmp_path, seconds=0.0)
