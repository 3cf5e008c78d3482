"""The twin's world: a task in a scene, its time, and what acts in it."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lamp_client.errors import InvalidValueError, MissingSoftwareError, UnknownNameError
from lamp_client.rig.description import Vector
from lamp_client.rig.devices import Clock, Pose, SimulatedClock, WallClock
from lamp_client.twin.scene import (
    CAMERA,
    STROKE,
    TIMESTEP,
    ArmModel,
    Kinematics,
    add_arm,
    add_gripper,
    empty_spec,
    mujoco_module,
    read_arm,
)
from lamp_client.types import SIMULATION

SUITE = "twin"
"""In the metadata of recordings."""
CONDITIONS = ("in_domain", "unseen_layout", "unseen_object", "unseen_background")
_FINGER_SPEED = 0.075
"""Of each finger of a 2F-85 at most [m/s]."""
_WRENCH_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a task that has been completed once it held."""

    name: str
    holds: Callable[[World], bool]


@dataclass(frozen=True, kw_only=True)
class Waypoint:
    """Where the scripted expert goes next, straight, and then waits."""

    pose: Pose
    openness: float
    wait_s: float = 0.0
    speed: float = 0.8
    """Share of the rig's greatest speeds."""


@dataclass(kw_only=True)
class Task:
    """A task in the twin."""

    name: str
    instruction: str
    category: str
    """The column of the report."""
    step_limit: int
    """At 20 actions a second."""
    start: tuple[float, float, float] = (0.55, 0.0, 0.28)
    """Where the tool begins [m]."""
    timestep: float = TIMESTEP
    settle_s: float = 0.1
    conditions: tuple[str, ...] = CONDITIONS

    def build(self, spec: Any) -> None:
        """Adds the objects to a scene."""
        raise NotImplementedError

    def reset(self, world: World, rng: np.random.Generator, condition: str) -> None:
        """Lays the objects out, and paints them."""
        mat = world.model.geom("mat").id
        world.model.geom_rgba[mat, 3] = 1.0 if condition == "unseen_background" else 0.0
        self.lay_out(world, rng, condition)

    def lay_out(self, world: World, rng: np.random.Generator, condition: str) -> None:
        raise NotImplementedError

    def before_step(self, world: World) -> None:
        """Called before every step of the simulation."""

    def stages(self, definition: str) -> tuple[Stage, ...]:
        """The stages by one of the paper's two definitions.

        Raises:
            UnknownNameError: there is no such definition.
        """
        raise NotImplementedError

    def script(self, world: World) -> Iterator[Waypoint]:
        """The expert: each waypoint is decided on when the one before has been reached."""
        raise NotImplementedError


class World:
    """The simulated scene, its time, and what acts in it.

    With a `SimulatedClock` (the default) it goes on when somebody sleeps, as fast as it can; `real_time` runs it by the wall's
    clock, in a thread.
    """

    def __init__(self, task: Task, arm: str | ArmModel = "rizon4", *, real_time: bool = False) -> None:
        self._mj = mj = mujoco_module()
        self.task, self.arm = task, arm if isinstance(arm, ArmModel) else read_arm(arm)
        spec = empty_spec(task.timestep)
        add_gripper(spec, add_arm(spec, self.arm), self.arm)
        task.build(spec)
        try:
            self.model = spec.compile()
        except ValueError as error:
            raise InvalidValueError(f"MuJoCo cannot build the arm {self.arm.name!r} and its scene: {error}.") from error
        self.data = mj.MjData(self.model)
        self.lock = threading.RLock()
        self.kinematics = Kinematics(self.arm)
        names = [f"joint{at}" for at in range(1, len(self.arm.joints) + 1)]
        self._qpos = [int(self.model.joint(name).qposadr[0]) for name in names]
        self._servos = [self.model.actuator(name).id for name in names]
        self._fingers = [int(self.model.joint(name).qposadr[0]) for name in ("left", "right")]
        self._gripper = self.model.actuator("gripper").id
        self._site = self.model.site("pinch").id
        self._hand = self.model.body("hand").id
        self._goal, self._reference, self._rate = (np.zeros(len(names)) for _ in range(3))
        self._lead = np.array([joint.damping / joint.stiffness for joint in self.arm.joints])
        self.fault = ""
        """Set by tests and demonstrations: the arm is then in this fault."""
        self._renderers: dict[tuple[int, int, bool, int], Any] = {}
        self._left_s, self._steps, self._fingers_goal = 0.0, 0, 0.0
        self._wrenches: deque[np.ndarray] = deque(maxlen=5)
        self._job: Any = None
        self.clock: Clock = WallClock() if real_time else SimulatedClock(self.advance)
        self._real_time = real_time
        self.reset(0)

    # Time

    def advance(self, seconds: float) -> None:
        """Lets so many seconds pass; what is less than a step of the simulation is kept for the next time."""
        step = self.model.opt.timestep
        with self.lock:
            self._left_s += seconds
            count = int(self._left_s / step + 1e-6)
            self._left_s -= count * step
            for _ in range(count):
                self._steps += 1
                if self._steps % _WRENCH_STEPS == 0:
                    self._wrenches.append(self._contact_wrench())
                shut = self._fingers_goal - self.data.ctrl[self._gripper]
                self.data.ctrl[self._gripper] += np.clip(shut, -_FINGER_SPEED * step, _FINGER_SPEED * step)
                move = np.clip(self._goal - self._reference, -self._rate * step, self._rate * step)
                self._reference += move
                # The servos' damping acts on the joints' whole speed: without a lead they would lag behind by it.
                self.data.ctrl[self._servos] = self._reference + self._lead * move / step
                self.task.before_step(self)
                self._mj.mj_step(self.model, self.data)
            if not np.isfinite(self.data.qpos).all():
                self.fault = "the simulation became unstable"

    def start(self) -> None:
        """In real time: begins to run."""
        if self._real_time and self._job is None:
            last = [time.monotonic()]

            def follow() -> None:
                now = time.monotonic()
                # Where the computer is too slow, time goes slower here.
                self.advance(min(now - last[0], 0.03))
                last[0] = now
                # Whoever waits for the lock has it for as long: a thread that takes it again at once would starve them.
                time.sleep(time.monotonic() - now)

            self._job = self.clock.every(0.005, follow, "twin")

    def close(self) -> None:
        """Ends the thread, and frees the renderers."""
        if self._job is not None:
            self._job.cancel()
            self._job = None
        running = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
        for key in [key for key in self._renderers if key[3] not in running]:
            # One in whose thread a picture may be on its way is left: to free it now would crash the process.
            self._renderers.pop(key).close()

    def reset(self, seed: int, condition: str = "in_domain") -> None:
        """Puts arm and objects where an episode begins; the same seed gives the same layout.

        Raises:
            UnknownNameError: there is no such condition.
        """
        if condition not in self.task.conditions:
            raise UnknownNameError("condition", condition, self.task.conditions)
        with self.lock:
            self._mj.mj_resetData(self.model, self.data)
            home = np.array(self.arm.home)
            self.data.qpos[self._qpos] = home
            target = Pose(position=np.array(self.task.start), rotation=top_down(0.0))
            for _ in range(60):
                home = self.kinematics.solve(target, home)
            self.data.qpos[self._qpos] = home
            self.data.ctrl[self._servos] = self._goal[:] = self._reference[:] = home
            self.data.ctrl[self._gripper] = self._fingers_goal = 0.0
            self._wrenches.clear()
            self._rate[:] = 0.0
            self._left_s, self.fault = 0.0, ""
            self.task.reset(self, np.random.default_rng([seed, 7]), condition)
            self._mj.mj_forward(self.model, self.data)
            for _ in range(round(self.task.settle_s / self.model.opt.timestep)):
                self._mj.mj_step(self.model, self.data)

    # What the arm does

    @property
    def tool(self) -> Pose:
        """The tool, now."""
        with self.lock:
            return Pose(
                position=self.data.site_xpos[self._site].copy(),
                rotation=self.data.site_xmat[self._site].reshape(3, 3).copy(),
            )

    @property
    def joints(self) -> np.ndarray:
        """[rad]"""
        with self.lock:
            return self.data.qpos[self._qpos].copy()

    def command(self, target: Pose, within_s: float) -> None:
        """The joints go to where the tool is at the target, steadily within so many seconds."""
        with self.lock:
            self._goal = self.kinematics.solve(target, self._goal)
            self._rate = np.abs(self._goal - self._reference) / max(within_s, self.model.opt.timestep)

    def halt(self) -> None:
        """The joints stay where they are."""
        with self.lock:
            self._goal, self._reference = self.joints, self.joints
            self.data.ctrl[self._servos] = self._goal
            self._rate[:] = 0.0

    def grip(self, openness: float) -> None:
        """1 is open."""
        with self.lock:
            self._fingers_goal = (1.0 - openness) * STROKE / 2

    @property
    def openness(self) -> float:
        """Of the gripper, as measured."""
        with self.lock:
            return float(np.clip(1.0 - 2 * self.data.qpos[self._fingers].mean() / STROKE, 0.0, 1.0))

    def wrench(self) -> np.ndarray:
        """(6,) what acts on the hand and fingers: force [N], and torque [N m] about the pinch.

        The median of the last 50 ms: a finger that meets an object first pushes for an instant, which no real sensor shows.
        """
        with self.lock:
            return np.median(self._wrenches, axis=0) if self._wrenches else np.zeros(6)

    def _contact_wrench(self) -> np.ndarray:
        mj, total = self._mj, np.zeros(6)
        with self.lock:
            hand = {self._hand, self.model.body("left_finger").id, self.model.body("right_finger").id}
            wrench = np.zeros(6)
            for at in range(self.data.ncon):
                contact = self.data.contact[at]
                first, second = (int(self.model.geom_bodyid[geom]) if geom >= 0 else -1 for geom in contact.geom)
                if (first in hand) == (second in hand):
                    continue
                mj.mj_contactForce(self.model, self.data, at, wrench)
                # The contact's frame is in rows, and its force acts on the second body.
                force = contact.frame.reshape(3, 3).T @ wrench[:3] * (1.0 if second in hand else -1.0)
                total[:3] += force
                total[3:] += np.cross(contact.pos - self.data.site_xpos[self._site], force)
        return total

    # What can be seen and known

    def render(self, width: int, height: int, *, depth: bool = False, data: Any = None) -> np.ndarray:
        """(H, W, 3) uint8, or (H, W) float32 depth [m], of the camera. Each thread has renderers of its own."""
        key = (width, height, depth, threading.get_ident())
        renderer = self._renderers.get(key)
        if renderer is None:  # takes a while, in which the physics goes on
            try:
                renderer = self._mj.Renderer(self.model, height, width)
            except Exception as error:  # the platforms raise everything from AttributeError to FatalError here
                raise MissingSoftwareError(
                    f"MuJoCo cannot render off screen ({type(error).__name__}: {error}).",
                    hint="apt-get install libosmesa6, and set MUJOCO_GL=osmesa; or MUJOCO_GL=egl with a GPU.",
                ) from error
            if depth:
                renderer.enable_depth_rendering()
            self._renderers[key] = renderer
        if data is not None:
            renderer.update_scene(data, CAMERA)
        else:
            with self.lock:
                renderer.update_scene(self.data, CAMERA)
        return renderer.render()

    @property
    def about(self) -> dict[str, Any]:
        """What a recording keeps of the simulation, from which the same model is built again (`World.of`)."""
        model = self.model
        values = {
            name: getattr(model, name).tolist() for name in ("body_pos", "body_quat", "cam_pos", "cam_quat", "cam_fovy")
        }
        return {"suite": SUITE, "task": self.task.name, "arm": asdict(self.arm), "cameras": [CAMERA], "model": values}

    def snapshot(self, data: Any = None) -> dict[str, np.ndarray]:
        """What exact scene flow is made of: time, positions and speeds, and where all bodies are, as `Observation.extra`."""
        with self.lock:
            data = self.data if data is None else data
            return {
                f"{SIMULATION}states": np.concatenate([[data.time], data.qpos, data.qvel]),
                f"{SIMULATION}body_poses": np.concatenate([data.xpos, data.xquat], axis=1),
            }

    def body(self, name: str) -> Pose:
        """An object, now."""
        with self.lock:
            body = self.data.body(name)
            return Pose(position=body.xpos.copy(), rotation=body.xmat.reshape(3, 3).copy())

    def moving(self, name: str) -> float:
        """How fast an object moves [m/s]."""
        with self.lock:
            at = int(self.model.joint(name).dofadr[0])
            return float(np.linalg.norm(self.data.qvel[at : at + 3]))

    def place(self, name: str, position: Vector | np.ndarray, yaw: float = 0.0) -> None:
        """Puts a free object somewhere; `mj_forward` is the caller's."""
        at = int(self.model.joint(name).qposadr[0])
        self.data.qpos[at : at + 7] = [*position, math.cos(yaw / 2), 0, 0, math.sin(yaw / 2)]

    def held(self, name: str) -> bool:
        """Whether both fingers touch an object."""
        with self.lock:
            thing = self.model.body(name).id
            touching = set[int]()
            for contact in self.data.contact[: self.data.ncon]:
                bodies = [int(self.model.geom_bodyid[geom]) if geom >= 0 else -1 for geom in contact.geom]
                if thing in bodies:
                    touching.update(bodies)
            return {self.model.body("left_finger").id, self.model.body("right_finger").id} <= touching

    def colour(self, body: str, rgba: tuple[float, float, float, float]) -> None:
        """Paints an object."""
        of_body = self.model.geom_bodyid == self.model.body(body).id
        self.model.geom_rgba[of_body] = rgba


def top_down(yaw: float, tilt: float = 0.0) -> np.ndarray:
    """(3, 3) a tool that points down, tilted from there towards `yaw` [rad]; the fingers open across, in the horizontal."""
    approach = np.array([math.sin(tilt) * math.cos(yaw), math.sin(tilt) * math.sin(yaw), -math.cos(tilt)])
    across = np.array([math.sin(yaw), -math.cos(yaw), 0.0])
    return np.stack([np.cross(across, approach), across, approach], axis=1)
