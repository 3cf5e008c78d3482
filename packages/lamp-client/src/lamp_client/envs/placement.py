"""Displacing the objects of a LIBERO scene, so that the stored initial states are not all a policy ever sees."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

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


def draw(env: Any, names: Iterable[str], shift: float, generator: np.random.Generator) -> Placement:
    """Displaces each object of a scene that has settled by a uniform draw within +-`shift` along x and y.

    A draw is rejected if the object would touch something new, or come nearer to another object than their bounding circles
    allow. Heights and orientations are kept. An object for which no draw fits stays, with [0, 0].
    """
    model, data = env.sim.model._model, env.sim.data._data
    bodies = {name: env.obj_body_id[name] for name in env.objects_dict}
    radii = {name: _radius(model, data, body) for name, body in bodies.items()}
    original = {name: data.xpos[body][:2].copy() for name, body in bodies.items()}
    places = dict(original)
    placement: Placement = {}
    for name in names:
        placement[name] = [0.0, 0.0]
        touched = _touching(model, data, bodies[name])
        for _ in range(_TRIES_PER_OBJECT):
            offset = generator.uniform(-shift, shift, size=2)
            place = original[name] + offset
            others = (other for other in bodies if other != name)
            if not all(_apart(name, place, other, places, original, radii) for other in others):
                continue
            _move(env, name, offset)
            if _touching(model, data, bodies[name]) <= touched:
                places[name] = place
                placement[name] = [float(offset[0]), float(offset[1])]
                break
            _move(env, name, -offset)
    return placement


def stands(env: Any, placement: Placement, undisturbed: np.ndarray, settled: np.ndarray) -> bool:
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


def _apart(
    name: str,
    place: np.ndarray,
    other: str,
    places: dict[str, np.ndarray],
    original: dict[str, np.ndarray],
    radii: dict[str, float],
) -> bool:
    started = float(np.linalg.norm(original[name] - original[other]))
    needed = min(radii[name] + radii[other] + _CLEARANCE, started)
    return float(np.linalg.norm(place - places[other])) >= needed


def _move(env: Any, name: str, offset: np.ndarray) -> None:
    joint = env.objects_dict[name].joints[-1]
    pose = np.array(env.sim.data.get_joint_qpos(joint))
    pose[:2] += offset
    env.sim.data.set_joint_qpos(joint, pose)
    env.sim.forward()


def _members(model: Any, body: int) -> np.ndarray:
    """Ids of the geoms that move with a free body."""
    return np.flatnonzero(model.body_rootid[model.geom_bodyid] == model.body_rootid[body])


def _radius(model: Any, data: Any, body: int) -> float:
    """Radius of the upright cylinder about the body's origin that holds its collision shapes [m]."""
    corners = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1], indexing="ij"), axis=-1).reshape(8, 3)
    radius = 0.0
    for geom in _members(model, body):
        if model.geom_contype[geom] == 0 and model.geom_conaffinity[geom] == 0:
            continue
        local = model.geom_aabb[geom, :3] + corners * model.geom_aabb[geom, 3:]
        world = local @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom] - data.xpos[body]
        radius = max(radius, float(np.linalg.norm(world[:, :2], axis=1).max()))
    return radius


def _touching(model: Any, data: Any, body: int) -> set[int]:
    """Root bodies that a free body is in contact with."""
    root = model.body_rootid[body]
    found = set()
    for contact in data.contact[: data.ncon]:
        pair = {int(model.body_rootid[model.geom_bodyid[geom]]) for geom in (contact.geom1, contact.geom2)}
        if root in pair:
            found |= pair - {int(root)}
    return found
