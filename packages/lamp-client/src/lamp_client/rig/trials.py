"""Episodes on a rig: a policy, an expert or a recording in command, and how far each came."""

from __future__ import annotations

import datetime
import json
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lamp_client.chunks import Executor, ObservationFn
from lamp_client.client import NoiseSeed, Policy
from lamp_client.control import Drive, drive
from lamp_client.recording import RecordedEpisode, Recorder
from lamp_client.rig.devices import RigError
from lamp_client.rig.rig import Rig
from lamp_client.rig.safety import WatchedPolicy
from lamp_client.types import ActionChunk, Observation

TRIALS = "trials.jsonl"
IN_DOMAIN_TRIALS, OTHER_TRIALS = 10, 5
"""The paper's protocol (Section V-B): trials a task in domain, and in each other condition."""


class NoPolicy:
    """Stands where a policy is asked for while somebody else acts; it says what the rig's actions mean."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = dict(metadata)

    def act(self, observation: Observation, *, noise_seed: NoiseSeed | None = None) -> ActionChunk:
        raise RigError("no policy is in command.")

    @property
    def metadata(self) -> dict[str, Any]:
        return self._metadata


@dataclass(kw_only=True)
class Replayed:
    """A recorded episode's actions as an executor, as they were recorded."""

    actions: Sequence[np.ndarray]
    chunk: ActionChunk | None = field(default=None, init=False)
    calls: int = field(default=0, init=False)
    _next: int = field(default=0, init=False)

    def reset(self) -> None:
        """See `lamp_client.chunks.Executor`."""
        self._next = 0

    def next_action(self, observe: ObservationFn, policy: Policy, noise_seed: NoiseSeed) -> np.ndarray:
        """The next one; the last again at the end."""
        action = self.actions[min(self._next, len(self.actions) - 1)]
        self._next += 1
        return np.asarray(action, dtype=np.float32)


@dataclass(kw_only=True)
class ConfirmedPolicy:
    """A policy whose chunks somebody looks at before they are executed; not for executors that ask in a thread."""

    policy: Policy
    rig: Rig
    confirm: Callable[[Observation, ActionChunk], bool]

    def act(self, observation: Observation, *, noise_seed: NoiseSeed | None = None) -> ActionChunk:
        """See `lamp_client.client.Policy`."""
        chunk = self.policy.act(observation, noise_seed=noise_seed)
        self.rig.pause()  # somebody thinks, and no command comes
        if not self.confirm(observation, chunk):
            self.rig.stop("a chunk was not confirmed")
            raise RigError("the chunk was not confirmed.")
        return chunk

    @property
    def metadata(self) -> dict[str, Any]:
        return self.policy.metadata


@dataclass(frozen=True, kw_only=True)
class _Disturbed:
    """A rig that executes something else than it is told, as `lamp_client.control.Robot`."""

    rig: Rig
    disturb: Callable[[np.ndarray], np.ndarray]

    def observe(self, instruction: str) -> Observation:
        return self.rig.observe(instruction)

    def send(self, action: np.ndarray) -> np.ndarray:
        return self.rig.send(self.disturb(action))


def drive_rig(
    rig: Rig,
    policy: Policy,
    executor: Executor,
    *,
    instruction: str,
    steps: int,
    noise_seed: NoiseSeed = (0,),
    recorder: Recorder | None = None,
    episode: str | None = None,
    stop: Callable[[], bool] = lambda: False,
    outcome: Callable[[], bool | None] = lambda: None,
    disturb: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Drive:
    """One episode on a rig that has been started: `drive` in the rig's own time, with the policy's silence watched.

    Args:
        disturb: Makes of each action what is executed in its place; a recording keeps both.

    Raises:
        RigError: the policy does not fit the rig.
        RigStoppedError: the arm was stopped.
    """
    rig.description.check_policy(policy.metadata, another_rig=rig.another_rig)
    watched = WatchedPolicy(policy=policy, watchdog=rig.watchdog, reply_s=rig.description.watchdog.reply_s)

    def stops() -> bool:
        rig.watchdog.check()
        return stop()

    try:
        return drive(
            rig if disturb is None else _Disturbed(rig=rig, disturb=disturb),
            watched,
            executor,
            instruction=instruction,
            fps=rig.description.fps * rig.speed,
            steps=steps,
            noise_seed=noise_seed,
            recorder=recorder,
            stop=stops,
            episode=episode,
            outcome=outcome,
            allow_rate_mismatch=rig.speed < 1,
            now=rig.clock.now,
            sleep=rig.clock.sleep,
        )
    finally:
        rig.pause()


def preview(chunk: ActionChunk, state: np.ndarray) -> str:
    """What a chunk would do, in a line."""
    actions = chunk.actions
    if actions.shape[1] != 7 or state.shape != (7,):
        return f"{len(actions)} actions of {actions.shape[1]} values"
    way = np.diff(np.vstack([state[:3], actions[:, :3]]), axis=0)
    end, grip = actions[-1, :3] - state[:3], actions[:, 6]
    turn = np.degrees(np.linalg.norm(actions[-1, 3:6] - state[3:6]))
    fingers = "opens" if grip[-1] > state[6] + 0.2 else "closes" if grip[-1] < state[6] - 0.2 else "stays"
    return (
        f"{len(actions)} actions: {100 * end[0]:+.1f} {100 * end[1]:+.1f} {100 * end[2]:+.1f} cm, {turn:.0f} degrees, "
        f"largest step {100 * np.linalg.norm(way, axis=1).max():.1f} cm, the gripper {fingers}"
    )


@dataclass(frozen=True, kw_only=True)
class ReplayError:
    """How far a replayed episode was from the recorded one."""

    mean_cm: float
    worst_cm: float
    gripper: float
    """Largest difference of the gripper's openness, on average over the second half of the episode."""


def replay_error(episode: RecordedEpisode, states: Sequence[np.ndarray]) -> ReplayError:
    """Compares the states of a replay with the recorded ones, step by step."""
    recorded = np.stack([frame["state"] for frame in episode.frames[: len(states)]])
    found = np.stack(states[: len(recorded)])
    away = 100 * np.linalg.norm(found[:, :3] - recorded[:, :3], axis=1)
    half = len(found) // 2
    return ReplayError(
        mean_cm=float(away.mean()),
        worst_cm=float(away.max()),
        gripper=float(np.abs(found[half:, 6] - recorded[half:, 6]).mean()),
    )


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A trial to be made."""

    method: str
    condition: str
    layout: int


def plan_trials(methods: Sequence[str], conditions: Mapping[str, int], seed: int) -> list[Planned]:
    """Every method on every layout, the methods of a layout in random order: nobody can favour one, nor does the light.

    Args:
        conditions: Name -> number of layouts.
    """
    order, plan = random.Random(seed), []
    for condition, count in conditions.items():
        for layout in range(count):
            turns = list(methods)
            order.shuffle(turns)
            plan += [Planned(method=method, condition=condition, layout=layout) for method in turns]
    return plan


def add_trial(folder: Path, trial: Mapping[str, Any]) -> None:
    """Appends a line that `lamp score` and `lamp report` read, and brings it to the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    line = {**trial, "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds")}
    path = folder / TRIALS
    with open(path, "a+b") as file:
        # A line that a crash cut short is ended first.
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def made_trials(folder: Path) -> Iterator[Mapping[str, Any]]:
    """The trials in a folder that were not taken back."""
    kept: list[Mapping[str, Any]] = []
    path = folder / TRIALS
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else (), start=1):
        if not line.strip():
            continue
        try:
            trial = json.loads(line)
        except ValueError:
            raise RigError(f"{path}, line {number} is no trial: {line[:80]!r}.") from None
        if not isinstance(trial, dict):
            raise RigError(f"{path}, line {number} is no trial: {line[:80]!r}.")
        kept = kept[:-1] if trial.get("undo") else [*kept, trial]
    yield from kept


def wilson(successes: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95% interval of a share; of a mean of shares it is a cautious one."""
    if not count:
        return 0.0, 1.0
    share, square = successes / count, z * z
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = z / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)
