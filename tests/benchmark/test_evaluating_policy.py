"""The real policy class behind an evaluation, on fake simulators."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmark_fakes import FakeSimulators
from training_fakes import PatchBackbone, loop, motion_training, policy_training, write_dataset  # pyright: ignore[reportMissingImports]

from lamp.benchmark.evaluating import EvaluateConfig, evaluate
from lamp.benchmark.policies import BatchPolicy
from lamp.policy import LaMPPolicy
from lamp.train.motion import train_motion
from lamp.train.policy import train_policy
from lamp.view.overlay import ForesightArtist


def load(path: Path, device: str, threads: int) -> BatchPolicy:
    return LaMPPolicy.from_checkpoint(path, device=device, backbone=PatchBackbone())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, short = tmp_path_factory.mktemp("runs"), loop(steps=2)
    data = write_dataset(root / "data", episodes=4)
    train_motion(motion_training(loop=short), data, root / "motion", backbone=PatchBackbone())
    train_policy(policy_training(loop=short), data, root / "guided", root / "motion", backbone=PatchBackbone())
    train_policy(policy_training(with_motion=False, loop=short), data, root / "plain", backbone=PatchBackbone())
    return root


def outcomes(folder: Path) -> dict[str, tuple[int, bool, int]]:
    lines = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    return {f"{x['condition']} {x['task']} {x['state']}": (x["steps"], x["success"], x["policy_calls"]) for x in lines}


def test_results_do_not_depend_on_workers_batches_or_films(runs: Path, tmp_path: Path) -> None:
    found = []
    for workers, videos in ((1, 0), (3, 2)):
        out = tmp_path / f"{workers}"
        config = EvaluateConfig(
            checkpoint=runs / "guided", against=runs / "plain", suite="fake", states="0:2", task=(0, 1), out=out,
            workers=workers, videos=videos, gather_ms=50.0,
        )  # fmt: skip
        summary = evaluate(config, load=load, simulators=FakeSimulators(), artist=ForesightArtist())
        assert [row.condition for row in summary.tables[0].rows] == ["with_motion", "without_motion"]
        found.append(outcomes(out))
    assert found[0] == found[1] and len(found[0]) == 8
    assert len(list((tmp_path / "3" / "videos").glob("with_motion-*.mp4"))) == 2
    # The checkpoint says that 3 actions of a chunk are executed.
    assert all(calls == -(-steps // 3) for steps, _, calls in found[0].values())
