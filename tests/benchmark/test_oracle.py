"""`lamp evaluate --prior oracle` on fakes: what is told to whom, what it is called, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_fakes import FakePolicy, FakeSimulator, FakeSimulators, make_checkpoint

from lamp import cli
from lamp.benchmark.baselines import is_oracle, is_policy
from lamp.benchmark.evaluate import EvaluateConfig, evaluate
from lamp.benchmark.flow_errors import FlowProbe
from lamp.benchmark.suites import Simulators
from lamp.benchmark.summary import Summary, checkpoint_results
from lamp.errors import ConfigError, MismatchError
from lamp.sceneflow.normalization import RELEASED_BOUNDS
from lamp.sceneflow.tracks import Supervision
from lamp.train.checkpoint_metadata import FlowRecord
from lamp_client.envs import StepResult
from lamp_client.types import ActionChunk, Observation

FLOW = FlowRecord(
    camera="agentview",
    grid=(2, 2),
    horizon=3,
    stride=4,
    fps=20.0,
    bounds=RELEASED_BOUNDS,
    clamped=(0.0, 0.0, 0.0),
    supervision=Supervision(hidden_points=True),
)


class Foreseeing(FakePolicy):
    """A policy with a motion prior; as an oracle it acts only if it is told how far the gripper still has to go."""

    foresees: Any = FLOW
    told = False

    def __init__(self, path: Path, device: str = "cpu", threads: int = 1) -> None:
        super().__init__(path)
        self.foresees = FLOW if self.uses_motion else None

    def oracle(self) -> Foreseeing:
        other = Foreseeing(Path("with"))
        other.told = True
        return other

    def act_batch(
        self,
        observations: list[Observation],
        noise_seeds: list[tuple[int, ...]],
        foresight: bool = False,
        true_motion: Sequence[np.ndarray] | None = None,
    ) -> list[ActionChunk]:
        assert self.told == (true_motion is not None)
        chunks = super().act_batch(observations, noise_seeds, foresight)
        if true_motion is None:
            return chunks
        for observation, motion in zip(observations, true_motion, strict=True):
            assert motion.shape == (4, 3, 3) and motion[0, 0, 0] == observation.state[0]
        return [ActionChunk(actions=2 * chunk.actions, foresight=chunk.foresight) for chunk in chunks]


class Followed:
    """Knows where the fake gripper is, through every step."""

    def __init__(self, simulator: FakeSimulator, probe: FlowProbe) -> None:
        self._simulator, self._probe = simulator, probe

    def __getattr__(self, name: str) -> Any:
        return getattr(self._simulator, name)

    def step(self, action: np.ndarray) -> StepResult:
        return self._simulator.step(action)

    def flow(self) -> np.ndarray:
        k, horizon = self._probe.grid[0] * self._probe.grid[1], self._probe.horizon
        return np.full((k, horizon, 3), self._simulator.position, np.float32)


@dataclass
class FakeLookahead:
    probe: FlowProbe
    closed: int = 0

    def follow(self, simulator: FakeSimulator, initial_state: int, placement_seed: int | None) -> Followed:
        return Followed(simulator, self.probe)

    def close(self) -> None:
        assert self.closed == 0
        self.closed += 1


@dataclass(frozen=True, kw_only=True)
class Telling(FakeSimulators):
    """Fakes whose tasks 0 and 1 have an expert."""

    def check_oracle(self, task: int) -> None:
        if task == 2:
            raise ConfigError(f"--prior oracle needs a scripted expert, and {self.suite} task 2 has none")

    def lookahead(self, task: int, probe: FlowProbe) -> Any:
        assert probe == FlowProbe(camera="agentview", grid=(2, 2), horizon=3, stride=4, hidden_points=True)
        return FakeLookahead(probe)


def trained_as_oracle(folder: Path) -> Path:
    make_checkpoint(folder, "other weights")
    (folder / "lamp.json").write_text(json.dumps({"training": {"prior": "oracle"}}))
    return folder


def config(tmp_path: Path, **changes: Any) -> EvaluateConfig:
    settings: dict[str, Any] = {
        "checkpoint": make_checkpoint(tmp_path / "policy"), "states": "0:2", "task": (0, 1), "out": tmp_path / "out",
        "workers": 1, "prior": "oracle",
    }  # fmt: skip
    return EvaluateConfig(**(settings | changes))


def run(settings: EvaluateConfig, simulators: Simulators | None = None) -> Summary:
    return evaluate(settings, load=Foreseeing, simulators=simulators or Telling())


def test_an_oracle_is_told_and_called_so(tmp_path: Path) -> None:
    settings = config(tmp_path, against=make_checkpoint(tmp_path / "without", "none"), controls=("zero",), videos=1)
    summary = run(settings)
    names = {row.condition for row in summary.tables[0].rows}
    assert names == {"with_motion (oracle)", "without_motion", "zero"}
    steps = {(record.condition, record.scene): record.steps for record in summary.records}
    plain = {scene: count for (name, scene), count in steps.items() if name == "without_motion"}
    # Told, it takes half as many steps.
    assert all(steps["with_motion (oracle)", scene] == -(-count // 2) for scene, count in plain.items())
    manifest = json.loads((tmp_path / "out" / "run.json").read_text())
    assert manifest["config"]["prior"] == "oracle"
    models = manifest["facts"]["models"]
    assert (models["with_motion (oracle)"]["prior"], models["with_motion (oracle)"]["trained_with"]) == (
        "oracle",
        "predicted",
    )
    assert "prior" not in models["without_motion"]
    assert [path.name for path in (tmp_path / "out" / "videos").iterdir()] != []
    with pytest.raises(ConfigError, match=r"prior is None, was 'oracle'"):
        run(replace(settings, prior="predicted"))
    # No card counts it.
    with pytest.raises(MismatchError, match="is no evaluation of"):
        checkpoint_results(tmp_path / "out", tmp_path / "policy")


@pytest.mark.long
def test_both_kinds_on_the_same_episodes(tmp_path: Path) -> None:
    oracle, plain = trained_as_oracle(tmp_path / "oracle"), make_checkpoint(tmp_path / "policy")
    summary = run(config(tmp_path, checkpoint=plain, prior="predicted", against=oracle, against_prior="oracle"))
    assert [row.condition for row in summary.tables[0].rows] == ["with_motion", "oracle"]
    assert summary.tables[0].pairs[0].episodes == 4
    assert not is_policy("oracle") and is_policy("with_motion")
    named = run(config(tmp_path, checkpoint=plain, label="mine", out=tmp_path / "named"))
    assert [row.condition for row in named.tables[0].rows] == ["mine (oracle)"] and is_oracle("mine (oracle)")


def test_what_is_refused_before_anything_runs(tmp_path: Path) -> None:
    oracle, plain = trained_as_oracle(tmp_path / "oracle"), make_checkpoint(tmp_path / "policy")
    without = make_checkpoint(tmp_path / "without", "none")
    cases: list[tuple[dict[str, Any], Simulators, str]] = [
        (
            {"checkpoint": oracle, "prior": "predicted"},
            Telling(),
            "was trained with --prior oracle.*expected --prior oracle here",
        ),
        ({"prior": "predicted", "against": oracle}, Telling(), "was trained with --prior oracle"),
        ({"checkpoint": without}, Telling(), "none of the policies has a motion prior"),
        ({"prior": "predicted", "label": "oracle"}, Telling(), "label 'oracle' says that the policy is told"),
        ({"prior": "predicted", "label": "a (oracle)"}, Telling(), "expected another, or --prior oracle"),
        ({"task": (0, 2)}, Telling(), "fake task 2 has none"),
        (
            {},
            FakeSimulators(),
            "--prior oracle needs a scripted expert .* fake has none; expected LIBERO",
        ),
    ]
    for changes, simulators, message in cases:
        with pytest.raises((ConfigError, MismatchError), match=message):
            run(config(tmp_path, **({"checkpoint": plain} | changes)), simulators)
    assert not (tmp_path / "out").exists()
    for changes, message in (
        ({"intervene": ("gate=0",)}, "intervene gate=0 asks how the PREDICTED prior is used"),
        ({"controls": ("blank", "zero")}, "controls blank asks"),
        ({"flow_errors": True}, "flow_errors asks"),
        ({"checkpoint": None, "controls": ("zero",)}, "--prior oracle needs --checkpoint"),
        ({"against_prior": "oracle"}, "there is no --against"),
    ):
        with pytest.raises(ConfigError, match=message):
            config(tmp_path, **changes)


def test_a_slip_on_the_command_line_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    oracle, out = trained_as_oracle(tmp_path / "oracle"), str(tmp_path / "out")
    assert cli.main(["evaluate", "--checkpoint", str(oracle), "--out", out, "--prior", "orakel"]) == 2
    assert "oracle" in capsys.readouterr().err
    line = ["evaluate", "--checkpoint", str(oracle), "--out", out, "--prior", "oracle", "--intervene", "all"]
    assert cli.main(line) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_rate_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    class Slow(Foreseeing):
        def __init__(self, path: Path, device: str = "cpu", threads: int = 1) -> None:
            super().__init__(path)
            self.foresees = replace(FLOW, stride=1, fps=15.0)

    with pytest.raises(MismatchError, match=r"a flow step takes 0\.0667 s, 1\.33 steps of the simulator"):
        evaluate(config(tmp_path), load=Slow, simulators=Telling())
