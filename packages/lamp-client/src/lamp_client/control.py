"""A robot under a policy, at a steady pace."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lamp_client.chunks import Executor
from lamp_client.client import NoiseSeed, Policy
from lamp_client.errors import InvalidValueError
from lamp_client.recording import Recorder
from lamp_client.types import Observation


class Robot(Protocol):
    """What `drive` needs of a robot; its units are those of the policy's actions, or `send` converts."""

    def observe(self, instruction: str) -> Observation:
        """Reads cameras and joints, now."""
        ...

    def send(self, action: np.ndarray) -> np.ndarray | None:
        """Commands one action, without waiting for it; returns what was really sent, where that was limited or converted."""
        ...


@dataclass(frozen=True, kw_only=True)
class Drive:
    """How a run went."""

    steps: int
    late: int
    """Steps that began more than a tenth of a period late."""
    worst_s: float
    """The latest beginning of a step [s]."""
    policy_calls: int


def drive(
    robot: Robot,
    policy: Policy,
    executor: Executor,
    *,
    instruction: str,
    fps: float,
    steps: int,
    noise_seed: NoiseSeed = (0,),
    recorder: Recorder | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Drive:
    """Lets a policy act on a robot for so many steps.

    Actions are sent a period apart, however long choosing them takes; one that is late is not made up for by hurrying the next.

    Args:
        robot: What acts.
        policy: What chooses.
        executor: Between them; reset here.
        instruction: In words.
        fps: Steps per second: those of the data that the policy was trained on.
        steps: How many.
        noise_seed: Identifies the run.
        recorder: Records every step; its episode is begun and ended here.
        stop: Asked before every step; the run ends where it says so.
    """
    if fps <= 0 or steps < 1:
        raise InvalidValueError(f"fps is {fps} and steps {steps}; expected more than 0, and at least 1.")
    executor.reset()
    period, done, late, worst, due = 1.0 / fps, 0, 0, 0.0, 0.0
    seen: list[Observation] = []

    def observe() -> Observation:
        if not seen:
            seen.append(robot.observe(instruction))
        return seen[0]

    if recorder is not None:
        recorder.begin(instruction)
    try:
        while done < steps and not stop():
            seen.clear()
            action = executor.next_action(observe, policy, noise_seed)
            if recorder is not None:
                observe()
            if done == 0:
                due = time.monotonic()
            time.sleep(max(0.0, due - time.monotonic()))
            now = time.monotonic()
            sent = robot.send(action)
            on_time = now - due <= 0.1 * period
            late, worst = late + (not on_time), max(worst, now - due)
            if recorder is not None:
                recorder.add(observe(), action, executed=sent, chunk=executor.chunk)
            done += 1
            due = (due if on_time else now) + period
    finally:
        if recorder is not None:
            recorder.end()
    return Drive(steps=done, late=late, worst_s=worst, policy_calls=executor.calls)
