"""`lamp-rig run` and `lamp-rig replay`: a policy, or a recorded episode, acts."""

from __future__ import annotations

import argparse
import contextlib
import sys

import numpy as np

from lamp_client.asynchronous import Asynchronous
from lamp_client.client import Policy
from lamp_client.errors import InvalidValueError, UnknownNameError
from lamp_client.recording import Recorder, read_episode, recorded_names
from lamp_client.rig.devices import RigError
from lamp_client.rig.keyboard import Keys
from lamp_client.rig.session import (
    begin_episode,
    close_executor,
    connect_policy,
    episode_metadata,
    instruction_and_steps,
    make_executor,
    open_session,
)
from lamp_client.rig.trials import ConfirmedPolicy, NoPolicy, Replayed, drive_rig, replay_error

_REPLAY_CM = 5.0
"""The mean distance of a good replay from the recorded path, at most."""


def run(options: argparse.Namespace) -> int:
    rig, world = open_session(options, speed=options.speed, dry_run=options.dry_run)
    instruction, steps = instruction_and_steps(options, world)
    with contextlib.closing(connect_policy(options.policy)) as policy:
        rig.description.check_policy(policy.metadata, another_rig=rig.another_rig)  # before anything is connected
        executor = make_executor(options, policy, rig, world)
        if options.confirm and isinstance(executor, Asynchronous):
            raise InvalidValueError(
                "--confirm needs --executor open_loop: a chunk that somebody looks at is not in time."
            )
        recorder = None
        if options.record is not None:
            metadata = episode_metadata(options, rig, world, options.seed)
            recorder = Recorder(folder=options.record, fps=rig.description.fps * rig.speed, metadata=metadata)
        with rig, Keys() as keys:
            progress = begin_episode(rig, world, options.seed, options.condition)
            asked: Policy = policy
            if options.confirm:
                asked = ConfirmedPolicy(policy=policy, rig=rig, confirm=keys.confirm)

            def stop() -> bool:
                keys.obey(rig)
                return progress is not None and progress.look() == progress.of

            try:
                drive = drive_rig(
                    rig, asked, executor, instruction=instruction, steps=steps, noise_seed=(options.seed,),
                    recorder=recorder, stop=stop, outcome=lambda: None if progress is None else progress.done,
                )  # fmt: skip
            finally:
                close_executor(executor)
    rate = (
        ""
        if world is not None and not options.real_time
        else f" at {drive.rate:.1f}/s, {drive.late} late, worst {1000 * drive.worst_s:.0f} ms"
    )
    print(f"{drive.steps} steps{rate}; {drive.policy_calls} chunks")
    if isinstance(executor, Asynchronous) and executor.waits:
        print(f"the arm had to wait {executor.waits} times: a smaller --every, or longer chunks, would help")
    if progress is not None:
        print(f"{progress.completed} of {progress.of} stages")
    return 0


def replay(options: argparse.Namespace) -> int:
    names = recorded_names(options.recording)
    if not names:
        raise RigError(f"{options.recording} holds no recorded episodes.")
    name = options.episode or names[0]
    if name not in names:
        raise UnknownNameError(f"episode in {options.recording}", name, names)
    episode = read_episode(options.recording, name, pixels=False)
    if not episode.frames:
        raise RigError(f"{name} has no frames.")
    rig, world = open_session(options, speed=options.speed, dry_run=options.dry_run)
    rig.description.check_policy(
        {**episode.policy, "action_width": np.size(episode.frames[0]["action"]), "fps": episode.fps}, another_rig=True
    )
    recorded_on = episode.metadata.get("rig_fingerprint")
    if recorded_on not in (None, rig.description.fingerprint):
        print(f"note: it was recorded on another rig ({str(recorded_on)[:12]})", file=sys.stderr)
    states: list[np.ndarray] = []
    with rig, Keys() as keys:
        progress = begin_episode(
            rig, world, int(episode.metadata.get("seed", 0)), str(episode.metadata.get("condition", "in_domain"))
        )
        first, openness = rig.pose(np.asarray(episode.frames[0]["state"]))
        rig.go_to(first, openness)

        def stop() -> bool:
            keys.obey(rig)
            states.append(rig.state_values())
            return progress is not None and progress.look() == progress.of

        actions = [np.asarray(frame.get("executed", frame["action"])) for frame in episode.frames]
        policy = NoPolicy(rig.description.policy_entry)
        drive_rig(
            rig, policy, Replayed(actions=actions), instruction=episode.instruction, steps=len(actions), stop=stop
        )
    error = replay_error(episode, states)
    print(
        f"{name}: {len(states)} steps; the tool was {error.mean_cm:.1f} cm from the recorded one on average, at most "
        f"{error.worst_cm:.1f} cm; the gripper differed by {error.gripper:.2f}"
    )
    if progress is not None:
        print(f"{progress.completed} of {progress.of} stages")
    good = error.mean_cm < _REPLAY_CM and error.gripper < 0.5
    if not good:
        print("FAULT: look for a sign, a frame or the gripper's polarity before a policy acts", file=sys.stderr)
    return 0 if good or options.dry_run else 1
