"""The command `lamp-rig`: describe, check, record, run, replay and score a rig, or its twin."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lamp_client.asynchronous import Asynchronous
from lamp_client.chunks import Executor, ObservationFn, OpenLoop
from lamp_client.client import NoiseSeed, Policy, WebsocketPolicy
from lamp_client.envs.rotations import matrix_from_axis_angle
from lamp_client.errors import InvalidValueError, LampClientError, UnknownNameError
from lamp_client.recording import SUFFIX, Recorder, read_episode, recorded_names
from lamp_client.rig.description import (
    ArmDescription,
    CameraDescription,
    GripperDescription,
    Limits,
    RigDescription,
    read_description,
)
from lamp_client.rig.devices import Pose, RigError
from lamp_client.rig.drivers import open_rig
from lamp_client.rig.rig import Rig
from lamp_client.rig.safety import RigStoppedError, in_words
from lamp_client.rig.trials import (
    IN_DOMAIN_TRIALS,
    OTHER_TRIALS,
    ConfirmedPolicy,
    NoPolicy,
    Replayed,
    add_trial,
    drive_rig,
    made_trials,
    plan_trials,
    preview,
    replay_error,
    wilson,
)
from lamp_client.types import ActionChunk, Observation

TWIN = "twin"
_CHECKS = 20
"""Questions to a policy when its latency is measured."""
_REPLAY_CM = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0 done, 1 a check found faults or the arm was stopped, 2 a mistake, 130 Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except RigStoppedError as error:
        print(f"lamp-rig: {error}", file=sys.stderr)
        return 1
    except (LampClientError, OSError) as error:
        print(f"lamp-rig: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lamp-rig: stopped by Ctrl-C", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lamp-rig",
        description="A real arm or its twin under a LaMP policy. No certified safety function: keep the emergency stop in reach.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], about: str, *, rig: bool = True) -> Any:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(command=command)
        if rig:
            sub.add_argument("rig", help="the rig's file; or twin, twin:panda, twin:ARM.json")
            sub.add_argument("--task", default="stack_cup", help="the twin's task (default: stack_cup)")
            sub.add_argument(
                "--real-time", action="store_true", help="run the twin by the wall's clock, not as fast as it can"
            )
        return sub

    describe = add("describe", _describe, "write a description to start from", rig=False)
    describe.add_argument("kind", choices=("twin", "flexiv"))
    describe.add_argument("--arm", default="rizon4", help="the twin's arm: rizon4, panda or a .json file")
    describe.add_argument("--out", type=Path, required=True, metavar="FILE")

    check = add("check", _check, "find out whether everything is there and right; nothing moves")
    check.add_argument("--policy", metavar="HOST:PORT", help="a policy server, to be held against the rig")

    record = add("record", _record, "record demonstrations, for lamp import-recording")
    record.add_argument("--out", type=Path, required=True, metavar="DIR")
    record.add_argument("--episodes", type=_positive, default=1)
    record.add_argument(
        "--by", choices=("expert", "keyboard"), default=None, help="default: expert on the twin, else keyboard"
    )
    record.add_argument("--instruction", default=None, help="default: the twin's task's")
    record.add_argument("--seed", type=int, default=0, help="of the first layout")
    record.add_argument("--condition", default="in_domain")
    record.add_argument(
        "--noise", type=float, default=0.0, metavar="M", help="displace the expert's targets by so much"
    )
    record.add_argument("--steps", type=_positive, default=None, help="the most in an episode")
    record.add_argument("--keep-failures", action="store_true", help="keep the expert's failed episodes")

    run = add("run", _run, "let a policy act")
    _add_policy_options(run)
    run.add_argument("--policy", required=True, metavar="HOST:PORT")
    run.add_argument("--instruction", default=None)
    run.add_argument("--steps", type=_positive, default=None)
    run.add_argument("--seed", type=int, default=0, help="of the twin's layout")
    run.add_argument("--condition", default="in_domain")
    run.add_argument("--record", type=Path, default=None, metavar="DIR")
    run.add_argument("--confirm", action="store_true", help="ask before every chunk")
    run.add_argument("--dry-run", action="store_true", help="command nothing, and say what would be")

    replay = add("replay", _replay, "repeat a recorded episode: the first test of signs, frames and the gripper")
    replay.add_argument("recording", type=Path)
    replay.add_argument("--episode", default=None, help="default: the first")
    replay.add_argument("--speed", type=_share, default=1.0)
    replay.add_argument("--dry-run", action="store_true")

    score = add("score", _score, "score policies against each other: the paper's protocol, interleaved and blind")
    _add_policy_options(score)
    score.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="trials.jsonl, which lamp report reads too"
    )
    score.add_argument(
        "--method",
        action="append",
        required=True,
        metavar="NAME=HOST:PORT",
        help="once for each; NAME=expert: the script",
    )
    score.add_argument("--conditions", nargs="+", default=["in_domain"])
    score.add_argument(
        "--trials", type=_positive, default=None, help="a condition (default: 10 in domain, 5 in others)"
    )
    score.add_argument(
        "--definition", choices=("body", "supplement"), default="body", help="of the stages, in the paper"
    )
    score.add_argument("--stages", nargs="+", default=None, help="their names, on a real arm")
    score.add_argument("--instruction", default=None)
    score.add_argument("--steps", type=_positive, default=None)
    score.add_argument("--seed", type=int, default=1000, help="of the first layout; not one that was recorded")
    return parser


def _add_policy_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--executor", choices=("open_loop", "asynchronous"), default=None, help="default: asynchronous in real time"
    )
    sub.add_argument(
        "--execute", type=_positive, default=None, help="actions of each chunk (default: as the policy says)"
    )
    sub.add_argument(
        "--every", type=_positive, default=5, help="asynchronous: steps after which the next chunk is asked for"
    )
    sub.add_argument("--blend", type=int, default=0, help="asynchronous: steps over which chunks fade into each other")
    sub.add_argument("--delay", type=_positive, default=None, help="asynchronous: steps from asking to hand-over")
    sub.add_argument("--another-rig", action="store_true", help="take a policy that was trained on another rig's data")
    sub.add_argument("--speed", type=_share, default=1.0, help="share of the described rate and speeds")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0.05 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0.05 to 1")
    return value


# Opening


def _opened(options: argparse.Namespace, *, speed: float = 1.0, dry_run: bool = False) -> tuple[Rig, Any]:
    """The rig, not connected yet, and the twin's world where it has one."""
    description = _described(options.rig)
    world = None
    if description.arm.driver == TWIN:
        from lamp_client.twin import World, make_task

        world = World(make_task(options.task), description.arm.model or "rizon4", real_time=options.real_time)
    elif options.real_time:
        raise InvalidValueError("--real-time is for the twin; a real arm always runs in real time.")
    rig = open_rig(description, world=world, speed=speed, dry_run=dry_run, on_note=_Notes())
    rig.another_rig = getattr(options, "another_rig", False)
    return rig, world


def _described(name: str) -> RigDescription:
    if name == TWIN or name.startswith(f"{TWIN}:"):
        from lamp_client.twin import twin_description

        return twin_description(name.partition(":")[2] or "rizon4")
    return read_description(Path(name))


class _Notes:
    """Says the first few notes of a kind, and counts the rest."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def __call__(self, note: str) -> None:
        kind = "".join(letter for letter in note if not letter.isdigit())[:40]
        self._seen[kind] = self._seen.get(kind, 0) + 1
        if self._seen[kind] <= 3:
            more = "; further ones like it are not said" if self._seen[kind] == 3 else ""
            print(f"note: {note}{more}", file=sys.stderr)


# Commands


def _describe(options: argparse.Namespace) -> int:
    if options.out.exists():
        raise RigError(f"{options.out} is there already.", hint="Remove it, or choose another name.")
    if options.kind == TWIN:
        description = _described(f"{TWIN}:{options.arm}")
    else:
        description = RigDescription(
            name="my-rizon4",
            fps=20.0,
            arm=ArmDescription(
                driver="flexiv", model="rizon4", address="Rizon4-000000", tool_rotation=(0.0, 1.0, 0.0, 0.0)
            ),
            gripper=GripperDescription(driver="robotiq", model="2f85", address="/dev/ttyUSB0"),
            cameras={"front": CameraDescription(driver="realsense", width=640, height=480, serial="", depth=True)},
            limits=Limits(workspace_low=(0.3, -0.3, 0.02), workspace_high=(0.65, 0.3, 0.5)),
            notes="Put in the arm's and the camera's serial numbers, the gripper's port, and your workspace.",
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    description.save(options.out)
    print(f"{options.out}: {description.name}, fingerprint {description.fingerprint[:12]}")
    return 0


def _check(options: argparse.Namespace) -> int:
    rig, world = _opened(options)
    description, faults = rig.description, 0

    def say(good: bool, what: str, found: str) -> None:
        nonlocal faults
        faults += not good
        print(f"{'ok   ' if good else 'FAULT'} {what}: {found}")

    say(
        True,
        "description",
        f"{description.name}, fingerprint {description.fingerprint[:12]}, {description.fps:g} actions/s",
    )
    for name, text in in_words(description.limits).items():
        print(f"      {name}: {text}")
    try:
        rig.connect()
    except LampClientError as error:
        say(False, "connection", str(error))
        rig.close()
        return 1
    try:
        if world is not None:
            world.reset(0)
        _check_parts(rig, say)
        if options.policy:
            _check_policy(rig, options.policy, say)
    finally:
        rig.close()
    print(f"{faults} fault{'s' if faults != 1 else ''}; nothing was moved")
    return 1 if faults else 0


def _check_parts(rig: Rig, say: Callable[[bool, str, str], None]) -> None:
    from lamp_client.rig.safety import violated

    description = rig.description
    state = rig.arm.state()
    say(True, "arm", ", ".join(f"{key} {value}" for key, value in rig.arm.about.items()))
    fault = violated(state, state.pose, description.limits)
    where = np.round(state.pose.position, 3).tolist()
    say(
        fault is None,
        "arm's state",
        fault[1] if fault else f"tool at {where} m, {np.linalg.norm(state.wrench[:3]):.1f} N on it",
    )
    values = rig.values(state.pose, 0.0)
    far = float(np.linalg.norm(values[3:6]))
    say(
        far < 2.6,
        "tool's rotation",
        f"{np.degrees(far):.0f} degrees from arm.tool_rotation"
        + ("" if far < 2.6 else ", near half a turn, where rotation vectors jump"),
    )
    say(True, "gripper", f"openness {rig.gripper.openness():.2f}")
    for name, described in description.cameras.items():
        try:
            started = time.perf_counter()
            frames = [rig.cameras[name].frame() for _ in range(5)]
            seconds = (time.perf_counter() - started) / len(frames)
        except LampClientError as error:
            say(False, f"camera {name}", str(error))
            continue
        height, width = frames[-1].image.shape[:2]
        fits = (height, width) == (described.height, described.width)
        dark = float(frames[-1].image.mean()) < 3
        moving = frames[-1].number > frames[0].number
        text = f"{width}x{height}, {1 / seconds:.0f} pictures/s"
        if frames[-1].depth is not None:
            text += f", depth in {100 * float((frames[-1].depth > 0).mean()):.0f}% of the pixels"
        if not fits:
            text += f"; the description says {described.width}x{described.height}"
        if dark:
            text += "; black: is the lens covered?"
        if not moving:
            text += "; the pictures' numbers stand still"
        say(fits and moving and not dark, f"camera {name}", text)
        if described.calibration is None:
            print(f"      camera {name} is not calibrated: points cannot be shown in the arm's frame")


def _check_policy(rig: Rig, address: str, say: Callable[[bool, str, str], None]) -> None:
    try:
        with contextlib.closing(_policy(address)) as policy:
            rig.description.check_policy(policy.metadata, another_rig=rig.another_rig)
            say(
                True,
                "policy",
                f"{policy.metadata.get('action_width', '?')} values an action, chunks of {policy.metadata.get('chunk', '?')}",
            )
            seen = rig.observe("check")
            chunk = policy.act(seen)
            times = []
            for call in range(_CHECKS):
                started = time.perf_counter()
                policy.act(seen, noise_seed=(call,))
                times.append(time.perf_counter() - started)
            p50, p95 = np.quantile(times, [0.5, 0.95])
            delay = int(np.ceil(p95 * rig.description.fps))
            fits = 2 * delay < len(chunk.actions)
            say(
                fits,
                "latency",
                f"p50 {1000 * p50:.0f} ms, p95 {1000 * p95:.0f} ms: --delay {delay} of {len(chunk.actions)} actions",
            )
            print(f"      now it would do: {preview(chunk, seen.state)}")
    except LampClientError as error:
        say(False, "policy", str(error))


def _record(options: argparse.Namespace) -> int:
    if options.by == "keyboard" and _described(options.rig).arm.driver == TWIN:
        options.real_time = True  # nobody types as fast as a simulation runs
    rig, world = _opened(options)
    by = options.by or ("expert" if world is not None else "keyboard")
    if by == "expert" and world is None:
        raise InvalidValueError("--by expert needs the twin: the script reads where the objects are.")
    instruction = options.instruction or (world.task.instruction if world is not None else None)
    if not instruction:
        raise InvalidValueError("--instruction is not given; expected the task in words.")
    steps = options.steps or (world.task.step_limit if world is not None else 1200)
    if by == "keyboard" and not sys.stdin.isatty():
        raise InvalidValueError("--by keyboard needs a terminal.")
    kept = tried = 0
    with rig, _Keys() as keys:
        seed = options.seed
        while kept < options.episodes and tried < 3 * options.episodes + 3:
            tried += 1
            recorder = Recorder(
                folder=options.out,
                fps=rig.description.fps,
                metadata={
                    **rig.description.recorded,
                    "task": options.task,
                    "seed": seed,
                    "condition": options.condition,
                    "by": by,
                },
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
    keys: _Keys,
    seed: int,
    instruction: str,
    steps: int,
    name: str | None,
) -> tuple[bool, Path | None]:
    """Records one episode; returns whether it succeeded, and its file where it is kept."""
    progress = _begin(rig, world, seed, options.condition)
    if by == "expert":
        executor = _expert(rig, world, options.noise, seed)
        ended = lambda: executor.done  # noqa: E731
    else:
        executor = _KeyboardTeleoperation(rig, keys)
        print(_KeyboardTeleoperation.HELP)
        ended = lambda: executor.done  # noqa: E731

    def stop() -> bool:
        keys.obey(rig)
        if progress is not None:
            progress.look()
        return ended()

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
        )
    except BaseException:
        if recorder.path is not None:
            recorder.path.unlink(missing_ok=True)  # half an episode teaches nothing
        raise
    assert recorder.path is not None
    if not keep:
        recorder.path.unlink(missing_ok=True)
    return success, recorder.path if keep else None


def _run(options: argparse.Namespace) -> int:
    rig, world = _opened(options, speed=options.speed, dry_run=options.dry_run)
    instruction = options.instruction or (world.task.instruction if world is not None else None)
    if not instruction:
        raise InvalidValueError("--instruction is not given; expected the task in words.")
    steps = options.steps or (world.task.step_limit if world is not None else 1200)
    with contextlib.closing(_policy(options.policy)) as policy:
        rig.description.check_policy(policy.metadata, another_rig=rig.another_rig)  # before anything is connected
        executor = _executor(options, policy, rig, world)
        if options.confirm and isinstance(executor, Asynchronous):
            raise InvalidValueError(
                "--confirm needs --executor open_loop: a chunk that somebody looks at is not in time."
            )
        recorder = None
        if options.record is not None:
            metadata = {
                **rig.description.recorded,
                "task": options.task,
                "seed": options.seed,
                "condition": options.condition,
            }
            recorder = Recorder(folder=options.record, fps=rig.description.fps * rig.speed, metadata=metadata)
        with rig, _Keys() as keys:
            progress = _begin(rig, world, options.seed, options.condition)
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
                _close(executor)
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


def _replay(options: argparse.Namespace) -> int:
    names = recorded_names(options.recording)
    if not names:
        raise RigError(f"{options.recording} holds no recorded episodes.")
    name = options.episode or names[0]
    if name not in names:
        raise UnknownNameError(f"episode in {options.recording}", name, names)
    episode = read_episode(options.recording, name, pixels=False)
    if not episode.frames:
        raise RigError(f"{name} has no frames.")
    rig, world = _opened(options, speed=options.speed, dry_run=options.dry_run)
    rig.description.check_policy(
        {**episode.policy, "action_width": np.size(episode.frames[0]["action"]), "fps": episode.fps}, another_rig=True
    )
    recorded_on = episode.metadata.get("rig_fingerprint")
    if recorded_on not in (None, rig.description.fingerprint):
        print(f"note: it was recorded on another rig ({str(recorded_on)[:12]})", file=sys.stderr)
    states: list[np.ndarray] = []
    with rig, _Keys() as keys:
        progress = _begin(
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


def _score(options: argparse.Namespace) -> int:
    methods = dict(_method(each) for each in options.method)
    if len(methods) < len(options.method):
        raise InvalidValueError("--method names one twice; expected different names.")
    rig, world = _opened(options, speed=options.speed)
    instruction = options.instruction or (world.task.instruction if world is not None else None)
    if not instruction:
        raise InvalidValueError("--instruction is not given; expected the task in words.")
    if world is None and (not options.stages or not sys.stdin.isatty()):
        raise InvalidValueError("on a real arm, --stages NAME ... and a terminal are needed: a person scores.")
    if world is not None:
        for condition in options.conditions:
            if condition not in world.task.conditions:
                raise UnknownNameError("condition", condition, world.task.conditions)
    counts = {
        each: options.trials or (IN_DOMAIN_TRIALS if each == "in_domain" else OTHER_TRIALS)
        for each in options.conditions
    }
    plan = plan_trials(list(methods), counts, options.seed)
    done = {
        (each.get("method"), each.get("setting"), each.get("note"))
        for each in made_trials(options.out)
        if each.get("task") == options.task
    }
    steps = options.steps or (world.task.step_limit if world is not None else 1200)
    with contextlib.ExitStack() as stack:
        policies: dict[str, Policy | None] = {}
        for name, address in methods.items():
            if address == "expert":
                if world is None:
                    raise InvalidValueError(f"{name}=expert needs the twin.")
                policies[name] = None
            else:
                policy = stack.enter_context(contextlib.closing(_policy(address)))
                rig.description.check_policy(policy.metadata, another_rig=rig.another_rig)
                policies[name] = policy
        stack.enter_context(rig)
        keys = stack.enter_context(_Keys())
        for number, trial in enumerate(plan, start=1):
            note = f"layout {trial.layout}"
            if (trial.method, trial.condition, note) in done:
                continue
            if world is None:
                keys.ask(
                    f"trial {number} of {len(plan)}: lay out {trial.condition}, layout {trial.layout}, then [g]o: ", "g"
                )
            progress = _begin(rig, world, options.seed + trial.layout, trial.condition, options.definition)
            policy = policies[trial.method]
            metadata = {} if policy is None else policy.metadata
            stopped = ""
            if policy is None:
                executor: Any = _expert(rig, world, 0.0, trial.layout)
            else:
                executor = _executor(options, policy, rig, world)

            def stop(progress: Any = progress, executor: Any = executor) -> bool:
                keys.obey(rig)
                return (progress is not None and progress.look() == progress.of) or getattr(executor, "done", False)

            try:
                drive_rig(
                    rig, policy or NoPolicy(rig.description.policy_entry), executor, instruction=instruction, steps=steps,
                    noise_seed=(options.seed, trial.layout), stop=stop,
                )  # fmt: skip
            except RigStoppedError as error:
                stopped = str(error)
            finally:
                _close(executor)
            if progress is None:
                of = len(options.stages)
                listed = ", ".join(f"{at} {name}" for at, name in enumerate(options.stages, start=1))
                completed = int(keys.ask(f"stages completed, 0 to {of} ({listed}): ", "".join(map(str, range(of + 1)))))
            else:
                completed, of = progress.look(), progress.of
            if stopped and (
                world is None or (rig.watchdog.stopped is not None and rig.watchdog.stopped.kind in ("key", "internal"))
            ):
                raise RigStoppedError(f"{stopped} The trial was not counted; the same command goes on.")
            add_trial(
                options.out,
                {
                    "method": trial.method, "task": options.task,
                    "category": world.task.category if world is not None else "Own",
                    "setting": trial.condition, "instruction": instruction, "stages": completed, "of": of,
                    "checkpoint": str(metadata.get("weights_sha256", "")), "code": str(metadata.get("code", "")), "note": note,
                },
            )  # fmt: skip
            print(
                f"trial {number} of {len(plan)}{'' if world is None else f', {trial.condition}'}: {completed} of {of} stages"
                + (f" ({stopped})" if stopped else "")
            )
    _summarize(options, list(methods))
    return 0


def _summarize(options: argparse.Namespace, methods: Sequence[str]) -> None:
    trials = [each for each in made_trials(options.out) if each.get("task") == options.task]
    for condition in options.conditions:
        for method in methods:
            shares = [
                float(each["stages"]) / float(each["of"])
                for each in trials
                if (each["method"], each["setting"]) == (method, condition)
            ]
            if shares:
                low, high = wilson(sum(shares), len(shares))
                mean = 100 * sum(shares) / len(shares)
                print(
                    f"{method}, {condition}: progress {mean:.0f}% ({100 * low:.0f} to {100 * high:.0f}), {len(shares)} trials"
                )


# Parts of the commands


def _begin(rig: Rig, world: Any, seed: int, condition: str, definition: str = "body") -> Any:
    """Goes to where an episode begins; returns what follows the twin's progress."""
    if world is None:
        if rig.watchdog.stopped is not None:
            rig.resume()
        rig.go_home()
        return None
    from lamp_client.twin import Progress

    rig.release()
    world.reset(seed, condition)
    rig.resume()
    return Progress(world=world, definition=definition)


def _expert(rig: Rig, world: Any, noise: float, seed: int) -> Any:
    from lamp_client.twin import ScriptedExpert

    limits, fps = rig.description.limits, rig.description.fps
    return ScriptedExpert(
        world=world,
        values=rig.values,
        max_step=limits.max_speed / fps,
        max_turn=limits.max_rotation_speed / fps,
        noise=noise,
        seed=seed,
    )


def _policy(address: str) -> WebsocketPolicy:
    return WebsocketPolicy(address if "://" in address else f"ws://{address if ':' in address else address + ':8000'}")


def _method(text: str) -> tuple[str, str]:
    name, equals, address = text.partition("=")
    if not (name.strip() and name.isprintable() and equals and address):
        raise InvalidValueError(f"--method is {text!r}; expected NAME=HOST:PORT, or NAME=expert.")
    return name, address


def _executor(options: argparse.Namespace, policy: Policy, rig: Rig, world: Any) -> Executor:
    simulated = world is not None and not options.real_time
    kind = options.executor or ("open_loop" if simulated or getattr(options, "confirm", False) else "asynchronous")
    if kind == "asynchronous":
        # In simulated time no time passes while a policy thinks: the delay has to be said.
        delay = options.delay or (1 if simulated else None)
        return Asynchronous(every=options.every, blend=options.blend, delay=delay)
    execute = options.execute
    if execute is None:
        said = policy.metadata.get("execute")
        execute = said if isinstance(said, int) and not isinstance(said, bool) and said > 0 else None
    return OpenLoop(execute=execute)


def _close(executor: Any) -> None:
    close = getattr(executor, "close", None)
    if close is not None:
        close()


class _Keys:
    """Keys pressed at the terminal, read in a thread: space holds and goes on, q and Escape stop. Without a terminal, none."""

    def __init__(self) -> None:
        self._pressed: list[str] = []
        self._held = False
        self._ended = False
        self._thread: threading.Thread | None = None
        self._saved: Any = None

    def __enter__(self) -> _Keys:
        if sys.stdin.isatty():
            import termios
            import tty

            self._saved = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
            self._thread = threading.Thread(target=self._read, name="lamp-keys", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        if self._thread is not None:
            import termios

            self._thread.join(timeout=1.0)
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._saved)

    on_stop: Callable[[], None] | None = None

    def _read(self) -> None:
        while not self._ended:
            if not select.select([sys.stdin], [], [], 0.05)[0]:
                continue
            # Not sys.stdin.read: what waits in its buffer is not seen by select.
            keys = os.read(sys.stdin.fileno(), 64).decode(errors="replace")
            if not keys:
                return  # the terminal is gone
            for key in keys:
                if key == " ":
                    self._held = not self._held
                    continue
                if key in ("q", "\x1b") and self.on_stop is not None:
                    self.on_stop()  # at once, and not when the loop comes round
                self._pressed.append(key)

    def taken(self) -> list[str]:
        """The keys since the last time."""
        keys, self._pressed = self._pressed, []
        return keys

    def obey(self, rig: Rig) -> None:
        """Holds while held."""
        self.on_stop = rig.stop
        if not self._held:
            return
        rig.pause()
        print("held; space goes on, q stops", flush=True)
        while self._held:
            rig.watchdog.check()
            rig.clock.sleep(0.05)

    def ask(self, question: str, answers: str) -> str:
        """Waits for one of these keys."""
        print(question, end="", flush=True)
        if self._thread is None:
            raise RigError("nobody can answer: this is no terminal.")
        self.taken()
        while True:
            for key in self.taken():
                if key in answers:
                    print(key)
                    return key
            time.sleep(0.05)

    def confirm(self, observation: Observation, chunk: ActionChunk) -> bool:
        """Shows what a chunk would do, and asks."""
        return self.ask(f"{preview(chunk, observation.state)}: [y]es or [n]o? ", "yn") == "y"


class _KeyboardTeleoperation:
    """An executor that follows the keyboard."""

    HELP = "w s: forth, back; a d: left, right; r f: up, down; j l: turn; i k: tilt; g: gripper; e: end; space: hold; q: stop"
    STEP, TURN = 0.01, np.radians(4)

    def __init__(self, rig: Rig, keys: _Keys) -> None:
        self.chunk: ActionChunk | None = None
        self.calls, self.done = 0, False
        self._rig, self._keys = rig, keys
        self._target: Pose | None = None
        self._openness = 1.0

    def reset(self) -> None:
        """See `lamp_client.chunks.Executor`."""
        self.done, self._target = False, None

    def next_action(self, observe: ObservationFn, policy: Policy, noise_seed: NoiseSeed) -> np.ndarray:
        """The target, moved by the keys since the step before."""
        pose = self._target or self._rig.commanded or self._rig.arm_state.pose
        moves = {"w": (0, 1), "s": (0, -1), "a": (1, 1), "d": (1, -1), "r": (2, 1), "f": (2, -1)}
        turns = {"j": (2, 1), "l": (2, -1), "i": (1, 1), "k": (1, -1)}
        position, rotation = pose.position.copy(), pose.rotation
        for key in self._keys.taken():
            if key in moves:
                axis, sign = moves[key]
                position[axis] += sign * self.STEP
            elif key in turns:
                axis, sign = turns[key]
                rotation = matrix_from_axis_angle(sign * self.TURN * np.eye(3)[axis]) @ rotation
            elif key == "g":
                self._openness = 1.0 - self._openness
            self.done = self.done or key == "e"
        limits = self._rig.description.limits
        position = np.clip(position, limits.workspace_low, limits.workspace_high)
        self._target = Pose(position=position, rotation=rotation)
        return self._rig.values(self._target, self._openness)


if __name__ == "__main__":
    sys.exit(main())
