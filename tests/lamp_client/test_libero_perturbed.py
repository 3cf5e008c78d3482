"""Changed LIBERO scenes in the real simulator: what changes, what does not, and that it is taken back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamp_client.envs import libero_simulation
from lamp_client.envs.libero import LiberoEnv, load_task
from lamp_client.envs.libero_perturbed import PerturbedLibero, unchanged
from lamp_client.envs.libero_plus import tasks
from lamp_client.envs.libero_plus.names import STANDARD_VIEW
from lamp_client.envs.libero_plus.scenery import PlusAssets, PlusObject, PlusScene
from lamp_client.envs.libero_plus.tasks import moved_camera
from lamp_client.envs.libero_tasks import LiberoTask
from lamp_client.envs.perturbations import ArmStart, Effects, SampledPerturbation, StandardScene
from lamp_client.envs.plus_style import parse
from lamp_client.errors import InvalidValueError, SimulationError

pytestmark = pytest.mark.sim
pytest.importorskip("libero")

STILL = np.array([0, 0, 0, 0, 0, 0, -1], dtype=np.float32)


@pytest.fixture(scope="module")
def task() -> LiberoTask:
    return load_task("libero_object", 0)


@pytest.fixture(scope="module")
def env(task: LiberoTask) -> Iterator[PerturbedLibero]:
    with PerturbedLibero(task, unchanged, image_size=128, render="fast") as env:
        yield env


def fixed(effects: Effects, generator: np.random.Generator, standard: StandardScene) -> SampledPerturbation:
    return SampledPerturbation(effects=effects, numbers={"fixed": True})


def started(env: PerturbedLibero, draw: Any, placement_seed: int | None = 3) -> tuple[np.ndarray, np.ndarray]:
    """The reference camera's image and the simulation's state after a reset."""
    env.draw = draw
    env.reset(1, placement_seed)
    return env.observe().images["agentview"], env.snapshot().state


@pytest.mark.long
def test_an_unchanged_scene_is_liberos_and_changes_are_taken_back(env: PerturbedLibero, task: LiberoTask) -> None:
    with LiberoEnv(task, image_size=128, render="fast") as plain:
        plain.reset(1)
        seen, state = plain.observe(), plain.snapshot().state
    for text in ("camera=5", "robot=5", "light.shadows=5", "noise.fog=5+language=3"):
        image, _ = started(env, parse(text).draw)
        assert (image != seen.images["agentview"]).mean() > 0.02, text
    image, back = started(env, unchanged)
    np.testing.assert_array_equal(image, seen.images["agentview"])
    np.testing.assert_array_equal(back, state)
    assert env.instruction == task.instruction and env.variation == {}


def test_only_a_moved_arm_changes_the_physics(env: PerturbedLibero) -> None:
    _, state = started(env, unchanged)
    for text in ("camera.orbit=4", "light.tint=4", "noise.motion_blur=4", "language=4"):
        np.testing.assert_array_equal(started(env, parse(text).draw)[1], state, err_msg=text)
    wrist = env.observe().images["wrist"]
    started(env, parse("camera.orbit=4").draw)
    np.testing.assert_array_equal(env.observe().images["wrist"], wrist)  # the wrist camera stays as it is
    assert (started(env, parse("robot=4").draw)[1] != state).any()


def test_a_moved_arm_stands_where_it_was_put_and_touches_nothing(env: PerturbedLibero) -> None:
    env.draw = parse("robot=5").draw
    for seed in range(3):
        env.reset(1, seed)
        arm = env.effects.arm
        assert arm is not None and env.variation["joints"] == [round(float(angle), 6) for angle in arm.joints]
        # Ten settling steps later the arm has sagged a little.
        joints = env.robosuite.sim.data.qpos[env.robosuite.robots[0]._ref_joint_pos_indexes]
        assert np.abs(joints - arm.joints).max() < 0.05
        assert not libero_simulation.arm_touches(env.robosuite)


def test_a_start_in_the_floor_is_not_taken(env: PerturbedLibero) -> None:
    into_the_floor = np.array([0.0, 1.2, 0.0, -1.2, 0.0, 2.4, 0.8])
    with pytest.raises(SimulationError, match="the arm touched something"):
        started(env, partial(fixed, Effects(arm=ArmStart(joints=into_the_floor, moved=True))))


def test_a_controller_that_began_elsewhere_turns_the_hand_only(env: PerturbedLibero) -> None:
    """What LIBERO-Plus' robot tasks come to: the stored state puts the arm back, the controller keeps its first orientation."""
    env.draw = unchanged
    env.reset(1)
    standard = env.proprioception()
    joints = env.standard.joints + np.array([0.2, 0.1, -0.1, 0.2, 0.3, 0.1, -0.2])
    env.draw = partial(fixed, Effects(arm=ArmStart(joints=joints, moved=False)))
    env.reset(1)
    began = env.proprioception()
    assert np.abs(began[:3] - standard[:3]).max() < 0.05
    assert np.abs(began[3:6] - standard[3:6]).max() > 0.1


def test_corruption_depends_on_the_moment_and_not_on_who_looked(env: PerturbedLibero) -> None:
    draw = parse("noise.gaussian=3").draw

    first, _ = started(env, draw)
    env.step(STILL)
    second = env.observe().images["agentview"]
    env.reset(1, 3)
    env.step(STILL)
    np.testing.assert_array_equal(env.observe().images["agentview"], second)
    np.testing.assert_array_equal(env.observe().images["agentview"], second)
    assert (first != second).mean() > 0.9
    assert (started(env, draw, placement_seed=4)[0] != first).mean() > 0.9


def test_liberoplus_own_view_of_the_standard_scene_is_rounded_but_looks_the_same(env: PerturbedLibero) -> None:
    image, _ = started(env, unchanged)
    pose = moved_camera(env.standard.camera, STANDARD_VIEW)
    rounded, _ = started(env, partial(fixed, Effects(camera=pose)))
    assert 0 < np.abs(pose.position - env.standard.camera.position).max() < 1e-4
    assert np.abs(rounded.astype(float) - image).mean() < 1.0


def test_simulators_are_taken_over_by_tasks_of_the_same_scene(task: LiberoTask) -> None:
    tasks.close_parked()
    first = tasks.open_simulator(task, unchanged, image_size=64, render="fast")
    first.reset(0)
    first.close()
    worded = replace(task, name="worded", instruction="get the soup")
    second = tasks.open_simulator(worded, parse("noise.fog=1").draw, image_size=64, render="fast")
    second.reset(0)
    assert second is first and second.instruction == "get the soup" and second.effects.corruption is not None
    with pytest.raises(InvalidValueError, match="another scene"):
        second.switch_task(replace(task, bddl_path=Path("elsewhere.bddl")), unchanged)
    second.close()
    tasks.close_parked()


def test_scenes_and_objects_of_the_archive_are_built(tmp_path: Path) -> None:
    """An archive made of LIBERO's own assets: a darker scene, and a bowl under other names, its body at either depth."""
    furnished = _furnished(tmp_path, load_task("libero_goal", 7))
    raw = libero_simulation.build(furnished)
    furnished = replace(furnished, initial_states=raw.sim.get_state().flatten()[None])
    raw.close()
    with PerturbedLibero(furnished, unchanged) as env:
        env.reset(0)
        objects = env.robosuite.objects_dict
        assert {objects[name].category_name for name in ("cream_cheese_1", "wine_bottle_1")} == {
            "tea_true",
            "tea_false",
        }
        assert type(env.robosuite).__name__ == "Libero_Tabletop_Manipulation_Lit"
        np.testing.assert_allclose(env.standard.lights.diffuse, 0.2)
        model, _ = env.simulation
        sizes = [np.sum(model.body_rootid[model.geom_bodyid] == env.robosuite.obj_body_id[name]) for name in objects]
        assert len({sizes[list(objects).index(name)] for name in ("cream_cheese_1", "wine_bottle_1")}) == 1


def _furnished(folder: Path, standard: LiberoTask) -> LiberoTask:
    from libero.libero import get_libero_path

    own = Path(get_libero_path("assets"))
    (folder / "scenes").mkdir()
    (folder / "textures").symlink_to(own / "textures")
    lit = (own / "scenes" / "libero_tabletop_base_style.xml").read_text()
    (folder / "scenes" / "lit.xml").write_text(lit.replace('diffuse=".8 .8 .8"', 'diffuse=".2 .2 .2"'))
    for wrapped in (True, False):
        _write_bowl(own / "stable_scanned_objects" / "akita_black_bowl", folder / f"tea_{wrapped}.xml", wrapped)
    text = standard.bddl_path.read_text().replace("LIBERO_Tabletop_Manipulation", "Libero_Tabletop_Manipulation_Lit")
    for name, kind in (("cream_cheese", "tea_true"), ("wine_bottle", "tea_false")):
        assert f"{name}_1 - {name}" in text
        text = text.replace(f"{name}_1 - {name}", f"{name}_1 - {kind}")
    (folder / "task.bddl").write_text(text)
    scene = PlusScene(
        problem="Libero_Tabletop_Manipulation_Lit",
        standard="Libero_Tabletop_Manipulation",
        scene="scenes/lit.xml",
        styles={"floor_style": "light-gray", "wall_style": "light-gray-plaster"},
        textures={"floor": {}, "wall": {}},
    )
    rotation = {"x": (1.57, 1.57), "y": (0.0, 0.0), "z": (0.0, 0.0)}
    objects = tuple(
        PlusObject(category=f"tea_{wrapped}".lower(), file=f"tea_{wrapped}.xml", rotation=rotation)
        for wrapped in (True, False)
    )
    assets = PlusAssets(assets=folder, scene=scene, objects=objects)
    return replace(standard, name="furnished", bddl_path=folder / "task.bddl", scene_assets=assets)


def _write_bowl(bowl: Path, path: Path, wrapped: bool) -> None:
    import xml.etree.ElementTree as ElementTree

    tree = ElementTree.parse(bowl / "akita_black_bowl.xml")
    world = tree.getroot().find("worldbody")
    assert world is not None
    holder = world.find("body")
    assert holder is not None
    if not wrapped:
        body = holder.find("body")
        assert body is not None
        body.extend(holder.findall("site"))
        world.remove(holder)
        world.append(body)
    for part in tree.iter():
        if "file" in part.attrib:
            part.set("file", str((bowl / part.attrib["file"]).resolve()))
    tree.write(path)
