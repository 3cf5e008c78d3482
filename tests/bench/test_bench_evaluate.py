"""The runner's benchmark on simulators that only wait, so that the pace is known."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmark_fakes import FakePolicy, FakeSimulators, make_checkpoint

from lamp.bench.evaluate import EvaluationBench, bench_evaluate, to_text
from lamp.errors import ConfigError


@pytest.mark.slow
def test_simulators_that_wait_run_side_by_side(tmp_path: Path) -> None:
    config = EvaluationBench(
        checkpoint=make_checkpoint(tmp_path / "policy"), states="0:16", workers=2, plan_policy_ms=0.5
    )
    found = bench_evaluate(config, simulators=FakeSimulators(pause_s=0.02), load=FakePolicy)
    assert found["counted"] == 16 - 2 - 2 + 1
    # Two that sleep take half the time of one, whatever the machine does beside; not less.
    assert 1.2 < found["ratio"] < 2.3
    assert found["per_episode"]["reset"] == 1.0 and 4 <= found["per_episode"]["step"] <= 24
    assert 20.0 <= found["parts_ms"]["step"] < 60.0
    plan = found["plan"]
    assert plan["bound_by"] == "simulation"
    expected = 2000 * plan["simulation_core_seconds_per_episode"] / 15 / 60
    assert plan["minutes"] == pytest.approx(expected)
    assert "target 1.7" in to_text(found)


def test_a_slow_policy_bounds_the_plan(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "policy")
    config = EvaluationBench(checkpoint=checkpoint, states="0:3", workers=1, plan_policy_ms=60_000.0, plan_episodes=10)
    plan = bench_evaluate(config, simulators=FakeSimulators(), load=FakePolicy)["plan"]
    assert plan["bound_by"] == "policy" and plan["minutes"] == pytest.approx(
        10 * plan["policy_seconds_per_episode"] / 60
    )


def test_too_few_episodes_say_how_many_are_needed(tmp_path: Path) -> None:
    config = EvaluationBench(checkpoint=make_checkpoint(tmp_path / "policy"), states="0:5", workers=2)
    with pytest.raises(ConfigError, match="5 episodes; expected at least 6 states for 2 workers"):
        bench_evaluate(config, simulators=FakeSimulators(), load=FakePolicy)
