"""Evaluations with fake simulators in real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_fakes import FakePolicy, FakeSimulators, make_checkpoint

from lamp.benchmark.episodes import read_records
from lamp.benchmark.evaluate import EvaluateConfig, Summary, evaluate
from lamp.benchmark.run_manifest import read_sessions
from lamp.benchmark.worker_pool import SimulationStoppedError
from lamp.data.lerobot.video import video_info
from lamp.errors import ConfigError, DataError
from lamp.json_files import read_json, write_json

SCRIPT = Path(__file__).with_name("benchmark_fakes.py")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Summary, Path, list[FakePolicy]]:
    """Two checkpoints and three controls on the same eight scenes."""
    root = tmp_path_factory.mktemp("evaluation")
    opened: list[FakePolicy] = []

    def load(path: Path, device: str, threads: int) -> FakePolicy:
        opened.append(FakePolicy(path))
        return opened[-1]

    config = EvaluateConfig(
        checkpoint=make_checkpoint(root / "policy"),
        against=make_checkpoint(root / "without", "other weights"),
        suite="fake",
        states="3:7",
        task=(0, 2),
        controls=("zero", "wrong_instruction", "blank"),
        placement_shift=0.02,
        out=root / "out",
        workers=2,
        videos=2,
    )
    return evaluate(config, load=load, simulators=FakeSimulators()), root, opened


def test_every_condition_meets_the_same_scenes(run: tuple[Summary, Path, list[FakePolicy]]) -> None:
    records = read_records(run[0].folder)
    assert run[0].complete and len(records) == 5 * 8
    scenes = {name: {r.scene for r in records if r.condition == name} for name in {r.condition for r in records}}
    assert set(scenes) == {"with_motion", "without_motion", "zero", "wrong_instruction", "blank"}
    assert all(found == scenes["with_motion"] and len(found) == 8 for found in scenes.values())
    placements = {(r.scene, json.dumps(r.placement)) for r in records}
    assert len(placements) == 8


def test_controls_take_away_what_they_say(run: tuple[Summary, Path, list[FakePolicy]]) -> None:
    rates = {row.condition: row.total.value for row in run[0].tables[0].rows}
    assert rates == {"with_motion": 1.0, "without_motion": 1.0, "zero": 0.0, "wrong_instruction": 0.0, "blank": 0.0}
    told = {r.condition: r.instruction for r in run[0].records if r.task == 2}
    assert told["with_motion"] == "push up" and told["wrong_instruction"] == "push left"
    assert all(r.policy_calls == 0 for r in run[0].records if r.condition == "zero")


def test_lines_say_what_the_protocol_asks(run: tuple[Summary, Path, list[FakePolicy]]) -> None:
    line = json.loads((run[0].folder / "episodes.jsonl").read_text().splitlines()[0])
    named = "suite task state placement_seed noise_seed success success_last steps instruction checkpoint code packages wall_s"
    assert set(named.split()) <= line.keys()
    assert line["packages"]["numpy"] == np.__version__
    assert len({r.checkpoint for r in run[0].records}) == 3  # two checkpoints, and none


def test_noise_seeds_hold_the_episode_and_the_call(run: tuple[Summary, Path, list[FakePolicy]]) -> None:
    assert (7 + 400_000 + 2_000 + 3, 0) in run[2][0].seeds
    assert (7 + 400_000 + 2_000 + 3, 1) in run[2][0].seeds


def test_films_are_taken_of_the_policy_on_every_task(run: tuple[Summary, Path, list[FakePolicy]]) -> None:
    filmed = [r for r in run[0].records if r.video]
    assert {(r.condition, r.task) for r in filmed} == {("with_motion", 0), ("with_motion", 2)}
    for record in filmed:
        assert record.video is not None
        info = video_info(run[0].folder / record.video)
        assert info.frames == -(-record.steps // 4) + (1 if record.steps else 0)


def test_summary_is_computed_from_the_lines(run: tuple[Summary, Path, list[FakePolicy]]) -> None:
    summary = read_json(run[0].folder / "summary.json")
    assert summary["complete"] and summary["done"] == 40
    table = summary["tables"][0]
    assert [row["condition"] for row in table["conditions"]][:2] == ["with_motion", "without_motion"]
    assert table["conditions"][0]["total"]["successes"] == 8
    assert table["pairs"][0]["second"] == "without_motion" and table["pairs"][0]["p_value"] == 1.0
    assert "| with_motion | 4/4 | 4/4 | 8/8 (100.0%, 67.6-100.0) |" in (run[0].folder / "tables.md").read_text()


def test_another_session_repeats_nothing_and_other_settings_are_refused(
    run: tuple[Summary, Path, list[FakePolicy]],
) -> None:
    root = run[1]
    before = (root / "out" / "episodes.jsonl").read_bytes()
    settings: dict[str, Any] = dict(
        checkpoint=root / "policy", against=root / "without", suite="fake", states="3:7", task=(0, 2), placement_shift=0.02,
        controls=("zero", "wrong_instruction", "blank"), out=root / "out",
    )  # fmt: skip
    again = evaluate(EvaluateConfig(**settings, workers=1), load=FakePolicy, simulators=FakeSimulators())
    assert again.complete and (root / "out" / "episodes.jsonl").read_bytes() == before
    assert [session.episodes for session in again.sessions] == [40], "a call that did nothing is no session"
    with pytest.raises(ConfigError, match="states is '3:8', was '3:7'"):
        evaluate(EvaluateConfig(**{**settings, "states": "3:8"}), load=FakePolicy, simulators=FakeSimulators())
    make_checkpoint(root / "other" / "policy", "retrained")
    with pytest.raises(ConfigError, match="with_motion is"):
        evaluate(
            EvaluateConfig(**{**settings, "checkpoint": root / "other" / "policy"}),
            load=FakePolicy,
            simulators=FakeSimulators(),
        )


def _start(root: Path, pause_s: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(root), str(pause_s)],
        start_new_session=True,
        stderr=(root / "log").open("ab"),
        # A shell has its background jobs ignore Ctrl-C, the jobs of this suite among them, and theirs.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def _lines(root: Path) -> int:
    path = root / "out" / "episodes.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _until(root: Path, lines: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300  # only a hang takes so long; on a crowded machine, importing alone takes a while
    while _lines(root) < lines:
        assert process.poll() is None and time.monotonic() < deadline, (root / "log").read_text()
        time.sleep(0.01)


@pytest.mark.long
@pytest.mark.parametrize(
    "blow", [signal.SIGKILL, *(pytest.param(blow, marks=pytest.mark.slow) for blow in (signal.SIGINT, signal.SIGTERM))]
)
def test_a_killed_evaluation_goes_on_without_loss_or_repetition(tmp_path: Path, blow: signal.Signals) -> None:
    make_checkpoint(tmp_path / "policy")
    done = 0
    for lines in (3, 9):
        process = _start(
            tmp_path, 0.1
        )  # so slow that it cannot end by itself meanwhile, whatever else the machine does
        _until(tmp_path, lines, process)
        # Ctrl-C reaches the whole group, the others only the main process.
        (os.killpg if blow == signal.SIGINT else os.kill)(process.pid, blow)
        assert process.wait(timeout=20) != 0
        kept = read_records(tmp_path / "out")
        assert len(kept) >= max(lines, done)
        done = len(kept)
    with (tmp_path / "out" / "episodes.jsonl").open("ab") as stream:
        stream.write(b'{"condition":"zero","suite":"fa')  # what a power cut leaves of a line
    last = _start(tmp_path, 0.0)
    assert last.wait(timeout=40) == 0, (tmp_path / "log").read_text()
    records = read_records(tmp_path / "out")
    assert len(records) == len({record.key for record in records}) == 2 * 10 * 2
    summary, sessions = read_json(tmp_path / "out" / "summary.json"), read_sessions(tmp_path / "out")
    assert summary["complete"] and summary["sessions"] == 3 == len(sessions)
    assert 38 <= sum(session.episodes for session in sessions) <= 40 and all(
        session.seconds > 0 for session in sessions
    )
    assert summary["session_seconds"] == pytest.approx(sum(session.seconds for session in sessions), abs=0.06)
    begun = (tmp_path / "journal").read_text().splitlines()
    # At most the two episodes in flight are begun anew each time.
    assert 40 <= len(begun) <= 40 + 2 * 2


@pytest.mark.long
def test_a_dead_worker_is_reported_and_its_episode_redone(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "policy")
    process = _start(tmp_path, 0.005)
    _until(tmp_path, 4, process)
    victim = int((tmp_path / "journal").read_text().splitlines()[-1].split()[0])
    os.kill(victim, signal.SIGKILL)
    assert process.wait(timeout=40) == 0
    assert re.search(r"worker \d died \(killed.*\) on .*; a new worker takes over", (tmp_path / "log").read_text())
    records = read_records(tmp_path / "out")
    assert len(records) == len({record.key for record in records}) == 40
    assert sorted({record.attempt for record in records}) == [1, 2]


def test_an_episode_that_raises_stops_the_run_with_its_error(tmp_path: Path) -> None:
    config = EvaluateConfig(controls=("zero",), suite="fake", states="0:2", out=tmp_path, workers=1)
    with pytest.raises(
        SimulationStoppedError, match=r"zero task 2 state 0 failed: RuntimeError: the simulator exploded"
    ):
        evaluate(config, simulators=FakeSimulators(raises_at=2))
    assert {record.task for record in read_records(tmp_path)} == {0, 1}


@pytest.mark.slow
def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "policy")
    process = _start(tmp_path, 0.02)
    try:
        _until(tmp_path, 1, process)
        config = EvaluateConfig(controls=("zero",), suite="fake", states="0:2", out=tmp_path / "out", workers=1)
        with pytest.raises(DataError, match="another process is evaluating"):
            evaluate(config, simulators=FakeSimulators())
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing to evaluate"),
        ({"controls": ("zero",), "workers": 0}, "workers is 0"),
        ({"controls": ("zero",), "against": Path("x")}, "expected --checkpoint"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluateConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"controls": ("replay",)}, "needs --data"),
        ({"controls": ("blank",)}, "needs --checkpoint"),
        ({"controls": ("zero",), "task": (3,)}, "unknown task of fake '3'"),
        ({"controls": ("zero",), "task": (1, 1)}, "none twice"),
    ],
)
def test_what_does_not_exist_is_named_before_anything_runs(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(EvaluateConfig(suite="fake", out=tmp_path / "out", **settings), simulators=FakeSimulators())
    assert not (tmp_path / "out").exists()


def test_a_suite_without_an_expert_says_so(tmp_path: Path) -> None:
    config = EvaluateConfig(suite="fake", states="0", task=(0,), controls=("expert",), out=tmp_path)
    with pytest.raises(SimulationStoppedError, match="fake has no scripted expert"):
        evaluate(config, simulators=FakeSimulators())


def test_progress_tells_rate_pace_and_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_checkpoint(tmp_path / "policy")
    config = EvaluateConfig(checkpoint=tmp_path / "policy", suite="fake", states="0:3", task=(0,), out=tmp_path / "out")
    evaluate(config, load=FakePolicy, simulators=FakeSimulators())
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(
        r"\[3/3\] with_motion task 0 .* so far 3/3 \(100%, 44 to 100\); [\d,]+ episodes/h, 0:00 left$", last
    )


@pytest.mark.slow
def test_an_episode_past_its_deadline_is_stopped_and_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Task 1 hangs the first time that it is tried."""
    make_checkpoint(tmp_path / "policy")
    config = EvaluateConfig(
        checkpoint=tmp_path / "policy", suite="fake", states="0:2", task=(0, 1), out=tmp_path / "out", workers=2,
        deadline_s=15.0,  # a worker that is started anew must be able to import everything in it
    )  # fmt: skip
    simulators = FakeSimulators(hangs_at=1, journal=tmp_path / "journal")
    summary = evaluate(config, load=FakePolicy, simulators=simulators)
    assert summary.complete and {r.success for r in summary.records} == {True}
    assert sorted(record.attempt for record in summary.records) == [1, 1, 1, 2]
    assert "stopped: its episode took longer than 15 s" in capsys.readouterr().err


def test_an_episode_that_always_hangs_ends_the_evaluation_with_advice(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "policy")
    config = EvaluateConfig(
        checkpoint=tmp_path / "policy", suite="fake", states="0", task=(1,), out=tmp_path / "out", deadline_s=1.5
    )
    with pytest.raises(SimulationStoppedError, match="Try a longer --deadline-s"):
        evaluate(config, load=FakePolicy, simulators=FakeSimulators(hangs_at=1))


def test_time_that_an_earlier_version_noted_is_kept(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "policy")
    config = EvaluateConfig(
        checkpoint=tmp_path / "policy", suite="fake", states="0:2", task=(0,), out=tmp_path / "out", workers=1
    )
    first = evaluate(config, load=FakePolicy, simulators=FakeSimulators())
    (tmp_path / "out" / "sessions.jsonl").unlink()
    write_json(tmp_path / "out" / "summary.json", {"session_seconds": 100.0})
    lines = (tmp_path / "out" / "episodes.jsonl").read_text().splitlines()
    (tmp_path / "out" / "episodes.jsonl").write_text(lines[0] + "\n")
    again = evaluate(config, load=FakePolicy, simulators=FakeSimulators())
    assert again.records == first.records[:1] + again.records[1:]
    assert [(session.number, session.episodes) for session in again.sessions] == [(1, 1), (2, 1)]
    assert read_json(tmp_path / "out" / "summary.json")["session_seconds"] > 100.0
