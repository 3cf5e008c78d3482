"""Devices without hardware whose every fault can be caused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lamp_client.rig import ArmState, CameraFrame, Clock, Limits, Pose, Rig, RigDescription, RigError, SimulatedClock
from lamp_client.rig.description import ArmDescription, CameraDescription, GripperDescription, WatchdogSettings

DOWN = np.diag([1.0, -1.0, -1.0])
START = Pose(position=np.array([0.5, 0.0, 0.3]), rotation=DOWN)


def description(**changes: Any) -> RigDescription:
    given: dict[str, Any] = {
        "name": "fake",
        "fps": 20.0,
        "arm": ArmDescription(driver="fake", model="fake", tool_rotation=(0.0, 1.0, 0.0, 0.0)),
        "gripper": GripperDescription(driver="fake"),
        "cameras": {"front": CameraDescription(driver="fake", width=32, height=24, fps=10.0)},
        "limits": Limits(workspace_low=(0.3, -0.3, 0.02), workspace_high=(0.7, 0.3, 0.6)),
        "watchdog": WatchdogSettings(image_s=0.2, frozen_s=0.4, state_s=0.1, reply_s=0.5, missed_periods=5),
    }
    return RigDescription(**{**given, **changes})


@dataclass
class FakeArm:
    clock: Clock
    pose: Pose = START
    wrench: np.ndarray = field(default_factory=lambda: np.zeros(6))
    fault: str = ""
    fails: bool = False
    follows: bool = True
    calls: list[tuple[str, float]] = field(default_factory=list)

    def connect(self) -> None:
        self.calls.append(("connect", self.clock.now()))

    def enable(self) -> None:
        self.calls.append(("enable", self.clock.now()))

    def state(self) -> ArmState:
        if self.fails:
            raise RuntimeError("no route to the arm")
        return ArmState(pose=self.pose, joints=np.zeros(7), wrench=self.wrench, fault=self.fault)

    def move_to(self, pose: Pose) -> None:
        self.calls.append(("move", self.clock.now()))
        if self.follows:
            self.pose = pose

    def stop(self) -> None:
        self.calls.append(("stop", self.clock.now()))

    def close(self) -> None:
        self.calls.append(("close", self.clock.now()))

    @property
    def about(self) -> Mapping[str, Any]:
        return {"model": "fake"}

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def stopped_s(self) -> float | None:
        return next((at for name, at in self.calls if name == "stop"), None)


@dataclass
class FakeGripper:
    at: float = 1.0
    fails: bool = False
    moves: list[float] = field(default_factory=list)

    def connect(self) -> None:
        pass

    def openness(self) -> float:
        if self.fails:
            raise RigError("the gripper does not answer.")
        return self.at

    def move_to(self, openness: float) -> None:
        self.at = openness
        self.moves.append(openness)

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class FakeCamera:
    clock: Clock
    on_demand: bool = False
    stalled: bool = False
    frozen: bool = False
    fails: bool = False
    number: int = 0
    new_s: float = 0.0
    """When the last new picture was given."""
    changed_s: float = 0.0
    """When the last one was that differed."""
    shape: tuple[int, int, int] = (24, 32, 3)
    content: int = 0
    closed: bool = False

    def connect(self) -> None:
        pass

    def frame(self) -> CameraFrame:
        if self.fails:
            raise RuntimeError("unplugged")
        if (not self.stalled and self.clock.now() - self.new_s >= 1 / 30) or not self.number:
            self.number += 1
            self.new_s = self.clock.now()
            if not self.frozen:
                self.content += 1
                self.changed_s = self.new_s
        return CameraFrame(image=np.full(self.shape, self.content % 250, np.uint8), number=self.number)

    def close(self) -> None:
        self.closed = True


@dataclass
class Fakes:
    """A rig of fakes."""

    rig: Rig
    arm: FakeArm
    gripper: FakeGripper
    camera: FakeCamera


def fake_rig(clock: Clock | None = None, **changes: Any) -> Fakes:
    clock = clock or SimulatedClock()
    options = {key: changes.pop(key) for key in ("dry_run", "speed", "on_note") if key in changes}
    arm, gripper, camera = FakeArm(clock), FakeGripper(), FakeCamera(clock)
    rig = Rig(
        description=description(**changes), arm=arm, gripper=gripper, cameras={"front": camera}, clock=clock, **options
    )
    return Fakes(rig, arm, gripper, camera)
