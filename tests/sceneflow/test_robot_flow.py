"""The robot's own flow: forward kinematics against MuJoCo's, shapes by hand, and tracks against a simulator's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lamp.errors import ConfigError, DataError
from lamp.sceneflow.estimate.chain import CHAINS, Chain
from lamp.sceneflow.estimate.interfaces import Clip, PointTracks
from lamp.sceneflow.estimate.rigid import inverse
from lamp.sceneflow.estimate.robot import RobotTracker
from lamp.sceneflow.estimate.robot_motion import RobotMotion
from lamp.sceneflow.exact_flow import Sampling
from lamp.sceneflow.urdf import Robot, surface_points

INERTIA = '<inertial><mass value="1"/><inertia ixx="1" iyy="1" izz="1" ixy="0" ixz="0" iyz="0"/></inertial>'
ARM = """
<robot name="arm">
  <link name="base"><collision><origin xyz="0 0 0.1"/><geometry><cylinder radius="0.06" length="0.2"/></geometry>
  </collision></link>
  <link name="upper"><collision><origin xyz="0.15 0 0"/><geometry><box size="0.3 0.06 0.05"/></geometry></collision></link>
  <link name="slide"><visual><geometry><sphere radius="0.05"/></geometry></visual></link>
  <link name="finger"/>
  <link name="other"/>
  <joint name="turn" type="revolute"><origin xyz="0 0 0.2" rpy="0.3 -0.2 0.7"/><parent link="base"/><child link="upper"/>
    <axis xyz="0 1 2"/><limit lower="-2" upper="2" effort="1" velocity="1"/></joint>
  <joint name="reach" type="prismatic"><origin xyz="0.3 0 0" rpy="0 1.2 0"/><parent link="upper"/><child link="slide"/>
    <axis xyz="1 0 0"/><limit lower="-1" upper="1" effort="1" velocity="1"/></joint>
  <joint name="grip" type="continuous"><origin xyz="0 0.02 0.1"/><parent link="slide"/><child link="finger"/>
    <axis xyz="0 0 -1"/></joint>
  <joint name="grip2" type="continuous"><origin rpy="0 0 3"/><parent link="slide"/><child link="other"/><axis xyz="0 0 1"/>
    <mimic joint="grip" multiplier="-2" offset="0.1"/></joint>
</robot>
"""


def written(folder: Path, text: str = ARM) -> Path:
    path = folder / "arm.urdf"
    path.write_text(text)
    return path


def test_kinematics_by_hand(tmp_path: Path) -> None:
    robot = Robot.read(written(tmp_path))
    assert robot.root == "base" and robot.joint_names == ("turn", "reach", "grip")
    values = np.array([[0.5, 0.1, 0.4], [0.0, 0.0, 0.0]])
    poses = robot.poses(("turn", "reach", "grip"), values)
    turn = Rotation.from_euler("xyz", [0.3, -0.2, 0.7]) * Rotation.from_rotvec(0.5 * np.array([0, 1, 2]) / np.sqrt(5))
    tip = np.array([0, 0, 0.2]) + turn.apply(np.array([0.3, 0, 0]) + Rotation.from_euler("y", 1.2).apply([0.1, 0, 0]))
    np.testing.assert_allclose(poses["slide"][0, :3, 3], tip, atol=1e-12)
    follows = inverse(poses["slide"]) @ poses["other"]
    expected = Rotation.from_euler("z", np.array([[3 + 0.1 - 0.8], [3 + 0.1]])).as_matrix()
    np.testing.assert_allclose(follows[:, :3, :3], expected, atol=1e-12)
    shuffled = robot.poses(("grip", "turn", "reach"), values[:, [2, 0, 1]])
    np.testing.assert_array_equal(shuffled["finger"], poses["finger"])


def test_kinematics_are_mujocos(tmp_path: Path) -> None:
    """MuJoCo reads the same URDF; it knows no mimicking, so that joint gets its value."""
    from lamp_client.envs.rendering import import_mujoco

    mujoco: Any = import_mujoco()
    text = ARM.replace('<robot name="arm">', '<robot name="arm"><mujoco><compiler fusestatic="false"/></mujoco>')
    text = text.replace("<visual>", f"{INERTIA}<visual>")
    for link in ("upper", "finger", "other"):
        text = text.replace(f'<link name="{link}">', f'<link name="{link}">{INERTIA}')
        text = text.replace(f'<link name="{link}"/>', f'<link name="{link}">{INERTIA}</link>')
    model = mujoco.MjModel.from_xml_string(text)
    data, robot = mujoco.MjData(model), Robot.read(written(tmp_path))
    values = np.random.default_rng(0).uniform(-1, 1, (20, 3))
    poses = robot.poses(robot.joint_names, values)
    names = [model.joint(index).name for index in range(model.njnt)]
    for row, given in enumerate(values):
        own = {**dict(zip(robot.joint_names, given, strict=True)), "grip2": -2 * given[2] + 0.1}
        data.qpos[:] = [own[name] for name in names]
        mujoco.mj_kinematics(model, data)
        for link in ("upper", "slide", "finger", "other"):
            np.testing.assert_allclose(poses[link][row, :3, 3], data.body(link).xpos, atol=1e-9)
            np.testing.assert_allclose(poses[link][row, :3, :3].ravel(), data.body(link).xmat, atol=1e-9)


@pytest.mark.parametrize("name", ["panda", "rizon4"])
def test_kinematics_are_those_of_the_twins_arms(tmp_path: Path, name: str) -> None:
    from lamp_client.twin.scene import Kinematics, read_arm

    arm = read_arm(name)
    robot = Robot.read(written(tmp_path, urdf_of(arm)))
    twin = Kinematics(arm)
    model, data = twin._model, twin._data
    values = np.random.default_rng(1).uniform(-1, 1, (10, len(arm.joints)))
    poses = robot.poses(robot.joint_names, values)
    for row, given in enumerate(values):
        twin.pose(given)
        base = np.eye(4)
        base[:3, 3] = data.body("base").xpos
        for link in [f"link{at}" for at in range(1, len(arm.joints) + 1)]:
            found = base @ poses[link][row]
            np.testing.assert_allclose(found[:3, 3], data.body(link).xpos, atol=1e-6)  # its quaternions have 7 digits
            np.testing.assert_allclose(found[:3, :3].ravel(), data.body(link).xmat, atol=1e-6)
    assert model.njnt == len(robot.joint_names)


def urdf_of(arm: Any) -> str:
    """An arm of the twin as a URDF."""
    text = ['<robot name="twin">', '<link name="base"/>']
    parent = "base"
    for at, joint in enumerate(arm.joints, start=1):
        w, x, y, z = joint.quaternion
        rpy = " ".join(f"{angle:.15g}" for angle in Rotation.from_quat([x, y, z, w]).as_euler("xyz"))
        xyz, axis = (" ".join(f"{value:.15g}" for value in values) for values in (joint.position, joint.axis))
        text.append(
            f'<link name="link{at}"/><joint name="joint{at}" type="continuous"><parent link="{parent}"/><child link="link{at}"/>'
            f'<origin xyz="{xyz}" rpy="{rpy}"/><axis xyz="{axis}"/></joint>'
        )
        parent = f"link{at}"
    return "\n".join([*text, "</robot>"])


def test_distances_from_surfaces(tmp_path: Path) -> None:
    robot = Robot.read(written(tmp_path))
    np.testing.assert_allclose(
        robot.distances("base", np.array([[0.1, 0, 0.1], [0, 0, 0.25], [0, 0, 0.1]])), [0.04, 0.05, -0.06]
    )
    np.testing.assert_allclose(
        robot.distances("upper", np.array([[0.15, 0.03, 0.0], [0.34, 0.06, 0.0]])), [0, 0.05], atol=1e-12
    )
    np.testing.assert_allclose(robot.distances("slide", np.array([[0.0, 0, 0.08]])), [0.03])
    assert np.isinf(robot.distances("finger", np.zeros((1, 3)))).all()


@pytest.mark.parametrize("kind", ["obj", "binary.stl", "ascii.stl"])
def test_meshes(tmp_path: Path, kind: str) -> None:
    corners = np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.2, 0.0]])
    (tmp_path / "meshes").mkdir()
    file = tmp_path / "meshes" / f"one.{kind}"
    if kind == "obj":
        file.write_text("".join(f"v {x} {y} {z}\n" for x, y, z in corners) + "f 1/1 2/2 3/3\n")
    elif kind == "ascii.stl":
        points = "".join(f"vertex {x} {y} {z}\n" for x, y, z in corners)
        file.write_text(f"solid a\nfacet normal 0 0 1\nouter loop\n{points}endloop\nendfacet\nendsolid a\n")
    else:
        packed = np.concatenate([np.zeros(3), corners.ravel()]).astype("<f4").tobytes() + b"\0\0"
        file.write_bytes(b"\0" * 80 + (1).to_bytes(4, "little") + packed)
    text = ARM.replace(
        '<link name="finger"/>',
        f'<link name="finger"><visual><geometry><mesh filename="package://arm/meshes/{file.name}" scale="2 2 2"/>'
        "</geometry></visual></link>",
    )
    robot = Robot.read(written(tmp_path, text))
    found = robot.distances("finger", np.array([[0.05, 0.05, 0.03], [0.3, 0, 0]]))
    np.testing.assert_allclose(found, [0.03, 0.1], atol=2e-3)
    assert np.linalg.norm(np.diff(surface_points(corners[None], 0.01), axis=0), axis=-1).min() < 0.02


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("<robot", '<!DOCTYPE a [<!ENTITY b "c">]><robot', "document type or entities"),
        ('child link="upper"', 'child link="nowhere"', "is no tree of links: nowhere"),
        ('type="prismatic"', 'type="floating"', "joint reach is floating; expected"),
        ('joint="grip"', 'joint="gripp"', "unknown joint that grip2 of .* mimics 'gripp'"),
        ('axis xyz="0 1 2"', 'axis xyz="0 1"', "'0 1' are not 3 numbers"),
        ("</robot>", "", "is no URDF"),
        ("robot", "model", "begins with <model>"),
        ('<sphere radius="0.05"/>', '<mesh filename="gone.stl"/>', "names the mesh gone.stl, which is not there"),
    ],
)
def test_what_is_no_robot_is_refused(tmp_path: Path, old: str, new: str, text: str) -> None:
    with pytest.raises((DataError, ConfigError), match=text):
        Robot.read(written(tmp_path, ARM.replace(old, new)))


def test_joint_values_are_checked(tmp_path: Path) -> None:
    robot = Robot.read(written(tmp_path))
    with pytest.raises(ConfigError, match=r"unknown joint of the robot arm 'turm'"):
        robot.poses(("turm",), np.zeros((1, 1)))
    with pytest.raises(ConfigError, match=r"no values of grip of the robot arm"):
        robot.poses(("turn", "reach"), np.zeros((1, 2)))
    with pytest.raises(ConfigError, match=r"expected a finite value of each"):
        robot.poses(("turn", "reach", "grip"), np.full((1, 3), np.nan))


SAMPLING = Sampling(grid=(24, 32), horizon=6)
SIMPLE = (
    ARM[: ARM.index('<joint name="grip"')]
    .replace('<link name="finger"/>', "")
    .replace('<link name="other"/>', "")
    .replace('<link name="upper">', f'<link name="upper">{INERTIA}')
    .replace("<visual>", f"{INERTIA}<collision>")
    .replace("</visual>", "</collision>")
    + "</robot>"
)
"""Without fingers, and with what a simulator needs."""


def tracked(clip: Clip, tracker: Any, frames: tuple[int, ...] = (0,)) -> list[PointTracks]:
    return list(Chain(name="chain", tracker=tracker).estimate(clip, frames, SAMPLING)[1])


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clip, dict[str, Any]]:
    """A clip of the arm in a simulator that read its URDF, with its exact flow."""
    from lamp.sceneflow.estimate.truth import render_episode
    from lamp.sceneflow.rendering import BodyDepthRenderer, SimulationScene
    from lamp.sceneflow.sim_states import Playback, Recording
    from lamp_client.envs.rendering import Renderer, import_mujoco

    mujoco: Any = import_mujoco()
    path = written(tmp_path_factory.mktemp("robot"), SIMPLE)
    spec = mujoco.MjSpec.from_string(
        SIMPLE.replace('<robot name="arm">', '<robot name="arm"><mujoco><compiler fusestatic="false"/></mujoco>')
    )
    spec.worldbody.add_camera(name="front", pos=[0.2, -1.0, 0.5], xyaxes=[1, 0, 0, 0, 0.3, 0.95], fovy=45)
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[2, 2, 0.1])
    spec.worldbody.add_light(pos=[0, 0, 3])
    model = spec.compile()
    data = mujoco.MjData(model)
    time = np.arange(12) / 20
    values = np.stack([0.3 + 1.2 * time, 0.1 * np.sin(6 * time)], axis=1)
    states, poses = [], []
    for at, given in zip(time, values, strict=True):
        data.qpos[:] = given
        mujoco.mj_kinematics(model, data)
        states.append(np.concatenate([[at], data.qpos, data.qvel]))
        poses.append(np.concatenate([data.xpos, data.xquat], axis=1))
    recording = Recording(
        states=np.array(states),
        body_poses=np.array(poses),
        model_body_pos=model.body_pos.copy(),
        model_body_quat=model.body_quat.copy(),
        metadata={},
    )
    scene = SimulationScene(model=model, cameras={"front": "front"})
    colours = Renderer(model, 128, "fast")
    with BodyDepthRenderer(model, width=128, height=128, mirrored=False) as renderer:
        playback = Playback(model, recording)
        truth = render_episode(playback, scene, renderer, colours, "front", (0, 3), SAMPLING)
        playback.restore(0)
        body = renderer.render(playback.data, "front").body.numpy()
    colours.close()
    robot = Robot.read(path)
    motion = RobotMotion(
        robot=robot, base_from_link=robot.poses(("turn", "reach"), values), base_from_cam=truth.world_from_cam
    )
    moving = [model.body(name).id for name in ("upper", "slide")]
    clip = replace(truth.clip, robot=motion, fixed_camera=True)
    return clip, {"flows": truth.flows, "on": np.isin(body, moving)}


@pytest.mark.sim
@pytest.mark.parametrize("with_depth", [True, False])
def test_the_robots_flow_is_the_simulators(simulated: tuple[Clip, dict[str, Any]], with_depth: bool) -> None:
    clip, truth = simulated
    given = clip if with_depth else replace(clip, depth=None)
    first, later = tracked(given, RobotTracker(), (0, 3))
    flow = truth["flows"][0]
    away = np.linalg.norm(flow.points[:, -1] - flow.points[:, 0], axis=-1) > 0.004
    found = first.valid[:, 0] & away
    assert found.sum() > 0.9 * away.sum() > 12, "the arm's points are found"
    assert (first.valid[:, 0] & ~away & (flow.points[:, 0, 1] < 0.4)).sum() <= 3, "and nothing behind it"
    miss = np.abs(first.points[found] - flow.points[found])
    if with_depth:
        assert miss[..., :2].max() < 2e-5 and miss[..., 2].max() < 2e-5
        assert (first.visible[found] == flow.visible[found]).mean() > 0.98
    else:  # the surface is found along the ray, to 2 mm
        assert np.median(miss) < 1e-3 and np.quantile(miss[..., 2], 0.95) < 0.01
    assert later.frame == 3 and later.valid.any()


@pytest.mark.sim
def test_others_points_are_left_to_the_other_tracker(simulated: tuple[Clip, dict[str, Any]]) -> None:
    clip, _ = simulated
    static = CHAINS["zero_motion"].tracker
    ((alone,), (other,), (both,)) = (
        tracked(clip, tracker) for tracker in (RobotTracker(), static, RobotTracker(others=static))
    )
    on = alone.valid[:, 0]
    np.testing.assert_array_equal(both.points[on], alone.points[on])
    np.testing.assert_array_equal(both.points[~on], other.points[~on])
    with pytest.raises(DataError, match=r"has no joint states with a URDF"):
        tracked(replace(clip, robot=None), RobotTracker())
