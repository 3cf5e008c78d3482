"""Commands that train: both stages, plans of them, and other sizes of a Motion Expert."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from lamp.commands.command import (
    Command,
    SelectionFlags,
    embodiment,
    ensure_features,
    find_checkpoint,
    follow_motion,
    mixed_in,
    training_named,
)
from lamp.errors import ConfigError, DataError, MismatchError
from lamp.flags import parse, parse_beside, value_of
from lamp.progress import say

if TYPE_CHECKING:
    from lamp.recipes import Recipe
    from lamp.train.config import LoopConfig, MotionTraining, PolicyTraining, Split
    from lamp.train.run_folder import RunStage, TrainingResult

    Training = TypeVar("Training", MotionTraining, PolicyTraining)

ELSEWHERE = "--out FOLDER for the run, --features FOLDER for feature caches"
USUAL = (
    *("--recipe", "--data", "--out", "--motion", "--embodiment", "--episodes", "--hold-out", "--fresh", "--features"),
    *("--also", "--from", "--track", "--plan", "--lora"),
    *("--loop.steps", "--loop.batch-size", "--loop.optimiser.lr", "--loop.seed", "--loop.device", "--loop.threads"),
)
"""What one usually changes of a training."""
ANY_RECIPE = "demo"
"""Fills the help text of a command that needs a recipe and was given none."""


@dataclass(frozen=True, kw_only=True)
class MotionFlags(SelectionFlags):
    """Stage 1: trains the Motion Expert on the dataset's scene flow."""

    recipe: str
    """Where all other settings come from: a name that `lamp recipe list` shows, or a file of `lamp recipe fit`; each can be
    changed by its own flag."""
    data: Path
    """The dataset."""
    out: Path
    """The run's folder; an unfinished run in it is continued."""
    embodiment: str | None = None
    """How the dataset records its robot: lamp, libero, bridge, droid ..., or a JSON file; by default, as the recipe says
    (docs/data.md)."""
    hold_out: str | None = None
    """Episodes that are measured and never trained on, in place of a share of each task: states=10:15, or conditions such as
    tasks=0;episodes=3,7 (docs/data.md)."""
    fresh: bool = False
    """Start again, and remove an earlier run."""
    sharding: Literal["replicated", "full"] | None = None
    """How the weights lie on the processes that a launcher has started (docs/training.md); by default, as the recipe says."""
    features: Path | None = None
    """The folder that feature caches are in, `--out` of `lamp cache features`; by default, the datasets'."""
    also: tuple[str, ...] = ()
    """Further datasets, each DIR or DIR=EMBODIMENT; --weights says how often each comes up, --rates what to do where one runs at
    another rate (docs/data.md)."""
    start: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """A checkpoint or run of the same stage to begin with, rather than with weights drawn at random: a fine-tune."""
    normalizers: Literal["keep", "refit"] = "keep"
    """With --from: keep the checkpoint's normalisers (of a motion prior, its bounds), or fit them to the new data
    (docs/training.md)."""
    track: tuple[str, ...] = ()
    """Trackers besides metrics.jsonl and TensorBoard: wandb, trackio, each KIND or KIND=PROJECT (docs/training.md)."""
    plan: bool = False
    """Say what the run will need (memory, steps, time, disk), and train nothing."""
    json: bool = False
    """Print the plan as one JSON object."""


def _train_motion(arguments: Sequence[str]) -> None:
    from lamp.train.config import MotionTraining
    from lamp.train.dry_run import run_stage_with_summary
    from lamp.train.train_motion import train_motion

    chosen = training_named(value_of("--recipe", arguments) or ANY_RECIPE)
    if chosen.motion is None:
        raise ConfigError(f"recipe {chosen.name!r} has no motion prior to train; `lamp train policy` is all it needs")
    flags, training = parse_beside(MotionFlags, MotionTraining, arguments, "train motion", chosen.motion)
    training = _with_flags(training, flags)
    if value_of("--flow-stride", arguments) is not None:
        training = replace(training, flow_frames=None)
    elif chosen.flow is not None and training.arc_length is None:
        stride, name = _flow_stride(chosen, training, flags.data)
        training = replace(training, flow_stride=stride, scene_flow=name)

    def train(loop: LoopConfig, run: RunStage) -> TrainingResult:
        start = None if flags.start is None else find_checkpoint(flags.start)
        settings = replace(training, loop=loop)
        return train_motion(settings, flags.data, flags.out, start=start, run=run, **_run_options(flags))

    if flags.plan:
        return _plan(flags, training.loop, train)
    _prepare(flags.data, training, flags.features)
    policy = ["lamp", "train", "policy", "--recipe", flags.recipe, "--data", flags.data, "--motion", flags.out]
    policy += ["--out", flags.out.with_name("policy" if flags.out.name != "policy" else "stage2")]
    policy += ["--features", flags.features] if flags.features else []
    policy += ["--embodiment", flags.embodiment] if flags.embodiment else []
    _print_result(train(training.loop, run_stage_with_summary), training.loop, policy)


def _print_result(result: TrainingResult, loop: LoopConfig, *next_commands: Sequence[object]) -> None:
    """Prints where the checkpoint is and which commands may come next; only the main process does."""
    from lamp.train.distributed import distributed_context

    if not distributed_context(loop.device).is_main:
        return
    if not result.outcome.finished:
        print(
            f"stopped at step {result.outcome.step} of {loop.steps}; saved in {result.checkpoint}; the same command goes on"
        )
        return
    commands = " or ".join(shlex.join(map(str, words)) for words in next_commands)
    print(f"saved in {result.checkpoint}; next: {commands}")


def _with_flags(training: Training, flags: MotionFlags) -> Training:
    """The settings, with further datasets, embodiment, episodes, trackers and sharding from the flags."""
    changes: dict[str, Any] = {"also": tuple(map(mixed_in, flags.also))} if flags.also else {}
    if flags.embodiment:
        changes["embodiment"] = embodiment(flags.embodiment)
    loop = _with_trackers(_with_sharding(training.loop, flags.sharding), flags)
    return replace(training, split=_with_selection(training.split, flags), loop=loop, **changes)


def _run_options(flags: MotionFlags) -> dict[str, Any]:
    """The flags that both stages pass on to the run itself."""
    return {"fresh": flags.fresh, "features": flags.features, "normalizers": flags.normalizers}


def _with_selection(split: Split, flags: MotionFlags) -> Split:
    """The split, with the episodes that are selected and held out."""
    from lamp.data.episode_selection import parse_selection

    chosen = split if flags.selection.is_everything else replace(split, episodes=flags.selection)
    return chosen if flags.hold_out is None else replace(chosen, held_out=parse_selection(flags.hold_out))


def _with_trackers(loop: LoopConfig, flags: MotionFlags) -> LoopConfig:
    """
    Raises:
        ConfigError: A tracker is unknown, or --json is given without --plan.
        MissingDependencyError: A tracker's package is not installed.
    """
    from lamp.train.metrics import check_trackers, tracker

    if flags.json and not flags.plan:
        raise ConfigError("--json given without --plan; expected both: only a plan is printed as JSON")
    named = [tracker(text) for text in flags.track]
    trackers = (*loop.trackers, *(one for one in named if one not in loop.trackers))
    check_trackers(trackers)
    return replace(loop, trackers=trackers)


def _plan(flags: MotionFlags, loop: LoopConfig, train: Callable[[LoopConfig, RunStage], object]) -> None:
    """Prints what a training would need; where its device is not here, it is built on the CPU, and no step is taken."""
    from lamp.train.dry_run import Planner
    from lamp.train.run_folder import has_device
    from lamp.train.run_plan import to_text

    planner = Planner(loop.device)
    train(loop if has_device(loop.device) else replace(loop, device="cpu"), planner)
    if planner.plan is not None and planner.main:
        print(json.dumps(asdict(planner.plan), indent=2) if flags.json else to_text(planner.plan))


def _prepare(data: Path, training: MotionTraining | PolicyTraining, root: Path | None) -> None:
    """Sees to it that the training can start, what takes least first; of several processes, the main one does."""
    from lamp.train.config import BFloat16, multiplies_bfloat16
    from lamp.train.datasets import dataset_names
    from lamp.train.distributed import distributed_context
    from lamp.train.run_folder import check_device

    check_device(training.loop.device)
    if isinstance(training.loop.precision, BFloat16) and not multiplies_bfloat16(training.loop.device):
        say("this processor has no bfloat16 instructions: products are computed in float32")
    dataset_names([data, *(part.data for part in training.also)], root)

    def features() -> None:
        if training.backbone.lora is not None:
            say("the backbone is trained along: its tokens are computed at every step, not cached")
            return
        if not training.cache_features:
            say("no features are cached: pictures are decoded and encoded in every step")
            return
        width, views = training.model.token_width, getattr(training, "augmentation", None)
        ensure_features(data, training.backbone, training.embodiment, token_width=width, augmentation=views, root=root)
        for part in getattr(training, "also", ()):
            ensure_features(Path(part.data), training.backbone, part.embodiment, augmentation=views, root=root)

    distributed_context(training.loop.device).on_main(features)


def _with_lora(training: PolicyTraining, rank: int | None) -> PolicyTraining:
    """
    Raises:
        ConfigError: The recipe's backbone can have no adapters.
    """
    from lamp.model.qwen3_vl import Qwen3VLBackboneConfig
    from lamp.model.qwen_lora import LoRA

    backbone = training.backbone
    if rank is None:
        return training
    if not isinstance(backbone, Qwen3VLBackboneConfig):
        raise ConfigError(
            f"--lora {rank} given, and the recipe's backbone is the small one; expected one with Qwen3-VL."
        )
    return replace(training, backbone=replace(backbone, lora=replace(backbone.lora or LoRA(), rank=rank)))


def _with_sharding(loop: LoopConfig, name: str | None) -> LoopConfig:
    from lamp.train.config import FullySharded, Replicated

    kinds = {"replicated": Replicated, "full": FullySharded}
    # Settings of the same kind of sharding, from the recipe or from flags, stay.
    return loop if name is None or isinstance(loop.sharding, kinds[name]) else replace(loop, sharding=kinds[name]())


def _flow_stride(chosen: Recipe, training: MotionTraining, data: Path) -> tuple[int, str | None]:
    """Stored flow steps that make one of the recipe's: a store may be finer than the one that the recipe builds.

    Returns:
        How many, and the name of the store that they are of, where the dataset has several.

    Raises:
        ConfigError: Several stores fit, and none is named.
        DataError: There is no dataset, or no scene flow of it.
        MismatchError: The stored steps do not add up to the recipe's.
    """
    from lamp.sceneflow.stores import FlowRequirements, find_store, store_folders

    if not data.is_dir():
        raise DataError(
            f"no dataset at {data}: there is no such folder; expected one of `lamp collect`, or in LeRobot's format"
        )
    frames, expert = chosen.flow.stride * chosen.motion.flow_stride, training.model.motion
    needs = FlowRequirements(frames=frames, camera=training.backbone.cameras[0][0])
    if expert is not None:
        needs = replace(needs, grid=expert.grid, horizon=expert.horizon)
    store = find_store(data, needs, training.scene_flow)
    stored = store.description.sampling.stride
    if frames % stored:
        raise MismatchError(
            f"{store.path} has a flow step every {stored} frames, the recipe {chosen.name} one every {frames}; "
            f"build another beside it with `lamp flow build {data} --recipe {chosen.name}`, or give --flow-stride"
        )
    return frames // stored, training.scene_flow or (store.path.name if len(store_folders(data)) > 1 else None)


@dataclass(frozen=True, kw_only=True)
class PolicyFlags(MotionFlags):
    """Stage 2: trains the guidance and the Action Expert, or, without --motion, a policy that has no motion prior."""

    motion: Path | None = None
    """Stage 1's checkpoint or run."""
    lora: int | None = None
    """Train adapters of this rank in Qwen3-VL along (docs/training.md); the feature cache is of no use then."""


def _train_policy(arguments: Sequence[str]) -> None:
    from lamp.data.embodiment import BRIDGE, LIBERO, LIBERO_OPENPI, OWN
    from lamp.train.config import PolicyTraining
    from lamp.train.distributed import distributed_context
    from lamp.train.dry_run import run_stage_with_summary
    from lamp.train.train_policy import train_policy

    chosen = training_named(value_of("--recipe", arguments) or ANY_RECIPE)
    motion_flag = value_of("--motion", arguments)
    motion = None if motion_flag is None else find_checkpoint(Path(motion_flag))
    start_flag = value_of("--from", arguments)
    start = None if start_flag is None else find_checkpoint(Path(start_flag))
    settings = chosen.without_motion if motion is None else follow_motion(chosen.policy_with(str(motion_flag)), motion)
    if start is not None and motion is None and _has_motion(start):
        settings = follow_motion(chosen.policy_with(str(start_flag)), start)
    flags, training = parse_beside(PolicyFlags, PolicyTraining, arguments, "train policy", settings)
    training = _with_lora(_with_flags(training, flags), flags.lora)

    def train(loop: LoopConfig, run: RunStage) -> TrainingResult:
        settings = replace(training, loop=loop)
        return train_policy(settings, flags.data, flags.out, motion, start=start, run=run, **_run_options(flags))

    if flags.plan:
        return _plan(flags, training.loop, train)
    _prepare(flags.data, training, flags.features)
    if training.model.motion is None and distributed_context(training.loop.device).is_main:
        say("no --motion CHECKPOINT: training a policy without the motion prior")
    result = train(training.loop, run_stage_with_summary)
    # Only these robots have a simulator here; for any other, the report shows the errors on held-out recorded episodes.
    if training.embodiment in (OWN, LIBERO, LIBERO_OPENPI, BRIDGE):
        check = ["lamp", "evaluate", "--checkpoint", flags.out]
    else:
        check = ["lamp", "report", flags.out]
    _print_result(result, training.loop, ["lamp", "serve", flags.out], check)


def _has_motion(checkpoint: Path) -> bool:
    """Whether a policy to begin with has a motion prior, which then comes along."""
    from lamp.train.checkpoint_metadata import read_description

    return read_description(checkpoint).model.motion is not None


@dataclass(frozen=True, kw_only=True)
class PretrainFlags:
    """Stage 1 from nothing: collects motion without actions, trains a Motion Expert on it and writes what others start from
    (OUT/pretrained); an interrupted run goes on. `pretrained/libero_object`, which comes with LaMP, was made so."""

    out: Path
    """The folder of everything."""
    recipe: str = "libero_object_motion"
    """A name that `lamp recipe list` shows, or a recipe's file."""


def _pretrain(arguments: Sequence[str]) -> None:
    flags = parse(PretrainFlags, arguments, "pretrain")
    from lamp.pretraining import pretrain
    from lamp.recipes import pretraining

    print(f"next: lamp train policy --motion {pretrain(pretraining(flags.recipe), flags.out)} ...")


@dataclass(frozen=True, kw_only=True)
class ResizeFlags:
    """Carries the weights of a motion checkpoint over to another grid or horizon; Stage 2 takes the result as it is."""

    source: tyro.conf.Positional[Path]
    """Stage 1's checkpoint or run."""
    out: tyro.conf.Positional[Path]
    """The new checkpoint's folder."""
    grid: tuple[int, ...] = ()
    """Rows and columns of grid points, or one number for both; as many as before by default."""
    horizon: int | None = None
    """Flow steps; as many as before by default."""
    pace: float = 1.0
    """Old flow steps in each new one: 0.5 with twice the horizon sees the same span in finer steps."""

    def __post_init__(self) -> None:
        if len(self.grid) > 2:
            raise ConfigError(f"--grid {' '.join(map(str, self.grid))}: expected one number, or rows and columns")
        if not self.grid and self.horizon is None and self.pace == 1.0:
            raise ConfigError("nothing to resize: expected --grid, --horizon or --pace")


def _resize(arguments: Sequence[str]) -> None:
    flags = parse(ResizeFlags, arguments, "resize")
    from lamp.train.resize_checkpoint import resize_checkpoint

    grid = (flags.grid[0], flags.grid[-1]) if flags.grid else None
    resized = resize_checkpoint(
        find_checkpoint(flags.source), flags.out, grid=grid, horizon=flags.horizon, pace=flags.pace
    )
    assert resized.flow is not None
    rows, columns = resized.flow.grid
    steps = f"{resized.flow.horizon} flow steps of {resized.flow.stride} frames"
    print(f"{flags.out}: {rows}x{columns} points, {steps} (lamp info {flags.out})")


COMMANDS: dict[str, Command] = {
    "train motion": Command(
        summary="Stage 1: the Motion Expert, on scene flow", run=_train_motion, elsewhere=ELSEWHERE, usual=USUAL
    ),
    "train policy": Command(
        summary="Stage 2: guidance and Action Expert, on actions", run=_train_policy, elsewhere=ELSEWHERE, usual=USUAL
    ),
    "pretrain": Command(summary="Stage 1 from nothing: motion without actions, and a Motion Expert", run=_pretrain),
    "resize": Command(summary="carry a Motion Expert's weights over to another grid or horizon", run=_resize),
}
