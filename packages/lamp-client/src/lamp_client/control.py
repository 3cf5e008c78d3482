"""A robot under a policy, at a steady pace."""

from __future__ import annotations

import logging
import math
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

log = logging.getLogger("lamp_client")

_SLOW = 0.05
"""Largest relative difference of rates that count as the same."""
_LOG_AFTER_STEPS = 20


class Robot(Protocol):
    """What `drive` needs of a robot. Its units are those of the demonstrations: so the policy reads the state, and so it acts."""

    def observe(self, instruction: str) -> Observation:
        """Reads cameras and joints, now."""
        ...

    def send(self, action: np.ndarray) -> np.ndarray | None:
        """Commands one action, without waiting for it; returns what was really sent, in the same units, where it was limited."""
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
    rate: float = 0.0
    """Steps per second that were really made; 0 for fewer than two steps."""


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
    allow_rate_mismatch: bool = False,
    episode: str | None = None,
    outcome: Callable[[], bool | None] = lambda: None,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Drive:
    """Lets a policy act on a robot for so many steps.

    Actions are sent a period apart, however long choosing them takes; one that is late is not made up for by hurrying the next.

    Args:
        executor: Turns chunks into actions; reset here.
        fps: Steps per second: those of the data that the policy was trained on.
        noise_seed: Identifies the run.
        recorder: Records every step; its episode is begun and ended here.
        stop: Called before every step; the run ends where it returns True.
        allow_rate_mismatch: Act at `fps` though the policy was trained at another rate: its increments then move the robot faster
            or slower than in the demonstrations.
        episode: Name of the recorded episode; None: made of the date and time.
        outcome: Called at the end of a run that was not interrupted: whether it succeeded, for the recording.
        now: The time in which the robot lives [s]: a simulated robot has its own.
        sleep: Lets so many seconds of it pass.

    Raises:
        InvalidValueError: `fps` or `steps` cannot be, or `fps` is not the rate that the policy was trained at, or not the
            recorder's.
    """
    if not 0 < fps < math.inf or steps < 1:
        raise InvalidValueError(f"fps is {fps} and steps {steps}; expected more than 0, and at least 1.")
    check_rate(policy, fps, allow=allow_rate_mismatch)
    if recorder is not None and not _same_rate(recorder.fps, fps):
        raise InvalidValueError(
            f"the recorder has {recorder.fps:g} steps per second, drive {fps:g}; expected the same."
        )
    executor.reset()
    period, done, late, worst, due, first, last = 1.0 / fps, 0, 0, 0.0, 0.0, 0.0, 0.0
    seen: list[Observation] = []

    def observe() -> Observation:
        if not seen:
            seen.append(robot.observe(instruction))
        return seen[0]

    if recorder is not None:
        recorder.begin(instruction, episode, policy=policy.metadata)
    begun, success = now(), None
    try:
        while done < steps and not stop():
            seen.clear()
            action = executor.next_action(observe, policy, noise_seed)
            if recorder is not None:
                observe()
            if done == 0:
                due = now()
            sleep(max(0.0, due - now()))
            moment = now()
            sent = robot.send(action)
            on_time = moment - due <= 0.1 * period
            late, worst = late + (not on_time), max(worst, moment - due)
            if recorder is not None:
                recorder.add(observe(), action, executed=sent, chunk=executor.chunk, time_s=moment - begun)
            done += 1
            first = moment if done == 1 else first
            last = moment
            if done == _LOG_AFTER_STEPS and (rate := _rate(done, last - first)) < (1 - _SLOW) * fps:
                log.warning(
                    "the loop runs at %.1f steps per second, not %g: observing, inference or sending is too slow",
                    rate,
                    fps,
                )
            due = (due if on_time else moment) + period
        success = outcome()
    finally:
        if recorder is not None:
            recorder.end(success=success)
    return Drive(steps=done, late=late, worst_s=worst, policy_calls=executor.calls, rate=_rate(done, last - first))


def check_rate(policy: Policy, fps: float, *, allow: bool = False) -> None:
    """Compares a loop's rate with the one that a policy was trained at, where its metadata hold it.

    Raises:
        InvalidValueError: They differ by more than a twentieth, and that is not allowed.
    """
    trained = policy.metadata.get("fps")
    if isinstance(trained, bool) or not isinstance(trained, (int, float)) or not 0 < trained < math.inf:
        return  # not known
    if _same_rate(trained, fps):
        return
    if not allow:
        raise InvalidValueError(
            f"fps is {fps:g}, but the policy was trained at {trained:g} steps per second: its actions would be carried out "
            f"{fps / trained:.2g} times as fast as in the demonstrations.",
            hint=f"Expected fps={trained:g}, or allow_rate_mismatch=True.",
        )
    log.warning("the policy was trained at %g steps per second and acts at %g", trained, fps)


def _same_rate(one: float, other: float) -> bool:
    return abs(one / other - 1) <= _SLOW


def _rate(steps: int, seconds: float) -> float:
    return (steps - 1) / seconds if steps > 1 and seconds > 0 else 0.0
