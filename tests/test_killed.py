"""Commands that are ended at random moments: `scripts/kill_harness.py`, shortened."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lamp.bench.data import write_synthetic_demonstrations

HARNESS = Path(__file__).parents[1] / "scripts" / "kill_harness.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("command", ["cache", "train"])
def test_what_is_ended_at_any_moment_leaves_no_process_and_loses_nothing(command: str, tmp_path: Path) -> None:
    write_synthetic_demonstrations(tmp_path / "data", ("agentview", "wrist"))
    words = [str(HARNESS), str(tmp_path / "data"), str(tmp_path / "out"), "--commands", command, "--blows", "4"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f'{command}: {{"blows": 4, "SIGTERM": 2, "SIGKILL": 2' in done.stdout
