"""A motion checkpoint on another grid or horizon (what the paper leaves to future work): the same weights, other positions.

Nothing that the expert has learnt depends on how many tokens there are, and its positions are sinusoids of token coordinates. So
its weights serve as they are once the new tokens are placed at the coordinates that the old grid has for the same place in the
image and the same moment: between the old tokens where the new grid is finer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from lamp.configuration import to_json
from lamp.errors import ConfigError, MismatchError
from lamp.model.lamp import LaMPConfig, required
from lamp.model.motion_expert import MotionExpertConfig, ReferenceGrid
from lamp.sceneflow.normalization import MotionBounds
from lamp.train.checkpoint import Expected, load_checkpoint, save_checkpoint
from lamp.train.checkpoint_metadata import Description, FlowRecord, read_description
from lamp.train.config import MotionTraining
from lamp.train.run_folder import CHECKPOINT


def resize_checkpoint(
    source: Path, out: Path, *, grid: tuple[int, int] | None = None, horizon: int | None = None, pace: float = 1.0
) -> Description:
    """Writes the weights of a Stage-1 checkpoint as one of another grid or horizon, at `out/checkpoint`.

    Stage 2 takes it for a model whose Motion Expert is `resized` in the same way, see `follow_motion`.

    Args:
        grid: Rows and columns of grid points over the same image; the same by default.
        horizon: Flow steps; the same number by default.
        pace: Old flow steps in each new one. The bounds of the increments grow with it, since a point goes as much farther.

    Raises:
        ConfigError: `out` is taken, or the new flow steps are no whole number of frames.
    """
    if (out / CHECKPOINT).exists():
        raise ConfigError(f"{out} holds a checkpoint already; expected a folder for a new one.")
    model, source_description = load_checkpoint(source, expected=Expected(kind="motion"))
    before, training = required(source_description.model.motion, "Motion Expert"), source_description.training
    flow = required(source_description.flow, "record of the scene flow")
    motion = resized(before, grid=grid, horizon=horizon, pace=pace)
    weights = carried_over(model.state_dict(), before, motion)
    config = replace(source_description.model, motion=motion)
    flow = _paced(replace(flow, grid=motion.grid, horizon=motion.horizon), pace)
    if isinstance(training, MotionTraining):
        # A store may be finer than the model's steps; where it no longer divides them, only one of just these steps serves.
        stride = training.flow_stride * pace
        whole = int(stride) if stride.is_integer() else 1
        training = replace(training, model=config, flow_stride=whole, flow_frames=None)
    description = replace(source_description, model=config, flow=flow, training=training)
    save_checkpoint(out / CHECKPOINT, description, weights)
    return description


def follow_motion(model: LaMPConfig, checkpoint: Path) -> LaMPConfig:
    """Returns a model whose Motion Expert is resized like that of a motion checkpoint, where that one was."""
    trained = read_description(checkpoint).model.motion
    if model.motion is None or model.motion.reference is not None or trained is None or trained.reference is None:
        return model
    motion = replace(model.motion, grid=trained.grid, horizon=trained.horizon, reference=trained.reference)
    return replace(model, motion=motion)


def _paced(flow: FlowRecord, pace: float) -> FlowRecord:
    if pace != 1:
        flow.check_timed("another pace")
    frames = flow.stride * pace
    if not frames.is_integer():
        raise ConfigError(
            f"pace {pace} makes {frames} frames of the {flow.stride} of a flow step; expected a whole number."
        )
    low, high = (tuple(pace * end for end in ends) for ends in (flow.bounds.low, flow.bounds.high))
    return replace(flow, stride=int(frames), bounds=MotionBounds(low=low, high=high))  # pyright: ignore[reportArgumentType]


def resized(
    config: MotionExpertConfig, *, grid: tuple[int, int] | None = None, horizon: int | None = None, pace: float = 1.0
) -> MotionExpertConfig:
    """Returns the configuration with which the weights of `config` run on another grid or horizon.

    Args:
        config: What the weights were trained with; it may be a resized one itself.
        grid: Rows and columns of grid points; the same by default.
        horizon: Flow steps; the same by default.
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
    have, want = to_json(replace(fitting, hidden_layer=wanted.hidden_layer)), to_json(wanted)
    for name, value in want.items():
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
