"""`lamp bench realtime`: what it counts as a jump and as an error, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamp.bench.realtime import Handover, RealTimeBench, _figures, to_text
from lamp.errors import ConfigError
from lamp_client.types import Observation


def handover(recorded: np.ndarray) -> Handover:
    seen = Observation(images={"a": np.zeros((2, 2, 3), np.uint8)}, state=np.zeros(1, np.float32), instruction="go")
    return Handover(seen=(seen, seen), recorded=recorded)


def line(first: float, count: int = 8) -> np.ndarray:
    """One value that grows by 2 a step, and a gripper."""
    return np.stack([first + 2.0 * np.arange(count), np.ones(count)], axis=1)


@pytest.mark.parametrize(("off", "jump", "error"), [(0.0, 1.0, 0.0), (6.0, 4.0, 3.0), (-4.0, 1.0, 2.0)])
def test_a_jump_is_counted_in_steps_of_the_demonstrations(off: float, jump: float, error: float) -> None:
    every, delay = 3, 2
    old, new = line(0.0)[None], line(2.0 * every + off)[None]
    figures = _figures(old, new, [handover(line(2.0 * every))], every, delay, [0], np.array([2.0]))
    assert figures["jump_median"] == jump and figures["jump_p95"] == jump
    assert figures["error"] == error and figures["step_median"] == 1.0


def test_the_table_has_a_row_for_each_delay() -> None:
    row: dict[str, Any] = {
        "jump_median": 1.0, "jump_p95": 2.0, "step_median": 1.0, "error": 0.5, "trials": 4,
        "progress": 0.5, "low": 0.2, "high": 0.8,
    }  # fmt: skip
    rows = [{"method": name, "delay": delay, **row} for delay in (0, 3) for name in ("naive", "guided")]
    text = to_text(
        {"checkpoint": "c", "episodes": 2, "handovers": 9, "every": 8, "recorded_step_p95": 1.7, "rows": rows}
    )
    assert text.count("1.00 / 2.00 (0.5)") == 4 and text.count("50% (20% to 80%)") == 4
    assert "4 trials each" in text and text.count("    3  ") == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delays": ()}, "expected at least one of each"),
        ({"delays": (-1,)}, "no delay below 0"),
        ({"every": 0}, "every 0"),
        ({"rig": Path("rig.json")}, "expected a rig and a folder"),
        ({"rig": Path("rig.json"), "out": Path("out"), "trials": 0}, "at least one"),
    ],
)
def test_settings_that_say_nothing(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RealTimeBench(checkpoint=Path("c"), data="d", **settings)
