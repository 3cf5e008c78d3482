"""Shapes in annotations are checked at run time, and none is written in a way that nothing checks."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from lamp.data.mixture import Mixture
from lamp.train.dry_run import ZeroHiddenStates
from lamp.train.validation import batches
from lamp.view.overlay import moving_points

ROOT = Path(__file__).resolve().parents[1]
INDICES = np.arange(3)


@pytest.mark.parametrize(
    "call",
    [
        lambda indices: list(batches(indices, 2)),
        lambda indices: ZeroHiddenStates(8, 2, 4).take(indices, INDICES, None),
        lambda indices: ZeroHiddenStates(8, 2, 4).take(INDICES, INDICES, indices),
        lambda indices: Mixture.part_of(None, indices),  # pyright: ignore[reportArgumentType]
    ],
)
@pytest.mark.parametrize(
    "wrong", [INDICES.astype(np.float64), INDICES[:, None], "012", [0, 1, 2]], ids=["float", "matrix", "text", "list"]
)
def test_indices_of_another_type_or_shape_are_refused(call: Callable[[Any], object], wrong: object) -> None:
    with pytest.raises(TypeCheckError):
        call(wrong)


def test_axes_that_share_a_name_share_a_length() -> None:
    with pytest.raises(TypeCheckError):
        ZeroHiddenStates(8, 2, 4).take(INDICES, INDICES[:2], None)


def test_points_of_another_type_or_shape_are_refused() -> None:
    points = np.zeros((5, 4, 3))
    assert moving_points(points, 0.1).shape == (5,)
    for wrong in (points[0], points.astype(np.int64)):
        with pytest.raises(TypeCheckError):
            moving_points(wrong, 0.1)


def test_no_annotation_has_axes_outside_of_a_text() -> None:
    found = [f"{path.relative_to(ROOT)}:{line}" for path in _sources() for line in _unquoted(path.read_text())]
    assert not found


@pytest.mark.parametrize("written", ["Int64[np.ndarray, n]", "Float[Tensor, 4]", "Bool[Tensor, n] | None"])
@pytest.mark.parametrize("where", ["def f(x: {}): ...", "def f() -> dict[str, {}]: ...", "x: {} = g()"])
def test_axes_outside_of_a_text_are_found(written: str, where: str) -> None:
    assert _unquoted(where.format(written)) == [1]
    assert not _unquoted(where.format('Int64[np.ndarray, " n"]'))


def _sources() -> Iterator[Path]:
    for folder in ("src", "packages", "tests"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def _unquoted(source: str) -> list[int]:
    """Lines of the shapes that are no text."""
    types = {name for name, kind in vars(jaxtyping).items() if isinstance(kind, type) and hasattr(kind, "dtypes")}
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Subscript)
        and ast.unparse(node.value).removeprefix("jaxtyping.") in types
        and isinstance(node.slice, ast.Tuple)
        and not (isinstance(node.slice.elts[-1], ast.Constant) and isinstance(node.slice.elts[-1].value, str))
    ]
