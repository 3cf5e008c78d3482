"""What the commands of `lamp-rig` share: opening the rig, beginning an episode, who acts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lamp_client.asynchronous import Asynchronous, RealTime
from lamp_client.chunks import Executor, OpenLoop
from lamp_client.client import Policy, WebsocketPolicy
from lamp_client.errors import InvalidValueError
from lamp_client.rig.description import RigDescription, read_description
from lamp_client.rig.drivers import open_rig
from lamp_client.rig.rig import Rig

TWIN = "twin"
EXECUTORS = ("open_loop", "asynchronous", "real_time")


def open_session(options: argparse.Namespace, *, speed: float = 1.0, dry_run: bool = False) -> tuple[Rig, Any]:
    """The rig, not connected yet, and the twin's world where it has one."""
    description = describe_rig(options.rig)
    world = None
    if description.arm.driver == TWIN:
        from lamp_client.twin import World, make_task

        world = World(make_task(options.task), description.arm.model or "rizon4", real_time=options.real_time)
    elif options.real_time:
        raise InvalidValueError("--real-time is for the twin; a real arm always runs in real time.")
    rig = open_rig(description, world=world, speed=speed, dry_run=dry_run, on_note=_Notes())
    rig.another_rig = getattr(options, "another_rig", False)
    return rig, world


def describe_rig(name: str) -> RigDescription:
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


def instruction_and_steps(options: argparse.Namespace, world: Any) -> tuple[str, int]:
    """The instruction and the most steps of an episode: as given, else the twin's task's."""
    instruction = options.instruction or (world.task.instruction if world is not None else None)
    if not instruction:
        raise InvalidValueError("--instruction is not given; expected the task in words.")
    return instruction, options.steps or (world.task.step_limit if world is not None else 1200)


def episode_metadata(options: argparse.Namespace, rig: Rig, world: Any, seed: int) -> dict[str, Any]:
    """What a recording keeps of an episode: rig, task, layout, and the simulator where there is one."""
    simulator = {} if world is None else {"simulator": world.about}
    return {
        **rig.description.recorded, "task": options.task, "seed": seed, "condition": options.condition, **simulator
    }  # fmt: skip


def begin_episode(rig: Rig, world: Any, seed: int, condition: str, definition: str = "body") -> Any:
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


def scripted_expert(rig: Rig, world: Any, noise: float, seed: int) -> Any:
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


def connect_policy(address: str) -> WebsocketPolicy:
    return WebsocketPolicy(address if "://" in address else f"ws://{address if ':' in address else address + ':8000'}")


def make_executor(options: argparse.Namespace, policy: Policy, rig: Rig, world: Any) -> Executor:
    simulated = world is not None and not options.real_time
    kind = options.executor
    if kind is None and (simulated or getattr(options, "confirm", False)):
        kind = "open_loop"
    if kind is None:
        kind = "real_time" if policy.metadata.get("real_time") and not options.blend else "asynchronous"
    # In simulated time no time passes while a policy thinks: the delay has to be said.
    delay = options.delay or (1 if simulated else None)
    if kind == "real_time":
        return RealTime(every=options.every, blend=options.blend, delay=delay)
    if kind == "asynchronous":
        return Asynchronous(every=options.every, blend=options.blend, delay=delay)
    execute = options.execute
    if execute is None:
        said = policy.metadata.get("execute")
        execute = said if isinstance(said, int) and not isinstance(said, bool) and said > 0 else None
    return OpenLoop(execute=execute)


def close_executor(executor: Any) -> None:
    close = getattr(executor, "close", None)
    if close is not None:
        close()
