"""The paper's tasks in the twin (Section V-B): objects, layouts, stages as predicates, and a scripted expert for each.

What the stages are differs between the paper's body and its supplement; both are here, under these names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lamp_client.envs.rotations import axis_angle_from_matrix, matrix_from_axis_angle, quaternion_from_matrix
from lamp_client.errors import UnknownNameError
from lamp_client.rig.devices import Pose
from lamp_client.twin.scene import THING, mujoco_module
from lamp_client.twin.world import Stage, Task, Waypoint, World, top_down

DEFINITIONS = ("body", "supplement")
Rgba = tuple[float, float, float, float]
BLUE, RED, GREEN, WHITE = (0.1, 0.25, 0.8, 1.0), (0.8, 0.12, 0.1, 1.0), (0.1, 0.6, 0.2, 1.0), (0.92, 0.92, 0.94, 1.0)
_UP = np.array([0.0, 0.0, 1.0])
_FADE = 0.12
"""Distance from where it waits within which the expert's displacement fades [m]."""


@dataclass(kw_only=True)
class Progress:
    """How far an episode has come: stages count in their order, and stay completed."""

    world: World
    definition: str = "body"
    completed: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.definition not in DEFINITIONS:
            raise UnknownNameError("definition of the stages", self.definition, DEFINITIONS)
        self._stages = self.world.task.stages(self.definition)

    def look(self) -> int:
        """Looks at the scene now; returns the number of completed stages."""
        while self.completed < len(self._stages) and self._stages[self.completed].holds(self.world):
            self.completed += 1
        return self.completed

    @property
    def of(self) -> int:
        """The number of stages."""
        return len(self._stages)

    @property
    def share(self) -> float:
        """The paper's task progress."""
        return self.completed / self.of

    @property
    def done(self) -> bool:
        return self.completed == self.of


@dataclass(kw_only=True)
class ScriptedExpert:
    """The script of a world's task as an executor of `lamp_client.control.drive`: a target a step, along straight lines."""

    world: World
    values: Callable[[Pose, float], np.ndarray]
    """From a pose and an openness to an action (`Rig.values`)."""
    max_step: float
    """[m] at full speed."""
    max_turn: float
    """[rad]"""
    noise: float = 0.0
    """Standard deviation of a slowly changing displacement of what is executed [m]; it fades towards where the expert waits."""
    seed: int = 0
    chunk: None = field(default=None, init=False)
    calls: int = field(default=0, init=False)
    done: bool = field(default=False, init=False)

    def reset(self) -> None:
        """See `lamp_client.chunks.Executor`."""
        self.done, self._script, self._left_s = False, self.world.task.script(self.world), 0.0
        self._pose, self._goal = self.world.tool, None
        self._waited: Pose | None = None
        self._openness = self.world.openness
        self._rng, self._drift, self._offset = np.random.default_rng([self.seed, 11]), np.zeros(3), np.zeros(3)

    def next_action(self, observe: Any, policy: Any, noise_seed: Any) -> np.ndarray:
        """The next target; the last one again when the script has ended."""
        if self._goal is None:
            self._goal = next(self._script, None)
            if self._goal is None:
                self.done, self._offset = True, np.zeros(3)
                return self.values(self._pose, self._openness)
            self._left_s = self._goal.wait_s
        goal = self._goal
        self._openness = goal.openness
        turn = axis_angle_from_matrix(goal.pose.rotation @ self._pose.rotation.T)
        far, angle = goal.pose.distance(self._pose), float(np.linalg.norm(turn))
        steps = max(far / (goal.speed * self.max_step), angle / (goal.speed * self.max_turn), 1.0)
        self._pose = Pose(
            position=self._pose.position + (goal.pose.position - self._pose.position) / steps,
            rotation=matrix_from_axis_angle(turn / steps) @ self._pose.rotation,
        )
        if steps <= 1.0:
            self._left_s -= 0.05
            if self._left_s <= 1e-6:
                self._goal, self._waited = None, self._pose if goal.wait_s else None
        self._drift += -0.1 * self._drift + 0.45 * self.noise * self._rng.standard_normal(3)
        # None where the fingers close or open.
        quiet = [goal.pose] if goal.wait_s else []
        quiet += [self._waited] if self._waited is not None else []
        near = min((self._pose.distance(each) for each in quiet), default=_FADE)
        self._offset = self._drift * min(1.0, near / _FADE) ** 2
        return self.values(self._pose, goal.openness)

    def disturbed(self, action: np.ndarray) -> np.ndarray:
        """What is executed in place of the last action. The action itself is what is recorded: demonstrations then show how to
        come back, where with the displaced one they would teach to go astray."""
        return np.concatenate([action[:3] + self._offset, action[3:]]).astype(np.float32)


def shell(
    body: Any,
    *,
    bottom: float,
    top: float,
    height: float,
    wall: float,
    rgba: Rgba,
    density: float,
    sides: int = 16,
) -> None:
    """A cup, bowl, plate or pot: a round bottom, and walls of boxes from the radius `bottom` to the radius `top` [m]."""
    mj = mujoco_module()
    look: dict[str, Any] = {"rgba": rgba, "density": density, **THING}
    cylinder = mj.mjtGeom.mjGEOM_CYLINDER
    body.add_geom(type=cylinder, size=[bottom, wall / 2, 0], pos=[0, 0, wall / 2], **look)
    slope, length = math.atan2(top - bottom, height), math.hypot(height, top - bottom)
    half = 1.02 * math.tan(math.pi / sides) * max(bottom, top)
    radius = (bottom + top - wall) / 2
    for side in range(sides):
        angle = 2 * math.pi * side / sides
        rotation = matrix_from_axis_angle(_UP * angle) @ matrix_from_axis_angle(np.array([0.0, slope, 0.0]))
        body.add_geom(
            type=mj.mjtGeom.mjGEOM_BOX,
            size=[wall / 2, half, length / 2],
            pos=[radius * math.cos(angle), radius * math.sin(angle), height / 2],
            quat=quaternion_from_matrix(rotation),
            **look,
        )


def _free(spec: Any, name: str) -> Any:
    body = spec.worldbody.add_body(name=name)
    body.add_freejoint(name=name)
    return body


def _goes(position: Any, rotation: np.ndarray, openness: float, wait_s: float = 0.0, speed: float = 0.8) -> Waypoint:
    pose = Pose(position=np.asarray(position, dtype=np.float64), rotation=rotation)
    return Waypoint(pose=pose, openness=openness, wait_s=wait_s, speed=speed)


def _yaw_from_base(position: np.ndarray) -> float:
    return math.atan2(position[1], position[0])


@dataclass(kw_only=True)
class StackCup(Task):
    """A blue cup is grasped from the side and released in a green bowl."""

    name: str = "stack_cup"
    instruction: str = "stack the blue cup into the green bowl"
    category: str = "Pick-and-place"
    step_limit: int = 400
    tilt: float = math.radians(45)
    """Of the expert's approach from straight down [rad]."""

    def build(self, spec: Any) -> None:
        shell(_free(spec, "cup"), bottom=0.028, top=0.034, height=0.09, wall=0.004, rgba=BLUE, density=400)
        shell(_free(spec, "bowl"), bottom=0.045, top=0.085, height=0.055, wall=0.006, rgba=GREEN, density=900)

    def lay_out(self, world: World, rng: np.random.Generator, condition: str) -> None:
        side = -1.0 if condition == "unseen_layout" else 1.0
        cup = [rng.uniform(0.54, 0.66), side * rng.uniform(0.06, 0.22), 0.001]
        bowl = [rng.uniform(0.54, 0.66), -side * rng.uniform(0.06, 0.22), 0.001]
        world.place("cup", np.array(cup), rng.uniform(-3, 3))
        world.place("bowl", np.array(bowl), rng.uniform(-3, 3))
        other = condition == "unseen_object"
        red = rng.random() < 0.5
        world.colour("cup", RED if other and red else BLUE)
        world.colour("bowl", WHITE if other and not red else GREEN)

    def stages(self, definition: str) -> tuple[Stage, ...]:
        in_bowl = Stage(name="the cup is released in the bowl", holds=self.in_bowl)
        if definition == "body":
            return (Stage(name="the cup is grasped from the side", holds=self.grasped_from_the_side), in_bowl)
        if definition == "supplement":
            return (Stage(name="the cup is grasped", holds=self.grasped), in_bowl)
        raise UnknownNameError("definition of the stages", definition, DEFINITIONS)

    def grasped(self, world: World) -> bool:
        """Both fingers hold the cup above the table."""
        return world.held("cup") and world.body("cup").position[2] > 0.01

    def grasped_from_the_side(self, world: World) -> bool:
        """... with the tool more than 30 degrees from straight down."""
        return self.grasped(world) and world.tool.rotation[2, 2] > -math.cos(math.radians(30))

    def in_bowl(self, world: World) -> bool:
        """The cup stands in the bowl, and the fingers have let it go."""
        cup, bowl = world.body("cup"), world.body("bowl")
        away = cup.position - bowl.position
        inside = math.hypot(away[0], away[1]) < 0.045 and 0 < away[2] < 0.04 and cup.rotation[2, 2] > 0.8
        free = not world.held("cup") and world.openness > 0.5 and world.moving("cup") < 0.05
        return inside and free and bowl.position[2] < 0.02

    def script(self, world: World) -> Iterator[Waypoint]:
        cup, bowl = world.body("cup").position, world.body("bowl").position
        grip, let = (top_down(_yaw_from_base(each), self.tilt) for each in (cup, bowl))
        at, over = np.array([cup[0], cup[1], 0.055]), np.array([bowl[0], bowl[1], 0.08])
        # The tool is tilted well in front of the base: near it the arm's elbow would turn over. Near the objects it is slow, as
        # people are: a policy that acts every 0.4 s looks several times before it touches anything.
        yield _goes([0.64, at[1] / 2, 0.22], grip, 1.0, speed=0.6)
        yield _goes(at - 0.10 * grip[:, 2] + 0.04 * _UP, grip, 1.0, speed=0.5)
        yield _goes(at, grip, 1.0, wait_s=0.1, speed=0.2)
        yield _goes(at, grip, 0.0, wait_s=0.5)
        yield _goes(at + 0.16 * _UP, grip, 0.0, speed=0.5)
        yield _goes(over + 0.14 * _UP, let, 0.0, wait_s=0.2, speed=0.5)
        yield _goes(over, let, 0.0, wait_s=0.2, speed=0.3)
        yield _goes(over, let, 1.0, wait_s=0.5)
        yield _goes(over - 0.14 * let[:, 2], let, 1.0, speed=0.4)
        yield _goes(over - 0.14 * let[:, 2] + 0.06 * _UP, let, 1.0, wait_s=0.3)


@dataclass(kw_only=True)
class MakingBread(Task):
    """Bread is put on a plate, an egg poured on it out of a pot, and the pot brought back."""

    name: str = "making_bread"
    instruction: str = "put the bread on the plate and pour the egg on it"
    category: str = "Long-horizon"
    step_limit: int = 1000

    def build(self, spec: Any) -> None:
        mj = mujoco_module()
        box, ellipsoid = mj.mjtGeom.mjGEOM_BOX, mj.mjtGeom.mjGEOM_ELLIPSOID
        pot = _free(spec, "pot")
        shell(pot, bottom=0.042, top=0.066, height=0.045, wall=0.004, rgba=(0.2, 0.2, 0.22, 1), density=600)
        handle = {"pos": [0.115, 0, 0.038], "size": [0.05, 0.011, 0.009], "rgba": [0.1, 0.1, 0.1, 1], "density": 300}
        pot.add_geom(type=box, friction=[1.2, 0.01, 1e-4], condim=4, **handle, **THING)
        egg = _free(spec, "egg")
        # Slippery in the pot; the bread, of higher priority, holds it.
        slippery = {"friction": [0.15, 0.005, 1e-4], "condim": 6, "priority": 1}
        egg.add_geom(
            type=ellipsoid, size=[0.024, 0.024, 0.011], rgba=[1, 0.85, 0.2, 1], density=900, **slippery, **THING
        )
        plate, bowl = _free(spec, "plate"), _free(spec, "serving_bowl")
        shell(plate, bottom=0.075, top=0.1, height=0.018, wall=0.005, rgba=WHITE, density=1200)
        shell(bowl, bottom=0.072, top=0.1, height=0.032, wall=0.005, rgba=GREEN, density=1200)
        bread = _free(spec, "bread")
        rough = {"friction": [1.5, 0.05, 0.01], "condim": 6, "priority": 2}
        bread.add_geom(type=box, size=[0.046, 0.032, 0.012], rgba=[0.8, 0.6, 0.35, 1], density=300, **rough, **THING)

    def lay_out(self, world: World, rng: np.random.Generator, condition: str) -> None:
        side = -1.0 if condition == "unseen_layout" else 1.0
        pot = np.array([rng.uniform(0.42, 0.50), side * rng.uniform(0.12, 0.18), 0.001])
        plate = np.array([rng.uniform(0.46, 0.54), -side * rng.uniform(0.14, 0.20), 0.001])
        bread = np.array([rng.uniform(0.38, 0.44), -side * rng.uniform(-0.02, 0.02), 0.013])
        yaw = side * (math.pi / 2 + rng.uniform(-0.3, 0.3))
        unused = np.array([-1.0, 0.0, -0.79])
        serving = condition == "unseen_object"
        world.place("pot", pot, yaw)
        world.place("egg", pot + 0.02 * _UP)
        world.place("plate", unused if serving else plate)
        world.place("serving_bowl", plate if serving else unused)
        world.place("bread", bread, rng.uniform(-0.3, 0.3))
        self._pot_place = pot[:2]
        self._plate = "serving_bowl" if serving else "plate"

    def stages(self, definition: str) -> tuple[Stage, ...]:
        bread = Stage(name="the bread is on the plate", holds=self.bread_served)
        if definition == "body":
            return (
                bread,
                Stage(name="the egg is poured on the bread", holds=self.egg_on_bread),
                Stage(name="the pot is back in its place", holds=self.pot_returned),
            )
        if definition == "supplement":
            poured = Stage(
                name="the egg is poured and the pot back",
                holds=lambda world: self.egg_poured(world) and self.pot_returned(world),
            )
            return (bread, poured, Stage(name="the egg is on the bread", holds=self.egg_on_bread))
        raise UnknownNameError("definition of the stages", definition, DEFINITIONS)

    def bread_served(self, world: World) -> bool:
        """The bread lies on the plate, and the fingers have let it go."""
        away = world.body("bread").position - world.body(self._plate).position
        return math.hypot(away[0], away[1]) < 0.05 and 0 < away[2] < 0.05 and not world.held("bread")

    def egg_poured(self, world: World) -> bool:
        """The egg is out of the pot."""
        return float(np.linalg.norm(world.body("egg").position - world.body("pot").position)) > 0.09

    def egg_on_bread(self, world: World) -> bool:
        """The egg lies on the bread."""
        bread = world.body("bread")
        away = bread.rotation.T @ (world.body("egg").position - bread.position)
        on = abs(away[0]) < 0.05 and abs(away[1]) < 0.036 and 0.012 < away[2] < 0.035
        return on and world.moving("egg") < 0.05

    def pot_returned(self, world: World) -> bool:
        """The pot stands where it stood, and the fingers have let it go."""
        pot = world.body("pot")
        near = float(np.linalg.norm(pot.position[:2] - self._pot_place)) < 0.04 and pot.position[2] < 0.01
        return near and pot.rotation[2, 2] > 0.95 and not world.held("pot")

    def script(self, world: World) -> Iterator[Waypoint]:
        bread, plate = world.body("bread"), world.body(self._plate).position
        along = bread.rotation[:, 0] * (1 if bread.rotation[0, 0] > 0 or abs(bread.rotation[0, 0]) < 0.5 else -1)
        yaw = math.atan2(along[1], along[0])
        yaw = (yaw + math.pi / 2) % math.pi - math.pi / 2  # a grasp is the same after half a turn
        grip, at, down = top_down(yaw), bread.position + 0.004 * _UP, np.array([plate[0], plate[1], 0.026])
        if self._plate == "serving_bowl":
            down[2] += 0.004
        yield _goes(at + 0.12 * _UP, grip, 1.0)
        yield _goes(at, grip, 1.0, wait_s=0.1, speed=0.4)
        yield _goes(at, grip, 0.0, wait_s=0.5)
        yield _goes(at + 0.14 * _UP, grip, 0.0, speed=0.6)
        yield _goes(down + 0.12 * _UP, grip, 0.0, wait_s=0.2)
        yield _goes(down, grip, 0.0, wait_s=0.2, speed=0.4)
        yield _goes(down, grip, 0.75, wait_s=0.5)
        yield _goes(down + 0.16 * _UP, grip, 1.0, speed=0.5)
        yield from self._pour(world)

    def _pour(self, world: World) -> Iterator[Waypoint]:
        pot = world.body("pot")
        axis = pot.rotation[:, 0]  # of the handle, away from the pot
        at = pot.position + pot.rotation @ [0.125, 0.0, 0.036]
        grip = top_down(math.atan2(axis[1], axis[0]))
        yield _goes(at + 0.12 * _UP, grip, 1.0)
        yield _goes(at, grip, 1.0, wait_s=0.1, speed=0.4)
        yield _goes(at, grip, 0.0, wait_s=0.6)
        yield _goes(at + 0.16 * _UP, grip, 0.0, wait_s=0.3, speed=0.4)
        to_pot = world.body("pot").position - world.tool.position
        bread = world.body("bread").position
        sideways = np.cross(_UP, axis)
        sign, over = min(
            ((sign, self._above(bread, to_pot, sideways, sign)) for sign in (1.0, -1.0)),
            key=lambda choice: self._unreachable(world, choice[1], axis, choice[0], grip),
        )
        yield _goes(over + 0.04 * _UP, grip, 0.0, wait_s=0.3, speed=0.5)
        yield _goes(over, grip, 0.0, wait_s=0.3, speed=0.4)
        for angle in np.linspace(0.0, self._last_roll, 12)[1:]:
            yield _goes(over, matrix_from_axis_angle(-sign * angle * axis) @ grip, 0.0, speed=0.6)
        last = matrix_from_axis_angle(-sign * self._last_roll * axis) @ grip
        yield _goes(over, last, 0.0, wait_s=0.8)
        yield _goes(over + 0.05 * _UP, grip, 0.0, wait_s=0.2, speed=0.6)
        yield _goes(at + 0.14 * _UP, grip, 0.0, wait_s=0.2, speed=0.6)
        yield _goes(at + 0.003 * _UP, grip, 0.0, wait_s=0.3, speed=0.3)
        yield _goes(at + 0.003 * _UP, grip, 1.0, wait_s=0.5)
        yield _goes(at + 0.12 * _UP, grip, 1.0, wait_s=0.3, speed=0.5)

    _last_roll = 1.8
    """How far the pot is rolled about its handle [rad]."""
    _lead = 0.055
    """How far beside the bread's middle the handle's axis is while pouring [m]."""
    _pour_height = 0.17
    """Of the handle above the table [m]."""

    def _above(self, bread: np.ndarray, to_pot: np.ndarray, sideways: np.ndarray, sign: float) -> np.ndarray:
        over = bread - to_pot - sign * self._lead * sideways
        return np.array([over[0], over[1], self._pour_height])

    def _unreachable(self, world: World, over: np.ndarray, axis: np.ndarray, sign: float, grip: np.ndarray) -> float:
        """How far the arm stays from the poses of pouring: metres, and a tenth of radians."""
        joints, worst = world.joints, 0.0
        for angle in [*[0.0] * 8, *np.linspace(0, self._last_roll, 16)]:
            want = Pose(position=over, rotation=matrix_from_axis_angle(-sign * angle * axis) @ grip)
            joints = world.kinematics.solve(want, joints)
            found = world.kinematics.pose(joints)
            if angle:
                worst = max(worst, found.distance(want) + 0.1 * found.angle(want))
        return worst


TASKS: Mapping[str, Callable[[], Task]] = {"stack_cup": StackCup, "making_bread": MakingBread}
"""Name -> a task."""


def make_task(name: str) -> Task:
    """
    Raises:
        UnknownNameError: there is no such task.
    """
    if name not in TASKS:
        raise UnknownNameError("task of the twin", name, TASKS)
    return TASKS[name]()
