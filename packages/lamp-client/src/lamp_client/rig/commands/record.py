"""`lamp-rig record`: demonstrations by the scripted expert or the keyboard."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lamp_client.errors import InvalidValueError
from lamp_client.recording import SUFFIX, Recorder
from lamp_client.rig.keyboard import KeyboardTeleoperation, Keys
from lamp_client.rig.rig import Rig
from lamp_client.rig.safety import RigStoppedError
from lamp_client.rig.session import (
    TWIN,
    begin_episode,
    describe_rig,
    episode_metadata,
    instruction_and_steps,
    open_session,
    scripted_expert,
)
from lamp_client.rig.trials import NoPolicy, drive_rig


def record(options: argparse.Namespace) -> int:
    if options.by == "keyboard" and describe_rig(options.rig).arm.driver == TWIN:
        options.real_time = True  # nobody types as fast as a simulation runs
    rig, world = open_session(options)
    by = options.by or ("expert" if world is not None else "keyboard")
    if by == "expert" and world is None:
        raise InvalidValueError("--by expert needs the twin: the script reads where the objects are.")
    instruction, steps = instruction_and_steps(options, world)
    if by == "keyboard" and not sys.stdin.isatty():
        raise InvalidValueError("--by keyboard needs a terminal.")
    kept = tried = 0
    with rig, Keys() as keys:
        seed = options.seed
        while kept < options.episodes and tried < 3 * options.episodes + 3:
            tried += 1
            recorder = Recorder(
                folder=options.out,
                fps=rig.description.fps,
                metadata=episode_metadata(options, rig, world, seed) | {"by": by},
            )
            name = f"{options.task}-{options.condition}-{seed:06d}" if by == "expert" else None
            if name is not None and (options.out / f"{name}{SUFFIX}").exists():
                kept, seed = kept + 1, seed + 1  # an interrupted recording goes on
                tried -= 1
                continue
            success, drawn = _demonstrate(options, rig, world, recorder, by, keys, seed, instruction, steps, name)
            seed += 1
            if drawn is None:
                print(f"episode {tried}: not kept")
                continue
            kept += 1
            print(f"episode {kept} of {options.episodes}: {drawn.stem}{'' if success else ', not a success'}")
    print(
        f"{kept} episodes in {options.out}; lamp import-recording {options.out} --out DATASET makes a LeRobot dataset of them"
    )
    return 0 if kept >= options.episodes else 1


def _demonstrate(
    options: argparse.Namespace,
    rig: Rig,
    world: Any,
    recorder: Recorder,
    by: str,
    keys: Keys,
    seed: int,
    instruction: str,
    steps: int,
    name: str | None,
) -> tuple[bool, Path | None]:
    """Records one episode; returns whether it succeeded, and its file where it is kept."""
    progress = begin_episode(rig, world, seed, options.condition)
    if by == "expert":
        executor = scripted_expert(rig, world, options.noise, seed)
        disturb = executor.disturbed
    else:
        executor, disturb = KeyboardTeleoperation(rig, keys), None
        print(KeyboardTeleoperation.HELP)

    def stop() -> bool:
        keys.obey(rig)
        if progress is not None:
            progress.look()
        return executor.done

    success, keep = False, True

    def outcome() -> bool | None:
        nonlocal success, keep
        if progress is not None:
            success = progress.look() == progress.of
            keep = success or options.keep_failures
        else:
            said = keys.ask("[k]eep as a success, keep as a [f]ailure, [d]iscard? ", "kfd")
            success, keep = said == "k", said != "d"
        return success

    try:
        drive_rig(
            rig,
            NoPolicy(rig.description.policy_entry),
            executor,
            instruction=instruction,
            steps=steps,
            recorder=recorder,
            episode=name,
            stop=stop,
            outcome=outcome,
            disturb=disturb,
        )
    except BaseException as error:
        if recorder.path is not None:
            recorder.path.unlink(missing_ok=True)  # half an episode teaches nothing
        stopped = rig.watchdog.stopped
        if by == "expert" and isinstance(error, RigStoppedError) and stopped is not None and stopped.kind == "limit":
            return False, None  # the expert failed, as it may
        raise
    assert recorder.path is not None
    if not keep:
        recorder.path.unlink(missing_ok=True)
    return success, recorder.path if keep else None
