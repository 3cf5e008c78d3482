"""The list of jobs: which episodes, from where, and what the log of attempts remembers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lamp.collect.jobs import (
    EVALUATION_STATES,
    MAX_ATTEMPTS,
    Attempt,
    Attempts,
    CollectConfig,
    Job,
    jobs_of,
    log_attempt,
    start_of,
)
from lamp.errors import ConfigError
from lamp_client.errors import LampClientError

CONFIG = CollectConfig(suite="libero_object", task=(0, 3), episodes=40, placement_shift=0.04)


def test_jobs_follow_from_the_configuration() -> None:
    jobs = jobs_of(CONFIG)
    assert jobs == jobs_of(replace(CONFIG, out=Path("elsewhere"), workers=7))
    assert len(jobs) == 80 and len({job.name for job in jobs}) == 80
    assert [job.name for job in jobs] == sorted(job.name for job in jobs)


def test_more_episodes_keep_those_that_are_there() -> None:
    few, many = jobs_of(CONFIG), jobs_of(replace(CONFIG, episodes=50, task=(0, 3, 4)))
    assert {job.name for job in few} < {job.name for job in many}
    for job in few:
        assert start_of(CONFIG, job, 0) == start_of(replace(CONFIG, episodes=50), job, 0)


def test_starts_differ_between_episodes_attempts_and_seeds_and_nothing_else() -> None:
    job = jobs_of(CONFIG)[0]
    start = start_of(CONFIG, job, 0)
    assert start == start_of(replace(CONFIG, workers=3, render_every=2), job, 0)
    others = [
        start_of(CONFIG, job, 1),
        start_of(CONFIG, jobs_of(CONFIG)[1], 0),
        start_of(CONFIG, replace(job, task=3), 0),
        start_of(CONFIG, replace(job, suite="libero_spatial"), 0),
        start_of(replace(CONFIG, seed=1), job, 0),
    ]
    assert len({start.noise_seed, *(other.noise_seed for other in others)}) == 6
    assert len({start.placement_seed, *(other.placement_seed for other in others)}) == 6


def test_starting_states_stay_in_range_and_are_spread_evenly() -> None:
    config = replace(CONFIG, states=(5, 15))
    for attempt in range(MAX_ATTEMPTS):
        states = [start_of(config, job, attempt).initial_state for job in jobs_of(config) if job.task == 0]
        assert {states.count(state) for state in range(5, 15)} == {4}
        assert len(states) == 40


@pytest.mark.parametrize("states", [(0, 31), (30, 50), (29, 50), (49, 50)])
def test_states_kept_for_evaluation_are_refused(states: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=r"30 to 49 are kept for evaluation.*0 to 29"):
        CollectConfig(suite="libero_object", states=states)
    assert set(range(*states)) & set(EVALUATION_STATES)


@pytest.mark.parametrize("states", [(5, 5), (7, 3), (-1, 4)])
def test_empty_ranges_of_states_are_refused(states: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="expected at least one state"):
        CollectConfig(suite="libero_object", states=states)


def test_an_unknown_suite_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"libero_objekt.*did you mean 'libero_object'"):
        CollectConfig(suite="libero_objekt")


def test_a_task_beyond_the_expert_is_named_with_those_it_can_do() -> None:
    with pytest.raises(ConfigError, match=r"task 3 of libero_goal; it can do 1, 2, 4, 6, 8, 9"):
        CollectConfig(suite="libero_goal", task=(1, 3))


@pytest.mark.parametrize(
    "setting", [{"episodes": 0}, {"render_every": 0}, {"action_noise": -0.1}, {"placement_shift": 0.5}, {"seed": -1}]
)
def test_settings_out_of_range_are_named(setting: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        CollectConfig(suite="libero_object", **setting)  # pyright: ignore[reportArgumentType]


def test_episodes_that_would_repeat_each_other_are_refused() -> None:
    quiet = replace(CONFIG, episodes=30, placement_shift=0.0, action_noise=0.0, perturbation_probability=0.0)
    with pytest.raises(ConfigError, match="repeat"):
        replace(quiet, episodes=31)


def test_perturbations_of_demonstrations(tmp_path: Path) -> None:
    texts = ("none", "camera=2", "light=3", "camera=1+light=2")
    assert list(replace(CONFIG, perturb=texts).perturbations()) == [*texts]
    assert replace(CONFIG, perturb=texts).perturbations()["none"] is None and not CONFIG.perturbations()
    for given, message in (
        (("noise=2",), "perturb noise=2: expected perturbations of camera and light"),
        (("camera=2+language=1",), r"perturb camera=2\+language=1: expected"),
        (("camera=2", "camera=2"), "perturb camera=2, camera=2: expected none twice"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(CONFIG, perturb=given)
    with pytest.raises(LampClientError, match="camra"):
        replace(CONFIG, perturb=("camra=2",))


def test_no_task_means_all_that_the_expert_can_do() -> None:
    assert CollectConfig(suite="libero_goal").tasks == (1, 2, 4, 6, 8, 9)
    assert CollectConfig(suite="libero_goal", task=(9, 1, 9)).tasks == (1, 9)


def test_the_log_remembers_attempts_and_their_end(tmp_path: Path) -> None:
    job, other = (Job(suite="libero_object", task=0, episode=n).name for n in (0, 1))
    assert Attempts.read(tmp_path).next(job) == 0
    for number in range(MAX_ATTEMPTS):
        log_attempt(tmp_path, Attempt(job=job, attempt=number, outcome="no free grasp", steps=280, seconds=1.5))
    log_attempt(tmp_path, Attempt(job=other, attempt=0, outcome="success", steps=90, seconds=1.0))
    found = Attempts.read(tmp_path)
    assert found.next(job) is None and found.next(other) == 1
    assert found.count([job, other]) == MAX_ATTEMPTS + 1
    assert found.failures([job, other]) == {"no free grasp": MAX_ATTEMPTS}
