"""Several processes train what one does, in whatever way their weights lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from launched import Launch, Run, exact_motion, exact_policy, settings
from safetensors.torch import load_file
from torch import Tensor

from lamp.files import read_lines_json
from lamp.train.randomness import PerSample
from lamp.train.sharding import FullySharded

WAYS: dict[str, dict[str, Any]] = {
    "replicated": {},
    "replicated_in_parts": {"accumulate": 3, "recompute": True},
    "sharded": {"sharding": FullySharded()},
    "sharded_in_parts": {"sharding": FullySharded(reshard=False), "accumulate": 2, "recompute": True},
}


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "checkpoint" / "model.safetensors")


def curve(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_lines_json(run / "metrics.jsonl") if line["kind"] == "train"]


def gap(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def prior(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A motion checkpoint to train policies on."""
    out = tmp_path_factory.mktemp("prior")
    Run(config=exact_motion(config=settings(steps=4)), data=data, out=out).train()
    return out


@pytest.fixture(scope="module")
def runs(data: Path, prior: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every way on two processes, and on one."""
    root = tmp_path_factory.mktemp("runs")
    made = []
    for name, changes in {"alone": {}, **WAYS}.items():
        config = settings(**changes)
        made.append(Run(config=exact_motion(config=config), data=data, out=root / f"motion-{name}"))
        policy = exact_policy(config=config, prior_dropout=0.6)
        made.append(Run(config=policy, data=data, out=root / f"policy-{name}", motion=prior))
    alone = [run for run in made if run.out.name.endswith("-alone")]
    launch = Launch([run for run in made if run not in alone], root / "launch")
    for run in alone:
        run.train()
    launch.wait()
    return root


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stage", ["motion", "policy"])
def test_two_processes_train_what_one_does(runs: Path, stage: str, way: str) -> None:
    alone, shared = runs / f"{stage}-alone", runs / f"{stage}-{way}"
    assert gap(weights(alone), weights(shared)) < 1e-6
    names = ["loss", "grad_norm", "lr", "per_axis" if stage == "motion" else "per_dim"]
    for one, other in zip(curve(alone), curve(shared), strict=True):
        for name in names:
            assert other[name] == pytest.approx(one[name], rel=1e-5, abs=1e-6), (one["step"], name)
