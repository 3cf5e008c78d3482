"""The twin's scene as a MuJoCo model: an arm from a description, a gripper, a table and a camera; and the arm's kinematics.

Arms are made of capsules along their links; the gripper is a parallel one with the 2F-85's stroke and reach, whose fingertips
move straight, where the real linkage's also move a little along the tool. It shows whether code, frames and signs are right, and
lets policies be compared; it is no measure of a real arm's friction, flexibility or forces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from lamp_client.envs.rendering import import_mujoco
from lamp_client.envs.rotations import axis_angle_from_matrix, quaternion_from_matrix
from lamp_client.errors import InvalidValueError, MissingSoftwareError, UnknownNameError
from lamp_client.rig.description import Vector, read_json, typed
from lamp_client.rig.devices import Pose

Quaternion = tuple[float, float, float, float]
ARMS = ("rizon4", "panda")
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
