"""What a rig is made of: an arm, a gripper, cameras and a clock, as protocols that drivers and the simulated twin fulfil."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from lamp_client.envs.rotations import axis_angle_from_matrix, matrix_from_quaternion, quaternion_from_matrix
from lamp_client.errors import InvalidValueError, LampClientError

log = logging.getLogger("lamp_client.rig")


class RigError(LampClientError):
    """The rig is not as it is described, or refuses to move."""


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Where the tool is, in the frame of the arm's base.

    Raises:
        InvalidValueError: the values are no pose.
    """

    position: np.ndarray
    """(3,) float64 [m]."""
    rotation: np.ndarray
    """(3, 3) float64: the tool's axes as columns."""

    def __post_init__(self) -> None:
        if self.position.shape != (3,) or self.rotation.shape != (3, 3):
            raise InvalidValueError(
                f"a pose has {self.position.shape} and {self.rotation.shape} values; expected (3,) and (3, 3)."
            )
        if not (np.isfinite(self.position).all() and np.isfinite(self.rotation).all()):
            raise InvalidValueError("a pose holds values that are not finite.")

    @classmethod
    def of_quaternion(cls, values: Any) -> Pose:
        """Reads x, y, z [m] and a quaternion w, x, y, z of any length but 0."""
        numbers = np.asarray(values, dtype=np.float64)
        if numbers.shape != (7,) or not np.isfinite(numbers).all() or np.linalg.norm(numbers[3:]) < 1e-6:
            raise InvalidValueError(
                f"{np.array2string(numbers)[:80]} is no pose; expected x, y, z and a quaternion w, x, y, z."
            )
        return cls(position=numbers[:3].copy(), rotation=matrix_from_quaternion(numbers[3:]))

    @property
    def quaternion_values(self) -> list[float]:
        """x, y, z [m] and w, x, y, z with w >= 0, as plain numbers."""
        return [*map(float, self.position), *map(float, quaternion_from_matrix(self.rotation))]

    def distance(self, other: Pose) -> float:
        """Between the two positions [m]."""
        return float(np.linalg.norm(other.position - self.position))

    def angle(self, other: Pose) -> float:
        """Of the rotation between the two [rad]."""
        return float(np.linalg.norm(axis_angle_from_matrix(other.rotation @ self.rotation.T)))


@dataclass(frozen=True, kw_only=True)
class ArmState:
    """What an arm says of itself at one moment."""

    pose: Pose
    """As measured, not as commanded."""
    joints: np.ndarray
    """(j,) [rad]."""
    wrench: np.ndarray
    """(6,) the external force [N] and torque [N m] on the tool."""
    fault: str = ""
    """Why the arm cannot move; empty where it can."""


@dataclass(frozen=True, kw_only=True)
class CameraFrame:
    """A picture."""

    image: np.ndarray
    """(H, W, 3) uint8, upright."""
    number: int
    """The device's count of frames: one that stands still is an old picture."""
    depth: np.ndarray | None = None
    """(H, W) float32 [m] in the colour camera's view, 0 where unknown; None where there is none."""
    simulation: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What a simulator knows of the moment of the picture (`World.snapshot`)."""


class Arm(Protocol):
    """An arm that takes absolute targets of its tool. Nothing moves before `enable`."""

    def connect(self) -> None:
        """Connects, and finds out whether the arm could move; moves nothing.

        Raises:
            RigError: it could not, with what to do about it.
        """
        ...

    def enable(self) -> None:
        """Gets ready to follow targets, holding the present pose."""
        ...

    def state(self) -> ArmState:
        """Reads the arm now; may block."""
        ...

    def move_to(self, pose: Pose) -> None:
        """Commands an absolute target, without waiting until it is reached."""
        ...

    def stop(self) -> None:
        """Commands a standstill; may block until the arm stands still."""
        ...

    def close(self) -> None:
        """Ends the connection; the arm stays where it is."""
        ...

    @property
    def about(self) -> Mapping[str, Any]:
        """Versions, serial number and the like."""
        ...


class Gripper(Protocol):
    """A gripper; 1 is open, 0 is closed."""

    def connect(self) -> None:
        """Connects and activates it, which may open and close the fingers.

        Raises:
            RigError: it does not answer.
        """
        ...

    def openness(self) -> float:
        """As measured."""
        ...

    def move_to(self, openness: float) -> None:
        """Commands an openness, without waiting."""
        ...

    def stop(self) -> None:
        """The fingers stay where they are: what is held is not dropped."""
        ...

    def close(self) -> None: ...


class Camera(Protocol):
    """A camera."""

    on_demand: bool
    """Whether a picture is made when it is asked for, as a simulator does; otherwise a thread reads the camera."""

    def connect(self) -> None:
        """
        Raises:
            RigError: it is not there, or another than described.
        """
        ...

    def frame(self) -> CameraFrame:
        """The newest picture; waits for it."""
        ...

    def close(self) -> None: ...


class Job(Protocol):
    """Something that is done again and again."""

    def wake(self) -> None:
        """Does it now, in the job's own thread where it has one."""
        ...

    def cancel(self) -> None:
        """Does it no more; waits for the one that is going on, but not for long."""
        ...

    @property
    def alive(self) -> bool: ...


class Clock(Protocol):
    """The time in which the rig lives: a wall's, or that of a simulation."""

    def now(self) -> float:
        """[s] from any zero; never runs backwards."""
        ...

    def sleep(self, seconds: float) -> None: ...

    def every(self, period_s: float, work: Callable[[], None], name: str) -> Job:
        """Does `work` again and again, first at once. Whatever it raises is logged, and it goes on."""
        ...


@dataclass
class _Thread:
    period_s: float
    work: Callable[[], None]
    name: str
    _ended: bool = False
    _wake: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> _Thread:
        self._thread = threading.Thread(target=self._run, name=f"lamp-{self.name}", daemon=True)
        self._thread.start()
        return self

    def _run(self) -> None:
        while not self._ended:
            self._wake.clear()
            _attempt(self.work, self.name)
            if not self._ended:
                self._wake.wait(self.period_s)

    def wake(self) -> None:
        self._wake.set()

    def cancel(self) -> None:
        self._ended = True
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=2.0)  # a device that hangs must not keep the rest from closing

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()


class WallClock:
    """The computer's clock; a job has a thread of its own."""

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))

    def every(self, period_s: float, work: Callable[[], None], name: str) -> Job:
        return _Thread(period_s, work, name).start()


@dataclass
class _Turn:
    period_s: float
    work: Callable[[], None]
    name: str
    due_s: float
    alive: bool = True

    def wake(self) -> None:
        if self.alive:
            _attempt(self.work, self.name)

    def cancel(self) -> None:
        self.alive = False


class SimulatedClock:
    """A clock that goes on only when somebody sleeps: jobs are done in between, in the order in which they are due.

    Args:
        advance: Told the seconds of each stretch between two jobs, before they are done; a simulation moves on here.
    """

    def __init__(self, advance: Callable[[float], None] = lambda seconds: None) -> None:
        self._advance = advance
        self._jobs: list[_Turn] = []
        self._now = 0.0

    def now(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        until = self._now + max(0.0, seconds)
        while True:
            self._jobs = [job for job in self._jobs if job.alive]
            job = min(self._jobs, key=lambda job: job.due_s, default=None)
            if job is None or job.due_s > until:
                break
            self._go_to(job.due_s)
            job.due_s += job.period_s
            job.wake()
        self._go_to(until)

    def every(self, period_s: float, work: Callable[[], None], name: str) -> Job:
        job = _Turn(period_s, work, name, due_s=self._now + period_s)
        self._jobs.append(job)
        job.wake()
        return job

    def _go_to(self, moment: float) -> None:
        if moment > self._now:
            self._advance(moment - self._now)
            self._now = moment


def _attempt(work: Callable[[], None], name: str) -> None:
    try:
        work()
    except Exception:  # a job that ended silently would be missed only when it is needed
        log.exception("%s failed", name)
