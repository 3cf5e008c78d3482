"""The real policy class behind an evaluation, on fake simulators."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_fakes import FakeSimulators
from training_fakes import PatchBackbone, loop, motion_training, policy_training, write_dataset  # pyright: ignore[reportMissingImports]

from lamp.benchmark.baselines import PriorBank
from lamp.benchmark.evaluate import EvaluateConfig, evaluate
from lamp.benchmark.policies import BatchPolicy
from lamp.benchmark.worker_pool import SimulationStoppedError
from lamp.errors import ConfigError, MismatchError
from lamp.model.prior_interventions import Intervention, Shuffled, WrongPriorInstruction
from lamp.policy import LaMPPolicy
from lamp.train.train_motion import train_motion
from lamp.train.train_policy import train_policy
from lamp.view.overlay import ForesightArtist

pytestmark = pytest.mark.long


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
    kinds = json.loads((tmp_path / "3" / "run.json").read_text())["facts"]["models"]
    assert kinds["with_motion"] == {"flow": "SpatialFlow", "fusion": "GuidanceConfig"}
    assert kinds["without_motion"] == {"flow": None, "fusion": None}
    # The checkpoint says that 3 actions of a chunk are executed.
    assert all(calls == -(-steps // 3) for steps, _, calls in found[0].values())


@pytest.mark.slow
def test_interventions_are_conditions_on_the_same_scenes(runs: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(
        checkpoint=runs / "guided", suite="fake", states="0:2", task=(0, 2), out=tmp_path, workers=2,
        intervene=("gate=0", "prior_told_wrong", "denoised=10", "denoised=3"),
    )  # fmt: skip
    summary = evaluate(config, load=load, simulators=FakeSimulators())
    names = ["with_motion", "denoised=3", "denoised=10", "gate=0", "prior_told_wrong"]
    assert [row.condition for row in summary.tables[0].rows] == names
    assert len({record.checkpoint for record in summary.records}) == 1
    # The Action Expert still hears the right instruction, and the record says so.
    assert {r.instruction for r in summary.records if r.task == 2} == {"push up"}
    with pytest.raises(ConfigError, match=r"intervene is \['gate=0'\], was"):
        evaluate(replace(config, intervene=("gate=0",)), load=load, simulators=FakeSimulators())


def test_a_policy_without_a_prior_is_refused_before_anything_runs(runs: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(checkpoint=runs / "plain", suite="fake", states="0", out=tmp_path / "x", intervene=("all",))
    with pytest.raises(MismatchError, match="this policy has none"):
        evaluate(config, load=load, simulators=FakeSimulators())
    assert not (tmp_path / "x").exists()


def test_the_prior_alone_is_told_wrong(runs: Path) -> None:
    policy = LaMPPolicy.from_checkpoint(runs / "guided", backbone=PatchBackbone())
    seen = [FakeSimulators().make(0).observe()]
    with pytest.raises(MismatchError, match="prior_instructions are given"):
        policy.act_batch(seen, [(1,)], prior_instructions=["push up"])
    wrong = policy.intervened(WrongPriorInstruction())
    with pytest.raises(MismatchError, match="prior_instructions are missing"):
        wrong.act_batch(seen, [(1,)])
    usual = policy.act_batch(seen, [(1,)])[0].actions
    assert np.allclose(wrong.act_batch(seen, [(1,)], prior_instructions=["push left"])[0].actions, usual, atol=1e-6)


def test_flow_errors_need_a_simulator_that_tells_its_states(runs: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(
        checkpoint=runs / "guided", suite="fake", states="0", task=(0,), out=tmp_path, flow_errors=True
    )
    with pytest.raises(SimulationStoppedError, match="a simulator that tells its states"):
        evaluate(config, load=load, simulators=FakeSimulators())


@pytest.mark.slow
def test_shuffled_priors_are_other_tasks_whatever_the_order_of_workers(runs: Path, tmp_path: Path) -> None:
    found, asked = [], []

    def watched(path: Path, device: str, threads: int) -> BatchPolicy:
        policy = LaMPPolicy.from_checkpoint(path, device=device, backbone=PatchBackbone())
        changed = policy.intervened

        def intervened(intervention: Intervention) -> LaMPPolicy:
            other = changed(intervention)
            act = other.act_batch

            def act_batch(observations: Any, noise_seeds: Any, *args: Any, **more: Any) -> Any:
                asked.extend(zip(observations, noise_seeds, more["prior_observations"], strict=True))
                return act(observations, noise_seeds, *args, **more)

            other.act_batch = act_batch
            return other

        policy.intervened = intervened
        return policy

    for workers in (1, 3):
        config = EvaluateConfig(
            checkpoint=runs / "guided", suite="fake", states="0:3", task=(0, 2), out=tmp_path / f"{workers}",
            workers=workers, intervene=("prior_shuffled",),
        )  # fmt: skip
        evaluate(config, load=watched, simulators=FakeSimulators())
        found.append(outcomes(config.out))
        assert all(seen.instruction != other.instruction for seen, _, other in asked)
        chosen = {seeds: other.images["agentview"].tobytes() for _, seeds, other in asked}
        assert len(chosen) > 20 and len(set(chosen.values())) > 4
        asked.clear()
        found.append(chosen)
    assert found[0] == found[2] and found[1] == found[3]


class Lonely(FakeSimulators):
    """All tasks are told the same."""

    def instructions(self) -> tuple[str, ...]:
        return ("push left", "Push  left", "push left")


@pytest.mark.slow
def test_a_bank_holds_other_tasks_or_says_how_to_get_them(runs: Path, tmp_path: Path) -> None:
    bank = PriorBank.of_simulators(FakeSimulators(), (1,), (0, 1, 2, 3, 4), seed=0)
    assert [one.instruction for one in bank.observations] == ["push right"] * 4 + ["push left"] * 4 + ["push up"] * 4
    assert bank.other(1, (3, 1)) is bank.other(1, (3, 1)) and bank.other(1, (3, 1)).instruction != "push right"
    data = PriorBank.of_data(runs / "data", ("task 0", "Task  1"), seed=0)
    assert len(data.observations) == 8 and {data.other(1, (n,)).instruction for n in range(20)} == {"task 0"}
    with pytest.raises(ConfigError, match=r"no observation of another task than 'task 0'; name a dataset .*--data DIR"):
        PriorBank(observations=data.observations[:4], instructions=("task 0",)).check((0,))

    config = EvaluateConfig(
        checkpoint=runs / "guided", suite="fake", states="0", out=tmp_path / "x", intervene=("prior_shuffled",)
    )
    with pytest.raises(ConfigError, match="there is one task only; name a dataset"):
        evaluate(config, load=load, simulators=Lonely())
    assert not (tmp_path / "x").exists()
    summary = evaluate(replace(config, data=runs / "data"), load=load, simulators=Lonely())
    assert summary.complete


def test_observations_that_a_shuffled_prior_cannot_see_are_refused(runs: Path) -> None:
    policy = LaMPPolicy.from_checkpoint(runs / "guided", backbone=PatchBackbone())
    seen = [FakeSimulators().make(0).observe()]
    with pytest.raises(MismatchError, match="prior_observations are given"):
        policy.act_batch(seen, [(1,)], prior_observations=seen)
    shuffled = policy.intervened(Shuffled())
    with pytest.raises(MismatchError, match="prior_observations are missing"):
        shuffled.act_batch(seen, [(1,)])
    with pytest.raises(MismatchError, match="no camera 'wrist'"):
        shuffled.act_batch(
            seen, [(1,)], prior_observations=[replace(seen[0], images={"agentview": seen[0].images["agentview"]})]
        )
    usual = policy.act_batch(seen, [(1,)])[0].actions
    assert np.allclose(shuffled.act_batch(seen, [(1,)], prior_observations=seen)[0].actions, usual, atol=1e-6)
