"""The whole path on the real simulator, tiny: demonstrations, scene flow, both stages, evaluation, report; then once more."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lamp.errors import DataError
from lamp.experiment import Clock, _in_another_process, run
from lamp.files import locked
from lamp.json_files import read_lines_json
from lamp.recipes import Recipe, experiment
from lamp.recipes.kinds import without_motion

pytestmark = pytest.mark.long


def tiny() -> Recipe:
    """The demo with every number as small as it can be."""
    demo = experiment("demo")
    loop = replace(
        demo.motion.loop, steps=4, batch_size=4, log_every=2, checkpoint_every=2, validate_every=4, threads=1
    )
    policy = replace(demo.policy, loop=loop, noise_draws=1, cached_hidden_draws=1, validation_samples=4)
    return replace(
        demo,
        collect=replace(demo.collect, task=(0,), episodes=2, render_every=8, workers=2),
        flow=replace(demo.flow, every=2, workers=1),
        motion=replace(demo.motion, loop=loop, validation_samples=2, final_samples=2),
        policy=policy,
        without_motion=without_motion(policy),
        evaluations=(
            replace(demo.evaluations[0], task=(0,), states="30:31", controls=("replay", "zero"), videos=1, workers=2),
        ),
    )


def written(out: Path) -> dict[Path, int]:
    """When each tensor file was written; the features' few shared tensors are made anew by every session."""
    paths = (path for path in out.rglob("*.safetensors") if path.name != "shared.safetensors")
    return {path: path.stat().st_mtime_ns for path in paths}


@pytest.mark.slow
@pytest.mark.sim
def test_a_recipe_runs_from_nothing_to_a_report_and_only_once(tmp_path: Path) -> None:
    made, out = tiny(), tmp_path / "run"
    summary = run(made, out)
    assert summary == json.loads((out / "summary.json").read_text())
    assert {"collect", "flow", "train_motion", "train_policy", "evaluate", "total"} <= summary["seconds"].keys()
    assert summary["success"].keys() == {"with_motion", "without_motion", "replay", "zero"}
    assert all(entry["episodes"] == 1 for entry in summary["success"].values())
    assert summary["success"]["zero"]["successes"] == 0
    assert summary["flow"]["moving"]["zero_motion_ade_px"] > 1
    page = (out / "report.html").read_text()
    assert "<video" in page and "data:image" in page and "http://" not in page.replace("http://www.w3.org", "")

    done = written(out)
    lines = read_lines_json(out / "evaluation" / "episodes.jsonl")
    run(made, out)
    assert written(out) == done
    assert read_lines_json(out / "evaluation" / "episodes.jsonl") == lines


def test_a_failure_does_not_wait_for_the_work_beside_it() -> None:
    started = time.monotonic()
    with pytest.raises(ZeroDivisionError), _in_another_process(time.sleep, 600.0):
        while not multiprocessing.active_children():
            time.sleep(0.05)
        raise ZeroDivisionError
    assert time.monotonic() - started < 120
    assert multiprocessing.active_children() == []


def test_the_work_beside_gives_its_result() -> None:
    with _in_another_process(sorted, (3, 1, 2)) as work:
        assert work.result() == [1, 2, 3]


def test_the_clock_loses_nothing_of_a_stage_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamp.experiment.NOTE_EVERY_S", 0.02)
    path = tmp_path / "seconds.json"
    path.write_text('{"collect": 5.0, "flow": 100.0}')
    with Clock(path).stage("flow"):
        deadline = time.monotonic() + 30
        while (noted := json.loads(path.read_text()))["flow"] < 100.2:  # what a killed process would leave
            assert time.monotonic() < deadline
            time.sleep(0.02)
    after = json.loads(path.read_text())
    assert noted.keys() == after.keys() == {"collect", "flow"} and after["flow"] >= noted["flow"]


@pytest.mark.parametrize("folder", ["", "policy_without", "evaluation"])
def test_a_run_that_cannot_be_finished_is_refused_before_anything_is_done(folder: str, tmp_path: Path) -> None:
    busy = rf"at work in {tmp_path / folder}.* \(process {os.getpid()}, since"
    with locked(tmp_path / folder / ".lock", ""), pytest.raises(DataError, match=busy):
        run(tiny(), tmp_path)
    assert not (tmp_path / "seconds.json").exists()
