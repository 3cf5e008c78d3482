"""One episode of the expert: simulated first, rendered afterwards, and only if it succeeded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from lamp.collect.expert import Expert, Phase
from lamp.collect.noise import Disturbance
from lamp.collect.pick_and_place import CLOSE, OPEN
from lamp.collect.scene_state import LiberoScene
from lamp_client.envs.libero import LiberoEnv

HOLD = 4
"""Frames recorded after the goal is reached and the hand is clear, in which the expert holds still."""


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """What happened in one episode of L steps; every value belongs to the moment before the step's action."""

    states: Float[np.ndarray, "l n"]
    """Flattened simulator states."""
    body_poses: Float[np.ndarray, "l b 7"]
    """Position [m] and quaternion (w, x, y, z) of every body in the world."""
    proprioception: Float[np.ndarray, "l 8"]
    clean: Float[np.ndarray, "l 7"]
    """The expert's action at the visited state, gripper 1 = open, 0 = closed."""
    executed: Float[np.ndarray, "l 7"]
    """The action that was executed, in the same convention."""
    overridden: Bool[np.ndarray, " l"]
    """Where it was a push or a fumble instead of the clean action with noise."""
    outcome: str
    """`success`, or why the episode is of no use."""
    retries: int
    """How often the expert had to start over."""

    @property
    def length(self) -> int:
        return len(self.states)


def dataset_action(action: Float[np.ndarray, "7"]) -> Float[np.ndarray, "7"]:
    """From the environment's gripper (-1 open, +1 close) to the dataset's (1 open, 0 closed)."""
    return np.append(action[:6], (CLOSE - action[6]) / (CLOSE - OPEN))


def simulate(env: LiberoEnv, disturbance: Disturbance) -> Trajectory:
    """Lets the expert act in an environment that was just reset, until it is done or the task's step limit is reached."""
    scene = LiberoScene(*env.simulation, env.robosuite)
    expert = Expert(scene)
    snapshots, proprioception, clean, executed, overridden = [], [], [], [], []
    held = 0
    while held < HOLD and len(snapshots) < env.step_limit:
        snapshots.append(env.snapshot())
        proprioception.append(env.proprioception())
        decision = expert.decide()
        action = disturbance.executed(decision)
        clean.append(dataset_action(decision.action))
        executed.append(dataset_action(action))
        overridden.append(disturbance.overriding)
        env.step(action)
        held = held + 1 if expert.done else 0
    success = expert.done and scene.success
    return Trajectory(
        states=np.stack([snapshot.state for snapshot in snapshots]),
        body_poses=np.stack([snapshot.body_poses for snapshot in snapshots]),
        proprioception=np.stack(proprioception),
        clean=np.stack(clean),
        executed=np.stack(executed),
        overridden=np.array(overridden),
        outcome="success" if success else _reason(expert, scene),
        retries=expert.retries,
    )


def act_of_expert(env: LiberoEnv) -> Callable[[], Float[np.ndarray, "7"]]:
    """The expert alone, without disturbance or recording, for an environment that was just reset: each call is its next action,
    in the dataset's convention."""
    expert = Expert(LiberoScene(*env.simulation, env.robosuite))
    return lambda: dataset_action(expert.decide().action)


def _reason(expert: Expert, scene: LiberoScene) -> str:
    if scene.success:
        return "goal reached too late to let go"
    if expert.grasp is None:
        return "no free grasp"
    return f"out of steps in {expert.phase.value}" if expert.phase is not Phase.DONE else "the goal was undone"


def fresh_frames(length: int, render_every: int) -> Bool[np.ndarray, " l"]:
    """Which frames are rendered; the others repeat the image before them."""
    return np.arange(length) % render_every == 0


def render(env: LiberoEnv, trajectory: Trajectory, render_every: int) -> dict[str, UInt8[np.ndarray, "l h w 3"]]:
    """Renders a trajectory's states from every camera, in the environment in which it was simulated."""
    images: dict[str, list[np.ndarray]] = {camera: [] for camera in env.cameras}
    for state, fresh in zip(trajectory.states, fresh_frames(trajectory.length, render_every), strict=True):
        if fresh:
            env.restore(state)
            seen = env.observe().images
            for camera in env.cameras:
                images[camera].append(seen[camera])
    repeats = np.arange(trajectory.length) // render_every
    return {camera: np.stack(frames)[repeats] for camera, frames in images.items()}
