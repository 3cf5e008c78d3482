"""One episode: an environment, a policy, and an executor between them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lamp_client.chunks import Executor
from lamp_client.client import NoiseSeed, Policy, action_units
from lamp_client.envs import Env, StepResult
from lamp_client.errors import InvalidValueError
from lamp_client.recording import Recorder
from lamp_client.types import ActionChunk, GripperUnits, Observation


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One moment of an episode, for pictures."""

    step: int
    """Actions executed so far."""
    observation: Observation
    chunk: ActionChunk | None
    """The newest chunk; None before the first and in the closing frame of an episode without steps."""
    chunk_age: int
    """Steps since the last request to the policy."""
    success: bool


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """How an episode went."""

    success: bool
    """Whether the goal held after ANY step."""
    success_last: bool
    """Whether the goal held after the LAST step."""
    steps: int
    """Actions executed."""
    reason: Literal["success", "step limit", "environment"]
    """What ended the episode."""
    wall_s: float
    """Seconds, without the environment's reset."""
    policy_s: float
    """Seconds of them spent observing and waiting for the policy."""
    policy_calls: int


def run_episode(
    env: Env,
    policy: Policy,
    executor: Executor,
    *,
    noise_seed: NoiseSeed,
    max_steps: int | None = None,
    stop_on_success: bool = True,
    on_frame: Callable[[Frame], None] | None = None,
    frame_every: int = 1,
    recorder: Recorder | None = None,
) -> EpisodeResult:
    """Runs a policy in an environment that has just been reset.

    Args:
        env: Already reset.
        policy: Its actions are converted by the environment unless they are in the environment's units already; what its
            metadata declare of the gripper is respected.
        executor: Reset here.
        noise_seed: Identifies the episode; the executor adds the number of the call.
        max_steps: Fewer steps than the environment's limit.
        stop_on_success: Whether the episode ends as soon as the goal holds (LIBERO), or goes on to the limit.
        on_frame: Called with every `frame_every`-th moment, and the last. Each costs a rendering, unless the policy needed it.
        frame_every: Steps between two calls of `on_frame`.
        recorder: Records every step, which renders every step; its episode is begun and ended here.
    """
    limit = env.step_limit if max_steps is None else min(max_steps, env.step_limit)
    if limit < 1 or frame_every < 1:
        raise InvalidValueError(f"max_steps is {max_steps} and frame_every {frame_every}; expected at least 1.")
    convert = _converter(env, policy)
    observations = _ObservationCache(env)
    executor.reset()
    if recorder is not None:
        recorder.begin(env.instruction, policy=policy.metadata)
    result = StepResult(success=False, done=False)
    success, steps, chunk_step, policy_s = False, 0, 0, 0.0
    reason: Literal["success", "step limit", "environment"] = "step limit"
    started = time.perf_counter()

    def show() -> None:
        if on_frame is not None:
            seen = observations.observe()
            age = steps - chunk_step
            on_frame(Frame(step=steps, observation=seen, chunk=executor.chunk, chunk_age=age, success=result.success))

    while steps < limit:
        calls = executor.calls
        thinking = time.perf_counter()
        action = executor.next_action(observations.observe, policy, noise_seed)
        policy_s += time.perf_counter() - thinking
        chunk_step = steps if executor.calls > calls else chunk_step
        if steps % frame_every == 0:
            show()
        command = convert(action)
        if recorder is not None:
            recorder.add(observations.observe(), action, chunk=executor.chunk, time_s=steps / recorder.fps)
        result = env.step(command)
        observations.forget()
        steps += 1
        success = success or result.success
        if result.success and stop_on_success:
            reason = "success"
            break
        if result.done and not result.success:
            reason = "environment"
            break
    wall_s = time.perf_counter() - started
    if recorder is not None:
        recorder.end(success=success)
    show()
    return EpisodeResult(
        success=success,
        success_last=result.success,
        steps=steps,
        reason=reason,
        wall_s=wall_s,
        policy_s=policy_s,
        policy_calls=executor.calls,
    )


class _ObservationCache:
    """Renders each moment at most once."""

    def __init__(self, env: Env) -> None:
        self._env = env
        self._seen: Observation | None = None

    def observe(self) -> Observation:
        if self._seen is None:
            self._seen = self._env.observe()
        return self._seen

    def forget(self) -> None:
        self._seen = None


def _converter(env: Env, policy: Policy) -> Callable[[np.ndarray], np.ndarray]:
    """From a policy's actions to the environment's units."""
    if action_units(policy) == "environment":
        return lambda action: action
    gripper = GripperUnits.of(policy.metadata)
    return lambda action: env.action_from_policy(gripper.openness(action))
