"""Collecting on the real simulator, tiny: the dataset's contract, resuming after a kill, and refusing what does not fit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lamp.collect.collect import LOCK_PATH, CollectConfig, CollectReport, collect
from lamp.collect.episode_recording import HOLD, dataset_action, fresh_frames, simulate
from lamp.collect.jobs import ATTEMPTS_PATH, Attempt, jobs_of, log_attempt
from lamp.collect.noise import Disturbance
from lamp.data.check import check_dataset
from lamp.data.lerobot import LeRobotDataset, recorded_names, staged_names
from lamp.errors import DataError, MismatchError
from lamp.files import locked
from lamp.json_files import read_lines_json, write_json
from lamp.sceneflow.sim_states import SIMULATION_PATH

pytestmark = pytest.mark.long

CREAM_CHEESE = 1
"""libero_object's shortest task."""


def tiny(out: Path, **changes: object) -> CollectConfig:
    config = CollectConfig(
        suite="libero_object",
        task=(CREAM_CHEESE,),
        episodes=2,
        out=out,
        states=(0, 3),
        placement_shift=0.03,
        render_every=10,
        image_size=64,
        workers=1,
    )
    return replace(config, **changes)  # pyright: ignore[reportArgumentType]


KILLED = """
from pathlib import Path
from lamp.collect.collect import CollectConfig, collect
if __name__ == "__main__":
    collect({config!r})
"""


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CollectReport, list[str]]:
    """A collection killed after its first staged episode, then run to its end."""
    folder = tmp_path_factory.mktemp("collect")
    out, script = folder / "data", folder / "killed.py"
    script.write_text(KILLED.format(config=tiny(out)).replace("PosixPath", "Path"))
    with subprocess.Popen([sys.executable, str(script)], start_new_session=True, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 600
        while not staged_names(out):
            assert process.poll() is None and time.monotonic() < deadline, "nothing was staged"
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    survived = staged_names(out)
    assert not (out / "meta/info.json").exists()
    return out, collect(tiny(out)), survived


@pytest.mark.sim
def test_a_killed_collection_is_completed_without_repeats(resumed: tuple[Path, CollectReport, list[str]]) -> None:
    out, report, survived = resumed
    assert survived == [jobs_of(tiny(out))[0].name]
    assert recorded_names(out) == [job.name for job in jobs_of(tiny(out))] and not staged_names(out)
    assert report.episodes == 2 and report.recorded == 1 and not report.given_up
    successes = [line["job"] for line in read_lines_json(out / ATTEMPTS_PATH) if line["outcome"] == "success"]
    assert len(successes) == len(set(successes))


@pytest.mark.sim
def test_the_dataset_holds_what_the_contract_says(resumed: tuple[Path, CollectReport, list[str]]) -> None:
    out, _, _ = resumed
    dataset = LeRobotDataset(out)
    assert check_dataset(dataset.root, quick=True).faults == ()
    assert dataset.cameras == ("agentview", "wrist") and dataset.fps == 20
    for episode in dataset.episodes:
        clean, executed = (dataset.column(name, episode.index) for name in ("action", "action.executed"))
        assert clean.shape == executed.shape == (episode.length, 7)
        assert set(np.unique(clean[:, 6])) == {0.0, 1.0}
        np.testing.assert_array_equal(clean[:, 6], executed[:, 6])
        followed = ~dataset.overridden(episode.index)
        assert followed.mean() > 0.9 and np.abs(clean - executed)[followed, :3].max() < 0.8
        assert 0.01 < np.abs(clean - executed)[:, :3].mean() < 0.5
        assert (clean[-HOLD:, 6] == 1.0).all() and np.abs(clean[-HOLD:, :3]).max() < 0.01, "ends open, at rest"
        assert dataset.column("observation.state", episode.index).shape == (episode.length, 8)
        np.testing.assert_array_equal(dataset.fresh(episode.index), fresh_frames(episode.length, 10))
        extra = dataset.extra(episode.index)
        assert extra["task"] == CREAM_CHEESE and extra["initial_state"] in (0, 1, 2) and extra["placement"]
    assert dataset.lamp["render_every"] == 10 and dataset.lamp["collected"]["episodes"] == 2


@pytest.mark.sim
def test_the_simulator_states_are_those_of_the_frames(resumed: tuple[Path, CollectReport, list[str]]) -> None:
    from lamp_client.envs.libero import LiberoEnv, load_task

    out, _, _ = resumed
    dataset = LeRobotDataset(out)
    kept = load_file(out / SIMULATION_PATH.format(episode_index=1))
    state = dataset.column("observation.state", 1)
    with LiberoEnv(load_task("libero_object", CREAM_CHEESE)) as env:
        assert kept["body_poses"].shape == (len(state), env.simulation[0].nbody, 7)
        for frame in (0, len(state) // 2, len(state) - 1):
            env.restore(kept["states"][frame], kept["model_body_pos"], kept["model_body_quat"])
            np.testing.assert_allclose(env.proprioception(), state[frame], atol=1e-6)
            np.testing.assert_allclose(env.snapshot().body_poses, kept["body_poses"][frame], atol=1e-6)


@pytest.mark.sim
def test_the_same_seed_gives_the_same_trajectory() -> None:
    from lamp_client.envs.libero import LiberoEnv, load_task

    runs = []
    with LiberoEnv(load_task("libero_object", CREAM_CHEESE), placement_shift=0.03) as env:
        for seed in (7, 7, 8):
            env.reset(2, seed)
            runs.append(simulate(env, Disturbance(seed, std=0.15, push_probability=1.0)))
    first, again, other = runs
    assert first.outcome == again.outcome == other.outcome == "success"
    np.testing.assert_array_equal(first.states, again.states)
    np.testing.assert_array_equal(first.clean, again.clean)
    assert not np.array_equal(first.states[0], other.states[0])


def test_other_settings_in_the_same_folder_are_named(tmp_path: Path) -> None:
    from lamp.collect.collect import _check_settings

    _check_settings(tmp_path, tiny(tmp_path))
    _check_settings(tmp_path, tiny(tmp_path, episodes=9, workers=2, task=(0, CREAM_CHEESE)))
    with pytest.raises(MismatchError, match=r"action_noise 0\.15 there, 0\.3 here; render_every 10 there, 1 here"):
        _check_settings(tmp_path, tiny(tmp_path, action_noise=0.3, render_every=1))


def test_a_foreign_dataset_is_not_extended(tmp_path: Path) -> None:
    write_json(tmp_path / "meta/info.json", {"codebase_version": "v3.0"})
    with pytest.raises(MismatchError, match="not collected here"):
        collect(tiny(tmp_path))


def test_two_collections_do_not_share_a_folder(tmp_path: Path) -> None:
    with locked(tmp_path / LOCK_PATH, ""), pytest.raises(DataError, match="another collection is running"):
        collect(tiny(tmp_path))


def test_a_collection_without_any_success_says_why(tmp_path: Path) -> None:
    for job in jobs_of(tiny(tmp_path)):
        for number in range(8):
            log_attempt(tmp_path, Attempt(job=job.name, attempt=number, outcome="no free grasp", steps=9, seconds=1.0))
    with pytest.raises(DataError, match=r"none of 16 attempts succeeded.*no free grasp x 16"):
        collect(tiny(tmp_path))


def test_the_dataset_says_open_with_one() -> None:
    opened, closed = (dataset_action(np.array([0.1] * 6 + [gripper])) for gripper in (-1.0, 1.0))
    assert opened[6] == 1.0 and closed[6] == 0.0
    np.testing.assert_array_equal(opened[:6], 0.1)


def test_every_nth_frame_is_fresh() -> None:
    np.testing.assert_array_equal(fresh_frames(5, 2), [True, False, True, False, True])
    assert fresh_frames(4, 1).all()
