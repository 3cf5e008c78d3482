"""Simulators in other processes: what goes over the link, and what happens when either side goes away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamp_client.envs.remote import Launch, RemoteEnv
from lamp_client.errors import SimulationError

FAKE = Path(__file__).with_name("remote_fakes.py")
LAUNCH = Launch(command=(sys.executable, str(FAKE)), environment={"LAMP_TEST": "yes"})


def opened(**settings: Any) -> RemoteEnv:
    return RemoteEnv(LAUNCH, settings, lambda action: 2 * action)


def alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def gone(pid: int, within_s: float = 10.0) -> bool:
    end = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


def test_an_episode_goes_over_the_link() -> None:
    with opened(task=3, step_limit=5) as env:
        assert (env.cameras, env.instruction, env.step_limit) == (("front",), "go right, task 3", 5)
        assert env.facts["fake"] == "1.0" and env.placement == {}
        env.reset(1, placement_seed=77)
        seen = env.observe()
        assert seen.images["front"].shape == (480, 640, 3) and seen.images["front"].max() == 1
        np.testing.assert_array_equal(seen.state, np.array([-1], np.float32))
        results = [env.step(env.action_from_policy(np.array([0.25, 0, 0, 0, 0, 0, 0]))).success for _ in range(5)]
        assert results == [False, False, False, True, False]


def test_the_expert_acts_on_the_other_side() -> None:
    with opened() as env:
        env.reset(0)
        expert = env.expert()
        assert [env.step(expert()).success for _ in range(4)] == [False, True, True, True]
        assert expert().dtype == np.float32


def test_errors_of_the_other_side_are_told_and_survived(capfd: pytest.CaptureFixture[str]) -> None:
    with opened(trouble={"2": "raise"}) as env:
        with pytest.raises(SimulationError, match=r"failed: ValueError: the arrangement is impossible$"):
            env.reset(2)
        assert "remote_fakes.py" in capfd.readouterr().err
        env.reset(0)
        assert env.observe().images["front"].max() == 0


def test_a_death_is_told_with_last_words(capfd: pytest.CaptureFixture[str]) -> None:
    with opened(trouble={"1": "die"}) as env:
        with pytest.raises(ConnectionError, match=r"died \(exit code 9\).*out of memory, they say"):
            env.reset(1)
        with pytest.raises(ConnectionError):
            env.observe()
    assert "out of memory, they say" in capfd.readouterr().err


def test_what_cannot_start_is_told() -> None:
    broken = Launch(command=(sys.executable, "-c", "import no_such_simulator"))
    with pytest.raises(ConnectionError, match="No module named 'no_such_simulator'"):
        RemoteEnv(broken, {}, lambda action: action)


def test_what_cannot_be_opened_leaves_nothing_behind() -> None:
    with pytest.raises(SimulationError, match="invalid literal for int"):
        opened(step_limit="many")
    children = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "args="], capture_output=True, text=True).stdout
    assert FAKE.name not in children


def test_closing_ends_the_other_process() -> None:
    env = opened()
    pid = int(env.facts["pid"])
    assert alive(pid)
    env.close()
    assert not alive(pid)


def test_ctrl_c_is_not_for_the_simulator() -> None:
    with opened() as env:
        assert os.getpgid(int(env.facts["pid"])) != os.getpgid(0)


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
@pytest.mark.parametrize("hanging", [False, True])
def test_a_simulator_does_not_outlive_who_started_it(tmp_path: Path, hanging: bool) -> None:
    script = f"""
import sys, time
sys.path.insert(0, {str(FAKE.parent)!r})
from test_remote import opened
env = opened(trouble={{"1": "hang"}})
open({str(tmp_path / "pid")!r}, "w").write(env.facts["pid"])
{"env.reset(1)" if hanging else "time.sleep(600)"}
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    try:
        end = time.monotonic() + 60
        while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()) and time.monotonic() < end:
            time.sleep(0.05)
        pid = int((tmp_path / "pid").read_text())
        time.sleep(0.3)
        assert alive(pid)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert gone(pid)
