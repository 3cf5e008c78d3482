"""`lamp-rig describe` and `lamp-rig check`: a description to start from, and whether everything is there and right."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable

import numpy as np

from lamp_client.errors import LampClientError
from lamp_client.rig.description import ArmDescription, CameraDescription, GripperDescription, Limits, RigDescription
from lamp_client.rig.devices import RigError
from lamp_client.rig.rig import Rig
from lamp_client.rig.safety import in_words, violated
from lamp_client.rig.session import TWIN, connect_policy, describe_rig, open_session
from lamp_client.rig.trials import preview

_CHECKS = 20
"""Questions to a policy when its latency is measured."""


def describe(options: argparse.Namespace) -> int:
    if options.out.exists():
        raise RigError(f"{options.out} is there already.", hint="Remove it, or choose another name.")
    if options.kind == TWIN:
        description = describe_rig(f"{TWIN}:{options.arm}")
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


def check(options: argparse.Namespace) -> int:
    rig, world = open_session(options)
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
        with contextlib.closing(connect_policy(address)) as policy:
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
