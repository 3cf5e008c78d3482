"""Commands that are ended at random moments: `scripts/kill_harness.py`, shortened."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from lamp.bench.loading import make_up

HARNESS = Path(__file__).parents[1] / "scripts" / "kill_harness.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("command", ["cache", "train"])
def test_what_is_ended_at_any_moment_leaves_no_process_and_loses_nothing(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_up(tmp_path / "data", ("agentview", "wrist"))
    known = importlib.util.spec_from_file_location("kill_harness", HARNESS)
    assert known is not None and known.loader is not None
    harness = importlib.util.module_from_spec(known)
    known.loader.exec_module(harness)
    words = [str(HARNESS), str(tmp_path / "data"), str(tmp_path / "out"), "--commands", command, "--blows", "4"]
    monkeypatch.setattr(sys, "argv", words)
    harness.main()
    assert f'{command}: {{"blows": 4' in capsys.readouterr().out
