"""How far things are is said in one way: as a bar on a terminal, elsewhere in a line now and then, and not at all if asked."""

from __future__ import annotations

import io
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import lamp
from lamp import cli, progress
from lamp.commands import COMMANDS, Command
from lamp.progress import Progress, clock, say


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        time.sleep(0.05)


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets seconds pass."""
    fake = Clock()
    monkeypatch.setattr(progress, "time", fake)

    def passing(seconds: float) -> None:
        fake.now += seconds

    return passing


def test_a_line_tells_what_is_done_the_rate_and_the_time_left(passing: Callable[[float], None]) -> None:
    line = Progress("collect", 10, "episodes", done=4)
    passing(300)  # until the first, things are loaded: that says nothing about the rest
    line.advance()
    assert line.line == "5/10 episodes, 5:00 so far"
    passing(60)
    line.advance(2, note="1 attempt failed")
    assert line.line == "7/10 episodes, 2.0 episodes/min, 1:30 left, 1 attempt failed"
    line.update(8, left_s=3700)
    assert line.line == "8/10 episodes, 3.0 episodes/min, 1:01:40 left, 1 attempt failed"
    line.close()


@pytest.mark.parametrize(
    ("done", "rate"), [(18000, "300.0 steps/s"), (60, "1.0 steps/s"), (6, "6.0 steps/min"), (0.5, "30.0 steps/h")]
)
def test_rates_are_in_a_unit_that_people_can_read(passing: Callable[[float], None], done: float, rate: str) -> None:
    with Progress("train", unit="steps") as line:
        line.advance()
        passing(60)
        line.advance(done)
        assert rate in line.line


def test_lines_come_now_and_then_and_the_last_one_always(
    passing: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("train", 100, "steps") as line:
        for _ in range(99):
            line.advance()
            passing(1)
        assert len(capsys.readouterr().err.splitlines()) == 10
        line.advance()
        passing(1)
    (last,) = capsys.readouterr().err.splitlines()
    assert last == "train  100/100 steps, 1.0 steps/s, 0:00 left"


def test_what_is_over_in_a_moment_is_not_worth_a_line(
    passing: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    for seconds, lines in ((1, 0), (15, 1)):
        with Progress("held-out loss", 2, "samples", brief=True) as line:
            line.advance()
            passing(seconds)
            line.advance()
        assert len(capsys.readouterr().err.splitlines()) == lines


def test_silences_are_broken_by_the_innermost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SILENCE_S", 0.5)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.2)
    told = ""
    with Progress("outer", 3, "stages"), Progress("inner", brief=True):
        deadline = time.monotonic() + 30
        while told.count("inner") < 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
            told += capsys.readouterr().err
    assert re.search(r"^inner  0:0\d so far$", told, re.MULTILINE) and "outer" not in told


def test_nothing_is_said_to_who_wants_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(flags: object) -> None:
        assert flags == ["--out", "x"]
        say("on its way")
        with Progress("train", 1, "steps") as line:
            line.advance()
            line.say("validation")
        print("result")

    monkeypatch.setitem(COMMANDS, "example", Command(summary="an example", run=work))
    for arguments in (["--quiet", "--out", "x"], ["--out", "x", "--quiet"]):
        assert cli.main(["example", *arguments]) == 0
        assert capsys.readouterr() == ("result\n", "")
    assert progress.QUIET not in os.environ
    assert cli.main(["example", "--out", "x"]) == 0
    assert capsys.readouterr().err.count("\n") == 3
    monkeypatch.setenv(progress.QUIET, "1")
    assert cli.main(["example", "--out", "x"]) == 0
    assert capsys.readouterr() == ("result\n", "") and os.environ[progress.QUIET] == "1"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_bars_one_below_another_and_lines_above(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with Progress("stage", 2, "parts") as outer:
        outer.update(1)
        with Progress("samples [1]", 10, "samples") as inner:
            inner.update(3, note="a [note]")
            say("a word")
            inner.update(10)
        outer.update(2)
    told = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "a word" in told and "3/10 samples" in told and "samples [1]" in told and "a [note]" in told
    assert (
        "stage  2/2 parts" in told
        and terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h") == 1
    )
    assert sys.stderr is terminal


def test_who_has_gone_away_does_not_stop_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = io.StringIO()
    gone.close()
    monkeypatch.setattr(sys, "stderr", gone)
    with pytest.raises(ValueError):
        gone.write("")
    monkeypatch.setattr(gone, "isatty", lambda: False, raising=False)
    with Progress("train", 2, "steps") as line:
        line.advance()
        line.advance()


def test_durations_are_readable() -> None:
    assert [clock(seconds) for seconds in (4.4, 59.6, 200.0, 7500.0)] == ["0:04", "1:00", "3:20", "2:05:00"]


def test_there_is_no_second_style() -> None:
    """Nothing else draws bars or rewrites lines."""
    for path in Path(lamp.__file__).parent.rglob("*.py"):
        text = path.read_text()
        if path.name != "progress.py" or path.parent != Path(lamp.__file__).parent:
            assert "rich.progress" not in text and "tqdm" not in text and r"\r" + "\\x1b" not in text, path
