"""Flexiv arms through their RDK 1.9 (`flexivrdk>=1.9,<2`; 2.x refuses the Rizon 4). Never run on an arm: see docs/rig.md."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lamp_client.errors import InvalidValueError, MissingSoftwareError
from lamp_client.rig.description import RigDescription
from lamp_client.rig.devices import ArmState, Pose, RigError

_ENABLE_S = 30.0
_FASTEST = 100.0
"""Targets a second that the non-real-time mode takes."""


def _rdk() -> Any:
    try:
        import flexivrdk  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        wrong = sys.version_info[:2] not in ((3, 10), (3, 12))
        hint = " It has no wheels for this Python: use 3.10 or 3.12, in an environment of its own." if wrong else ""
        raise MissingSoftwareError(
            "flexivrdk is not installed.", hint=f"pip install 'flexivrdk>=1.9,<2'.{hint}"
        ) from error
    version = str(getattr(flexivrdk, "__version__", "unknown"))
    if not version.startswith("1."):
        raise MissingSoftwareError(
            f"flexivrdk is {version}, which refuses a Rizon 4.",
            hint="pip install 'flexivrdk>=1.9,<2'; it is paired with v3.11.",
        )
    return flexivrdk


@dataclass(kw_only=True)
class FlexivArm:
    """An arm in the mode NRT_CARTESIAN_MOTION_FORCE: the controller goes to each target smoothly, and is compliant meanwhile."""

    serial: str
    max_speed: float
    """[m/s], also told to the controller."""
    max_rotation_speed: float
    max_force: float
    """Greatest contact force that the controller applies [N]."""
    max_torque: float
    zero_force_sensor: bool = True
    """Before the first motion; nothing must touch the tool then."""
    stiffness: tuple[float, ...] = ()
    """(6,) Cartesian [N/m, N m/rad]; empty: the arm's own."""
    network: tuple[str, ...] = ()
    """Addresses of this computer through which to look for the arm; empty: all."""
    rdk: Callable[[], Any] = _rdk
    """The module; tests give another."""
    sleep: Callable[[float], None] = time.sleep
    _robot: Any = field(default=None, init=False)
    _module: Any = field(default=None, init=False)
    _zeroed: bool = field(default=False, init=False)

    @classmethod
    def described(cls, rig: RigDescription) -> FlexivArm:
        """
        Raises:
            InvalidValueError: the description does not fit this driver.
        """
        settings = dict(rig.arm.settings)
        known = {"zero_force_sensor", "stiffness", "network"}
        if unknown := settings.keys() - known:
            raise InvalidValueError(
                f"arm: settings have {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}."
            )
        if not rig.arm.address:
            raise InvalidValueError("arm: address is empty; expected the arm's serial number, as Rizon4-123456.")
        if not 1 <= rig.fps <= _FASTEST:
            raise InvalidValueError(f"fps is {rig.fps:g}; a Flexiv arm takes 1 to {_FASTEST:g} targets a second.")
        stiffness = tuple(float(each) for each in settings.get("stiffness", ()))
        if len(stiffness) not in (0, 6):
            raise InvalidValueError(f"arm: settings.stiffness has {len(stiffness)} values; expected six, or none.")
        return cls(
            serial=rig.arm.address,
            max_speed=rig.limits.max_speed,
            max_rotation_speed=rig.limits.max_rotation_speed,
            max_force=rig.limits.max_force,
            max_torque=rig.limits.max_torque,
            zero_force_sensor=bool(settings.get("zero_force_sensor", True)),
            stiffness=stiffness,
            network=tuple(map(str, settings.get("network", ()))),
        )

    def connect(self) -> None:
        """See `lamp_client.rig.devices.Arm`."""
        self._module = self.rdk()
        try:
            self._robot = self._module.Robot(self.serial, list(self.network))
        except RuntimeError as error:
            raise RigError(
                f"the arm {self.serial!r} cannot be reached: {error}.",
                hint="Is it on, in remote mode, with an RDK licence, and on this network?",
            ) from error
        if not self._robot.estop_released():
            raise RigError("the arm's emergency stop is pressed.", hint="Release it when everybody is clear.")
        if self._robot.fault():
            raise RigError(
                f"the arm is in fault ({self._status()}).",
                hint="Find out why on the teach pendant, and clear it there; it is not cleared from here.",
            )

    def enable(self) -> None:
        """See `lamp_client.rig.devices.Arm`."""
        robot, mode = self._connected(), self._module.Mode
        try:
            if not robot.operational():
                robot.Enable()
                self._wait(robot.operational, _ENABLE_S, "become operational")
            if self.zero_force_sensor and not self._zeroed:
                # Has to come before the switch to Cartesian mode, or contact forces are off by the tool's weight.
                robot.SwitchMode(mode.NRT_PRIMITIVE_EXECUTION)
                robot.ExecutePrimitive("ZeroFTSensor", {})
                self._wait(lambda: not robot.busy(), _ENABLE_S, "zero its force sensor")
                self._zeroed = True
            robot.SwitchMode(mode.NRT_CARTESIAN_MOTION_FORCE)
            if self.stiffness:
                robot.SetCartesianImpedance([float(each) for each in self.stiffness])
            robot.SetMaxContactWrench([float(self.max_force)] * 3 + [float(self.max_torque)] * 3)
        except RuntimeError as error:
            raise RigError(f"the arm cannot be readied: {error}.", hint=f"Its status is {self._status()}.") from error

    def state(self) -> ArmState:
        """See `lamp_client.rig.devices.Arm`."""
        robot = self._connected()
        states = robot.states()
        fault = ""
        if robot.fault():
            fault = self._status()
        elif not robot.estop_released():
            fault = "the emergency stop is pressed"
        elif not robot.connected():
            fault = "the connection is lost"
        return ArmState(
            pose=Pose.of_quaternion(states.tcp_pose),
            joints=np.array(states.q, dtype=np.float64),
            wrench=np.array(states.ext_wrench_in_tcp, dtype=np.float64),
            fault=fault,
        )

    def move_to(self, pose: Pose) -> None:
        """See `lamp_client.rig.devices.Arm`."""
        self._connected().SendCartesianMotionForce(  # the RDK takes plain floats only
            pose.quaternion_values,
            [0.0] * 6,
            [0.0] * 6,
            max_linear_vel=float(self.max_speed),
            max_angular_vel=float(self.max_rotation_speed),
        )

    def stop(self) -> None:
        """See `lamp_client.rig.devices.Arm`; blocks until the arm stands still, and leaves it in IDLE."""
        if self._robot is not None:
            self._robot.Stop()

    def close(self) -> None:
        self._robot = None  # the RDK ends the connection with the object

    @property
    def about(self) -> Mapping[str, Any]:
        """Of the connected arm."""
        if self._robot is None:
            return {"serial": self.serial}
        info = self._robot.info()
        return {
            "rdk": str(getattr(self._module, "__version__", "")),
            "serial": info.serial_num,
            "model": info.model_name,
            "software": info.software_ver,
            "licence": info.license_type,
            "force sensor": info.has_FT_sensor,
        }

    def _connected(self) -> Any:
        if self._robot is None:
            raise RigError(f"the arm {self.serial!r} is not connected.")
        return self._robot

    def _status(self) -> str:
        return str(self._robot.operational_status()).rsplit(".", maxsplit=1)[-1]

    def _wait(self, until: Callable[[], bool], seconds: float, what: str) -> None:
        waited = 0.0
        while not until():
            if self._robot.fault() or waited >= seconds:
                why = "is in fault" if self._robot.fault() else f"took more than {seconds:g} s"
                raise RigError(f"the arm did not {what}: it {why} ({self._status()}).")
            self.sleep(0.1)
            waited += 0.1
