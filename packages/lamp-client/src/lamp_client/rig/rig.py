"""A rig as `lamp_client.control.drive` takes a robot: observed, commanded within its limits, watched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from lamp_client.envs.rotations import axis_angle_from_matrix, matrix_from_axis_angle
from lamp_client.errors import InvalidValueError, LampClientError
from lamp_client.rig.description import RigDescription
from lamp_client.rig.devices import Arm, ArmState, Camera, CameraFrame, Clock, Gripper, Job, Pose, RigError, WallClock
from lamp_client.rig.safety import ImageWatch, RigStoppedError, Stop, Watchdog, admit, violated
from lamp_client.types import DEPTH, Observation

WIDTH = 7
"""Of states and actions: x, y, z, rotation vector, gripper."""
_STATE_PERIOD_S = 0.02
_GRIPPER_PERIOD_S = 1 / 30
_FIRST_FRAME_S = 5.0


@dataclass(kw_only=True)
class Rig:
    """An arm, a gripper and cameras under one description.

    `connect` moves nothing; `start` readies the arm and begins to watch; `send` then commands one target. After a stop everything
    is refused until `resume`.
    """

    description: RigDescription
    arm: Arm
    gripper: Gripper
    cameras: Mapping[str, Camera]
    clock: Clock = field(default_factory=WallClock)
    speed: float = 1.0
    """Share of the greatest speeds that is allowed."""
    dry_run: bool = False
    """Command nothing; limits are still applied, as if the arm were where it was sent."""
    another_rig: bool = False
    """Take policies that were trained on another rig, where all else fits."""
    on_note: Callable[[str], None] = lambda note: None
    """Told what was changed about a target, and why the arm was stopped."""
    watchdog: Watchdog = field(init=False)
    frames: dict[str, CameraFrame] = field(default_factory=dict, init=False)
    """The newest of each camera."""
    commanded: Pose | None = field(default=None, init=False)
    """The last target; None before the first."""
    _state: ArmState | None = field(default=None, init=False)
    _openness: float = field(default=1.0, init=False)
    _wanted: float | None = field(default=None, init=False)
    """The gripper's newest target."""
    _sent: float | None = field(default=None, init=False)
    _sent_s: float = field(default=0.0, init=False)
    _jobs: list[Job] = field(default_factory=list, init=False)
    _images: dict[str, ImageWatch] = field(default_factory=dict, init=False)
    _connected: list[Arm | Gripper | Camera] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if set(self.cameras) != set(self.description.cameras):
            raise InvalidValueError(
                f"the cameras are {', '.join(self.cameras)}; the description has {', '.join(self.description.cameras)}."
            )
        if not 0 < self.speed <= 1:
            raise InvalidValueError(f"speed is {self.speed:g}; expected a share of the limits, above 0 and up to 1.")
        self.watchdog = Watchdog(stop=self._stop_arm, clock=self.clock, on_stop=self._tell)

    # Connecting

    def connect(self) -> None:
        """Connects to everything; whatever is connected is closed again where one part fails. Moves no arm.

        Raises:
            RigError: a part is not there or in fault, with what to do.
        """
        try:
            for part in (*(self.cameras[name] for name in self.description.cameras), self.arm, self.gripper):
                part.connect()
                self._connected.append(part)
            self._read_arm(self.arm.state())
            self._read_gripper()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Readies the arm, which holds its pose, and begins to read and watch everything.

        Raises:
            RigError: the arm is in fault, beyond a limit, or outside of the workspace.
        """
        state, limits = self.arm.state(), self.description.limits
        if fault := violated(state, state.pose, limits):
            hint = "Bring it back by hand (free drive or the teach pendant), or correct the limits."
            raise RigError(f"the arm must not move: {fault[1]}.", hint=hint)
        settings = self.description.watchdog
        for name, camera in self.cameras.items():
            if not camera.on_demand:
                watch = ImageWatch(
                    watchdog=self.watchdog, name=name, stale_s=settings.image_s, frozen_s=settings.frozen_s
                )
                self._images[name] = watch
                self._jobs.append(self.clock.every(0.2 / self.description.cameras[name].fps, self._reader(name), name))
        # Nothing is readied before every camera sends: its first picture may take long.
        for name in self._images:
            self._frame(name)
        if self.watchdog.stopped is not None:
            raise RigError(f"the rig cannot start: {self.watchdog.stopped.reason}.")
        if not self.dry_run:
            self.arm.enable()
        self._state, self.commanded, self._sent_s = self.arm.state(), None, self.clock.now()
        self.watchdog.start()
        self._expect_state()
        for watch in self._images.values():
            watch.begin()
        self._jobs += [
            self.clock.every(_STATE_PERIOD_S, self._watch_arm, "arm"),
            self.clock.every(_GRIPPER_PERIOD_S, self._work_gripper, "gripper"),
        ]

    def close(self) -> None:
        """Stops the arm where it was started, and ends all connections and threads."""
        if self.watchdog.started and self.watchdog.stopped is None and not self.dry_run:
            self._quietly(self.arm.stop)
        for job in self._jobs:
            job.cancel()
        self.watchdog.close()
        for part in reversed(self._connected):
            self._quietly(part.close)
        self._jobs, self._connected, self._images = [], [], {}

    def __enter__(self) -> Rig:
        self.connect()
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Observing and acting

    def observe(self, instruction: str) -> Observation:
        """Newest pictures and the measured state.

        Raises:
            RigError: a camera has not sent a picture yet, or another size than described.
        """
        images, extra = {}, dict[str, np.ndarray]()
        for name, described in self.description.cameras.items():
            frame = self._frame(name)
            if frame.image.shape != (described.height, described.width, 3):
                height, width = frame.image.shape[:2]
                raise RigError(
                    f"the camera {name!r} sends {width}x{height}; its description says {described.width}x{described.height}."
                )
            images[name] = frame.image
            if frame.depth is not None:
                extra[f"{DEPTH}{name}"] = frame.depth
            if not extra.keys() & frame.simulation.keys():  # of the first camera, in which scene flow is predicted
                extra |= frame.simulation
        return Observation(images=images, state=self.state_values(), instruction=instruction, extra=extra)

    def state_values(self) -> np.ndarray:
        """(7,) float32, as measured."""
        if self._state is None:
            raise RigError("the rig is not connected.", hint="Call connect() first.")
        pose = self.commanded if self.dry_run and self.commanded is not None else self._state.pose
        return self.values(pose, self._openness)

    @property
    def arm_state(self) -> ArmState:
        """The newest."""
        if self._state is None:
            raise RigError("the rig is not connected.", hint="Call connect() first.")
        return self._state

    def send(self, action: np.ndarray) -> np.ndarray:
        """Commands one absolute target; returns what was really commanded.

        Raises:
            RigStoppedError: the arm is stopped, or is being stopped because the target was rejected.
        """
        self.watchdog.check()
        now = self.clock.now()
        before = self.commanded or self.arm_state.pose
        period = 1.0 / self.description.fps
        try:
            target, openness = self.pose(action)
            # The first command has one period's reach.
            elapsed = period if self.commanded is None else max(now - self._sent_s, period)
            admitted = admit(target, before, self.description.limits, elapsed, speed=self.speed)
        except LampClientError as error:
            self.watchdog.trip("limit", f"a target was rejected: {error}")
            raise RigStoppedError(f"the arm was stopped: {error}") from None
        for note in admitted.notes:
            self.on_note(note)
        self.commanded, self._sent_s = admitted.pose, now
        self._wanted = openness
        if self.dry_run:
            self._openness = openness
        else:
            try:
                self.arm.move_to(admitted.pose)
            except Exception as error:
                self.watchdog.trip("fault", f"the arm refused a target: {error}")
                raise RigStoppedError(f"the arm was stopped: it refused a target: {error}") from error
        if self.watchdog.stopped is not None:
            # The stop may have been commanded just before this target was.
            self._stop_arm()
            self.watchdog.check()
        within = self.description.watchdog.missed_periods * period / self.speed
        self.watchdog.expect("command", "period", within, "no command has come")
        return self.values(admitted.pose, openness)

    def pause(self) -> None:
        """No command is expected until the next: the arm holds its pose while somebody thinks."""
        self.watchdog.forget("command")

    def release(self) -> None:
        """Nothing is expected, and the arm is not held against the last target: before somebody moves it by hand, or a twin is
        reset. `resume` goes on."""
        self.watchdog.forget_all()
        self.commanded = None

    def stop(self, reason: str = "a key was pressed") -> None:
        """Stops the arm now."""
        self.watchdog.trip("key", reason)

    def resume(self) -> None:
        """Readies the arm again after a stop; the next target is held against where it is now.

        Raises:
            RigError: it is still in fault or beyond a limit.
        """
        state = self.arm.state()
        if fault := violated(state, state.pose, self.description.limits):
            raise RigError(f"the arm cannot go on: {fault[1]}.", hint="Put that right first.")
        self.watchdog.forget("command")
        self.commanded, self._state = None, state
        # Somebody may have moved the fingers, too: a policy that is told of a grasp that is over goes on as if it still held.
        self._read_gripper()
        if not self.dry_run:
            self.arm.enable()
        self._expect_state()
        for watch in self._images.values():
            watch.begin()
        self.watchdog.resume()

    def go_to(self, pose: Pose, openness: float | None = None, *, speed: float = 0.5, settle_s: float = 0.3) -> None:
        """Goes straight to a pose, at a share of the greatest speeds, and waits until it is there.

        Raises:
            RigStoppedError: on the way.
        """
        limits, period = self.description.limits, 1.0 / self.description.fps
        start = self.commanded or self.arm_state.pose
        turn = axis_angle_from_matrix(pose.rotation @ start.rotation.T)
        pace = speed * self.speed
        seconds = max(
            pose.distance(start) / (pace * limits.max_speed), start.angle(pose) / (pace * limits.max_rotation_speed)
        )
        steps = max(1, int(np.ceil(seconds / period)))
        grip = self._openness if openness is None else openness
        for step in range(1, steps + 1 + int(np.ceil(settle_s / period))):
            share = min(1.0, step / steps)
            rotation = matrix_from_axis_angle(share * turn) @ start.rotation
            way = Pose(position=start.position + share * (pose.position - start.position), rotation=rotation)
            self.send(self.values(way, grip))
            self.clock.sleep(period)
        self.pause()

    def go_home(self, openness: float | None = 1.0) -> None:
        """Goes to the description's home; stays where it is if there is none."""
        if self.description.home is not None:
            self.go_to(Pose.of_quaternion(self.description.home), openness)

    # Seven values and poses

    def values(self, pose: Pose, openness: float) -> np.ndarray:
        """(7,) float32 of a pose and the gripper's openness."""
        turn = axis_angle_from_matrix(pose.rotation @ self.description.tool_rotation.T)
        return np.concatenate([pose.position, turn, [openness]]).astype(np.float32)

    def pose(self, values: np.ndarray) -> tuple[Pose, float]:
        """The inverse of `values`.

        Raises:
            InvalidValueError: they are no seven finite numbers, or turn by more than a full turn.
        """
        numbers = np.asarray(values, dtype=np.float64)
        if numbers.shape != (WIDTH,):
            raise InvalidValueError(f"an action has shape {numbers.shape}; expected ({WIDTH},).")
        if not np.isfinite(numbers).all():
            raise InvalidValueError("an action holds values that are not finite.")
        if np.linalg.norm(numbers[3:6]) > 2 * np.pi:
            raise InvalidValueError(
                f"an action turns by {np.linalg.norm(numbers[3:6]):.3g} rad; expected a rotation vector of up to 2 pi."
            )
        rotation = matrix_from_axis_angle(numbers[3:6]) @ self.description.tool_rotation
        return Pose(position=numbers[:3].copy(), rotation=rotation), float(np.clip(numbers[6], 0.0, 1.0))

    # Jobs

    def _expect_state(self) -> None:
        self.watchdog.expect("state", "state", self.description.watchdog.state_s, "no state of the arm")

    def _watch_arm(self) -> None:
        try:
            state = self.arm.state()
        except Exception as error:
            self.watchdog.trip("fault", f"the arm's state cannot be read: {error}")
            return
        self._read_arm(state)
        self.watchdog.feed("state")
        commanded = None if self.dry_run else self.commanded
        if self.watchdog.stopped is None and (fault := violated(state, commanded, self.description.limits)):
            self.watchdog.trip(*fault)

    def _read_arm(self, state: ArmState) -> None:
        self._state = state

    def _read_gripper(self) -> None:
        """Takes the fingers as they are: no target is left to be sent, and the next one is, whatever it is."""
        self._openness, self._wanted, self._sent = float(self.gripper.openness()), None, None

    def _work_gripper(self) -> None:
        """Sends the newest target only, as moving a gripper may block."""
        if self.dry_run:
            return
        wanted = self._wanted
        try:
            if wanted is not None and wanted != self._sent and self.watchdog.stopped is None:
                self._sent = wanted
                self.gripper.move_to(wanted)
            self._openness = float(self.gripper.openness())
        except Exception as error:
            self.watchdog.trip("fault", f"the gripper does not answer: {error}")

    def _reader(self, name: str) -> Callable[[], None]:
        camera, watch = self.cameras[name], self._images[name]

        def read() -> None:
            try:
                frame = camera.frame()
            except Exception as error:
                self.watchdog.trip("image", f"the camera {name!r} failed: {error}")
                return
            watch.see(frame.image, frame.number)
            self.frames[name] = frame

        return read

    def _frame(self, name: str) -> CameraFrame:
        camera = self.cameras[name]
        if camera.on_demand or name not in self._images:
            try:
                self.frames[name] = camera.frame()
            except LampClientError as error:
                self.watchdog.trip("image", f"the camera {name!r} failed: {error}")
                raise
        waited = 0.0
        while name not in self.frames and waited < _FIRST_FRAME_S and self.watchdog.stopped is None:
            self.clock.sleep(0.02)
            waited += 0.02
        if name not in self.frames:
            stopped = self.watchdog.stopped
            why = stopped.reason if stopped else f"none came in {_FIRST_FRAME_S:g} s"
            raise RigError(f"the camera {name!r} has sent no picture: {why}.", hint="Is it plugged in?")
        return self.frames[name]

    def _stop_arm(self) -> None:
        if not self.dry_run:
            self.arm.stop()

    def _tell(self, stop: Stop) -> None:
        self.on_note(f"stopped ({stop.kind}): {stop.reason}")

    def _quietly(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self.on_note(f"while closing: {error}")
