"""The twin's world in MuJoCo: an arm from a description, a gripper, a table, a camera, a task's objects; and a rig's devices.

Arms are made of capsules along their links; the gripper is a parallel one with the 2F-85's stroke and reach, whose fingertips
move straight, where the real linkage's also move a little along the tool. It shows whether code, frames and signs are right, and
lets policies be compared; it is no measure of a real arm's friction, flexibility or forces.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lamp_client.envs.rendering import import_mujoco
from lamp_client.envs.rotations import axis_angle_from_matrix, quaternion_from_matrix
from lamp_client.errors import InvalidValueError, MissingSoftwareError, UnknownNameError
from lamp_client.rig.description import Vector, read_json, typed
from lamp_client.rig.devices import ArmState, CameraFrame, Clock, Pose, RigError, SimulatedClock, WallClock
from lamp_client.types import SIMULATION

if TYPE_CHECKING:
    from lamp_client.twin.tasks import Task

Quaternion = tuple[float, float, float, float]
ARMS = ("rizon4", "panda")
SUITE = "twin"
"""In the metadata of recordings."""
CAMERA = "front"
CAMERA_FROM, CAMERA_AT = (1.35, 0.0, 0.62), (0.58, 0.0, 0.03)
"""Where the camera is and what it looks at [m]."""
CAMERA_FOVY = 42.5
"""Of a D415's colour camera [degrees]."""
STROKE = 0.085
"""Between the fingertips of an open 2F-85 [m]."""
REACH = 0.15
"""From the arm's flange to the middle of the fingertips [m]."""
DOWN: Quaternion = (0.0, 1.0, 0.0, 0.0)
"""Half a turn about x: the tool points down, its x away from the base."""
TIMESTEP = 0.002
_FINGER_SPEED = 0.075
"""Of each finger of a 2F-85 at most [m/s]."""
_WRENCH_STEPS = 5
# Collisions: robot with things, things with each other, never robot with robot.
_ROBOT: dict[str, Any] = {"contype": 2, "conaffinity": 1}
THING: dict[str, Any] = {"contype": 1, "conaffinity": 3}


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A frame in another."""

    position: Vector
    """[m]"""
    quaternion: Quaternion = (1.0, 0.0, 0.0, 0.0)
    """w, x, y, z"""


@dataclass(frozen=True, kw_only=True)
class Base:
    """The cylinder that an arm stands on."""

    radius: float
    """[m]"""
    height: float
    position: Vector = (0.0, 0.0, 0.0)
    """Where the arm stands in the twin's frame, in which poses are [m]."""


@dataclass(frozen=True, kw_only=True)
class JointModel(Frame):
    """A joint with the link that it turns; the frame is the link's, in the link before."""

    axis: Vector
    range: tuple[float, float]
    """[rad]"""
    torque: float
    """Greatest [N m]."""
    armature: float
    """[kg m^2]"""
    stiffness: float
    """Of its servo [N m/rad]."""
    damping: float
    """[N m s/rad]"""
    mass: float
    """Of the link [kg]."""
    radius: float
    """Of the link's capsule [m]."""


@dataclass(frozen=True, kw_only=True)
class ArmModel:
    """An arm as data: a JSON file of these values adds another."""

    name: str
    base: Base
    joints: tuple[JointModel, ...]
    flange: Frame
    """In the last link."""
    home: tuple[float, ...]
    """Joint angles [rad] that the inverse kinematics prefers; the tool should point down there."""
    about: str = ""

    def __post_init__(self) -> None:
        if len(self.home) != len(self.joints) or len(self.joints) < 6:
            raise InvalidValueError(
                f"the arm {self.name!r} has {len(self.joints)} joints and {len(self.home)} angles at home; expected six or more, "
                "and as many."
            )
        for at, (joint, angle) in enumerate(zip(self.joints, self.home, strict=True)):
            if not joint.range[0] <= angle <= joint.range[1]:
                raise InvalidValueError(
                    f"joint {at} of {self.name!r} is at {angle:g} at home, outside of {joint.range}."
                )


def read_arm(name: str) -> ArmModel:
    """The arm of this name, or described by this file.

    Raises:
        UnknownNameError: there is neither.
        InvalidValueError: the file does not describe an arm.
    """
    if name in ARMS:
        path = Path(str(files("lamp_client.twin").joinpath(f"{name}.json")))
    elif name.endswith(".json"):
        path = Path(name)
    else:
        raise UnknownNameError("arm of the twin (or a path to a .json file)", name, ARMS)
    return typed(ArmModel, read_json(path, "an arm's description"), str(path))


def mujoco_module() -> Any:
    """MuJoCo.

    Raises:
        MissingSoftwareError: it is not installed, or too old.
    """
    try:
        mujoco = import_mujoco()
    except MissingSoftwareError as error:
        hint = "pip install 'lamp-client[twin]'" if "not installed" in str(error) else error.hint
        raise MissingSoftwareError(error.problem, hint=hint) from error
    if not hasattr(mujoco, "MjSpec"):
        raise MissingSoftwareError(
            f"MuJoCo {mujoco.__version__} cannot build models.", hint="pip install 'lamp-client[twin]' (mujoco>=3.3)"
        )
    return mujoco


def empty_spec(timestep: float = TIMESTEP) -> Any:
    """A scene with light, floor, table and camera."""
    mj = mujoco_module()
    spec = mj.MjSpec()
    spec.modelname, spec.compiler.degree = "twin", False
    spec.option.timestep, spec.option.integrator = timestep, mj.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone, spec.option.impratio = mj.mjtCone.mjCONE_ELLIPTIC, 10
    spec.visual.global_.offwidth, spec.visual.global_.offheight = 1280, 720
    spec.visual.map.znear, spec.visual.quality.offsamples = 0.01, 0
    world, box = spec.worldbody, mj.mjtGeom.mjGEOM_BOX
    light = mj.mjtLightType.mjLIGHT_DIRECTIONAL
    # Shadows take five times as long to render.
    world.add_light(pos=[0, 0, 3], dir=[0, 0, -1], type=light, diffuse=[0.6] * 3, castshadow=False)
    world.add_light(pos=[1, 1, 2], dir=[-0.5, -0.5, -1], diffuse=[0.4] * 3, castshadow=False)
    checker, flat = mj.mjtBuiltin.mjBUILTIN_CHECKER, mj.mjtTexture.mjTEXTURE_2D
    spec.add_texture(
        name="wood", type=flat, builtin=checker, rgb1=[0.62, 0.45, 0.28], rgb2=[0.56, 0.40, 0.24], width=256, height=256
    )
    wood = spec.add_material(name="wood")
    wood.textures[mj.mjtTextureRole.mjTEXROLE_RGB], wood.texrepeat = "wood", [12, 12]
    world.add_geom(
        name="table",
        type=box,
        size=[0.45, 0.6, 0.02],
        pos=[0.55, 0, -0.02],
        material="wood",
        friction=[1, 0.005, 1e-4],
        **THING,
    )
    mat = {"contype": 0, "conaffinity": 0, "rgba": [0.2, 0.55, 0.25, 0.0]}
    world.add_geom(name="mat", type=box, size=[0.42, 0.55, 0.0005], pos=[0.55, 0, 0.0], **mat)
    floor = mj.mjtGeom.mjGEOM_PLANE
    world.add_geom(name="floor", type=floor, size=[3, 3, 0.1], pos=[0, 0, -0.8], rgba=[0.4, 0.4, 0.42, 1])
    pose = camera_pose()
    world.add_camera(
        name=CAMERA,
        pos=pose.position,
        # MuJoCo's cameras look along -z, with y up.
        quat=quaternion_from_matrix(pose.rotation * [1, -1, -1]),
        fovy=CAMERA_FOVY,
    )
    return spec


def camera_pose() -> Pose:
    """Of the camera: it looks along its z, x to the right, y down."""
    forward = np.subtract(CAMERA_AT, CAMERA_FROM)
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    return Pose(position=np.array(CAMERA_FROM), rotation=np.stack([right, np.cross(forward, right), forward], axis=1))


def camera_focal(height: int) -> float:
    """[px] of a picture so high; pixels are square."""
    return height / 2 / math.tan(math.radians(CAMERA_FOVY) / 2)


def add_arm(spec: Any, arm: ArmModel) -> Any:
    """Builds the arm into a scene; returns its last link, whose site `flange` carries the tool."""
    mj = mujoco_module()
    body = spec.worldbody.add_body(name="base", pos=arm.base.position, gravcomp=1)
    half = arm.base.height / 2
    cylinder, capsule = mj.mjtGeom.mjGEOM_CYLINDER, mj.mjtGeom.mjGEOM_CAPSULE
    size = [arm.base.radius, half, 0]
    body.add_geom(type=cylinder, size=size, pos=[0, 0, half], rgba=[0.49, 0.49, 0.53, 1], **_ROBOT)
    ends = [*(joint.position for joint in arm.joints[1:]), arm.flange.position]
    for at, (joint, end) in enumerate(zip(arm.joints, ends, strict=True), start=1):
        body = body.add_body(name=f"link{at}", pos=joint.position, quat=joint.quaternion, gravcomp=1)
        body.add_joint(
            name=f"joint{at}",
            axis=joint.axis,
            range=joint.range,
            limited=1,
            armature=joint.armature,
            actfrcrange=[-joint.torque, joint.torque],
            actfrclimited=1,
        )
        colour = [0.97, 0.97, 0.97, 1] if at % 2 else [0.6, 0.6, 0.65, 1]
        if np.linalg.norm(end) > 0.01:
            fromto = [0, 0, 0, *end]
            body.add_geom(
                type=capsule, size=[joint.radius, 0, 0], fromto=fromto, mass=joint.mass, rgba=colour, **_ROBOT
            )
        else:
            sphere = mj.mjtGeom.mjGEOM_SPHERE
            body.add_geom(type=sphere, size=[joint.radius, 0, 0], mass=joint.mass, rgba=colour, **_ROBOT)
        servo = spec.add_actuator(
            name=f"joint{at}",
            target=f"joint{at}",
            trntype=mj.mjtTrn.mjTRN_JOINT,
            ctrlrange=joint.range,
            ctrllimited=1,
        )
        _make_servo(servo, joint.stiffness, joint.damping)
    body.add_site(name="flange", pos=arm.flange.position, quat=arm.flange.quaternion)
    return body


def _make_servo(actuator: Any, stiffness: float, damping: float) -> None:
    mj = mujoco_module()
    actuator.gaintype, actuator.biastype = mj.mjtGain.mjGAIN_FIXED, mj.mjtBias.mjBIAS_AFFINE
    actuator.gainprm[0], actuator.biasprm[1], actuator.biasprm[2] = stiffness, -stiffness, -damping


def add_gripper(spec: Any, link: Any, arm: ArmModel) -> None:
    """A parallel gripper at the flange: fingers move along the tool's y, the site `pinch` is between their tips."""
    mj = mujoco_module()
    box, slide = mj.mjtGeom.mjGEOM_BOX, mj.mjtJoint.mjJNT_SLIDE
    dark, rubber = [0.15, 0.15, 0.17, 1], [0.05, 0.05, 0.05, 1]
    hand = link.add_body(name="hand", pos=arm.flange.position, quat=arm.flange.quaternion, gravcomp=1)
    hand.add_geom(type=box, size=[0.03, 0.045, 0.045], pos=[0, 0, 0.045], mass=0.8, rgba=dark, **_ROBOT)
    hand.add_site(name="pinch", pos=[0, 0, REACH])
    for name, side in (("left", 1.0), ("right", -1.0)):
        finger = hand.add_body(name=f"{name}_finger", pos=[0, side * STROKE / 2, 0], gravcomp=1)
        finger.add_joint(
            name=name, type=slide, axis=[0, -side, 0], range=[0, STROKE / 2], limited=1, armature=0.05, damping=5
        )
        finger.add_geom(type=box, size=[0.011, 0.006, 0.03], pos=[0, side * 0.012, 0.1], mass=0.05, rgba=dark, **_ROBOT)
        grip = {"friction": [1.2, 0.02, 0.001], "condim": 6, "solref": [0.005, 1], "priority": 1}
        pad = {"size": [0.011, 0.004, 0.018], "pos": [0, side * 0.004, REACH - 0.004], "mass": 0.03, "rgba": rubber}
        finger.add_geom(name=f"{name}_pad", type=box, **pad, **grip, **_ROBOT)
    # The fingers are one mechanism: both move as far.
    spec.add_equality(
        type=mj.mjtEq.mjEQ_JOINT, name1="right", name2="left", objtype=mj.mjtObj.mjOBJ_JOINT, data=[0, 1, *[0] * 10]
    )
    servo = spec.add_actuator(
        name="gripper",
        target="left",
        trntype=mj.mjtTrn.mjTRN_JOINT,
        ctrlrange=[0, STROKE / 2],
        ctrllimited=1,
        forcerange=[-60, 60],
        forcelimited=1,
    )
    _make_servo(servo, 4000, 120)


class Kinematics:
    """Inverse kinematics of the arm alone, by damped least squares; joints at a limit are left out and the rest solved again."""

    def __init__(self, arm: ArmModel) -> None:
        self._mj = mj = mujoco_module()
        spec = mj.MjSpec()
        spec.compiler.degree = False
        link = add_arm(spec, arm)
        hand = link.add_body(name="hand", pos=arm.flange.position, quat=arm.flange.quaternion)
        hand.add_site(name="pinch", pos=[0, 0, REACH])
        self._model = spec.compile()
        self._data = mj.MjData(self._model)
        self._site = self._model.site("pinch").id
        self._home = np.array(arm.home)
        self._low, self._high = (np.array(bound) for bound in zip(*(joint.range for joint in arm.joints), strict=True))
        self._low, self._high = self._low + 0.02, self._high - 0.02

    def pose(self, joints: np.ndarray) -> Pose:
        """Of the tool."""
        self._data.qpos[:] = joints
        self._mj.mj_kinematics(self._model, self._data)
        return Pose(
            position=self._data.site_xpos[self._site].copy(),
            rotation=self._data.site_xmat[self._site].reshape(3, 3).copy(),
        )

    def solve(self, target: Pose, joints: np.ndarray, *, iterations: int = 6, damping: float = 0.05) -> np.ndarray:
        """Joint angles near those given whose tool is at the target, or as near as they come in so many iterations."""
        angles, count = np.array(joints, dtype=np.float64), len(joints)
        jacobian = np.zeros((6, count))
        weights = damping**2 * np.diag([0.02] * 3 + [0.2] * 3)
        for _ in range(iterations):
            now = self.pose(angles)
            self._mj.mj_comPos(self._model, self._data)
            self._mj.mj_jacSite(self._model, self._data, jacobian[:3], jacobian[3:], self._site)
            error = np.concatenate(
                [target.position - now.position, axis_angle_from_matrix(target.rotation @ now.rotation.T)]
            )
            free, step = np.ones(count, dtype=bool), np.zeros(count)
            for _ in range(3):
                part = jacobian[:, free]
                step[:] = 0
                step[free] = part.T @ np.linalg.solve(part @ part.T + weights, error)
                null = np.eye(free.sum()) - np.linalg.pinv(part, rcond=1e-3) @ part
                step[free] += 0.05 * null @ (self._home - angles)[free]
                step = np.clip(step, -0.2, 0.2)
                beyond = ((angles + step < self._low) | (angles + step > self._high)) & free
                if not beyond.any():
                    break
                free &= ~beyond
            angles = np.clip(angles + step, self._low, self._high)
        return angles


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
