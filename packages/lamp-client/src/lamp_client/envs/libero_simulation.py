"""robosuite's environment behind a LIBERO task, without its observations and without the work it does twice.

The physics are bit-identical to robosuite's own `step`; a step takes 4 ms instead of 14.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from lamp_client.envs.bddl import checked_copy
from lamp_client.envs.libero_tasks import LiberoTask, import_benchmark, quiet
from lamp_client.envs.perturbations import ArmStart
from lamp_client.envs.rendering import import_mujoco
from lamp_client.errors import InvalidValueError, LampClientError, UnknownNameError

_SINGLE_SOLVE_SINCE = (3, 4)
"""From this MuJoCo version on, solving for accelerations twice at one state is known to leave no trace in the next."""


def build(task: LiberoTask) -> Any:
    """Builds robosuite's environment for a task: no cameras, no renderer, no horizon.

    Raises:
        InvalidValueError: The task's definition holds what it may not (see `bddl`), or LIBERO can build nothing of it.
        MissingSoftwareError: if LIBERO is not installed.
    """
    import_benchmark()
    # Without this robosuite warns, at every start, that no private macro file was found.
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    with checked_copy(task.bddl_path) as definition, quiet():
        import robosuite
        from libero.libero.envs import bddl_utils
        from libero.libero.envs.bddl_base_domain import TASK_MAPPING

        extra_arguments = {} if task.scene_assets is None else task.scene_assets.register()
        problem = bddl_utils.get_problem_info(str(definition))["problem_name"]
        if problem not in TASK_MAPPING:
            raise UnknownNameError(f"problem, in {task.bddl_path},", problem, sorted(TASK_MAPPING))
        try:
            env = TASK_MAPPING[problem](
                str(definition),
                robots=["Panda"],
                controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
                gripper_types="default",
                initialization_noise=None,
                use_camera_obs=False,
                has_renderer=False,
                has_offscreen_renderer=False,
                control_freq=20,
                ignore_done=True,
                hard_reset=False,
                **extra_arguments,
            )
            _check_goal(env)
        except (ImportError, LampClientError):
            raise
        except Exception as error:  # the libraries raise anything on objects, places and models that do not fit
            raise InvalidValueError(
                f"LIBERO cannot build {task.bddl_path} ({type(error).__name__}: {error}).",
                hint="Does the file name only objects, fixtures and regions that this LIBERO has?",
            ) from error
    env.bddl_file_name = str(task.bddl_path)
    # robosuite would update every observable at each of the 25 substeps of a step.
    env._update_observables = lambda force=False: None
    env._get_observations = lambda force_update=False: {}
    return env


def _check_goal(env: Any) -> None:
    """Finds conditions that could only fail in the middle of an episode."""
    from libero.libero.envs.predicates import get_predicate_fn_dict

    predicates = get_predicate_fn_dict()
    for condition in env.parsed_problem["goal_state"]:
        if not isinstance(condition, list) or len(condition) not in (2, 3):
            raise InvalidValueError(f"(:goal ...) holds {condition!r}; expected a condition of one or two objects.")
        predicate, *objects = condition
        if predicate not in predicates:
            raise UnknownNameError("condition in (:goal ...)", predicate, sorted(predicates))
        for name in objects:
            if name not in env.object_states_dict:
                raise UnknownNameError("object in (:goal ...)", name, sorted(env.object_states_dict))


def reset_to(env: Any, state: np.ndarray, seed: tuple[int, ...], arm: ArmStart | None = None) -> None:
    """Resets robot, controller and fixtures, then puts every joint where `state` has it, the arm's where `arm` says.

    What follows depends on `state` and `seed` alone, not on what the environment did before: the library draws the fixtures'
    places from NumPy's global generator, which is seeded for the duration.
    """
    from robosuite.utils.errors import RandomizationError

    for robot in env.robots:
        robot.init_qpos = robot.robot_model.init_qpos if arm is None else arm.joints
    with quiet(), _numpy_seed(seed):
        while True:
            try:
                env.reset()
                break
            except RandomizationError:  # no room found for an object; `state` places it anyway
                continue
    for robot in env.robots:
        # A reset without rebuilding the model forgets this: the gripper would start from its last command.
        robot.gripper.current_action = np.zeros(robot.gripper.dof)
    env.sim.set_state_from_flattened(state)
    if arm is not None and arm.moved:
        robot = env.robots[0]
        env.sim.data.qpos[robot._ref_joint_pos_indexes] = arm.joints
        env.sim.data.qvel[robot._ref_joint_vel_indexes] = 0.0
    env.sim.forward()
    env._check_success()
    env._post_process()


def copy_state(source: Any, target: Any) -> None:
    """Puts an environment into the state of another of the same model: the simulation, controllers and grippers.

    Raises:
        InvalidValueError: The models differ.
    """
    (model, data), (other, copied) = ((env.sim.model._model, env.sim.data._data) for env in (source, target))
    for name in ("body_pos", "body_quat", "cam_pos", "cam_quat", "cam_fovy", "geom_size"):
        if not np.array_equal(getattr(model, name), getattr(other, name)):
            raise InvalidValueError(f"the two simulations differ in {name}; expected the same task, reset alike.")
    import_mujoco().mj_copyData(copied, other, data)
    for one, twin in zip(source.robots, target.robots, strict=True):
        for name, value in vars(one.controller).items():
            if isinstance(value, bool | int | float | np.ndarray):
                setattr(twin.controller, name, np.array(value) if isinstance(value, np.ndarray) else value)
        twin.gripper.current_action = np.array(one.gripper.current_action)
    target.timestep, target.cur_time = source.timestep, source.cur_time


def arm_touches(env: Any) -> bool:
    """Whether any part of the robot is in contact with anything that is no part of it."""
    model, data = env.sim.model._model, env.sim.data._data
    root = model.body_rootid[env.sim.model.body_name2id(env.robots[0].robot_model.root_body)]
    of_robot = [model.body_rootid[model.geom_bodyid[geom]] == root for geom in range(model.ngeom)]
    return any(of_robot[contact.geom1] != of_robot[contact.geom2] for contact in data.contact[: data.ncon])


def step(env: Any, action: np.ndarray) -> bool:
    """Executes one action for 1/20 s and returns whether the task's goal holds.

    robosuite computes everything twice or three times per substep: before the controller, inside it, and in the integration.
    MuJoCo's split step computes positions and velocities once, lets the controller read them, and completes the step.
    """
    mujoco = import_mujoco()
    model, data = env.sim.model._model, env.sim.data._data
    version = tuple(int(part) for part in mujoco.__version__.split(".")[:2])
    if version < _SINGLE_SOLVE_SINCE or model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4:
        return bool(env.step(action)[2])
    env.timestep += 1
    with _forward_done(env.sim):
        for substep in range(int(env.control_timestep / env.model_timestep)):
            mujoco.mj_step1(model, data)
            env._pre_action(action, policy_step=substep == 0)
            mujoco.mj_step2(model, data)
    env.cur_time += env.control_timestep
    env._post_action(action)
    return bool(env._check_success())


def refresh(env: Any) -> None:
    """Makes poses, cameras and lights agree with the joint positions.

    A step leaves them one substep (2 ms) behind. The next step recomputes all of it, so the physics are not touched.
    """
    mujoco = import_mujoco()
    model, data = env.sim.model._model, env.sim.data._data
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)


@contextlib.contextmanager
def _forward_done(sim: Any) -> Iterator[None]:
    """Makes the controller's own call of `sim.forward` do nothing, for its result is already there."""
    sim.forward = lambda: None
    try:
        yield
    finally:
        del sim.forward


@contextlib.contextmanager
def _numpy_seed(seed: tuple[int, ...]) -> Iterator[None]:
    state = np.random.get_state()
    np.random.seed(list(seed))
    try:
        yield
    finally:
        np.random.set_state(state)


Placement = dict[str, list[float]]
"""Object -> [dx, dy] in metres."""

MAX_SHIFT = 0.15
"""Beyond this the arm no longer reaches everything [m]."""

_TRIES_PER_OBJECT = 50
_CLEARANCE = 0.01
"""Kept between the bounding circles of two objects [m], unless they started closer."""
_MAX_DROP = 0.02
_MAX_SLIDE = 0.02
_MAX_TILT = np.deg2rad(15.0)


def movable_objects(env: Any) -> tuple[str, ...]:
    """Names the objects that stand freely on the table or floor, carry nothing, and are not what the goal puts things on."""
    problem = env.parsed_problem
    objects = env.objects_dict
    on_table, involved = [], set()
    for relation in problem["initial_state"]:
        if len(relation) == 3 and relation[0] in ("on", "in"):
            support = _owner(problem, relation[2])
            if support in objects or support in env.fixtures_dict:
                involved |= {relation[1], support}
            elif relation[1] in objects:
                on_table.append(relation[1])
    receivers = {_owner(problem, goal[2]) for goal in problem["goal_state"] if len(goal) == 3}
    return tuple(name for name in on_table if name not in involved and name not in receivers)


def draw_placement(env: Any, names: Iterable[str], shift: float, generator: np.random.Generator) -> Placement:
    """Displaces each object of a scene that has settled by a uniform draw within +-`shift` along x and y.

    A draw is rejected if the object would touch something new, or come nearer to another object than their bounding circles
    allow. Heights and orientations are kept. An object for which no draw fits stays, with [0, 0].
    """
    model, data = env.sim.model._model, env.sim.data._data
    bodies = {name: env.obj_body_id[name] for name in env.objects_dict}
    radii = {name: _bounding_radius(model, data, body) for name, body in bodies.items()}
    original = {name: data.xpos[body][:2].copy() for name, body in bodies.items()}
    places = dict(original)
    placement: Placement = {}
    for name in names:
        placement[name] = [0.0, 0.0]
        touched = _bodies_touching(model, data, bodies[name])
        distances = {other: np.linalg.norm(original[name] - original[other]) for other in bodies if other != name}
        for _ in range(_TRIES_PER_OBJECT):
            offset = generator.uniform(-shift, shift, size=2)
            place = original[name] + offset
            if not all(
                np.linalg.norm(place - places[other]) >= min(radii[name] + radii[other] + _CLEARANCE, distance)
                for other, distance in distances.items()
            ):
                continue
            _move_object(env, name, offset)
            if _bodies_touching(model, data, bodies[name]) <= touched:
                places[name] = place
                placement[name] = [float(offset[0]), float(offset[1])]
                break
            _move_object(env, name, -offset)
    return placement


def placement_holds(env: Any, placement: Placement, undisturbed: np.ndarray, settled: np.ndarray) -> bool:
    """Whether every displaced object stands as it does undisturbed: not fallen, slid or tipped.

    Args:
        env: robosuite's environment.
        placement: What was displaced, and how far.
        undisturbed: (nbody, 7) body poses after settling without displacements.
        settled: (nbody, 7) body poses after settling with them.
    """
    for name, offset in placement.items():
        body = env.obj_body_id[name]
        moved = settled[body, :3] - undisturbed[body, :3] - [*offset, 0.0]
        turned = 2.0 * np.arccos(np.clip(abs(undisturbed[body, 3:] @ settled[body, 3:]), 0.0, 1.0))
        if abs(moved[2]) > _MAX_DROP or np.hypot(moved[0], moved[1]) > _MAX_SLIDE or turned > _MAX_TILT:
            return False
    return True


def _owner(problem: dict[str, Any], place: str) -> str:
    """The object or fixture that a region belongs to; an object stands for itself."""
    return problem["regions"][place]["target"] if place in problem["regions"] else place


def _move_object(env: Any, name: str, offset: np.ndarray) -> None:
    joint = env.objects_dict[name].joints[-1]
    pose = np.array(env.sim.data.get_joint_qpos(joint))
    pose[:2] += offset
    env.sim.data.set_joint_qpos(joint, pose)
    env.sim.forward()


def _bounding_radius(model: Any, data: Any, body: int) -> float:
    """Radius of the upright cylinder about the body's origin that holds its collision shapes [m]."""
    corners = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1], indexing="ij"), axis=-1).reshape(8, 3)
    radius = 0.0
    for geom in np.flatnonzero(model.body_rootid[model.geom_bodyid] == model.body_rootid[body]):
        if model.geom_contype[geom] == 0 and model.geom_conaffinity[geom] == 0:
            continue
        local = model.geom_aabb[geom, :3] + corners * model.geom_aabb[geom, 3:]
        world = local @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom] - data.xpos[body]
        radius = max(radius, float(np.linalg.norm(world[:, :2], axis=1).max()))
    return radius


def _bodies_touching(model: Any, data: Any, body: int) -> set[int]:
    """Root bodies that a free body is in contact with."""
    root = model.body_rootid[body]
    touching = set()
    for contact in data.contact[: data.ncon]:
        pair = {int(model.body_rootid[model.geom_bodyid[geom]]) for geom in (contact.geom1, contact.geom2)}
        if root in pair:
            touching |= pair - {int(root)}
    return touching
