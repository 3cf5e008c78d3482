"""`lamp study run tiny`, from nothing to a report, killed on the way; what `lamp study` leaves when it is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import lamp.study.run as running
from lamp.errors import DataError
from lamp.json_files import read_json_object, write_json
from lamp.study.catalogue import ACTION_FREE, NONE, tiny
from lamp.study.jobs import Job, MotionJob, PolicyJob
from lamp.study.plan import RunOptions
from lamp.study.results import RESULT, cells
from lamp.study.run import run

EXPECTED = 20
"""Cells of `tiny`: five arms, two numbers of demonstrations, two seeds."""


class InTurn:
    """A pool that does what it is given at once, in this process."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.stopped = False

    def __enter__(self) -> InTurn:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work: Any, *args: Any) -> Any:
        from concurrent.futures import Future

        future: Future[Any] = Future()
        try:
            future.set_result(work(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The jobs that are done, in order; none of them trains anything."""
    found: list[str] = []

    def pretend(job: Job, out: Path) -> dict[str, Any]:
        found.append(job.folder)
        error = {"final": 1.0, "best": 1.0, "best_step": 6, "curve": [[6, 1.0]]}
        result = {"steps": 6, "seconds": 60.0, "episodes": [0], "code": "x"}
        if isinstance(job.work, PolicyJob):
            assert all((out / need / RESULT).is_file() for need in job.needs)
            result |= {"errors": dict.fromkeys(job.work.groups, error)}
        elif isinstance(job.work, MotionJob):
            result |= {"ade_px": 1.0, "zero_motion_ade_px": 2.0}
        write_json(out / job.folder / RESULT, result)
        return result

    monkeypatch.setattr(running, "do", pretend)
    monkeypatch.setattr(running, "ProcessPool", InTurn)
    monkeypatch.setattr(running, "ensure_features", lambda *_, **__: None)
    return found


def test_a_study_in_several_sittings(done: list[str], tmp_path: Path) -> None:
    out = tmp_path / "study"
    figures = run(tiny(), out, RunOptions(cells=3, workers=1))
    assert [folder.split("/")[1] for folder in done if folder.startswith("cells")] == ["none", "same", "action_free"]
    assert len(done) == 5 and figures["cells"] == {"done": 3, "planned": EXPECTED} and not figures["complete"]
    figures = run(tiny(), out, RunOptions(only=("oracle",), workers=1))
    assert {folder.split("/")[1] for folder in done[5:]} == {"oracle"}, "its Stage 1 was there"
    figures = run(tiny(), out, RunOptions(deadline=time.time() - 1, workers=1))
    assert figures["cells"]["done"] == 3 + 4
    figures = run(tiny(), out, RunOptions(workers=1))
    assert figures["complete"] and len(done) == len({*done}) == EXPECTED + 4
    more = replace(tiny(), policy_seeds=3)
    assert run(more, out)["cells"] == {"done": EXPECTED + 10, "planned": EXPECTED + 10}
    assert len(done) == EXPECTED + 4 + 10 and all(folder.endswith("s2") for folder in done[-10:])


def test_what_is_said_on_the_way(done: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(replace(tiny(), arms=(NONE, ACTION_FREE)), tmp_path / "study", RunOptions(workers=1))
    said = capsys.readouterr().err
    assert "8 of 8 cells to train, 1 Stage 1" in said and "too few seeds for a claim" in said
    assert "study  none (n 1, seed 0): held-out error 1.0000 (best 1.0000) in 1:00" in said
    assert "study  Stage 1 action_free (seed 0): 1.0 px, 2.0 px for no motion in 1:00" in said
    assert "study  9/9 runs" in said


def test_what_goes_wrong_in_a_cell_is_told_with_its_name(
    done: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(job: Job, out: Path) -> dict[str, Any]:
        raise DataError("no space")

    monkeypatch.setattr(running, "do", fail)
    with pytest.raises(DataError, match=r"^none \(n 1, seed 0\): no space$"):
        run(tiny(), tmp_path / "study", RunOptions(workers=1))


@pytest.mark.slow
def test_a_study_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "study"
    words = [sys.executable, "-m", "lamp", "study", "run", "tiny", "--out", str(out), "--workers", "2", "--quiet"]
    started = subprocess.Popen(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(finished(out)) < 3:
        assert started.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    refused = subprocess.run(words, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "a study is at work in" in refused.stderr
    started.send_signal(signal.SIGKILL)
    started.wait()
    before = finished(out)
    assert 3 <= len(before) < EXPECTED + 4
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    after = finished(out)
    assert len(after) == EXPECTED + 4 and before.items() <= after.items(), "nothing finished is done again"
    figures = json.loads((out / "study.json").read_text())
    assert figures["complete"] and {row["verdict"] for row in figures["differences"]} == {"no claim"}
    results = {cell: read_json_object(out / cell.folder / RESULT) for cell in cells(tiny())}
    for count in (1, 2):
        same = {tuple(result["episodes"]) for cell, result in results.items() if cell.demonstrations == count}
        assert len(same) == 1 and len(next(iter(same))) == 2 * count, "all arms have the same demonstrations"
    for result in results.values():
        assert [step for step, _ in result["errors"]["held_out"]["curve"]] == [3, 6]
    by_arm = {cell.arm: result["errors"]["held_out"]["final"] for cell, result in results.items() if cell.seed == 1}
    assert len({*by_arm.values()}) == 5, "each arm is another policy"
    assert "Study: tiny" in (out / "report.html").read_text() and "0/" not in ended.stdout.splitlines()[1]


def finished(out: Path) -> dict[str, int]:
    """When each result was written."""
    found = [path for pattern in ("motion/*/*", "cells/*/*/*") for path in out.glob(f"{pattern}/{RESULT}")]
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in found}
