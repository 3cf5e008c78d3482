"""What the folder of a study holds: its definition, its cells, and what each of them has left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from lamp.configuration import from_json
from lamp.errors import DataError
from lamp.json_files import read_json_as
from lamp.study.study import Resolved, Study

DEFINITION, RESULT = "definition.json", "result.json"
HELD_OUT, MOTION_ONLY = "held_out", "held_out_motion_only"
"""Tests without a simulator: demonstrations of tasks with actions, and of those that were seen in motion alone."""


class StoredErrors(TypedDict):
    """The held-out errors of a cell, of one group of tasks."""

    final: float
    best: float
    best_step: int
    curve: list[tuple[int, float]]


class StoredRate(TypedDict):
    """What all trainings note of their time."""

    steps: int
    seconds: float


class StoredCell(StoredRate):
    """`result.json` of a cell."""

    episodes: list[int]
    errors: dict[str, StoredErrors]
    code: str


class StoredMotion(StoredRate):
    """`result.json` of a Stage 1."""

    episodes: list[int]
    ade_px: float
    zero_motion_ade_px: float


class StoredTest(TypedDict):
    """`result.json` of a cell's episodes in the simulator."""

    outcomes: list[tuple[str, int, int, int, bool]]
    """Suite, task, initial state, the placement's seed, and whether it succeeded."""


class StoredDefinition(TypedDict):
    """`definition.json`."""

    format: str
    study: dict[str, Any]
    recipes: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One policy: an arm, trained on some demonstrations with one seed."""

    arm: str
    demonstrations: int
    seed: int

    @property
    def folder(self) -> str:
        """Its folder in that of the study."""
        return f"cells/{self.arm}/n{self.demonstrations:03d}/s{self.seed}"

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.arm} (n {self.demonstrations}, seed {self.seed})"


def cells(study: Study, only: Sequence[str] = ()) -> list[Cell]:
    """All cells, seed after seed, so that a study that is stopped has whole pairs."""
    return [
        Cell(arm=arm.name, demonstrations=count, seed=seed)
        for seed in range(study.policy_seeds)
        for count in study.demonstrations
        for arm in study.arms
        if not only or arm.name in only
    ]


def read_definition(out: Path) -> Resolved:
    """The study of a folder.

    Raises:
        DataError: The folder holds none.
    """
    if not (out / DEFINITION).is_file():
        raise DataError(f"{out} holds no study (no {DEFINITION}); expected the --out of `lamp study run`")
    content = read_json_as(out / DEFINITION, StoredDefinition, "definition of a study")
    if content["format"] != "lamp-study":
        raise DataError(f"{out / DEFINITION} is not the definition of a study; expected the --out of `lamp study run`")
    return from_json(Resolved, {"study": content["study"], "recipes": content["recipes"]}, where=str(out / DEFINITION))


def progress_of(resolved: Resolved, out: Path) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """The finished cells and their results, with those of their tests under `tests`.

    Raises:
        DataError: A result is damaged, or of another group of tasks than the others.
    """
    groups: set[str] | None = None
    for cell in cells(resolved.study):
        path = out / cell.folder / RESULT
        if not path.is_file():
            continue
        result = read_json_as(path, StoredCell, "result of a cell")
        groups = {*result["errors"]} if groups is None else groups
        curves = [one["curve"] for one in result["errors"].values()]
        if HELD_OUT not in groups or {*result["errors"]} != groups or not all(curves):
            raise DataError(
                f"{path} has errors of {', '.join(result['errors']) or 'nothing'}; expected measurements of "
                f"{', '.join(sorted({HELD_OUT, *groups}))}: remove it to do it again"
            )
        tests = {}
        for test in resolved.study.tests:
            if (place := out / cell.folder / "tests" / test.name / RESULT).is_file():
                tests[test.name] = read_json_as(place, StoredTest, "result of a test")
                if not tests[test.name]["outcomes"]:
                    raise DataError(f"{place} has no episode; remove it to do it again")
        yield cell, {**result, "tests": tests}


class StoredQuestion(TypedDict):
    """What a study's definition says of it."""

    name: str
    question: str


class DescribedDefinition(TypedDict):
    """What is read of `definition.json` to describe a study."""

    study: StoredQuestion


class StoredDifference(TypedDict):
    """What is read of a row of `differences`."""

    arm: str
    demonstrations: int
    test: str
    measure: str
    verdict: str


class StoredFigures(TypedDict, total=False):
    """What is read of `study.json`."""

    complete: bool
    cells: dict[str, int]
    differences: list[StoredDifference]


def describe_study(path: Path) -> dict[str, Any]:
    """What `lamp info` says of a study."""
    definition = read_json_as(path / DEFINITION, DescribedDefinition, "definition of a study")
    has_figures = (path / "study.json").is_file()
    figures = read_json_as(path / "study.json", StoredFigures, "figures of a study") if has_figures else {}
    compared = [row for row in figures.get("differences", []) if row["measure"] != "best_error"]
    return {
        **{key: definition["study"][key] for key in ("name", "question")},
        "state": "finished" if figures.get("complete") else "unfinished: the same `lamp study run` goes on",
        "cells": figures.get("cells", "none yet"),
        "verdicts": [f"{row['arm']}, n {row['demonstrations']}, {row['test']}: {row['verdict']}" for row in compared],
        "next": f"lamp study report {path}",
    }
