"""Run by ManiSkill3's own interpreter: measures what the adapter relies on, and prints it as JSON."""

from __future__ import annotations

import json
import sys

import numpy as np

from lamp_client.envs.rotations import axis_angle_from_rpy, matrix_from_axis_angle, moving_xyz_from_matrix
from lamp_client.envs.simpler import SimplerEnv
from lamp_client.envs.simpler_tasks import SIMPLER_TASKS

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (12, 7)) * [0.02, 0.02, 0.02, 0.1, 0.1, 0.1, 1]


def state(env: SimplerEnv) -> np.ndarray:
    maniskill = env.scene.maniskill
    objects = [actor.pose.raw_pose[0].numpy() for actor in maniskill.objs.values()]
    return np.concatenate([maniskill.agent.robot.qpos[0].numpy(), *objects])


def played(env: SimplerEnv, episode: int) -> np.ndarray:
    env.reset(episode)
    for action in ACTIONS:
        env.step(action)
    return state(env)


def turned(env: SimplerEnv) -> float:
    """How far one action's rotation is from the one that was meant [rad]."""
    env.reset(0)
    meant = axis_angle_from_rpy(np.array([0.2, -0.3, 0.25]))
    before = env.scene.hand_target[1]
    env.step(np.array([0, 0, 0, *meant, 1]))
    error = env.scene.hand_target[1] @ before.T @ matrix_from_axis_angle(meant).T
    return float(np.arccos(np.clip((np.trace(error) - 1) / 2, -1, 1)))


def as_maniskill_steps(env: SimplerEnv, episode: int) -> np.ndarray:
    env.reset(episode)
    for action in ACTIONS:
        angles = moving_xyz_from_matrix(matrix_from_axis_angle(action[3:6]))
        env.scene.maniskill.step(np.concatenate([action[:3], angles, action[6:]]).astype(np.float32))
    return state(env)


def main() -> None:
    env = SimplerEnv(SIMPLER_TASKS[3])
    first = played(env, 0)
    other = played(env, 23)
    again = played(env, 0)
    env.reset(0)
    found = {
        "instruction": [env.instruction, env.scene.instruction],
        "repeatable": bool((first == again).all()),
        "differs": bool(np.abs(first - other).max() > 0.01),
        "as_maniskill": float(np.abs(as_maniskill_steps(env, 0) - first).max()),
        "turn_error": turned(env),
        "start_state": (env.reset(0), env.bridge_state().tolist())[1],
        "places": len({tuple(np.round(_placed(env, episode), 3)) for episode in range(0, 24, 3)}),
        "speeds": [_speed(env, episode) for episode in range(24)],
    }
    print(json.dumps(found))


def _placed(env: SimplerEnv, episode: int) -> np.ndarray:
    """Where ManiSkill puts the object, before it settles."""
    layout, turns = env.task.layout(episode), env.task.known_turns
    return env.scene.maniskill.xyz_configs[layout // turns, 0, :2].numpy()


def _speed(env: SimplerEnv, episode: int) -> float:
    env.reset(episode)
    return max(float(actor.linear_velocity.norm()) for actor in env.scene.maniskill.objs.values())


if __name__ == "__main__":
    sys.exit(main())
