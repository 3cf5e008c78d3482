"""A real arm under a policy: described by a file, held within limits, watched, recorded. NumPy only.

None of it is a certified safety function.
"""

from lamp_client.rig.description import Limits, RigDescription, WatchdogSettings, read_description
from lamp_client.rig.devices import (
    Arm,
    ArmState,
    Camera,
    CameraFrame,
    Clock,
    Gripper,
    Pose,
    RigError,
    SimulatedClock,
    WallClock,
)
from lamp_client.rig.drivers import DRIVERS, open_rig
from lamp_client.rig.rig import Rig
from lamp_client.rig.safety import RigStoppedError, Stop, Watchdog, WatchedPolicy, admit

__all__ = [
    "DRIVERS",
    "Arm",
    "ArmState",
    "Camera",
    "CameraFrame",
    "Clock",
    "Gripper",
    "Limits",
    "Pose",
    "Rig",
    "RigDescription",
    "RigError",
    "RigStoppedError",
    "SimulatedClock",
    "Stop",
    "WallClock",
    "Watchdog",
    "WatchdogSettings",
    "WatchedPolicy",
    "admit",
    "open_rig",
    "read_description",
]
