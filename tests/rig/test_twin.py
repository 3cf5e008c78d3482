"""The MuJoCo twin: arms by description, tasks with their predicates, scripted experts through the whole rig."""

from __future__ import annotations

import builtins
import json
import math
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamp_client.chunks import OpenLoop
from lamp_client.client import InProcessPolicy
from lamp_client.errors import LampClientError, MissingSoftwareError
from lamp_client.rig import Pose, Rig, RigStoppedError, open_rig
from lamp_client.rig.trials import NoPolicy, drive_rig
from lamp_client.twin import (
    CONDITIONS,
    DEFINITIONS,
    Progress,
    ScriptedExpert,
    World,
    make_task,
    read_arm,
    twin_description,
)
from lamp_client.twin.scene import CAMERA, camera_focal, camera_pose
from lamp_client.twin.world import top_down


@pytest.fixture(scope="module")
def stack() -> World:
    return World(make_task("stack_cup"))


def twin_rig(world: World) -> Rig:
    return open_rig(twin_description(world.arm.name, width=64, height=48), world=world)


def episode(world: World, seed: int, condition: str = "in_domain", noise: float = 0.0) -> dict[str, int]:
    """Lets the expert act through the rig; returns the stages completed by each definition."""
    rig = twin_rig(world)
    limits, fps = rig.description.limits, rig.description.fps
    world.reset(seed, condition)
    progress = {name: Progress(world=world, definition=name) for name in DEFINITIONS}
    expert = ScriptedExpert(
        world=world,
        values=rig.values,
        max_step=limits.max_speed / fps,
        max_turn=limits.max_rotation_speed / fps,
        noise=noise,
    )

    def stop() -> bool:
        done = [each.look() == each.of for each in progress.values()]
        return all(done) or expert.done

    with rig:
        policy = NoPolicy(rig.description.policy_entry)
        drive_rig(rig, policy, expert, instruction=world.task.instruction, steps=world.task.step_limit, stop=stop)
    return {name: each.completed for name, each in progress.items()}


def test_the_expert_stacks_the_cup_through_the_rig(stack: World) -> None:
    assert episode(stack, 0) == {"body": 2, "supplement": 2}
    assert episode(stack, 1, "unseen_layout", noise=0.003) == {"body": 2, "supplement": 2}


def test_another_arm_is_a_description(tmp_path: Path) -> None:
    text = files("lamp_client.twin").joinpath("panda.json").read_text()
    assert len(text.splitlines()) < 80
    (tmp_path / "mine.json").write_text(text.replace('"panda"', '"mine"'))
    world = World(make_task("stack_cup"), str(tmp_path / "mine.json"))
    assert world.arm.name == "mine"
    assert world.tool.position == pytest.approx(world.task.start, abs=1e-3)


@pytest.mark.long
def test_the_panda_stacks_the_cup() -> None:
    world = World(make_task("stack_cup"), "panda")
    assert [episode(world, seed)["body"] for seed in range(3)] == [2, 2, 2]


@pytest.mark.long
def test_the_expert_makes_bread() -> None:
    world = World(make_task("making_bread"))
    assert episode(world, 0) == {"body": 3, "supplement": 3}


@pytest.mark.slow
@pytest.mark.parametrize(("task", "count", "share"), [("stack_cup", 100, 0.95), ("making_bread", 20, 0.7)])
def test_how_often_the_experts_succeed(task: str, count: int, share: float) -> None:
    world = World(make_task(task))
    done = 0
    for seed in range(count):
        with suppress(RigStoppedError):  # at a limit, the expert has failed
            done += episode(world, seed)["body"] == len(world.task.stages("body"))
    print(f"{task}: {done} of {count}")
    assert done >= share * count


@pytest.mark.parametrize("arm", ["rizon4", "panda"])
def test_inverse_kinematics_finds_poses_on_the_way(arm: str) -> None:
    world = World(make_task("stack_cup"), arm)
    joints, target = world.joints, world.tool
    for step in range(40):
        rotation = top_down(0.01 * step, 0.005 * step)
        target = Pose(position=target.position + np.array([0.002, 0.004, -0.004]), rotation=rotation)
        found = world.kinematics.solve(target, joints)
        assert np.abs(found - joints).max() < 0.2
        joints = found
        reached = world.kinematics.pose(joints)
        assert reached.distance(target) < 1e-3 and reached.angle(target) < 0.01


def test_a_layout_is_that_of_its_seed_and_condition(stack: World) -> None:
    def layout(seed: int, condition: str) -> tuple[np.ndarray, np.ndarray]:
        stack.reset(seed, condition)
        return stack.body("cup").position, stack.body("bowl").position

    first = layout(3, "in_domain")
    other = layout(4, "in_domain")
    again = layout(3, "in_domain")
    assert np.array_equal(first, again) and not np.allclose(first, other)
    assert first[0][1] > 0.05 > -0.05 > first[1][1]
    unseen = layout(3, "unseen_layout")
    assert unseen[0][1] < -0.05 < 0.05 < unseen[1][1]
    with pytest.raises(LampClientError, match="unknown condition 'dark'"):
        stack.reset(0, "dark")


def test_what_is_unseen_looks_otherwise(stack: World) -> None:
    pictures = {}
    for condition in CONDITIONS:
        stack.reset(1, condition)
        pictures[condition] = stack.render(64, 48).astype(int)
    plain = pictures["in_domain"]
    assert all(np.abs(pictures[each] - plain).max() > 40 for each in CONDITIONS[1:])
    # Only the one object is painted, and the mat covers most of what is seen of the table.
    share = {each: (np.abs(pictures[each] - plain).max(-1) > 20).mean() for each in CONDITIONS}
    assert share["unseen_object"] < 0.1 < 0.2 < share["unseen_background"]


def test_stages_hold_only_where_they_should(stack: World) -> None:
    task: Any = stack.task
    stack.reset(0)
    assert not task.in_bowl(stack) and not task.grasped(stack)
    bowl = stack.body("bowl").position
    stack.place("cup", bowl + np.array([0.0, 0.0, 0.012]))
    stack.clock.sleep(0.3)
    assert task.in_bowl(stack)
    stack.place("cup", bowl + np.array([0.11, 0.0, 0.002]))
    stack.clock.sleep(0.1)
    assert not task.in_bowl(stack)
    # Grasped from above: a stage by the supplement, and none by the body.
    stack.reset(0)
    cup = stack.body("cup").position
    for height in np.linspace(0.2, 0.055, 30):
        stack.command(Pose(position=np.array([cup[0], cup[1], height]), rotation=top_down(0.0)), 0.05)
        stack.clock.sleep(0.05)
    stack.clock.sleep(0.3)
    stack.grip(0.0)
    stack.clock.sleep(0.6)
    assert stack.held("cup") and not task.grasped(stack)
    stack.command(Pose(position=np.array([cup[0], cup[1], 0.10]), rotation=top_down(0.0)), 0.3)
    stack.clock.sleep(0.5)
    assert task.grasped(stack) and not task.grasped_from_the_side(stack)
    assert 0.7 < stack.openness < 0.85


def test_stages_are_completed_in_their_order(stack: World) -> None:
    stack.reset(0)
    stack.place("cup", stack.body("bowl").position + np.array([0.0, 0.0, 0.012]))
    stack.clock.sleep(0.3)
    progress = Progress(world=stack)
    assert progress.look() == 0 and progress.share == 0.0  # in the bowl, but nobody has grasped it


def test_the_camera_sees_the_cup_where_its_calibration_says(stack: World) -> None:
    stack.reset(2)
    width, height = 320, 240
    described = twin_description(width=width, height=height).cameras[CAMERA].calibration
    assert described is not None and described.focal is not None and described.focal[0] == camera_focal(height)
    camera = camera_pose()
    middle = stack.body("cup").position + np.array([0.0, 0.0, 0.05])
    x, y, depth = camera.rotation.T @ (middle - camera.position)
    column, row = width / 2 + described.focal[0] * x / depth, height / 2 + described.focal[1] * y / depth
    image = stack.render(width, height)
    red, _, blue = image[round(row), round(column)].astype(int)
    assert blue > red + 40
    measured = stack.render(width, height, depth=True)[round(row), round(column)]
    assert measured == pytest.approx(depth, abs=0.05)


def test_a_collision_stops_the_arm(stack: World) -> None:
    stack.reset(0)
    rig = twin_rig(stack)

    def down(seen: Any, seed: Any) -> np.ndarray:
        actions = np.tile(seen.state, (10, 1))
        actions[:, 2] -= 0.02 * np.arange(1, 11)
        return actions

    limits = rig.description.limits
    object.__setattr__(limits, "workspace_low", (0.25, -0.42, -0.2))
    with rig, pytest.raises(RigStoppedError, match=r"N m act on the tool|cm from where it was commanded"):
        drive_rig(rig, InProcessPolicy(down), OpenLoop(), instruction="down", steps=80)
    assert stack.tool.position[2] > -0.02


def test_the_same_actions_have_the_same_end(stack: World) -> None:
    ends = []
    for _ in range(2):
        stack.reset(5)
        for step in range(20):
            turn = top_down(0.0, 0.01 * step)
            stack.command(
                Pose(position=np.array(stack.task.start) + np.array([0, 0.01 * step, 0]), rotation=turn), 0.05
            )
            stack.clock.sleep(0.05)
        ends.append(np.concatenate([stack.tool.position, stack.joints]))
    assert np.array_equal(ends[0], ends[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"home": [0, 0]}, "7 joints and 2 angles"),
        ({"home": [9, 0, 0, -1, 0, 1, 0]}, "joint 0 of 'panda' is at 9"),
        ({"flange": {"position": [0, 0, "x"]}}, "expected a number"),
        ({"joint": []}, "unknown value in .*'joint'"),
    ],
)
def test_arms_that_cannot_be(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    plain = json.loads(files("lamp_client.twin").joinpath("panda.json").read_text())
    (tmp_path / "arm.json").write_text(json.dumps({**plain, **change}))
    with pytest.raises(LampClientError, match=message):
        read_arm(str(tmp_path / "arm.json"))
    with pytest.raises(LampClientError, match="unknown arm of the twin"):
        read_arm("ur5")
    with pytest.raises(LampClientError, match=r"cannot be read"):
        read_arm(str(tmp_path / "none.json"))


def test_without_mujoco_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *given: Any, **named: Any) -> Any:
        if name == "mujoco":
            raise ModuleNotFoundError("No module named 'mujoco'", name="mujoco")
        return real(name, *given, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingSoftwareError, match=r"mujoco is not installed\. pip install 'lamp-client\[twin\]'"):
        World(make_task("stack_cup"))


@pytest.mark.long
def test_twenty_actions_a_second_in_real_time_with_a_camera_in_a_thread() -> None:
    world = World(make_task("stack_cup"), real_time=True)
    rig = twin_rig(world)

    def act(seen: Any, seed: Any) -> np.ndarray:
        actions = np.tile(seen.state, (30, 1))
        actions[:, 1] += 0.03 * np.sin(np.arange(30) / 15 * math.pi)
        return actions

    with rig:
        went = drive_rig(rig, InProcessPolicy(act), OpenLoop(), instruction="wave", steps=60)
        assert rig.frames[CAMERA].number > 10 and rig.watchdog.stopped is None
    assert 10 < went.rate < 21  # 20 on a machine that does nothing else
