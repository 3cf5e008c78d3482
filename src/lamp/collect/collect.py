"""Collecting a dataset: several processes record episodes, one after another, each in an environment of its own; this one
hands out jobs, counts, and makes the dataset of what was staged.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from dataclasses import dataclass, field, replace
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import numpy as np

from lamp.collect.episode_recording import Trajectory, fresh_frames, render, simulate
from lamp.collect.jobs import Attempt, Attempts, CollectConfig, Job, Start, jobs_of, log_attempt, start_of
from lamp.collect.noise import Disturbance
from lamp.configuration import to_json
from lamp.data.lerobot import LeRobotDataset, LeRobotWriter
from lamp.data.lerobot.staging import STAGING, EpisodeData, stage_episode
from lamp.errors import DataError, LampError, MismatchError, system_error
from lamp.files import locked, remove_leftovers
from lamp.json_files import read_json_object, write_json
from lamp.progress import Progress, clock
from lamp.version import code_version, package_versions
from lamp_client.child_processes import CONTEXT, ChildProcess, available_cores, end
from lamp_client.envs.libero import LiberoEnv, load_task
from lamp_client.envs.libero_perturbed import PerturbedLibero, unchanged
from lamp_client.envs.perturbations import SampledPerturbation, StandardScene
from lamp_client.errors import LampClientError, SimulationError

__all__ = ["CollectConfig", "CollectReport", "TaskReport", "collect"]

CONFIG_PATH = "meta/collection.json"
LOCK_PATH = "meta/.collecting"
FREE_TO_CHANGE = ("out", "workers", "episodes", "task")
"""Settings in which a continued collection may differ; everything else changes what is recorded."""


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """What a collection holds for one task."""

    task: int
    instruction: str
    episodes: int
    attempts: int
    mean_length: float
    """Frames an episode."""


@dataclass(frozen=True, kw_only=True)
class CollectReport:
    """What a collection did and what the dataset holds now."""

    out: Path
    episodes: int
    """Episodes in the dataset."""
    recorded: int
    """Episodes recorded by this run."""
    seconds: float
    """Wall time of this run."""
    attempts: int
    failures: dict[str, int] = field(default_factory=dict)
    """Why attempts at these episodes failed, over all runs, and how often."""
    given_up: tuple[str, ...] = ()
    """Episodes for which no attempt succeeded."""
    tasks: tuple[TaskReport, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.episodes} episodes in {self.out}; {self.recorded} recorded in {clock(self.seconds)}."]
        lines += [
            f"  task {task.task}: {task.episodes} episodes of {task.mean_length:.0f} frames, {task.attempts} attempts"
            f" ({task.instruction})"
            for task in self.tasks
        ]
        lines += [f"  failed attempts: {reason} x {count}" for reason, count in sorted(self.failures.items())]
        lines += [f"  given up: {', '.join(self.given_up)}"] if self.given_up else []
        return "\n".join(lines)


def collect(config: CollectConfig) -> CollectReport:
    """Records demonstrations until every task has its episodes; continues what an earlier run began.

    Raises:
        MismatchError: The folder holds a collection with other settings.
        DataError: Another collection is running in the folder, a worker died, or no episode succeeded.
        LampClientError: The simulator is missing or failed.
    """
    begun = time.monotonic()
    root = Path(config.out)
    busy = f"another collection is running in {root}; wait for it or choose another folder"
    with locked(root / LOCK_PATH, busy):
        _check_settings(root, config)
        remove_leftovers(root / STAGING)
        writer = LeRobotWriter(root, fps=FPS, robot_type="panda", cameras=tuple(LiberoEnv.cameras))
        attempts, jobs, before = Attempts.read(root), jobs_of(config), writer.names()
        names = [job.name for job in jobs]
        with Progress("collect", len(jobs), "episodes", done=len(before.intersection(names))) as progress:
            if progress.done:
                progress.say(f"{progress.done:g} of {len(jobs)} episodes are there already")
            _record(config, [job for job in jobs if job.name not in before], attempts, progress)
        if not writer.names():
            reasons = ", ".join(f"{reason} x {count}" for reason, count in attempts.failures(names).items())
            raise DataError(
                f"none of {attempts.count(names)} attempts succeeded ({reasons}); nothing to make a dataset of"
            )
        writer.finalize(_description(config, attempts))
        after = writer.names()
        return CollectReport(
            out=root,
            episodes=len(after),
            recorded=len(after - before),
            seconds=time.monotonic() - begun,
            attempts=attempts.count(names),
            failures=dict(attempts.failures(names)),
            given_up=tuple(sorted(set(names) - after)),
            tasks=_task_reports(root, attempts),
        )


def _settings(config: CollectConfig) -> dict[str, Any]:
    settings = {key: value for key, value in to_json(config).items() if key not in FREE_TO_CHANGE}
    for name in ("motion_only", "perturb"):  # collections that an earlier version began do not note them
        if not getattr(config, name):
            settings.pop(name)
    return settings


def _check_settings(root: Path, config: CollectConfig) -> None:
    """Notes the settings of a new collection, or compares them with those of the one that is continued."""
    path, settings = root / CONFIG_PATH, _settings(config)
    if not path.exists():
        if (root / "meta/info.json").exists():
            raise MismatchError(f"{root} holds a dataset that was not collected here; choose another folder")
        write_json(path, settings)
        return
    stored = read_json_object(path, "collection's settings")
    differences = [
        f"{key} {stored.get(key)} there, {settings.get(key)} here"
        for key in sorted(stored.keys() | settings.keys())
        if stored.get(key) != settings.get(key)
    ]
    if differences:
        raise MismatchError(
            f"{root} holds a collection with other settings ({'; '.join(differences)}); "
            "use the same ones or another folder"
        )


def _record(config: CollectConfig, jobs: list[Job], attempts: Attempts, progress: Progress) -> None:
    """Runs workers until each job has succeeded or has used up its attempts."""
    by_name = {job.name: job for job in jobs}
    waiting = deque(job for job in jobs if attempts.next(job.name) is not None)
    if not waiting:
        return
    job_queue, results = CONTEXT.Queue(), CONTEXT.Queue()
    count = min(config.workers or available_cores(), len(waiting))
    workers = [ChildProcess(target=work, args=(config, job_queue, results), daemon=True) for _ in range(count)]
    try:
        for worker in workers:
            worker.start()
        in_flight = failed = 0
        while waiting or in_flight:
            # A few orders ahead keep the workers busy; a second attempt then does not wait for all first ones.
            while waiting and in_flight < 2 * count:
                job = waiting.popleft()
                job_queue.put((job, attempts.next(job.name)))
                in_flight += 1
            result = _next_result(results, workers)
            in_flight -= 1
            attempts.note(result)
            if result.outcome == "success":
                progress.advance()
            else:
                failed += 1
                progress.update(progress.done, note=f"{failed} attempt{'s' if failed > 1 else ''} failed")
                if attempts.next(result.job) is not None:
                    waiting.appendleft(by_name[result.job])
        for _ in workers:
            job_queue.put(None)
        for worker in workers:
            worker.join(timeout=20)
    finally:
        end([worker for worker in workers if worker.pid is not None])


def _next_result(results: Any, workers: list[Any]) -> Attempt:
    """Waits for a worker's result.

    Raises:
        LampError: A worker met an error that the user can put right.
        DataError: A worker died.
    """
    while True:
        try:
            result = results.get(timeout=1.0)
        except queue.Empty:
            dead = [worker.exitcode for worker in workers if worker.exitcode not in (None, 0)]
            if dead:
                raise DataError(
                    f"a recording process died with exit code {dead[0]}; the same command continues with what was "
                    "recorded (fewer --workers need less memory)"
                ) from None
            continue
        if isinstance(result, Exception):
            raise result
        return result


def _description(config: CollectConfig, attempts: Attempts) -> dict[str, Any]:
    """The collection's entry in `meta/lamp.json`."""
    names = list(attempts.by_job)
    return {
        **{key: value for key, value in _settings(config).items() if key != "type"},
        "collected": {"attempts": attempts.count(names), "failures": dict(attempts.failures(names))},
        "code": code_version(),
        "packages": package_versions(),
    }


def _task_reports(root: Path, attempts: Attempts) -> tuple[TaskReport, ...]:
    dataset = LeRobotDataset(root)
    extras = [dataset.extra(episode.index) for episode in dataset.episodes]
    reports = []
    for task in sorted({extra["task"] for extra in extras}):
        own = [
            (episode, extra) for episode, extra in zip(dataset.episodes, extras, strict=True) if extra["task"] == task
        ]
        names = [name for name in attempts.by_job if name.split("-")[1] == f"{task:02d}"]
        reports.append(
            TaskReport(
                task=task,
                instruction=own[0][0].task,
                episodes=len(own),
                attempts=attempts.count(names),
                mean_length=sum(episode.length for episode, _ in own) / len(own),
            )
        )
    return tuple(reports)


FPS = 20


def work(config: CollectConfig, jobs: Queue[tuple[Job, int] | None], results: Queue[Any]) -> None:
    """Takes jobs, each with the number of the attempt, until it gets None.

    The result of each is an `Attempt`, or an error for the parent to raise, after which the process ends.
    """
    env: LiberoEnv | None = None
    try:
        while (job_and_attempt := jobs.get()) is not None:
            job, attempt = job_and_attempt
            if env is None or env.task.index != job.task:
                if env is not None:
                    env.close()
                env = _environment(config, job.task)
            results.put(attempt_job(env, config, job, attempt))
    except (LampError, LampClientError) as error:
        results.put(LampError(str(error)))
    except Exception as error:
        system_fault = system_error(error)
        if system_fault is None:
            raise
        results.put(system_fault)
    finally:
        if env is not None:
            env.close()


def _environment(config: CollectConfig, task: int) -> LiberoEnv:
    settings: dict[str, Any] = {name: getattr(config, name) for name in ("image_size", "render", "placement_shift")}
    choices = list(config.perturbations().items())
    if not choices:
        return LiberoEnv(load_task(config.suite, task), **settings)

    def draw(generator: np.random.Generator, standard: StandardScene) -> SampledPerturbation:
        text, chosen = choices[int(generator.integers(len(choices)))]
        sampled = unchanged(generator, standard) if chosen is None else chosen.draw(generator, standard)
        return replace(sampled, numbers={"perturbation": text, "drawn": dict(sampled.numbers)})

    return PerturbedLibero(load_task(config.suite, task), draw, seed=config.seed, **settings)


def attempt_job(env: LiberoEnv, config: CollectConfig, job: Job, attempt: int) -> Attempt:
    """Tries once to record an episode, stages it if it succeeded, and logs what came of it."""
    begun = time.monotonic()
    start = start_of(config, job, attempt)
    steps = 0
    try:
        env.reset(start.initial_state, start.placement_seed)
    except SimulationError:
        outcome = "no valid placement"
    else:
        disturbance = Disturbance(
            start.noise_seed,
            std=config.action_noise,
            push_probability=config.perturbation_probability,
            fumble_probability=config.fumble_probability,
        )
        trajectory = simulate(env, disturbance)
        outcome, steps = trajectory.outcome, trajectory.length
        if outcome == "success":
            episode = episode_data(env, config, job, start, trajectory, attempts=attempt + 1, disturbance=disturbance)
            stage_episode(config.out, job.name, episode, fps=FPS)
    done = Attempt(
        job=job.name, attempt=attempt, outcome=outcome, steps=steps, seconds=round(time.monotonic() - begun, 2)
    )
    log_attempt(Path(config.out), done)
    return done


def _cameras(env: LiberoEnv) -> dict[str, np.ndarray]:
    """The cameras of the model, where an episode has its own."""
    model, _ = env.simulation
    return {f"model_{name}": np.array(getattr(model, name)) for name in ("cam_pos", "cam_quat", "cam_fovy")}


def episode_data(
    env: LiberoEnv,
    config: CollectConfig,
    job: Job,
    start: Start,
    trajectory: Trajectory,
    *,
    attempts: int,
    disturbance: Disturbance,
) -> EpisodeData:
    """Renders a trajectory and puts it into the dataset's terms."""
    positions, quaternions = env.model_poses()
    perturbed = isinstance(env, PerturbedLibero)
    frames = {
        "observation.state": trajectory.proprioception.astype(np.float32),
        "observation.fresh": fresh_frames(trajectory.length, config.render_every),
    }
    if not config.motion_only:
        frames |= {
            "action": trajectory.clean.astype(np.float32),
            "action.executed": trajectory.executed.astype(np.float32),
            "action.overridden": trajectory.overridden,
        }
    return EpisodeData(
        frames=frames,
        images=render(env, trajectory, config.render_every),
        task=env.instruction,
        extra={
            "suite": job.suite,
            "task": job.task,
            "episode": job.episode,
            "initial_state": start.initial_state,
            "placement_seed": start.placement_seed,
            "placement": env.placement,
            "noise_seed": start.noise_seed,
            "length": trajectory.length,
            "attempts": attempts,
            "retries": trajectory.retries,
            "pushed": disturbance.pushed,
            "fumbled": disturbance.fumbled,
            **({"variation": env.variation} if perturbed else {}),
        },
        simulation={
            "states": trajectory.states,
            "body_poses": trajectory.body_poses,
            "model_body_pos": positions,
            "model_body_quat": quaternions,
            **(_cameras(env) if perturbed else {}),
        },
    )
