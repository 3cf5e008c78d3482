"""The whole path on the real simulator, tiny: demonstrations, scene flow, both stages, evaluation, report; then once more."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lamp import cli
from lamp.errors import ConfigError, DataError
from lamp.experiment import DEMO_S, QUICK, STAGES, Clock, _result_text, in_another_process, plan, quick, regime, run
from lamp.files import locked
from lamp.json_files import read_lines_json
from lamp.recipes import Recipe, experiment
from lamp.recipes.kinds import without_motion
from lamp.train.publishing import find_checkpoint
from lamp.view.report import StoredExperiment

pytestmark = pytest.mark.long


def tiny(prior: str | None = None) -> Recipe:
    """The demo with every number as small as it can be; by default with a Stage 1 of its own."""
    demo = experiment("demo")
    loop = replace(
        demo.motion.loop, steps=4, batch_size=4, log_every=2, checkpoint_every=2, validate_every=4, threads=1
    )
    policy = replace(demo.policy, loop=loop, noise_draws=1, cached_hidden_draws=1, validation_samples=4)
    return replace(
        demo,
        prior=prior,
        collect=replace(demo.collect, task=(0,), episodes=2, render_every=8, workers=2),
        flow=replace(demo.flow, every=2, workers=1),
        motion=replace(demo.motion, loop=loop, validation_samples=2, final_samples=2),
        policy=policy,
        without_motion=without_motion(policy),
        evaluations=(
            replace(demo.evaluations[-1], task=(0,), states="30:31", controls=("replay", "zero"), videos=1, workers=2),
        ),
    )


def written(out: Path) -> dict[Path, int]:
    """When each tensor file was written; the features' few shared tensors are made anew by every session."""
    paths = (path for path in out.rglob("*.safetensors") if path.name != "shared.safetensors")
    return {path: path.stat().st_mtime_ns for path in paths}


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.parametrize("prior", [None, "pretrained/libero_object"])
def test_a_recipe_runs_from_nothing_to_a_report_and_only_once(tmp_path: Path, prior: str | None) -> None:
    made, out = tiny(prior), tmp_path / "run"
    summary = run(made, out)
    assert summary == json.loads((out / "summary.json").read_text())
    assert {"collect", "flow", "train_motion", "train_policy", "evaluate", "total"} <= summary["seconds"].keys()
    assert summary["success"].keys() == {"with_motion", "without_motion", "replay", "zero"}
    assert all(entry["episodes"] == 1 for entry in summary["success"].values())
    assert summary["success"]["zero"]["successes"] == 0
    assert summary["pairs"] == 1 and summary["regime"] == regime(made)
    assert summary["flow"]["moving"]["zero_motion_ade_px"] > 1
    if prior is not None:
        given = find_checkpoint(prior)
        for name in ("model.safetensors", "lamp.json"):
            assert (out / "motion/checkpoint" / name).read_bytes() == (given / name).read_bytes()
        assert json.loads((out / "motion/flow.json").read_text())["episodes"] == [0, 1]
    page = (out / "report.html").read_text()
    assert "<video" in page and "data:image" in page and "http://" not in page.replace("http://www.w3.org", "")

    done = written(out)
    lines = read_lines_json(out / "evaluation" / "episodes.jsonl")
    run(made, out)
    assert written(out) == done
    assert read_lines_json(out / "evaluation" / "episodes.jsonl") == lines


@pytest.mark.slow
@pytest.mark.sim
def test_the_quick_demo_says_everywhere_that_it_means_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--quick"]) == 0
    out = Path("outputs/demo-quick")
    said = capsys.readouterr()
    assert QUICK in said.err and QUICK in said.out
    assert json.loads((out / "summary.json").read_text())["warning"] == QUICK
    assert "TOO SMALL TO MEAN ANYTHING" in (out / "report.html").read_text()
    assert cli.main(["demo", "--quick"]) == 0
    said = capsys.readouterr()
    assert "all of it is done" in said.err and "done in 0:" in said.out
    assert cli.main(["demo", "--out", str(out)]) == 2
    assert "holds the run of `lamp demo --quick --out outputs/demo-quick`" in capsys.readouterr().err


def test_the_quick_form_follows_the_recipe() -> None:
    demo = experiment("demo")
    small = quick(demo)
    assert small.name == "demo_quick" and quick(replace(demo, name="mine")).name == "mine_quick"
    assert (small.motion.model, small.policy.model, small.backbone) == (
        demo.motion.model,
        demo.policy.model,
        demo.backbone,
    )
    assert small.collect == replace(demo.collect, task=(0, 1), episodes=4)
    assert small.policy.loop.optimiser == demo.policy.loop.optimiser and small.policy.loop.steps < 100
    assert small.without_motion == replace(without_motion(small.policy), loop=small.without_motion.loop)
    (evaluation,) = small.evaluations
    assert evaluation == replace(demo.evaluations[-1], states="30")
    (shifted,) = quick(experiment("libero_object_small")).evaluations
    assert shifted.task == (0, 1) and "replay" in shifted.controls, "a replay needs a demonstration of its task"


def seconds(text: str) -> int:
    minutes, rest = text.split(":")
    return 60 * int(minutes) + int(rest)


def test_the_plan_counts_what_is_left_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamp.experiment.available_cores", lambda: 2)
    demo, out = experiment("demo"), tmp_path / "demo"

    def left(spent: dict[str, float], **given: bool) -> list[str]:
        head, *lines = plan(demo, out, spent, **given).splitlines()
        assert [line.split()[0] for line in lines] == [name.split("_")[0] for name in STAGES]
        return [head, *(line[16:23].strip() for line in lines)]

    head, *stages = left({})
    assert f"about {sum(DEMO_S.values()) // 60}:{sum(DEMO_S.values()) % 60:02d}" in head
    assert [seconds(text) for text in stages] == [DEMO_S[name] for name in STAGES]
    # Twice as slow as expected so far; half of the third stage's time is spent.
    slow = {"collect": 2.0 * DEMO_S["collect"], "flow": 2.0 * DEMO_S["flow"], "features": float(DEMO_S["features"])}
    _, *stages = left(slow)
    assert stages[:2] == ["done", "done"]
    assert [seconds(text) for text in stages[2:]] == [DEMO_S["features"], *(2 * DEMO_S[name] for name in STAGES[3:])]
    head, *stages = left({name: 1.0 for name in STAGES}, finished=True)
    assert "all of it is done" in head and set(stages) == {"done"}
    lines = plan(demo, out, {}).splitlines()
    assert "56 demonstrations of 7 tasks" in lines[1] and lines[1].endswith("data")
    assert (
        "pretrained/libero_object, measured on them" in lines[4]
        and "168 episodes" in lines[6]
        and lines[7].endswith("report.html")
    )


def test_a_run_ends_with_what_it_took_and_what_to_type_next(tmp_path: Path) -> None:
    made = StoredExperiment(command="lamp demo", recipe="demo", quick=False)
    first, *following = _result_text(tmp_path / "my demo", made, 12.0, 0.0).splitlines()
    assert first == "done in 0:12; next:"
    assert [line.split("  #")[0].strip() for line in following] == [
        f"open '{tmp_path}/my demo/report.html'",
        f"lamp info '{tmp_path}/my demo'",
        f"lamp view '{tmp_path}/my demo/data' --checkpoint '{tmp_path}/my demo/policy_with'",
        f"lamp serve '{tmp_path}/my demo/policy_with'",
    ]
    assert _result_text(tmp_path, made, 12.0, 793.0).startswith("done in 0:12, after 13:13 of earlier sessions; next:")


def test_a_folder_belongs_to_one_experiment(tmp_path: Path) -> None:
    made = StoredExperiment(command="lamp demo --recipe mine --out x", recipe="mine", quick=False)
    (tmp_path / "experiment.json").write_text(json.dumps(made))
    with pytest.raises(ConfigError, match=r"holds the run of `lamp demo --recipe mine --out x`.*choose another --out"):
        run(tiny(), tmp_path)
    assert not (tmp_path / "seconds.json").exists()


def test_a_failure_does_not_wait_for_the_work_beside_it() -> None:
    started = time.monotonic()
    with pytest.raises(ZeroDivisionError), in_another_process(time.sleep, 600.0):
        while not multiprocessing.active_children():
            time.sleep(0.05)
        raise ZeroDivisionError
    assert time.monotonic() - started < 120
    assert multiprocessing.active_children() == []


def test_the_work_beside_gives_its_result() -> None:
    with in_another_process(sorted, (3, 1, 2)) as work:
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


@pytest.mark.parametrize("folder", ["", "policy_without", "evaluation_motion_only"])
def test_a_run_that_cannot_be_finished_is_refused_before_anything_is_done(folder: str, tmp_path: Path) -> None:
    busy = rf"at work in {tmp_path / folder}.* \(process {os.getpid()}, since"
    with locked(tmp_path / folder / ".lock", ""), pytest.raises(DataError, match=busy):
        run(tiny(), tmp_path)
    assert not (tmp_path / "seconds.json").exists()
