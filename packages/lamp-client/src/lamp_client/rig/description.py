"""A rig as a file: which arm, gripper and cameras it has, how fast it runs, and within which limits it may move.

The file is JSON. What a policy depends on (arm, gripper, cameras, their calibration, rate) is summed up in a fingerprint that
recordings carry; limits, addresses and time-outs may change without it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lamp_client.envs.rotations import matrix_from_quaternion
from lamp_client.errors import InvalidValueError, UnknownNameError
from lamp_client.recording import check_name
from lamp_client.rig.devices import Pose, RigError

FORMAT = "lamp-rig"
VERSION = 1
_RIG_MARK, _RIG_DIGITS = ".rig-", 12
"""In an embodiment's name, before the beginning of the rig's fingerprint."""
LARGEST_FILE = 1 << 20
"""[bytes]"""
Vector = tuple[float, float, float]
Reaction = Literal["clip", "reject"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Within what the arm may be commanded. None of it is a certified safety function."""

    workspace_low: Vector
    """The least x, y and z of the tool [m], in the frame of the arm's base."""
    workspace_high: Vector
    max_speed: float = 0.25
    """Of the commanded tool [m/s]."""
    max_rotation_speed: float = 1.0
    """[rad/s]"""
    max_step: float = 0.15
    """How far a target may be from the one before [m]; beyond it is rather a wrong frame or unit than a fast motion."""
    max_rotation_step: float = 0.8
    """[rad]"""
    max_force: float = 40.0
    """On the tool [N]; more stops the arm."""
    max_torque: float = 10.0
    """[N m]"""
    max_lag: float = 0.12
    """How far the measured tool may be from the commanded one [m]; more stops the arm: it is blocked, or does not follow."""
    outside: Reaction = "clip"
    """What happens to a target outside the workspace."""
    too_fast: Reaction = "clip"
    """What happens to one that would need more speed."""
    too_far: Reaction = "reject"
    """What happens to one beyond `max_step` or `max_rotation_step`. Rejecting stops the arm."""

    def __post_init__(self) -> None:
        for low, high, axis in zip(self.workspace_low, self.workspace_high, "xyz", strict=True):
            if not -10 < low < high < 10:
                raise InvalidValueError(
                    f"limits: the workspace goes from {axis} = {low:g} to {high:g} m; expected a low below a high within 10 m."
                )
        for name in (
            "max_speed", "max_rotation_speed", "max_step", "max_rotation_step", "max_force", "max_torque", "max_lag",
        ):  # fmt: skip
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise InvalidValueError(f"limits: {name} is {value:g}; expected more than 0.")


@dataclass(frozen=True, kw_only=True)
class WatchdogSettings:
    """After how long without a sign of life the arm is stopped."""

    image_s: float = 0.5
    """Without a new picture of a camera [s]."""
    frozen_s: float = 2.0
    """While pictures come, but all the same, bit for bit [s]; no real sensor is without noise. 0: not looked at (a simulator)."""
    state_s: float = 0.2
    """Without a new state of the arm [s]."""
    reply_s: float = 5.0
    """Of the policy, since it was asked [s]."""
    missed_periods: float = 10.0
    """Without a command, in periods of the rig's rate; the first comes when the policy has answered."""

    def __post_init__(self) -> None:
        for name, least in (
            ("image_s", 0.02),
            ("frozen_s", 0),
            ("state_s", 0.02),
            ("reply_s", 0.05),
            ("missed_periods", 1.5),
        ):
            if not least <= getattr(self, name) < 3600:
                raise InvalidValueError(f"watchdog: {name} is {getattr(self, name):g}; expected {least:g} or more.")


@dataclass(frozen=True, kw_only=True)
class ArmDescription:
    """The arm."""

    driver: str
    """twin, flexiv, or one's own (`lamp_client.rig.DRIVERS`)."""
    model: str = ""
    """rizon4, panda ...; the twin's arm, or a path to a file that describes one."""
    address: str = ""
    """Serial number or network address."""
    tool_rotation: tuple[float, float, float, float] = (0.0, 1.0, 0.0, 0.0)
    """The tool's orientation (quaternion w, x, y, z) that states and actions call no rotation: by default straight down. Rotation
    vectors near half a turn jump, so the usual working pose should be near it."""
    settings: dict[str, Any] = field(default_factory=dict)
    """For the driver."""


@dataclass(frozen=True, kw_only=True)
class GripperDescription:
    """The gripper."""

    driver: str
    model: str = ""
    address: str = ""
    """A serial port, or HOST:PORT."""
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A camera's place and optics, and of which camera they were measured."""

    serial: str = ""
    """Of the camera; pictures of another are refused."""
    pose: tuple[float, float, float, float, float, float, float] | None = None
    """Of the camera in the frame of the arm's base: x, y, z [m] and a quaternion w, x, y, z; the camera looks along its z, x to
    the right, y down. None: not measured."""
    focal: tuple[float, float] | None = None
    """[px] at the described size; None: as the camera says."""
    centre: tuple[float, float] | None = None
    reprojection_error: float | None = None
    """[px], of the measurement."""


@dataclass(frozen=True, kw_only=True)
class CameraDescription:
    """A camera."""

    driver: str
    width: int
    """[px]"""
    height: int
    fps: float = 30.0
    serial: str = ""
    depth: bool = False
    calibration: Calibration | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (16 <= self.width <= 8192 and 16 <= self.height <= 8192):
            raise InvalidValueError(f"a camera has {self.width}x{self.height} pixels; expected 16 to 8192 a side.")
        if not 0.5 <= self.fps <= 1000:
            raise InvalidValueError(f"a camera has {self.fps:g} pictures per second; expected 0.5 to 1000.")
        measured = self.calibration.serial if self.calibration else ""
        if measured and self.serial and measured != self.serial:
            raise InvalidValueError(
                f"the camera {self.serial!r} has the calibration of {measured!r}; calibrate it, or correct the serial numbers."
            )


@dataclass(frozen=True, kw_only=True)
class RigDescription:
    """A rig.

    States are x, y, z of the tool [m], its rotation vector [rad] from `arm.tool_rotation` in the base's axes, and the gripper's
    openness; actions are absolute targets of the same seven values.
    """

    name: str
    fps: float
    """Actions per second: those of the demonstrations."""
    arm: ArmDescription
    gripper: GripperDescription
    cameras: dict[str, CameraDescription]
    """The first is the one in which scene flow is predicted."""
    limits: Limits
    watchdog: WatchdogSettings = field(default_factory=WatchdogSettings)
    home: tuple[float, ...] | None = None
    """Where episodes begin: x, y, z [m] and a quaternion w, x, y, z."""
    notes: str = ""

    def __post_init__(self) -> None:
        check_name(self.name, "a rig")
        if not 0.5 <= self.fps <= 200:
            raise InvalidValueError(f"the rig has {self.fps:g} actions per second; expected 0.5 to 200.")
        if not self.cameras:
            raise InvalidValueError("the rig has no cameras; expected at least one.")
        for camera in self.cameras:
            check_name(camera, "a camera")
        if self.home is not None:
            home = Pose.of_quaternion(self.home).position
            if (home < self.limits.workspace_low).any() or (home > self.limits.workspace_high).any():
                raise InvalidValueError(f"home {home.round(3).tolist()} is outside of the workspace of `limits`.")
        if np.linalg.norm(self.arm.tool_rotation) < 1e-6:
            raise InvalidValueError("arm: tool_rotation has no length; expected a quaternion w, x, y, z.")

    @property
    def tool_rotation(self) -> np.ndarray:
        """(3, 3) of `arm.tool_rotation`."""
        return matrix_from_quaternion(np.array(self.arm.tool_rotation))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what a policy depends on."""
        plain = self.plain
        arm, gripper = plain["arm"], plain["gripper"]
        matters = {
            "fps": plain["fps"],
            "arm": {key: arm[key] for key in ("model", "tool_rotation")},
            "gripper": {key: gripper[key] for key in ("model",)},
            "cameras": {
                name: {key: camera[key] for key in ("width", "height", "serial", "depth", "calibration")}
                for name, camera in plain["cameras"].items()
            },
            "order": list(plain["cameras"]),
        }
        return hashlib.sha256(json.dumps(matters, sort_keys=True).encode()).hexdigest()

    @property
    def plain(self) -> dict[str, Any]:
        """As in the file."""
        return json.loads(json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}))

    @property
    def recorded(self) -> dict[str, Any]:
        """What a recording's metadata hold of the rig."""
        return {"rig": self.plain, "rig_fingerprint": self.fingerprint}

    @property
    def policy_entry(self) -> dict[str, Any]:
        """What a recording of this rig says as if it were a policy: with it an import knows what the actions mean.

        The name carries the fingerprint: from the recording to the dataset, its recipe, the checkpoint, and a server's greeting.
        """
        pose = {"type": "Relative", "pose": {"type": "Pose", "action": 0, "state": 0}}
        return {
            "embodiment": {
                "name": f"{self.name}{_RIG_MARK}{self.fingerprint[:_RIG_DIGITS]}",
                "kind": pose,
                "rotations": [{"start": 3, "rotation": {"type": "AxisAngle"}}],
            },
            "actions": "relative",
            "gripper": {"dim": 6, "opened": 1.0, "closed": 0.0},
            "fps": self.fps,
            "rig_fingerprint": self.fingerprint,
        }

    def check_policy(self, metadata: Mapping[str, Any], *, another_rig: bool = False) -> None:
        """Refuses a policy that cannot have been made for this rig, before anything moves.

        Args:
            another_rig: Take one that was trained on another rig, or before this one was calibrated anew, where all else fits.

        Raises:
            RigError: it is of another rig, rate, action or state space, or wants cameras that are not there.
        """
        faults = []
        theirs = _rig_of(metadata)
        if theirs and theirs != self.fingerprint[: len(theirs)] and not another_rig:
            faults.append(
                f"it was trained on the rig {theirs[:_RIG_DIGITS]}, and this is {self.fingerprint[:_RIG_DIGITS]} "
                "(--another-rig takes it all the same)"
            )
        fps = metadata.get("fps")
        if isinstance(fps, (int, float)) and not isinstance(fps, bool) and fps > 0 and abs(fps / self.fps - 1) > 0.05:
            faults.append(f"it was trained at {fps:g} actions per second, and the rig runs at {self.fps:g}")
        if (width := metadata.get("action_width")) not in (None, 7):
            faults.append(f"its actions have {width} values, and the rig takes 7 (x, y, z, rotation vector, gripper)")
        states = {metadata.get("state_width"), metadata.get("recorded_state_width")} - {None}
        if states and not states & {0, 7}:
            faults.append(f"its state has {metadata.get('state_width')} values, and the rig gives 7")
        if (kind := metadata.get("actions")) == "delta":
            faults.append(f"its actions are {kind}, changes from step to step, and the rig takes absolute targets")
        wanted = metadata.get("cameras")
        if isinstance(wanted, Mapping) and (missing := [name for name in wanted if name not in self.cameras]):
            faults.append(f"it looks through {', '.join(map(str, missing))}, and the rig has {', '.join(self.cameras)}")
        if faults:
            raise RigError(
                f"the policy does not fit the rig {self.name!r}: {'; '.join(faults)}.",
                hint="Serve a policy that was trained on this rig's recordings, or describe the rig that it was trained on.",
            )

    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        part = path.with_name(f".{path.name}.part")
        part.write_text(json.dumps(self.plain, indent=2) + "\n", encoding="utf-8")
        part.replace(path)


def _rig_of(metadata: Mapping[str, Any]) -> str:
    """The fingerprint, or its beginning, of the rig that a policy says it was trained on; empty where it does not say."""
    said = metadata.get("rig_fingerprint")
    if isinstance(said, str) and said:
        return said
    embodiment = metadata.get("embodiment")
    name = embodiment.get("name") if isinstance(embodiment, Mapping) else None
    found = re.search(rf"{re.escape(_RIG_MARK)}([0-9a-f]{{{_RIG_DIGITS}}})", name) if isinstance(name, str) else None
    return found[1] if found else ""


def read_description(path: Path) -> RigDescription:
    """Reads a rig's file.

    Raises:
        RigError: it is missing, no JSON, or not of this format.
        InvalidValueError: a value is missing, unknown, of another type, or cannot be.
    """
    raw = read_json(path, "a rig's description")
    if raw.get("format") != FORMAT or raw.get("version") != VERSION:
        raise RigError(
            f"{path} has format {raw.get('format')!r}, version {raw.get('version')!r}; expected {FORMAT!r}, {VERSION}.",
            hint="lamp-rig describe twin --out FILE writes one to start from.",
        )
    return typed(RigDescription, {key: raw[key] for key in raw if key not in ("format", "version")}, str(path))


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Reads a JSON file with a map in it.

    Raises:
        RigError: it cannot be read.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise RigError(f"{path} has {path.stat().st_size} bytes; expected {what} of up to {LARGEST_FILE}.")
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RigError(f"{path} cannot be read as {what}: {error}.") from None
    if not isinstance(raw, dict):
        raise RigError(f"{path} holds {type(raw).__name__}; expected {what}, a map.")
    return raw


def typed(kind: Any, raw: Any, where: str) -> Any:
    """Reads JSON values as a dataclass, a tuple, a map or a plain value, with their types checked.

    Raises:
        InvalidValueError: a value has another type, is missing or unknown; the message says where.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        choices = [each for each in args if each is not type(None)]
        return None if raw is None and len(choices) < len(args) else typed(choices[0], raw, where)
    if origin is Literal:
        if raw not in args:
            raise UnknownNameError(f"value of {where}", raw, args)
        return raw
    if is_dataclass(kind):
        return _dataclass(kind, raw, where)
    if origin is tuple:
        length = None if args[-1] is Ellipsis else len(args)
        if not isinstance(raw, list | tuple) or (length is not None and len(raw) != length):
            raise InvalidValueError(f"{where} is {_shown(raw)}; expected a list of {length or 'some'} values.")
        return tuple(typed(args[0], each, f"{where}[{at}]") for at, each in enumerate(raw))
    if origin is dict:
        if not isinstance(raw, Mapping) or not all(isinstance(key, str) for key in raw):
            raise InvalidValueError(f"{where} is {_shown(raw)}; expected a map.")
        return {key: typed(args[1], each, f"{where}.{key}") for key, each in raw.items()}
    if kind is Any:
        return raw
    if kind is float and isinstance(raw, int) and not isinstance(raw, bool):
        raw = float(raw)
    if not isinstance(raw, kind) or (isinstance(raw, bool) and kind is not bool):
        raise InvalidValueError(f"{where} is {_shown(raw)}; expected {_NAMES.get(kind, kind.__name__)}.")
    if isinstance(raw, float) and not math.isfinite(raw):
        raise InvalidValueError(f"{where} is {raw}; expected a finite number.")
    return raw


_NAMES = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}


def _dataclass(kind: Any, raw: Any, where: str) -> Any:
    if not isinstance(raw, Mapping):
        raise InvalidValueError(f"{where} is {_shown(raw)}; expected a map.")
    hints, known = typing.get_type_hints(kind), {each.name: each for each in fields(kind)}
    for key in raw:
        if key not in known:
            raise UnknownNameError(f"value in {where}", key, known)
    missing = [
        name
        for name, each in known.items()
        if name not in raw and each.default is MISSING and each.default_factory is MISSING
    ]
    if missing:
        raise InvalidValueError(f"{where} lacks {', '.join(missing)}.")
    try:
        return kind(**{key: typed(hints[key], raw[key], f"{where}: {key}") for key in raw})
    except InvalidValueError as error:
        if str(error).startswith(where):
            raise
        raise InvalidValueError(f"{where}: {error}") from None


def _shown(raw: Any) -> str:
    return repr(raw)[:80]
