"""Plus-style perturbations in an evaluation: suites of their own, the same seeds, everything on record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_fakes import FakePolicy, FakeSimulator, FakeSimulators, make_checkpoint

from lamp.benchmark.episodes import plan, read_records
from lamp.benchmark.evaluate import EvaluateConfig, RunSettings, evaluate
from lamp.benchmark.perturbed import PerturbedSimulators, described, perturbed
from lamp.benchmark.suites import EvaluationPlan, LiberoSimulators, Simulators, SuitePlan, noise_seed, placement_seed
from lamp.configuration import from_json, to_json
from lamp.errors import ConfigError
from lamp.json_files import read_json
from lamp_client.envs.plus_style import ASPECTS, LEVELS, Perturbation, at_level

STANDARD = LiberoSimulators(suite="libero_object", placement_shift=0.02, render="fast")


def test_each_makes_a_suite_of_its_own() -> None:
    made = perturbed(STANDARD, ("none", "camera=3", "light.tint=5+noise=1"))
    assert [variant.suite for variant in made] == [
        "libero_object",
        "libero_object plus-style camera=3",
        "libero_object plus-style light.tint=5+noise=1",
    ]
    assert made[0] is STANDARD
    assert [variant.level for variant in made if isinstance(variant, PerturbedSimulators)] == [3, None]
    assert [variant.suite.split()[-1] for variant in perturbed(STANDARD, ("all=2",))] == [
        "camera=2", "robot=2", "language=2", "light=2", "noise=2",
    ]  # fmt: skip
    assert perturbed(STANDARD, ()) == (STANDARD,)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("camera=1", "camera=1"), "none twice"),
        (("all=6",), "expected all=1 to all=5"),
        (("all=2", "robot=2"), "none twice"),
    ],
)
def test_what_cannot_be_is_refused(asked: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        perturbed(STANDARD, asked)
    with pytest.raises(ConfigError, match="fake cannot be perturbed"):
        perturbed(FakeSimulators(), ("camera=1",))


def test_seeds_are_the_standard_episode_s() -> None:
    """So the same policy noise and placements act with and without the perturbation."""
    suite = "libero_object plus-style camera=3"
    assert noise_seed(suite, 4, 7) == noise_seed("libero_object", 4, 7) != noise_seed("libero_goal", 4, 7)
    assert placement_seed(3, suite, 4, 7) == placement_seed(3, "libero_object", 4, 7)
    settings: dict[str, Any] = {"conditions": [("a", "x")], "tasks": [4], "states": [7], "repeats": 1, "seed": 3}
    (standard,), (episode,) = (plan(suite=name, **settings) for name in ("libero_object", suite))
    assert episode.noise_seed == standard.noise_seed and episode.key != standard.key and episode.scene != standard.scene
    assert " " not in episode.name and "/" not in episode.name and "camera=3" in episode.name


@pytest.mark.parametrize("aspect", [*ASPECTS, "camera", "noise"])
def test_every_perturbation_is_written_in_full_and_read_back(aspect: str) -> None:
    for level in LEVELS:
        perturbation = at_level(aspect, level)
        assert from_json(Perturbation, json.loads(json.dumps(to_json(perturbation)))) == perturbation


def test_perturbations_of_one_s_own_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "sunset.json"
    path.write_text(json.dumps({"type": "Joined", "parts": [
        {"type": "Tint", "saturation": [0.5, 0.5]}, {"type": "Orbit", "azimuth": [1, 2], "elevation": [0, 0]}
    ]}))  # fmt: skip
    (variant,) = perturbed(STANDARD, (str(path),))
    assert variant.suite == "libero_object plus-style sunset"
    written = described((variant,))["sunset"]
    assert written["benchmark"] == "plus-style" and written["parts"][0] == {"type": "Tint", "saturation": [0.5, 0.5]}
    path.write_text('{"type": "Tint", "saturatoin": [0.5, 0.5]}')
    with pytest.raises(ConfigError, match=r"did you mean 'saturation'"):
        perturbed(STANDARD, (str(path),))


def test_what_was_drawn_is_named_plus_style() -> None:
    from lamp_client.envs.perturbations import StandardScene

    (variant,) = perturbed(STANDARD, ("language=1",))
    assert isinstance(variant, PerturbedSimulators)
    standard = StandardScene(camera=None, lights=None, joints=np.zeros(7), robot="", instruction="open it")  # pyright: ignore[reportArgumentType]
    drawn = variant.draw(np.random.default_rng(0), standard)
    assert {key: drawn.numbers[key] for key in ("benchmark", "perturbation", "category", "level")} == {
        "benchmark": "plus-style", "perturbation": "language=1", "category": "language", "level": 1,
    }  # fmt: skip
    assert drawn.effects.instruction != "open it" and drawn.numbers["drawn"] == {
        "instruction": drawn.effects.instruction
    }


class VariedSimulator(FakeSimulator):
    """One that only succeeds on its own suite's target, and says how it was varied."""

    variation: Mapping[str, Any] = {}


@dataclass(frozen=True, kw_only=True)
class VariedSimulators(FakeSimulators):
    def make(self, task: int) -> VariedSimulator:
        simulator = VariedSimulator(task, self.instructions()[task], 0.0, None)
        label = self.suite.split()[-1]
        simulator.variation = {
            "benchmark": "plus-style",
            "perturbation": label,
            "category": label[:-2],
            "level": int(label[-1]),
        }
        if label == "light=5":
            simulator.step_limit = 2
        return simulator


@dataclass(frozen=True, kw_only=True)
class TwoSuites(RunSettings):
    """The standard fake suite, and two that are perturbed."""

    def evaluation_plan(self, simulators: Simulators | None = None) -> EvaluationPlan:
        suites = (
            FakeSimulators(),
            *(VariedSimulators(suite=f"fake plus-style {label}") for label in ("light=1", "light=5")),
        )
        return EvaluationPlan(
            suites=tuple(SuitePlan(simulators=made, tasks=(0, 2), states=(1, 2)) for made in suites),
            settings={"more": 1},
        )


@pytest.mark.long
def test_suites_of_one_evaluation_have_their_own_simulators_and_tables(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "policy")
    config = TwoSuites(checkpoint=checkpoint, controls=("zero",), out=tmp_path / "out", workers=2, videos=3)
    summary = evaluate(config, load=FakePolicy)
    assert summary.complete and len(read_records(tmp_path / "out")) == 3 * 2 * 2 * 2
    (standard,), (table,) = summary.tables, summary.perturbed
    assert standard.suite == "fake" and standard.rows[0].total.trials == 4
    assert table.columns == ("light=1", "light=5") and table.suite == "fake"
    assert [rate.successes for rate in table.rows[0].columns] == [4, 0]
    assert len({record.video for record in summary.records if record.video}) == 3
    assert read_json(tmp_path / "out" / "run.json")["config"]["more"] == 1
    written = read_json(tmp_path / "out" / "summary.json")
    assert [found["benchmark"] for found in written["perturbed"]] == ["plus-style"] and len(written["tables"]) == 1
    assert "plus-style light=5" in (tmp_path / "out" / "tables.md").read_text()
    assert "plus-style perturbations of fake" in summary.text


def test_folders_from_before_perturbations_go_on(tmp_path: Path) -> None:
    config = EvaluateConfig(controls=("zero",), suite="fake", states="0:1", task=(0,), out=tmp_path, workers=1)
    evaluate(config, simulators=FakeSimulators())
    assert not {"perturb", "perturbations"} & read_json(tmp_path / "run.json")["config"].keys()
