"""A process that records episodes, one after another, in an environment of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import parent_process
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import numpy as np

from lamp.collect.jobs import Attempt, CollectConfig, Job, Start, log_attempt, start_of
from lamp.collect.noise import Disturbance
from lamp.collect.recording import Trajectory, fresh_frames, render, simulate
from lamp.data.episodes import EpisodeData, stage_episode
from lamp.errors import LampError
from lamp_client.envs.libero import LiberoEnv, load_task
from lamp_client.errors import LampClientError, SimulationError

FPS = 20
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LP_NUM_THREADS": "1"}
"""Each worker is one thread: more would only take turns."""


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Processes started inside the block compute on one thread each."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def work(config: CollectConfig, orders: Queue[tuple[Job, int] | None], results: Queue[Any]) -> None:
    """Takes jobs, each with the number of the attempt, until it gets None.

    The answer to each is an `Attempt`, or an error's text, after which the process ends.
    """
    # Ctrl-C reaches every process of the terminal; the collecting one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    env: LiberoEnv | None = None
    try:
        while (order := orders.get()) is not None:
            job, attempt = order
            if env is None or env.task.index != job.task:
                if env is not None:
                    env.close()
                env = _environment(config, job.task)
            results.put(attempt_job(env, config, job, attempt))
    except (LampError, LampClientError) as error:
        results.put(str(error))
    finally:
        if env is not None:
            env.close()


def _end_with_parent() -> None:
    """Ends this process when the collecting one is killed, so that no second collection meets its remains."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _environment(config: CollectConfig, task: int) -> LiberoEnv:
    return LiberoEnv(
        load_task(config.suite, task),
        image_size=config.image_size,
        render=config.render,
        placement_shift=config.placement_shift,
    )


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
    return EpisodeData(
        frames={
            "observation.state": trajectory.proprioception.astype(np.float32),
            "observation.fresh": fresh_frames(trajectory.length, config.render_every),
            "action": trajectory.clean.astype(np.float32),
            "action.executed": trajectory.executed.astype(np.float32),
            "action.overridden": trajectory.overridden,
        },
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
        },
        simulation={
            "states": trajectory.states,
            "body_poses": trajectory.body_poses,
            "model_body_pos": positions,
            "model_body_quat": quaternions,
        },
    )
