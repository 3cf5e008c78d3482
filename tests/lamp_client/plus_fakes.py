"""A small made-up copy of LIBERO-Plus: the layout and the syntax of the real one, with a few tasks."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import torch

FIXTURES = Path(__file__).parents[1] / "fixtures" / "libero_plus"

NAMES = {
    "libero_spatial": ("pick_up_the_bowl_light_3", "pick_up_the_bowl_view_0_0_100_0_0_initstate_0_noise_7"),
    "libero_object": ("pick_up_the_soup_tb_2", "pick_up_the_soup_view_30_15_100_0_0_initstate_0"),
    "libero_goal": (
        "turn_on_the_stove_add_5",
        "turn_on_the_stove_moved_level2_sample1",
        "turn_on_the_stove_language_4_view_0_0_100_0_0_initstate_0",
        "turn_on_the_stove_view_0_0_100_0_0_initstate_401",
    ),
    "libero_10": ("KITCHEN_SCENE3_close_it_view_0_0_100_0_0_initstate_2", "KITCHEN_SCENE3_close_it_level1_sample3"),
}

_DEFINITION = """(define (problem {problem})
  (:domain robosuite)
  (:language {language})
  (:regions (stove_region (:target main_table)))
  (:objects
    plate_1 - plate
{objects}
  )
)
"""

_PROBLEMS = """raise SystemExit("this file must not be run")

@register_problem
class Libero_Tabletop_Manipulation(BDDLBaseDomain):
    def __init__(self, bddl_file_name, *args, **kwargs):
        if "scene_xml" not in kwargs or kwargs["scene_xml"] is None:
            kwargs.update({"scene_xml": "scenes/base.xml"})
        if "scene_properties" not in kwargs:
            kwargs.update({"scene_properties": {"floor_style": "light-gray", "wall_style": "plain"}})

@register_problem
class Libero_Tabletop_Manipulation_Lit_415(Libero_Tabletop_Manipulation):
    def __init__(self, bddl_file_name, horizon_view, *args, **kwargs):
        if "scene_xml" not in kwargs or kwargs["scene_xml"] is None:
            kwargs.update({"scene_xml": "scenes/lights/lit_415.xml"})
        super().__init__(bddl_file_name=bddl_file_name, *args, **kwargs)

@register_problem
class Libero_Tabletop_Manipulation_Walls(Libero_Tabletop_Manipulation):
    def __init__(self, bddl_file_name, horizon_view, *args, **kwargs):
        if "scene_properties" not in kwargs or kwargs["scene_properties"] is None:
            kwargs.update({"scene_properties": {"floor_style": "cork", "wall_style": "plain"}})
        super().__init__(bddl_file_name=bddl_file_name, *args, **kwargs)
"""

_STYLES = """FLOOR_STYLE = {"light-gray": "gray.png", "cork": "cork copy.png"}

WALL_STYLE = {
    "plain": "plain.png",
}
"""

_OBJECTS = """
def hack():
    raise SystemExit("this file must not be run")

hack()

@register_object
class BoxOfTea_1(CustomObjects):
    def __init__(self, name="box_of_tea__1", obj_name="box_of_tea__1"):
        custom_path = os.path.join(
                str(absolute_path), f"assets/new_objects/tea/abc/tea.xml"
            )
        super().__init__(custom_path=custom_path, name=name, obj_name=obj_name)
        self.rotation = {
            "x": (-np.pi / 2, -np.pi / 2),
            "y": (0.5, np.pi),
        }
        self.rotation_axis = None
"""

_ROBOT = """import os
os._exit(3)
class MountedPanda(ManipulatorModel):
    @property
    def init_qpos(self):
        return np.array([0, -1.61037389e-01, 0.00, -2.44459747e00, 0.00, 2.22675220e00, np.pi / 4])


class MountedPanda40(MountedPanda):
    @property
    def init_qpos(self):
        return np.array([9, 9, 9, 9, 9, 9, 9])


class MountedPanda401(MountedPanda):
    @property
    def init_qpos(self):
        return np.array([ 0.02097405, -0.16687568,  0.02734903, -2.38028663, -0.00988726,
  2.21686563,  0.85208136])
"""


def names() -> dict[str, list[str]]:
    """The real benchmark's 10,030 names."""
    groups = json.loads(gzip.decompress((FIXTURES / "names.json.gz").read_bytes()))
    return {suite: [base + rest for base, rests in found for rest in rests] for suite, found in groups.items()}


def make_copy(folder: Path, inner: str = "liberoplus/liberoplus") -> Path:
    """Writes the copy and returns the folder that a user would name."""
    root = folder / inner
    _write(root / "benchmark" / "libero_suite_task_map.py", f"libero_task_map = {NAMES!r}\n")
    _write(root / "envs" / "problems" / "libero_tabletop_manipulation.py", _PROBLEMS)
    _write(root / "envs" / "arenas" / "style.py", _STYLES)
    _write(root / "envs" / "objects" / "custom_objects.py", _OBJECTS)
    _write(root / "envs" / "robots" / "mounted_panda.py", _ROBOT)
    _write(root / "envs" / "robots" / "on_the_ground_panda.py", _ROBOT.replace("MountedPanda", "OnTheGroundPanda"))
    for suite, found in NAMES.items():
        for name in found:
            define(root, suite, name.split("_view_")[0])
    return folder


def define(root: Path, suite: str, stem: str) -> None:
    """Writes a task's definition and initial states."""
    problem = {"light": "Libero_Tabletop_Manipulation_Lit_415", "tb": "Libero_Tabletop_Manipulation_Walls"}
    kind = next((kind for kind in problem if f"_{kind}_" in stem), "")
    text = _DEFINITION.format(
        problem=problem.get(kind, "LIBERO_Tabletop_Manipulation"),
        language="Please Ignite\n the Stove" if "_language_" in stem else "Turn on the stove",
        objects="    tea_1 - box_of_tea__1" if "_add_" in stem else "",
    )
    _write(root / "bddl_files" / suite / f"{stem}.bddl", text)
    base = stem.split("_language_")[0].split("_light_")[0].split("_tb_")[0]
    states = root / "init_files" / suite / f"{base}.pruned_init"
    values = np.arange(12.0).reshape(3, 4)
    if "_add_" in stem or "_level" in stem:
        states, values = root / "init_files" / "libero_newobj" / suite / f"{stem}.pruned_init", values[0]
    states.parent.mkdir(parents=True, exist_ok=True)
    torch.save(values, states)


def classify(folder: Path, inner: str = "liberoplus/liberoplus", **changes: str) -> None:
    """Writes task_classification.json: everything is Sensor Noise of level 3, unless changed by the end of its name."""
    tasks = {
        suite: [
            {
                "id": index + 1,
                "name": name,
                "category": changes.get(name.rsplit("_", 1)[1], "Sensor Noise"),
                "difficulty_level": 3,
            }
            for index, name in enumerate(found)
        ]
        for suite, found in NAMES.items()
    }
    _write(folder / inner / "benchmark" / "task_classification.json", json.dumps(tasks))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
