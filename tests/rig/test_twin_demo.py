"""The demo on the twin: from nothing to scored trials, and on from where it was stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lamp import cli
from lamp.bench.realtime import RealTimeBench, bench_realtime
from lamp.errors import ConfigError
from lamp.twin_demo import METHODS, TwinDemo, progress
from lamp.twin_demo import run as run_demo


@pytest.mark.slow
def test_the_quick_demo_goes_from_demonstrations_to_trials_and_is_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["twin-demo", "--quick", "--out", str(tmp_path)]
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert "TOO SMALL TO MEAN ANYTHING" in said.out + said.err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [summary["methods"][name]["trials"] for name in METHODS] == [1, 1]
    assert summary["condition"] == "unseen_layout" and summary["seconds"]["total"] > 0
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert "policy" in recipe
    trials = (tmp_path / "trials.jsonl").read_text()
    weights = [(tmp_path / name / "checkpoint").stat().st_mtime_ns for name in (*METHODS, "motion")]
    assert cli.main(words) == 0
    assert (tmp_path / "trials.jsonl").read_text() == trials
    assert weights == [(tmp_path / name / "checkpoint").stat().st_mtime_ns for name in (*METHODS, "motion")]
    bench = RealTimeBench(
        checkpoint=tmp_path / METHODS[0] / "checkpoint", data=str(tmp_path / "data"), delays=(0, 2), moments=3,
        rig=tmp_path / "rig.json", out=tmp_path / "realtime", trials=1,
    )  # fmt: skip
    figures = bench_realtime(bench)
    found = {(row["method"], row["delay"]): row for row in figures["rows"]}
    # Not trained for delays, it has four ways to go on; without a delay, trials are the same for all.
    assert set(found) == {(name, at) for name in ("naive", "ensemble", "identity", "guided") for at in (0, 2)}
    assert all(row["trials"] == 1 for row in found.values())
    assert found["guided", 2]["jump_median"] < found["naive", 2]["jump_median"]
    assert {path.name for path in (tmp_path / "realtime").iterdir()} == {
        "no-delay", "naive-2", "ensemble-2", "identity-2", "guided-2"
    }  # fmt: skip
    with pytest.raises(ConfigError, match="a delay of 9 steps"):
        bench_realtime(replace(bench, delays=(9,)))
    with pytest.raises(ConfigError, match="holds a run with"):
        run_demo(TwinDemo(out=tmp_path, demonstrations=3))


def test_progress_counts_stages_and_whole_tasks() -> None:
    assert progress([1.0, 0.5, 0.0, 1.0]) == {
        "trials": 4, "completed": 2, "progress": 0.625, "interval": [pytest.approx(0.22, abs=0.02), pytest.approx(0.91, abs=0.02)]
    }  # fmt: skip
    assert progress([])["trials"] == 0


@pytest.mark.parametrize("counts", [{"demonstrations": 1}, {"trials": 0}, {"policy_steps": 0}])
def test_counts_that_are_none(counts: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least two demonstrations and one of all else"):
        TwinDemo(**counts)  # pyright: ignore[reportArgumentType]
