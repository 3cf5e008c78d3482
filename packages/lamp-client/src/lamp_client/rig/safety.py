"""What keeps a policy's mistakes from becoming the arm's: limits on every target, and a watchdog that stops the arm.

None of this is a certified safety function: it runs in the same process as everything else, on an ordinary operating system.
People are kept safe by the arm's own safety controller, an emergency stop within reach, and distance.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from lamp_client.client import NoiseSeed, Policy
from lamp_client.envs.rotations import axis_angle_from_matrix, matrix_from_axis_angle
from lamp_client.rig.description import Limits
from lamp_client.rig.devices import ArmState, Clock, Job, Pose, RigError, log
from lamp_client.types import ActionChunk, Observation

STOP_WITHIN_S = 0.1
"""From the moment at which a fault is there to the stop command."""
_POLL_S = 0.02
StopKind = Literal["image", "frozen", "server", "limit", "fault", "key", "period", "state", "internal"]


class RigStoppedError(RigError):
    """The arm was stopped, and takes no commands until somebody resumes."""


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """A target that may be commanded."""

    pose: Pose
    notes: tuple[str, ...] = ()
    """What was changed about it, and why."""


def admit(target: Pose, before: Pose, limits: Limits, elapsed_s: float, *, speed: float = 1.0) -> Admitted:
    """Holds a target against the limits.

    Args:
        before: The last pose that was commanded, or the measured one before the first.
        elapsed_s: Since then [s].
        speed: Share of the greatest speeds that is allowed now.

    Raises:
        RigError: it is rejected, with the reason.
    """
    notes = []
    far, turn = target.distance(before), target.angle(before)
    if far > limits.max_step or turn > limits.max_rotation_step:
        note = (
            f"the target is {100 * far:.1f} cm and {np.degrees(turn):.0f} degrees from the one before; the limits are "
            f"{100 * limits.max_step:.1f} cm and {np.degrees(limits.max_rotation_step):.0f} degrees"
        )
        if limits.too_far == "reject":
            raise RigError(
                f"{note}.", hint="Is it in another frame or unit, or does the policy not see where the arm is?"
            )
        target = _towards(before, target, limits.max_step, limits.max_rotation_step)
        notes.append(note)
    inside = np.clip(target.position, limits.workspace_low, limits.workspace_high)
    if (inside != target.position).any():
        over = 100 * float(np.abs(inside - target.position).max())
        note = f"the target {np.round(target.position, 3).tolist()} is {over:.1f} cm outside of the workspace"
        if limits.outside == "reject":
            raise RigError(f"{note} from {list(limits.workspace_low)} to {list(limits.workspace_high)}.")
        target = Pose(position=inside, rotation=target.rotation)
        notes.append(note)
    # A loop that stood still for long does not earn a jump.
    span = min(max(elapsed_s, 0.0), 0.5)
    reach, swing = limits.max_speed * speed * span, limits.max_rotation_speed * speed * span
    far, turn = target.distance(before), target.angle(before)
    if far > reach * (1 + 1e-6) + 1e-9 or turn > swing * (1 + 1e-6) + 1e-9:
        note = f"the target needs {far / max(span, 1e-9):.2f} m/s and {turn / max(span, 1e-9):.2f} rad/s"
        if limits.too_fast == "reject":
            raise RigError(
                f"{note}; the limits are {limits.max_speed * speed:.2f} and {limits.max_rotation_speed * speed:.2f}."
            )
        target = _towards(before, target, reach, swing)
        notes.append(note)
    return Admitted(pose=target, notes=tuple(notes))


def _towards(before: Pose, target: Pose, reach: float, swing: float) -> Pose:
    """The pose that is nearest to the target within so many metres and radians; both motions are cut by the same share."""
    turn = axis_angle_from_matrix(target.rotation @ before.rotation.T)
    far, angle = target.distance(before), float(np.linalg.norm(turn))
    share = min(1.0, reach / far if far > reach else 1.0, swing / angle if angle > swing else 1.0)
    return Pose(
        position=before.position + share * (target.position - before.position),
        rotation=matrix_from_axis_angle(share * turn) @ before.rotation,
    )


def violated(
    state: ArmState, commanded: Pose | None, limits: Limits, *, margin: float = 0.02
) -> tuple[StopKind, str] | None:
    """Which limit an arm's measured state breaks, and how; None: none."""
    if state.fault:
        return "fault", f"the arm is in fault: {state.fault}"
    force, torque = float(np.linalg.norm(state.wrench[:3])), float(np.linalg.norm(state.wrench[3:]))
    if not np.isfinite(state.wrench).all():
        return "fault", "the arm's measured forces are not finite"
    if force > limits.max_force or torque > limits.max_torque:
        return "limit", (
            f"{force:.0f} N and {torque:.1f} N m act on the tool; the limits are {limits.max_force:g} and {limits.max_torque:g}"
        )
    low, high = np.array(limits.workspace_low) - margin, np.array(limits.workspace_high) + margin
    if commanded is not None and ((state.pose.position < low) | (state.pose.position > high)).any():
        return "limit", f"the tool is at {np.round(state.pose.position, 3).tolist()}, outside of the workspace"
    if commanded is not None and (lag := state.pose.distance(commanded)) > limits.max_lag:
        return (
            "limit",
            f"the tool is {100 * lag:.1f} cm from where it was commanded; the limit is {100 * limits.max_lag:.1f}",
        )
    return None


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Why the arm was stopped, and when."""

    kind: StopKind
    reason: str
    at_s: float
    """When the fault was there, on the rig's clock: for a sign of life that did not come, when it was due."""


@dataclass
class _Expected:
    kind: StopKind
    within_s: float
    reason: str
    last_s: float


@dataclass(kw_only=True)
class Watchdog:
    """Stops the arm, from a thread of its own, when a sign of life does not come or somebody reports a fault.

    It does nothing that could block but the stop command itself: devices are read by others, who `feed` it.
    """

    stop: Callable[[], None]
    """Commands the standstill. Tried again until it goes through."""
    clock: Clock
    on_stop: Callable[[Stop], None] = lambda stop: None
    stopped: Stop | None = field(default=None, init=False)
    commanded_s: float | None = field(default=None, init=False)
    """When the stop was commanded."""
    _expected: dict[str, _Expected] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _job: Job | None = field(default=None, init=False)
    _looked_s: float = field(default=0.0, init=False)
    _confirmed: bool = field(default=True, init=False)

    @property
    def started(self) -> bool:
        return self._job is not None

    def start(self) -> None:
        """Begins to watch."""
        self._looked_s = self.clock.now()
        self._job = self.clock.every(_POLL_S, self._look, "watchdog")

    def close(self) -> None:
        if self._job is not None:
            self._job.cancel()
            self._job = None

    def expect(self, name: str, kind: StopKind, within_s: float, reason: str) -> None:
        """From now on `name` must be fed again and again, each time within so many seconds."""
        with self._lock:
            self._expected[name] = _Expected(kind, within_s, reason, self.clock.now())

    def forget(self, name: str) -> None:
        """`name` need not be fed any more."""
        with self._lock:
            self._expected.pop(name, None)

    def forget_all(self) -> None:
        """Nothing need be fed any more."""
        with self._lock:
            self._expected.clear()

    def feed(self, name: str) -> None:
        """A sign of life."""
        with self._lock:
            if name in self._expected:
                self._expected[name].last_s = self.clock.now()

    def trip(self, kind: StopKind, reason: str) -> None:
        """Stops the arm now; returns at once. The first reason stays."""
        with self._lock:
            if self.stopped is None:
                self._stopped(kind, reason, self.clock.now())
        if self._job is not None and self._job.alive:
            self._job.wake()
        else:
            self._command()

    def check(self) -> None:
        """
        Raises:
            RigStoppedError: the arm is stopped, or nobody watches.
        """
        if self.stopped is not None:
            raise RigStoppedError(f"the arm was stopped ({self.stopped.kind}): {self.stopped.reason}.")
        late = self.clock.now() - self._looked_s
        if self._job is None or not self._job.alive or late > STOP_WITHIN_S:
            self.trip("internal", f"the watchdog has not looked for {late:.2f} s: the computer is too busy")
            raise RigStoppedError(f"the arm was stopped: the watchdog has not looked for {late:.2f} s.")

    def resume(self) -> None:
        """Forgets the stop; everything that is expected has its time again."""
        with self._lock:
            now = self.clock.now()
            self.stopped, self.commanded_s, self._confirmed = None, None, True
            for each in self._expected.values():
                each.last_s = now

    def _look(self) -> None:
        now = self.clock.now()
        self._looked_s = now
        with self._lock:
            if self.stopped is None:
                overdue = [each for each in self._expected.values() if now - each.last_s > each.within_s]
                if overdue:
                    first = min(overdue, key=lambda each: each.last_s + each.within_s)
                    self._stopped(
                        first.kind, f"{first.reason} for {now - first.last_s:.2f} s", first.last_s + first.within_s
                    )
        if self.stopped is not None and not self._confirmed:
            self._command()

    def _stopped(self, kind: StopKind, reason: str, at_s: float) -> None:
        self.stopped, self._confirmed = Stop(kind=kind, reason=reason, at_s=at_s), False

    def _command(self) -> None:
        stopped, first = self.stopped, self.commanded_s is None
        if first:
            self.commanded_s = self.clock.now()
        try:
            self.stop()
            self._confirmed = True
        except Exception as error:
            log.error("the stop command failed (%s); it is tried again", error)
        if first and stopped is not None:
            log.warning("the arm was stopped (%s): %s", stopped.kind, stopped.reason)
            self.on_stop(stopped)


@dataclass(kw_only=True)
class ImageWatch:
    """Tells a camera that stands still from one that sees nothing move."""

    watchdog: Watchdog
    name: str
    stale_s: float
    frozen_s: float
    _number: int | None = field(default=None, init=False)
    _content: int | None = field(default=None, init=False)

    def begin(self) -> None:
        self._number = self._content = None
        self.watchdog.expect(f"image {self.name}", "image", self.stale_s, f"no new picture of the camera {self.name!r}")
        if self.frozen_s:
            reason = f"the camera {self.name!r} sends the same picture"
            self.watchdog.expect(f"content {self.name}", "frozen", self.frozen_s, reason)

    def see(self, image: np.ndarray, number: int) -> None:
        """A picture came; one with the number of the one before is none."""
        if number == self._number:
            return
        self._number = number
        self.watchdog.feed(f"image {self.name}")
        if self.frozen_s:
            content = zlib.crc32(np.ascontiguousarray(image).data)
            if content != self._content:
                self._content = content
                self.watchdog.feed(f"content {self.name}")


@dataclass(kw_only=True)
class WatchedPolicy:
    """A policy whose silence stops the arm."""

    policy: Policy
    watchdog: Watchdog
    reply_s: float

    def act(self, observation: Observation, *, noise_seed: NoiseSeed | None = None) -> ActionChunk:
        """See `lamp_client.client.Policy`."""
        self.watchdog.expect("reply", "server", self.reply_s, "the policy has not answered")
        try:
            return self.policy.act(observation, noise_seed=noise_seed)
        except Exception as error:
            self.watchdog.trip("server", f"the policy failed: {error}")
            raise
        finally:
            self.watchdog.forget("reply")

    @property
    def metadata(self) -> dict[str, object]:
        return self.policy.metadata


def in_words(limits: Limits) -> Mapping[str, str]:
    """The limits, for people."""
    low, high = limits.workspace_low, limits.workspace_high
    box = ", ".join(f"{axis} {a:g} to {b:g}" for axis, a, b in zip("xyz", low, high, strict=True))
    return {
        "workspace": f"{box} m ({limits.outside})",
        "speed": f"{limits.max_speed:g} m/s, {limits.max_rotation_speed:g} rad/s ({limits.too_fast})",
        "step": f"{limits.max_step:g} m, {limits.max_rotation_step:g} rad ({limits.too_far})",
        "force": f"{limits.max_force:g} N, {limits.max_torque:g} N m (stop)",
    }
