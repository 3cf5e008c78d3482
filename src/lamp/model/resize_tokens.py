"""Another grid or horizon for a trained Motion Expert (what the paper leaves to future work).

Nothing that the expert has learnt depends on how many tokens there are, and its positions are sinusoids of token coordinates. So
its weights serve as they are once the new tokens are placed at the coordinates that the old grid has for the same place in the
image and the same moment: between the old tokens where the new grid is finer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from lamp.configuration import to_json
from lamp.errors import MismatchError
from lamp.model.motion_expert import MotionExpertConfig, ReferenceGrid


def resized(
    config: MotionExpertConfig, *, grid: tuple[int, int] | None = None, horizon: int | None = None, pace: float = 1.0
) -> MotionExpertConfig:
    """Returns the configuration with which the weights of `config` run on another grid or horizon.

    Args:
        config: What the weights were trained with; it may be a resized one itself.
        grid: Rows and columns of grid points over the same image; the same by default.
        horizon: Flow steps; the same number by default.
        pace: Flow steps of `config` in each new one, see `ReferenceGrid.pace`.
    """
    before = config.reference.pace if config.reference else 1.0
    return _placed(config, grid or config.grid, horizon or config.horizon, before * pace)


def carried_over(
    weights: Mapping[str, Tensor], trained: MotionExpertConfig, wanted: MotionExpertConfig
) -> dict[str, Tensor]:
    """Returns a Motion Expert's weights for another grid or horizon: the same tensors, once it is sure that they fit.

    Args:
        weights: The state dict, of a `MotionExpert` or of a `LaMP` that holds it.
        trained: The configuration that they were trained with.
        wanted: Such as `resized` returns.

    Raises:
        MismatchError: The two differ in more than grid, horizon and `hidden_layer`, or count positions from different grids.
    """
    fitting = _placed(trained, wanted.grid, wanted.horizon, wanted.reference.pace if wanted.reference else 1.0)
    have, asked = to_json(replace(fitting, hidden_layer=wanted.hidden_layer)), to_json(wanted)
    for name, value in asked.items():
        if have[name] != value:
            raise MismatchError(
                f"Motion Expert: {name} = {have[name]!r} with these weights, {value!r} asked for; "
                "only grid, horizon and hidden_layer may differ, and the rest is what `resized` says."
            )
    return dict(weights)


def _placed(config: MotionExpertConfig, grid: tuple[int, int], horizon: int, pace: float) -> MotionExpertConfig:
    origin = config.reference or ReferenceGrid(grid=config.grid, horizon=config.horizon)
    at_home = (grid, horizon, pace) == (origin.grid, origin.horizon, 1.0)
    return replace(config, grid=grid, horizon=horizon, reference=None if at_home else replace(origin, pace=pace))
