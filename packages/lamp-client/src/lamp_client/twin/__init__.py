"""A twin of the rig in MuJoCo: it stands for the arm in tests and before anything moves. `pip install 'lamp-client[twin]'`."""

from __future__ import annotations

from lamp_client.rig.description import (
    ArmDescription,
    Calibration,
    CameraDescription,
    GripperDescription,
    Limits,
    RigDescription,
    WatchdogSettings,
)
from lamp_client.twin.scene import ARMS, CAMERA, DOWN, camera_focal, camera_pose, read_arm
from lamp_client.twin.tasks import DEFINITIONS, TASKS, Progress, ScriptedExpert, make_task
from lamp_client.twin.world import CONDITIONS, Task, World

__all__ = [
    "ARMS",
    "CONDITIONS",
    "DEFINITIONS",
    "TASKS",
    "Progress",
    "ScriptedExpert",
    "Task",
    "World",
    "make_task",
    "read_arm",
    "twin_description",
]


def twin_description(
    arm: str = "rizon4", *, width: int = 320, height: int = 240, depth: bool = False
) -> RigDescription:
    """The twin as a rig: what `lamp-rig describe twin` writes."""
    focal = camera_focal(height)
    pose = camera_pose().quaternion_values
    calibration = Calibration(
        serial="twin",
        pose=(pose[0], pose[1], pose[2], pose[3], pose[4], pose[5], pose[6]),
        focal=(focal, focal),
        centre=(width / 2, height / 2),
        reprojection_error=0.0,
    )
    return RigDescription(
        name=f"twin-{read_arm(arm).name}",
        fps=20.0,
        arm=ArmDescription(driver="twin", model=arm, tool_rotation=DOWN),
        gripper=GripperDescription(driver="twin", model="2f85"),
        cameras={
            CAMERA: CameraDescription(
                driver="twin",
                width=width,
                height=height,
                fps=10.0,
                serial="twin",
                depth=depth,
                calibration=calibration,
            )
        },
        limits=Limits(
            workspace_low=(0.25, -0.42, 0.005),
            workspace_high=(0.8, 0.42, 0.6),
            max_speed=0.5,
            max_rotation_speed=1.5,
            max_force=80.0,
            max_torque=20.0,
        ),
        watchdog=WatchdogSettings(frozen_s=0.0, state_s=0.5, image_s=1.0),  # a computer that does other things as well
        home=(0.55, 0.0, 0.28, *DOWN),
        notes="No hardware: MuJoCo.",
    )
