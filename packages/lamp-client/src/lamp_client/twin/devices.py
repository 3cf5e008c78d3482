"""The twin's arm, gripper and camera as a rig's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lamp_client.rig.devices import ArmState, CameraFrame, Pose, RigError, SimulatedClock
from lamp_client.twin.scene import mujoco_module
from lamp_client.twin.world import World


@dataclass(kw_only=True)
class TwinArm:
    """The twin's arm as a rig's."""

    world: World
    fps: float
    enabled: bool = field(default=False, init=False)
    stops: int = field(default=0, init=False)

    def connect(self) -> None:
        if self.world.fault:
            raise RigError(f"the twin's arm is in fault: {self.world.fault}.", hint="Reset the twin.")
        self.world.start()

    def enable(self) -> None:
        self.world.halt()
        self.enabled = True

    def state(self) -> ArmState:
        return ArmState(
            pose=self.world.tool, joints=self.world.joints, wrench=self.world.wrench(), fault=self.world.fault
        )

    def move_to(self, pose: Pose) -> None:
        if not self.enabled:
            raise RigError("the twin's arm takes no targets before it is enabled.")
        self.world.command(pose, 1.0 / self.fps)

    def stop(self) -> None:
        self.stops += 1
        self.enabled = False
        self.world.halt()

    def close(self) -> None:
        self.world.close()

    @property
    def about(self) -> Mapping[str, Any]:
        return {"arm": self.world.arm.name, "mujoco": mujoco_module().__version__, "task": self.world.task.name}


@dataclass(kw_only=True)
class TwinGripper:
    """The twin's gripper as a rig's."""

    world: World

    def connect(self) -> None:
        pass

    def openness(self) -> float:
        return self.world.openness

    def move_to(self, openness: float) -> None:
        self.world.grip(openness)

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(kw_only=True)
class TwinCamera:
    """The twin's camera as a rig's: on demand in simulated time, at its own rate in real time."""

    world: World
    width: int
    height: int
    fps: float
    depth: bool = False
    on_demand: bool = field(init=False)
    _number: int = field(default=0, init=False)
    _due_s: float = field(default=0.0, init=False)
    _copy: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.on_demand = isinstance(self.world.clock, SimulatedClock)

    def connect(self) -> None:
        if self.width > 1280 or self.height > 720:
            raise RigError(
                f"the twin renders up to 1280x720 pixels; the camera is described as {self.width}x{self.height}."
            )

    def frame(self) -> CameraFrame:
        world = self.world
        if not self.on_demand:
            world.clock.sleep(self._due_s - world.clock.now())
            self._due_s = world.clock.now() + 1.0 / self.fps
            with world.lock:  # rendering must not keep the physics waiting
                if self._copy is None:
                    self._copy = mujoco_module().MjData(world.model)
                mujoco_module().mj_copyData(self._copy, world.model, world.data)
        self._number += 1
        image = world.render(self.width, self.height, data=self._copy)
        depth = world.render(self.width, self.height, depth=True, data=self._copy) if self.depth else None
        return CameraFrame(image=image, number=self._number, depth=depth, simulation=world.snapshot(self._copy))

    def close(self) -> None:
        pass
