"""The commands of the line: each reads its flags and calls the function that does the work, imported only then."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from lamp.errors import ConfigError, MismatchError
from lamp.flags import parse, parse_beside, value_of

if TYPE_CHECKING:
    from lamp.data.embodiment import Embodiment
    from lamp.recipes import Recipe, TrainingRecipe
    from lamp.train.backbones import BackboneConfig
    from lamp.train.configs import LoopConfig, MixedIn, MotionTraining, PolicyTraining
    from lamp.train.planning import Planner

ANY_RECIPE = "demo"
"""Fills the help text of a command that needs a recipe and was given none."""


def _with_flag(arguments: Sequence[str], flag: str) -> Sequence[str]:
    """Lets the one folder a command is about stand without its flag: `lamp flow build DIR`."""
    if arguments and not arguments[0].startswith("-"):
        return [flag, *arguments]
    return arguments


@dataclass(frozen=True, kw_only=True)
class CollectFlags:
    """Records demonstrations of LIBERO tasks with a scripted expert; a stopped collection goes on where it was."""

    recipe: str | None = None
    """Where the other flags' defaults come from: a name that `lamp recipe list` shows."""


def _collect(arguments: Sequence[str]) -> None:
    from lamp.collect.collecting import collect
    from lamp.collect.jobs import CollectConfig

    settings = None
    if name := value_of("--recipe", arguments):
        _need("--out", arguments, "collect")
        settings = _experiment(name).collect
    _, config = parse_beside(CollectFlags, CollectConfig, arguments, "collect", settings)
    print(collect(config))


@dataclass(frozen=True, kw_only=True)
class FlowFlags:
    """Computes a dataset's 3-D scene flow from its recorded simulation; a stopped build goes on where it was."""

    recipe: str | None = None
    """Where the other flags' defaults come from: a name that `lamp recipe list` shows."""


def _flow_build(arguments: Sequence[str]) -> None:
    from lamp.sceneflow.building import FlowBuildConfig, build

    settings, words = None, _with_flag(arguments, "--data")
    if name := value_of("--recipe", arguments):
        _need("--data", words, "flow build")
        settings = _experiment(name).flow
    _, config = parse_beside(FlowFlags, FlowBuildConfig, words, "flow build", settings)
    build(config)


def _need(flag: str, arguments: Sequence[str], command: str) -> None:
    """Asks for the folder, which a recipe cannot know.

    Raises:
        ConfigError: It is not among the arguments.
    """
    if value_of(flag, arguments) is None and not {"-h", "--help"} & set(arguments):
        raise ConfigError(f"Missing from lamp {command}: {flag} PATH (lamp {command} --help lists the flags)")


def _experiment(name: str) -> Recipe:
    from lamp.recipes import experiment

    return experiment(name)


def _training(name: str) -> Recipe | TrainingRecipe:
    from lamp.recipes import training

    return training(name)


@dataclass(frozen=True, kw_only=True)
class CacheFlags:
    """Computes the frozen backbone's tokens of a dataset's images and instructions; `lamp train` does the same if needed."""

    data: tyro.conf.Positional[Path]
    """The dataset."""
    recipe: str = "demo"
    """The recipe whose backbone it is; its settings can be changed by their own flags."""
    embodiment: str | None = None
    """How the dataset records its robot: lamp (the default), libero, bridge, droid ... (docs/data.md)."""
    leave_out_corrupt: bool = False
    """Leave out episodes whose pictures cannot be read, and name them, rather than stop; training then leaves them out too."""


def _cache_features(arguments: Sequence[str]) -> None:
    from lamp.train.configs import Seen

    settings = Seen(backbone=_training(value_of("--recipe", arguments) or CacheFlags.recipe).backbone)
    flags, seen = parse_beside(CacheFlags, Seen, arguments, "cache features", settings)
    _ensure_features(flags.data, seen.backbone, _embodiment(flags.embodiment), leave_out=flags.leave_out_corrupt)


def _embodiment(name: str | None) -> Embodiment:
    from lamp.data.embodiment import OWN, embodiment

    return OWN if name is None else embodiment(name)


def _ensure_features(
    data: Path,
    config: BackboneConfig,
    embodiment: Embodiment,
    *,
    token_width: int | None = None,
    leave_out: bool = False,
) -> None:
    from lamp.data.stored_images import LeaveOut
    from lamp.train.backbones import ensure_features

    on_corrupt = LeaveOut() if leave_out else None
    ensure_features(embodiment.open(data), config, token_width=token_width, on_corrupt=on_corrupt)


@dataclass(frozen=True, kw_only=True)
class MotionFlags:
    """Stage 1: trains the Motion Expert on the dataset's scene flow."""

    recipe: str
    """Where all other settings come from, a name that `lamp recipe list` shows; each can be changed by its own flag."""
    data: Path
    """The dataset."""
    out: Path
    """The run's folder; an unfinished run in it is continued."""
    embodiment: str | None = None
    """How the dataset records its robot: lamp, libero, bridge, droid ... (docs/data.md); by default, as the recipe says."""
    fresh: bool = False
    """Start again, and remove an earlier run."""
    track: tuple[str, ...] = ()
    """Trackers besides metrics.jsonl and TensorBoard: wandb, trackio, each KIND or KIND=PROJECT (docs/training_plan.md)."""
    plan: bool = False
    """Say what the run will need (memory, steps, time, disk), and train nothing."""
    json: bool = False
    """Print the plan as one JSON object."""


def _train_motion(arguments: Sequence[str]) -> None:
    from lamp.recipes import Recipe
    from lamp.train.configs import MotionTraining
    from lamp.train.motion import train_motion

    chosen = _training(value_of("--recipe", arguments) or ANY_RECIPE)
    if chosen.motion is None:
        raise ConfigError(f"recipe {chosen.name!r} has no motion prior to train; `lamp train policy` is all it needs")
    flags, training = parse_beside(MotionFlags, MotionTraining, arguments, "train motion", chosen.motion)
    if isinstance(chosen, Recipe) and value_of("--flow-stride", arguments) is None:
        training = replace(training, flow_stride=_flow_stride(chosen, flags.data))
    training = replace(training, embodiment=_embodiment(flags.embodiment)) if flags.embodiment else training
    training = replace(training, loop=_tracked(training.loop, flags))
    if flags.plan:
        return _plan(flags, training.loop, lambda loop, run: train_motion(
            replace(training, loop=loop), flags.data, flags.out, fresh=flags.fresh, run=run
        ))  # fmt: skip
    _prepare(flags.data, training)
    train_motion(training, flags.data, flags.out, fresh=flags.fresh)


def _tracked(loop: LoopConfig, flags: MotionFlags) -> LoopConfig:
    """
    Raises:
        ConfigError: A tracker is unknown, or --json is given without --plan.
        MissingDependencyError: A tracker's package is not installed.
    """
    from lamp.train.tracking import check_trackers, tracker

    if flags.json and not flags.plan:
        raise ConfigError("--json given without --plan; expected both: only a plan is printed as JSON")
    named = [tracker(text) for text in flags.track]
    trackers = (*loop.trackers, *(one for one in named if one not in loop.trackers))
    check_trackers(trackers)
    return replace(loop, trackers=trackers)


def _plan(flags: MotionFlags, loop: LoopConfig, train: Callable[[LoopConfig, Planner], object]) -> None:
    """Prints what a training would need; where its device is not here, it is built on the CPU, and no step is taken."""
    from lamp.train.plan import to_text
    from lamp.train.planning import Planner
    from lamp.train.running import is_here

    planner = Planner(loop.device)
    train(loop if is_here(loop.device) else replace(loop, device="cpu"), planner)
    if planner.plan is not None and planner.main:
        print(json.dumps(asdict(planner.plan), indent=2) if flags.json else to_text(planner.plan))


def _prepare(data: Path, training: MotionTraining | PolicyTraining) -> None:
    """Sees to it that the training can start, what takes least first."""
    from lamp.train.running import check_device

    check_device(training.loop.device)
    _ensure_features(data, training.backbone, training.embodiment, token_width=training.model.token_width)


def _flow_stride(chosen: Recipe, data: Path) -> int:
    """Stored flow steps that make one of the recipe's: a store may be finer than the one that the recipe builds.

    Raises:
        MismatchError: The stored steps do not add up to the recipe's.
    """
    from lamp.sceneflow.building import FOLDER
    from lamp.sceneflow.store import SceneFlowStore

    store = SceneFlowStore(data / FOLDER)
    frames, stored = chosen.flow.stride * chosen.motion.flow_stride, store.description.sampling.stride
    if frames % stored:
        raise MismatchError(
            f"{store.path} has a flow step every {stored} frames, the recipe {chosen.name} one every {frames}; "
            f"build it again with `lamp flow build {data} --recipe {chosen.name} --overwrite`, or give --flow-stride"
        )
    return frames // stored


@dataclass(frozen=True, kw_only=True)
class PolicyFlags(MotionFlags):
    """Stage 2: trains the guidance and the Action Expert, or, without --motion, a policy that has no motion prior."""

    motion: Path | None = None
    """Stage 1's checkpoint or run."""
    also: tuple[str, ...] = ()
    """Further datasets, each DIR or DIR=EMBODIMENT, with normalisers of their own; --weights says how often each comes up."""


def _mixed_in(text: str) -> MixedIn:
    from lamp.train.configs import MixedIn

    folder, _, name = text.rpartition("=") if "=" in text else (text, "", "")
    return MixedIn(data=folder, embodiment=_embodiment(name or None))


def _train_policy(arguments: Sequence[str]) -> None:
    from lamp.train.configs import PolicyTraining
    from lamp.train.policy import train_policy

    chosen = _training(value_of("--recipe", arguments) or ANY_RECIPE)
    motion = value_of("--motion", arguments)
    settings = chosen.without_motion if motion is None else _following(chosen.policy, Path(motion))
    flags, training = parse_beside(PolicyFlags, PolicyTraining, arguments, "train policy", settings)
    if flags.also:
        training = replace(training, also=tuple(_mixed_in(text) for text in flags.also))
    if motion is None:
        print("no --motion CHECKPOINT: training a policy without the motion prior", file=sys.stderr)
    training = replace(training, embodiment=_embodiment(flags.embodiment)) if flags.embodiment else training
    training = replace(training, loop=_tracked(training.loop, flags))
    if flags.plan:
        return _plan(flags, training.loop, lambda loop, run: train_policy(
            replace(training, loop=loop), flags.data, flags.out, flags.motion, fresh=flags.fresh, run=run
        ))  # fmt: skip
    _prepare(flags.data, training)
    for part in training.also:
        _ensure_features(Path(part.data), training.backbone, part.embodiment)
    train_policy(training, flags.data, flags.out, flags.motion, fresh=flags.fresh)


def _following(policy: PolicyTraining, motion: Path) -> PolicyTraining:
    """Takes over the grid and horizon of a motion checkpoint that `lamp resize` wrote."""
    from lamp.train.resizing import following

    if not motion.exists():  # the training will say so
        return policy
    model = following(policy.model, motion)
    if model != policy.model and model.motion is not None:
        rows, columns = model.motion.grid
        print(f"as {motion} was resized: {rows}x{columns} points, {model.motion.horizon} flow steps", file=sys.stderr)
    return replace(policy, model=model)


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
    from lamp.train.resizing import resize_checkpoint

    grid = (flags.grid[0], flags.grid[-1]) if flags.grid else None
    found = resize_checkpoint(flags.source, flags.out, grid=grid, horizon=flags.horizon, pace=flags.pace)
    assert found.flow is not None
    rows, columns = found.flow.grid
    steps = f"{found.flow.horizon} flow steps of {found.flow.stride} frames"
    print(f"{flags.out}: {rows}x{columns} points, {steps} (lamp info {flags.out})")


def _evaluate(arguments: Sequence[str]) -> None:
    from lamp.benchmark.evaluating import EvaluateConfig, evaluate
    from lamp.view.overlay import ForesightArtist

    print(evaluate(parse(EvaluateConfig, arguments, "evaluate"), artist=ForesightArtist()).text)


def _view(arguments: Sequence[str]) -> None:
    from lamp.view.foresight import ViewConfig, view

    view(parse(ViewConfig, _with_flag(arguments, "--data"), "view"))


def _report(arguments: Sequence[str]) -> None:
    from lamp.view.report import ReportConfig, report

    print(report(parse(ReportConfig, _with_flag(arguments, "--run"), "report")))


@dataclass(frozen=True, kw_only=True)
class DemoFlags:
    """Runs a recipe from nothing to a report: collect, scene flow, both stages, evaluation; an interrupted run goes on."""

    out: Path
    """The folder of everything."""
    recipe: str = "demo"
    """A name that `lamp recipe list` shows."""


def _demo(arguments: Sequence[str]) -> None:
    flags = parse(DemoFlags, arguments, "demo")
    from lamp.experiment import run

    run(_experiment(flags.recipe), flags.out)


@dataclass(frozen=True, kw_only=True)
class InfoFlags:
    """Says what a folder is: dataset, scene-flow store, feature cache, training run, checkpoint or evaluation."""

    path: tyro.conf.Positional[Path]
    """The folder."""
    json: bool = False
    """Print JSON."""


def _info(arguments: Sequence[str]) -> None:
    flags = parse(InfoFlags, arguments, "info")
    from lamp.info import describe, to_text

    description = describe(flags.path)
    print(json.dumps(description, indent=2, ensure_ascii=False) if flags.json else to_text(description))


@dataclass(frozen=True, kw_only=True)
class ListFlags:
    """Lists the recipes, each with what it is for."""


def _recipe_list(arguments: Sequence[str]) -> None:
    parse(ListFlags, arguments, "recipe list")
    from lamp.recipes import RECIPES

    width = max(map(len, RECIPES))
    for name, build in RECIPES.items():
        print(f"{name:<{width}}  {build().summary}")


@dataclass(frozen=True, kw_only=True)
class ShowFlags:
    """Prints a recipe's full configuration, and how many parameters its models have."""

    name: tyro.conf.Positional[str]
    """The recipe."""
    json: bool = False
    """Print the configuration as JSON."""


def _recipe_show(arguments: Sequence[str]) -> None:
    flags = parse(ShowFlags, arguments, "recipe show")
    from lamp.configuration import to_json
    from lamp.info import to_text
    from lamp.model.counting import expected_parameters
    from lamp.recipes import recipe

    made = recipe(flags.name)
    if flags.json:
        print(json.dumps(to_json(made), indent=2, ensure_ascii=False))
        return
    counts = {name: expected_parameters(model) for name, model in made.models.items()}
    print(to_text({**to_json(made), "parameters": counts}))


@dataclass(frozen=True, kw_only=True)
class ImportFlags:
    """Makes a checkpoint of the authors' released LaMP-LIBERO or LaMP-Motion-Expert, with all its conventions."""

    source: tyro.conf.Positional[str]
    """A folder with config.yaml, dataset_statistics.json and one .pt, or a hub id such as summerwang11/LaMP-LIBERO."""
    out: tyro.conf.Positional[Path]
    """The new checkpoint's folder."""
    revision: str | None = None
    """The hub's branch or commit."""
    vlm: Path | None = None
    """The VLM's folder: its config.json, tokenizer.json and preprocessor_config.json, and its weights where the release has none.
    By default, the hub is asked for the VLM that config.yaml names."""


def _import_released(arguments: Sequence[str]) -> None:
    flags = parse(ImportFlags, arguments, "import-released")
    from lamp.train.released import import_released

    found = import_released(flags.source, flags.out, revision=flags.revision, vlm=flags.vlm)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{found.checkpoint}: a {found.kind} checkpoint (lamp info {found.checkpoint})")


@dataclass(frozen=True, kw_only=True)
class ExportFlags:
    """Writes a checkpoint as the authors' code reads it: config.yaml, dataset_statistics.json, one .pt and a manifest."""

    checkpoint: tyro.conf.Positional[Path]
    """One that was imported, or whose model and scaling are the release's."""
    out: tyro.conf.Positional[Path]
    """The new folder."""
    vlm: Path | None = None
    """A folder with the VLM's weights as transformers saves them; by default, those that an import has kept."""


def _export_released(arguments: Sequence[str]) -> None:
    flags = parse(ExportFlags, arguments, "export-released")
    from lamp.train.released import export_released

    found = export_released(flags.checkpoint, flags.out, vlm=flags.vlm)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{found.folder}: a released {found.kind}")


@dataclass(frozen=True, kw_only=True)
class CheckFlags:
    """Computes the golden vectors of a file with released weights, and compares: exit code 1 beyond 1e-4."""

    file: tyro.conf.Positional[Path]
    """Weights (weights.*), inputs and outputs (golden.*) in safetensors, with the sizes in the metadata's `config`."""


def _check_released(arguments: Sequence[str]) -> None:
    flags = parse(CheckFlags, arguments, "check-released")
    from lamp.model.released.golden import TOLERANCE, check

    errors = check(flags.file)
    width = max(map(len, errors))
    for name, error in errors.items():
        print(f"golden.{name:<{width}}  {error:.3g}")
    # Written so that a NaN, which compares with nothing, fails too.
    failing = [name for name, error in errors.items() if not error <= TOLERANCE]
    if failing:
        print(f"beyond {TOLERANCE}: {', '.join(failing)}", file=sys.stderr)
        raise SystemExit(1)


def _bench_infer(arguments: Sequence[str]) -> None:
    from lamp.bench.infer import InferConfig, bench_infer, to_text

    config = parse(InferConfig, arguments, "bench infer")
    result = bench_infer(config)
    print(json.dumps(asdict(result), indent=2) if config.json else to_text(result))


def _bench_train_step(arguments: Sequence[str]) -> None:
    from lamp.bench.train_step import TrainStepConfig, bench_train_step, to_text

    config = parse(TrainStepConfig, arguments, "bench train-step")
    result = bench_train_step(config)
    print(json.dumps(asdict(result), indent=2) if config.json else to_text(result))


def _serve(arguments: Sequence[str]) -> None:
    from lamp.serve.config import ServeConfig
    from lamp.serve.server import serve
    from lamp.view.overlay import ForesightArtist

    serve(parse(ServeConfig, arguments, "serve"), artist=ForesightArtist())


@dataclass(frozen=True, kw_only=True)
class RecordingFlags:
    """Makes a LeRobot dataset of what a robot or simulator recorded; again, it takes up what was recorded since."""

    recording: tyro.conf.Positional[Path]
    """The recorder's folder."""
    out: Path
    """The dataset."""
    robot_type: str = "panda"
    """As written in the dataset's description."""
    successes_only: bool = False
    """Leave out episodes that nobody called a success."""


def _import_recording(arguments: Sequence[str]) -> None:
    flags = parse(RecordingFlags, arguments, "import-recording")
    from lamp.data.recordings import import_recording

    found = import_recording(
        flags.recording, flags.out, robot_type=flags.robot_type, successes_only=flags.successes_only
    )
    for line in found.skipped:
        print(f"left out {line}", file=sys.stderr)
    print(f"{flags.out}: {found.episodes} new episodes, {found.frames} frames")


@dataclass(frozen=True, kw_only=True)
class ServeBenchFlags:
    """Measures the policy server under many clients on loopback; every reply is checked against its request."""

    json: bool = False
    """Print JSON."""


def _bench_serve(arguments: Sequence[str]) -> None:
    from lamp.bench.serving import ServeBench, bench_serving, summary

    flags, bench = parse_beside(ServeBenchFlags, ServeBench, arguments, "bench serve")
    figures = bench_serving(bench)
    print(json.dumps(figures, indent=2) if flags.json else summary(figures))
    if figures["wrong_replies"] or figures["lost_replies"] or figures["errors"]:
        raise SystemExit(1)


@dataclass(frozen=True, kw_only=True)
class DataCheckFlags:
    """Reads a whole LeRobot dataset, v2.0, v2.1 or v3.0, and reports every fault it finds: exit code 1 if there is one."""

    data: tyro.conf.Positional[Path]
    """The dataset: a folder, or a hub id."""
    workers: int = 1
    """Processes that read."""
    quick: bool = False
    """Count the videos' pictures without decoding them."""
    json: bool = False
    """Print JSON."""


def _data_check(arguments: Sequence[str]) -> None:
    flags = parse(DataCheckFlags, arguments, "data check")
    from lamp.data.check import check_dataset

    found = check_dataset(flags.data, workers=flags.workers, quick=flags.quick)
    print(json.dumps(found.to_json(), indent=2, ensure_ascii=False) if flags.json else found.to_text())
    if not found.ok:
        raise SystemExit(1)


@dataclass(frozen=True, kw_only=True)
class DataBenchFlags:
    """Measures how many samples a second the loader gives: from videos, from decoded frames, from cached features."""

    data: Path | None = None
    """The dataset; by default a small one is made up."""
    recipe: str = "demo"
    """The recipe whose backbone encodes."""
    workers: int = 2
    """Processes that load."""
    batch_size: int = 16
    """Samples a batch."""
    seconds: float = 10.0
    """How long to measure each way. [s]"""
    json: bool = False
    """Print JSON."""


def _bench_data(arguments: Sequence[str]) -> None:
    flags = parse(DataBenchFlags, arguments, "bench data")
    from lamp.bench.loading import measure_loading
    from lamp.info import to_text

    found = measure_loading(
        _training(flags.recipe).backbone,
        flags.data,
        workers=flags.workers,
        batch_size=flags.batch_size,
        seconds=flags.seconds,
    )
    print(json.dumps(found, ensure_ascii=False) if flags.json else to_text(found))


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of the line: what it is for, and what runs it."""

    summary: str
    run: Callable[[Sequence[str]], None]


COMMANDS: dict[str, Command] = {
    "demo": Command(summary="run everything once, small, from demonstrations to a report", run=_demo),
    "collect": Command(summary="record demonstrations of LIBERO tasks with a scripted expert", run=_collect),
    "flow build": Command(summary="compute the 3-D scene flow of a dataset", run=_flow_build),
    "cache features": Command(summary="compute the frozen backbone's features of a dataset", run=_cache_features),
    "data check": Command(summary="find every fault of a LeRobot dataset", run=_data_check),
    "bench data": Command(summary="measure the loader: videos, decoded frames, cached features", run=_bench_data),
    "train motion": Command(summary="Stage 1: the Motion Expert, on scene flow", run=_train_motion),
    "train policy": Command(summary="Stage 2: guidance and Action Expert, on actions", run=_train_policy),
    "resize": Command(summary="carry a Motion Expert's weights over to another grid or horizon", run=_resize),
    "evaluate": Command(summary="run a policy in the simulator and count successes", run=_evaluate),
    "serve": Command(summary="answer robots and simulators over the network", run=_serve),
    "bench serve": Command(summary="measure the policy server under many clients", run=_bench_serve),
    "import-recording": Command(summary="make a dataset of what a robot recorded", run=_import_recording),
    "view": Command(summary="draw predicted beside true scene flow", run=_view),
    "report": Command(summary="write the HTML report of a run", run=_report),
    "import-released": Command(summary="make a checkpoint of the authors' released weights", run=_import_released),
    "export-released": Command(summary="write a checkpoint as the authors' code reads it", run=_export_released),
    "check-released": Command(summary="compare golden vectors of released weights with ours", run=_check_released),
    "bench infer": Command(summary="measure what a chunk of actions costs, stage by stage", run=_bench_infer),
    "bench train-step": Command(summary="measure what a training step costs, part by part", run=_bench_train_step),
    "info": Command(summary="say what a folder is and what is in it", run=_info),
    "recipe list": Command(summary="list the recipes: named, complete configurations", run=_recipe_list),
    "recipe show": Command(summary="print a recipe's configuration", run=_recipe_show),
}
