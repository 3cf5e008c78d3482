"""`lamp-rig score`: policies against each other by the paper's protocol."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from lamp_client.client import Policy
from lamp_client.errors import InvalidValueError, UnknownNameError
from lamp_client.rig.keyboard import Keys
from lamp_client.rig.safety import RigStoppedError
from lamp_client.rig.session import (
    begin_episode,
    close_executor,
    connect_policy,
    instruction_and_steps,
    make_executor,
    open_session,
    scripted_expert,
)
from lamp_client.rig.trials import (
    IN_DOMAIN_TRIALS,
    OTHER_TRIALS,
    NoPolicy,
    add_trial,
    drive_rig,
    made_trials,
    plan_trials,
    wilson,
)


def score(options: argparse.Namespace, connect: Callable[[str], Policy] = connect_policy) -> int:
    """The command.

    Args:
        connect: Opens the policy of an address.
    """
    methods = dict(_method(each) for each in options.method)
    if len(methods) < len(options.method):
        raise InvalidValueError("--method names one twice; expected different names.")
    rig, world = open_session(options, speed=options.speed)
    instruction, steps = instruction_and_steps(options, world)
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
    with contextlib.ExitStack() as stack:
        policies: dict[str, Policy | None] = {}
        for name, address in methods.items():
            if address == "expert":
                if world is None:
                    raise InvalidValueError(f"{name}=expert needs the twin.")
                policies[name] = None
            else:
                policy = connect(address)
                stack.callback(getattr(policy, "close", lambda: None))
                rig.description.check_policy(policy.metadata, another_rig=rig.another_rig)
                policies[name] = policy
        stack.enter_context(rig)
        keys = stack.enter_context(Keys())
        for number, trial in enumerate(plan, start=1):
            note = f"layout {trial.layout}"
            if (trial.method, trial.condition, note) in done:
                continue
            if world is None:
                keys.ask(
                    f"trial {number} of {len(plan)}: lay out {trial.condition}, layout {trial.layout}, then [g]o: ", "g"
                )
            progress = begin_episode(rig, world, options.seed + trial.layout, trial.condition, options.definition)
            policy = policies[trial.method]
            metadata = {} if policy is None else policy.metadata
            stopped = ""
            if policy is None:
                executor: Any = scripted_expert(rig, world, 0.0, trial.layout)
            else:
                executor = make_executor(options, policy, rig, world)

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
                close_executor(executor)
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


def _method(text: str) -> tuple[str, str]:
    name, equals, address = text.partition("=")
    if not (name.strip() and name.isprintable() and equals and address):
        raise InvalidValueError(f"--method is {text!r}; expected NAME=HOST:PORT, or NAME=expert.")
    return name, address
