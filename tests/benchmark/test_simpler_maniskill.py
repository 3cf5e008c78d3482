"""SimplerEnv's adapter on ManiSkill3 itself, where its environment and assets are; elsewhere these are skipped by name."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamp.benchmark.evaluate import evaluate
from lamp.benchmark.simpler import ManiSkillEnvironment, SimplerConfig, find_environment, simulators_of
from lamp_client.envs.simpler_tasks import SimplerView

pytestmark = [pytest.mark.maniskill, pytest.mark.slow]


@pytest.fixture(scope="module")
def environment() -> ManiSkillEnvironment:
    return find_environment(None, None, "cpu")


@pytest.fixture(scope="module")
def facts(environment: ManiSkillEnvironment) -> dict[str, Any]:
    script = Path(__file__).with_name("maniskill_facts.py")
    command = [environment.launch.command[0], "-W", "ignore", str(script)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment.launch.environment}, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_the_same_actions_lead_to_the_same_poses_whatever_came_before(facts: dict[str, Any]) -> None:
    assert facts["repeatable"] and facts["differs"]


def test_a_step_without_rendering_is_maniskills_own_step(facts: dict[str, Any]) -> None:
    assert facts["as_maniskill"] == 0.0


def test_rotations_are_executed_as_they_were_meant(facts: dict[str, Any]) -> None:
    assert facts["turn_error"] < 1e-3


def test_instructions_are_maniskills(facts: dict[str, Any]) -> None:
    assert len(set(facts["instruction"])) == 1


def test_the_robot_starts_pointing_down_with_its_gripper_open(facts: dict[str, Any]) -> None:
    x, y, z, *turned, gripper = facts["start_state"]
    assert 0.2 < x < 0.35 and abs(y) < 0.1 and 0.1 < z < 0.3 and gripper == 1.0
    assert np.abs(turned).max() < 0.1


def test_the_eggplants_24_episodes_are_8_places_almost_at_rest(facts: dict[str, Any]) -> None:
    """In five of them it still slides, by at most 5 cm/s."""
    assert facts["places"] == 8
    assert sum(speed >= 0.01 for speed in facts["speeds"]) <= 5 and max(facts["speeds"]) < 0.05


def test_the_expert_solves_what_standing_still_does_not(environment: ManiSkillEnvironment, tmp_path: Path) -> None:
    config = SimplerConfig(controls=("expert", "zero"), task=("put_spoon",), states="2", out=tmp_path, workers=1)
    made = simulators_of(config, environment, SimplerView(camera="front", height=224, width=224))
    summary = evaluate(config.evaluation(made.suite), simulators=made, settings=config.settings)
    found = {record.condition: (record.success, record.success_last, record.steps) for record in summary.records}
    assert found == {"expert": (True, True, 60), "zero": (False, False, 60)}
    assert summary.records[0].extra["simulator"]["mani_skill"] == "3.0.1"
    with made.make(2) as env:  # pyright: ignore[reportGeneralTypeIssues]
        env.reset(2)
        image = env.observe().images["front"]
        env.reset(2)
        assert image.shape == (224, 224, 3) and image.std() > 20
        np.testing.assert_array_equal(env.observe().images["front"], image)
