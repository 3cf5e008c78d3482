"""From a description to a rig: which driver makes which device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lamp_client.errors import UnknownNameError
from lamp_client.rig.description import RigDescription
from lamp_client.rig.devices import Arm, Camera, Clock, Gripper, RigError, WallClock
from lamp_client.rig.rig import Rig


@dataclass(frozen=True, kw_only=True)
class Driver:
    """What a driver can make of a description; None: no such device."""

    arm: Callable[[RigDescription], Arm] | None = None
    gripper: Callable[[RigDescription], Gripper] | None = None
    camera: Callable[[RigDescription, str], Camera] | None = None


def _flexiv_arm(rig: RigDescription) -> Arm:
    from lamp_client.rig.flexiv import FlexivArm

    return FlexivArm.described(rig)


def _robotiq(rig: RigDescription) -> Gripper:
    from lamp_client.rig.robotiq import RobotiqGripper

    return RobotiqGripper.described(rig)


def _realsense(rig: RigDescription, camera: str) -> Camera:
    from lamp_client.rig.realsense import RealSenseCamera

    return RealSenseCamera.described(rig, camera)


DRIVERS: dict[str, Driver] = {
    "flexiv": Driver(arm=_flexiv_arm),
    "robotiq": Driver(gripper=_robotiq),
    "realsense": Driver(camera=_realsense),
}
"""Name in a description -> driver. One's own are added here, before `open_rig`; `twin` is always there."""


def open_rig(
    description: RigDescription,
    *,
    world: Any = None,
    speed: float = 1.0,
    dry_run: bool = False,
    on_note: Callable[[str], None] = lambda note: None,
) -> Rig:
    """Makes a rig of its description; connects to nothing.

    Args:
        world: The twin's `lamp_client.twin.World`, where parts of the rig are simulated.

    Raises:
        UnknownNameError: there is no such driver.
        RigError: a driver makes no such device, or the rig is partly simulated without a world.
    """
    clock: Clock = WallClock() if world is None else world.clock
    return Rig(
        description=description,
        arm=_make(description.arm.driver, "arm", description, world),
        gripper=_make(description.gripper.driver, "gripper", description, world),
        cameras={
            name: _make(each.driver, "camera", description, world, name) for name, each in description.cameras.items()
        },
        clock=clock,
        speed=speed,
        dry_run=dry_run,
        on_note=on_note,
    )


def _make(driver: str, what: str, description: RigDescription, world: Any, *camera: str) -> Any:
    if driver == "twin":
        if world is None:
            raise RigError(
                f"the {what} is the twin's; expected its world, for instance by `lamp-rig run twin --task stack_cup`."
            )
        from lamp_client.twin import devices as twin

        if what == "camera":
            each = description.cameras[camera[0]]
            return twin.TwinCamera(world=world, width=each.width, height=each.height, fps=each.fps, depth=each.depth)
        return twin.TwinArm(world=world, fps=description.fps) if what == "arm" else twin.TwinGripper(world=world)
    if driver not in DRIVERS:
        raise UnknownNameError(f"driver of the {what}", driver, ["twin", *DRIVERS])
    make = getattr(DRIVERS[driver], what)
    if make is None:
        able = [name for name, each in DRIVERS.items() if getattr(each, what) is not None]
        raise RigError(f"the driver {driver!r} makes no {what}.", hint=f"Known: {', '.join(['twin', *able])}.")
    return make(description, *camera)
