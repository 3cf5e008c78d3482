"""A process that records episodes, one after another, in an environment of its own."""

from __future__ import annotations

import time
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import numpy as np

from lamp.collect.episode_recording import Trajectory, fresh_frames, render, simulate
from lamp.collect.jobs import Attempt, CollectConfig, Job, Start, log_attempt, start_of
from lamp.collect.noise import Disturbance
from lamp.data.lerobot.staging import EpisodeData, stage_episode
from lamp.errors import LampError, system_error
from lamp_client.envs.libero import LiberoEnv, load_task
from lamp_client.errors import LampClientError, SimulationError

FPS = 20


def work(config: CollectConfig, orders: Queue[tuple[Job, int] | None], results: Queue[Any]) -> None:
    """Takes jobs, each with the number of the attempt, until it gets None.

    The answer to each is an `Attempt`, or an error's text, or an error of the system, after which the process ends.
    """
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
    except Exception as error:
        found = system_error(error)
        if found is None:
            raise
        results.put(found)
    finally:
        if env is not None:
            env.close()


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
